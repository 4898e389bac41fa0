//! Standard error, as the log writes to it: a line that it does not take is lost and counted, and nobody waits for its reader.
//!
//! A full disk and a reader that is gone refuse a line; a reader that stands still would hold up whoever writes, and with that
//! the clients that the same thread serves. What can't be written now is looked at once, for [`READER_MS_MAX`]; while lines are
//! being lost there is no wait at all. Kubernetes, journald and shells all read a pipe or a socket.

use std::io::{self, Stderr, Write};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

use crate::lost_lines;

/// Milliseconds that a line waits for a reader.
const READER_MS_MAX: i64 = 100;

/// Bytes that a pipe takes without a wait whenever it is ready at all: PIPE_BUF of Linux.
const PIECE_BYTES: usize = 4096;

#[derive(Clone)]
pub(super) struct StandardError(Arc<Mutex<End>>);

struct End {
    /// The last line was lost.
    failing: bool,
    stderr: Stderr,
    /// Standard error ends within a line.
    torn: bool,
}

impl StandardError {
    pub(super) fn new() -> StandardError {
        StandardError(Arc::new(Mutex::new(End { failing: false, stderr: io::stderr(), torn: false })))
    }
}

impl End {
    fn add(&mut self, line: &[u8]) {
        let mut wait = if self.failing { 0 } else { READER_MS_MAX };
        let end_of_torn: &[u8] = if self.torn { b"\n" } else { b"" };
        let mut begun = false;
        for piece in std::iter::once(end_of_torn).chain(line.chunks(PIECE_BYTES)).filter(|piece| !piece.is_empty()) {
            if !self.takes(wait) || self.stderr.write_all(piece).is_err() {
                self.failing = true;
                self.torn |= begun;
                lost_lines::add();
                return;
            }
            begun = true;
            wait = READER_MS_MAX;
        }
        (self.failing, self.torn) = (false, false);
    }

    /// Whether a piece can be written without a wait, at the latest after so many milliseconds.
    fn takes(&self, milliseconds: i64) -> bool {
        let wait = Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
        let mut ends = [PollFd::new(&self.stderr, PollFlags::OUT)];
        match poll(&mut ends, Some(&wait)) {
            Ok(0) => false,
            // Its reader is gone, or it is closed: the write says so, and does not wait.
            Ok(_) => true,
            // A signal; or what it leads to can't be looked at, which does not happen to pipes, sockets, terminals and files.
            Err(_) => true,
        }
    }
}

/// One line at a time, as the subscriber formats them. Never fails: what is lost is counted here.
impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for StandardError {
    type Writer = StandardError;

    fn make_writer(&self) -> StandardError {
        self.clone()
    }
}
