//! The audit log's file: a line is in it whole or not at all, and what could not be written is counted.
//!
//! A disk that is full takes the beginning of a line and refuses the rest. That beginning is taken back; where it can't be, the
//! next line begins on a line of its own. The first line that is written after some were lost says how many.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::audit;

/// Lines are added at its end.
#[derive(Clone)]
pub(super) struct AuditFile {
    end: Arc<Mutex<End>>,
    path: PathBuf,
}

/// Where the next line goes.
struct End {
    file: File,
    /// Lines that were not written since the last one that was.
    lost: u64,
    /// The file ends within a line.
    torn: bool,
}

impl AuditFile {
    pub(super) fn open(path: &Path) -> Result<AuditFile, String> {
        let end = End { file: append_to(path)?, lost: 0, torn: false };
        Ok(AuditFile { end: Arc::new(Mutex::new(end)), path: path.to_owned() })
    }

    /// Goes on in the file that has the name now: the old one may have been moved away.
    pub(super) fn reopen(&self) -> Result<(), String> {
        let file = append_to(&self.path)?;
        let mut end = self.end();
        (end.file, end.torn) = (file, false);
        Ok(())
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For its owner to write, and its group to read.
fn append_to(path: &Path) -> Result<File, String> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    opened.map_err(|error| format!("cannot write log.audit_file {}: {error}", path.display()))
}

impl End {
    fn add(&mut self, line: &[u8]) {
        let mut text = Vec::with_capacity(line.len() + 1);
        if self.torn {
            text.push(b'\n');
        }
        if self.lost > 0 {
            text.extend_from_slice(lost_line(self.lost).as_bytes());
        }
        text.extend_from_slice(line);
        match write_whole(&mut self.file, &text) {
            Ok(()) => {
                (self.lost, self.torn) = (0, false);
                audit::written();
            }
            Err(NotWritten { error, rest }) => {
                self.lost += 1;
                self.torn |= rest == Rest::Left;
                audit::lost(&error.to_string());
            }
        }
    }
}

struct NotWritten {
    error: io::Error,
    rest: Rest,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// The beginning of the text is still there.
    Left,
    /// Nothing of the text is in the file.
    None,
}

/// All of it, or nothing.
fn write_whole(file: &mut File, text: &[u8]) -> Result<(), NotWritten> {
    let mut written = 0;
    while written < text.len() {
        let error = match file.write(&text[written..]) {
            Ok(0) => io::Error::from(io::ErrorKind::WriteZero),
            Ok(count) => {
                written += count;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        let rest = if written == 0 || take_back(file, written).is_ok() { Rest::None } else { Rest::Left };
        return Err(NotWritten { error, rest });
    }
    Ok(())
}

/// Cuts what was just added off the end again.
fn take_back(file: &File, bytes: usize) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.set_len(length.saturating_sub(u64::try_from(bytes).unwrap_or(u64::MAX)))
}

fn lost_line(count: u64) -> String {
    let mut time = String::new();
    // Writing to a String does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    format!(
        "{{\"timestamp\":\"{time}\",\"level\":\"WARN\",\"event\":\"audit.lost\",\"count\":{count},\"target\":\"audit\"}}\n"
    )
}

/// One line at a time, as the subscriber formats them. Never fails: what is lost is counted here.
impl Write for AuditFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.end().add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for AuditFile {
    type Writer = AuditFile;

    fn make_writer(&self) -> AuditFile {
        self.clone()
    }
}
