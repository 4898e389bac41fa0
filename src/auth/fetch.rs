//! One GET of a small document over HTTPS: of a key set, or of the page that says where it is.
//!
//! Follows no redirect, so that nobody but the configuration says which hosts are asked. Time and size are bounded. Plain
//! HTTP goes to this machine only.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::key::KEY_SET_BYTES_MAX;

/// Fetches documents.
#[derive(Clone, Debug)]
pub(super) struct Fetcher {
    timeout: Duration,
    tls: Arc<ClientConfig>,
}

/// Where a document is: `https`, or `http` on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentUrl {
    encrypted: bool,
    host: String,
    port: u16,
    uri: Uri,
}

impl std::str::FromStr for DocumentUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<DocumentUrl, String> {
        let uri: Uri = text.parse().map_err(|_| "is not a URL".to_owned())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let host = authority.ok_or("is not a URL of a host, without user info")?.host();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let local = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if local => false,
            Some("http") => return Err("is not encrypted; http is for this machine only, use https".to_owned()),
            _ => return Err("is not an https URL".to_owned()),
        };
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        Ok(DocumentUrl { encrypted, host, port, uri })
    }
}

impl std::fmt::Display for DocumentUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.uri.fmt(f)
    }
}

impl Fetcher {
    /// `ca` is a PEM file with the authorities to trust instead of the system's.
    ///
    /// # Errors
    /// A text for people: there are no certificates to trust.
    pub(super) fn new(ca: Option<&Path>, timeout: Duration) -> Result<Fetcher, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = builder.map_err(|error| error.to_string())?.with_root_certificates(roots(ca)?).with_no_client_auth();
        Ok(Fetcher { timeout, tls: Arc::new(tls) })
    }

    /// # Errors
    /// A text for people.
    pub(super) async fn get(&self, url: &DocumentUrl) -> Result<Bytes, String> {
        let work = async {
            let cannot = |error: std::io::Error| format!("cannot connect: {error}");
            let socket = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(cannot)?;
            if !url.encrypted {
                return request(socket, url).await;
            }
            let name = ServerName::try_from(url.host.clone()).map_err(|_| "no host that TLS knows".to_owned())?;
            let stream = TlsConnector::from(self.tls.clone()).connect(name, socket).await.map_err(cannot)?;
            request(stream, url).await
        };
        let result = crate::patience::timeout(self.timeout, work).await;
        let result = result.unwrap_or_else(|_| Err(format!("no whole answer within {:?}", self.timeout)));
        result.map_err(|reason| format!("{url}: {reason}"))
    }
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let wrong = |reason: String| format!("{}: {reason}", path.display());
            let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|_| wrong("holds broken PEM".to_owned()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
        }
        // Single certificates of the system that can't be read are left out; without any, every fetch says so.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    Ok(roots)
}

async fn request(stream: impl AsyncRead + AsyncWrite + Unpin, url: &DocumentUrl) -> Result<Bytes, String> {
    let failed = |error: hyper::Error| format!("no HTTP answer: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let authority = url.uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(url.uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("stomp-relay/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let work = async move {
        let response = sender.send_request(request).await.map_err(failed)?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => {
                return Err(format!("answers {status}; redirects are not followed, name the final URL"));
            }
            status => return Err(format!("answers {status}")),
        }
        let body = Limited::new(response.into_body(), KEY_SET_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("no answer of at most {} KiB: {error}", KEY_SET_BYTES_MAX >> 10))?;
        Ok(body.to_bytes())
    };
    let (mut work, mut connection) = (std::pin::pin!(work), std::pin::pin!(connection));
    tokio::select! {
        biased;
        result = &mut work => return result,
        // What it has read is still to be taken.
        _ = &mut connection => {}
    }
    work.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_or_this_machine_is_asked() {
        for url in
            ["https://id.example.com/keys", "http://127.0.0.1:8080/keys", "http://localhost/", "http://[::1]:1/k"]
        {
            assert!(url.parse::<DocumentUrl>().is_ok(), "{url}");
        }
        for url in [
            "http://id.example.com/keys",
            "http://localhost.example.com/keys",
            "http://10.0.0.1/keys",
            "ftp://localhost/keys",
            "file:///etc/passwd",
            "https://user:pass@id.example.com/keys",
            "/keys",
            "id.example.com",
            "",
        ] {
            assert!(url.parse::<DocumentUrl>().is_err(), "{url}");
        }
    }
}
