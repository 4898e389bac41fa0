//! Static files below one folder, for a demonstration page beside the WebSocket.
//!
//! Not a web server: no listings, no ranges, no compression, no caching beyond `no-cache`.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::HeaderValue;
use percent_encoding::percent_decode_str;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use crate::descriptors;

/// Largest file that is served; a larger one is not found.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Bytes of a file held in memory for one client at a time.
const CHUNK: usize = 64 * 1024;

/// What `/` and other paths that end in a slash stand for.
const INDEX: &str = "index.html";

/// The folder whose files are public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticRoot(PathBuf);

/// Why there is no file to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// No descriptor is free for it now.
    NoDescriptor,
    /// All that is not a public regular file: what exists beyond that is nobody's business.
    NotFound,
}

impl From<io::Error> for Unopened {
    fn from(error: io::Error) -> Unopened {
        if descriptors::are_short(&error) { Unopened::NoDescriptor } else { Unopened::NotFound }
    }
}

/// A file that may be sent.
pub(super) struct StaticFile {
    pub(super) content_type: HeaderValue,
    pub(super) length: u64,
    file: File,
}

impl StaticRoot {
    /// Names the folder.
    ///
    /// # Errors
    /// It does not exist, is not a folder or may not be read.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let root = folder.canonicalize()?;
        if !root.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "not a folder"));
        }
        Ok(StaticRoot(root))
    }

    /// Opens the file that a request path names.
    ///
    /// # Errors
    /// See [`Unopened`].
    pub(super) async fn open(&self, request_path: &str) -> Result<StaticFile, Unopened> {
        // Symbolic links are followed, but not out of the folder.
        let path = tokio::fs::canonicalize(self.0.join(relative(request_path).ok_or(Unopened::NotFound)?)).await?;
        if path.strip_prefix(&self.0).ok().is_none_or(is_hidden) {
            return Err(Unopened::NotFound);
        }
        // Asked before opening: to open a FIFO would wait for its writer.
        if !tokio::fs::metadata(&path).await?.is_file() {
            return Err(Unopened::NotFound);
        }
        let file = File::open(&path).await?;
        if descriptors::is_reserved(&file) {
            return Err(Unopened::NoDescriptor);
        }
        let length = file.metadata().await?.len();
        if length > FILE_BYTES_MAX {
            return Err(Unopened::NotFound);
        }
        Ok(StaticFile { content_type: HeaderValue::from_static(content_type(&path)), length, file })
    }
}

impl StaticFile {
    /// The contents, read as the client takes them; never more than the announced length, should the file grow.
    pub(super) fn into_body(self) -> UnsyncBoxBody<Bytes, io::Error> {
        let chunks = stream::try_unfold(self.file.take(self.length), async |mut file| {
            let mut chunk = Vec::with_capacity(CHUNK.min(file.limit() as usize));
            let count = file.read_buf(&mut chunk).await?;
            Ok::<_, io::Error>((count > 0).then(|| (Frame::data(Bytes::from(chunk)), file)))
        });
        StreamBody::new(chunks).boxed_unsync()
    }
}

/// Whether a path leads through a hidden name, whatever a link to it is called. Folders whose names begin with two dots hold the
/// files of a volume of Kubernetes, which are links into them.
fn is_hidden(path: &Path) -> bool {
    let hidden = |name: &[u8]| name.starts_with(b".") && !name.starts_with(b"..");
    path.components().any(|part| hidden(part.as_os_str().as_encoded_bytes()))
}

/// The path below the root, or None if it could lead elsewhere or to a hidden file.
fn relative(request_path: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    let mut segments = request_path.strip_prefix('/')?.split('/').peekable();
    while let Some(segment) = segments.next() {
        let name = percent_decode_str(segment).decode_utf8().ok()?;
        match name.as_ref() {
            "" if segments.peek().is_none() => path.push(INDEX),
            // Also "." and "..".
            name if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0', ':']) => return None,
            name => path.push(name),
        }
    }
    Some(path)
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "txt" => "text/plain; charset=utf-8",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        let good = |path: &str| relative(path).unwrap().to_string_lossy().into_owned();
        assert_eq!(good("/"), "index.html");
        assert_eq!(good("/a/"), "a/index.html");
        assert_eq!(good("/a/b%20c.js"), "a/b c.js");
        for bad in [
            "",
            "*",
            "a",
            "//",
            "//etc",
            "/a//b",
            "/..",
            "/../x",
            "/a/../b",
            "/%2e%2e/x",
            "/%2E%2e%2fx",
            "/a%2fb",
            "/.git/config",
            "/a/.env",
            "/.",
            "/a\\b",
            "/a%5cb",
            "/a%00",
            "/%ff",
            "/c:x",
        ] {
            assert_eq!(relative(bad), None, "{bad}");
        }
    }
}
