//! The guard in front of lapin: follows the frames that the broker sends and takes out or repairs what lapin handles
//! wrongly.
//!
//! The frames of returned messages are swallowed and recorded in [`Wire`]: lapin attaches them to the wrong confirm and logs
//! their payload. What lapin could not read in a delivery is repaired ([`super::repair`]). `connection.start`,
//! `connection.tune` and `channel.close` are looked at. Deliveries beyond what a session may have waiting are taken out too
//! ([`super::sluice`]). Everything else passes in place, untouched and uncopied, frame by
//! frame. What is not AMQP passes as it is: lapin judges it.
//!
//! A frame of interest that lies whole in what was read is judged where it lies. One that is cut off by the end of a read
//! is gathered: nothing is read beyond its end then, so that nothing has to be put back.
//!
//! Bounded: one frame is held at most, and of a content header no more than the negotiated frame size. A body frame above
//! that passes: RabbitMQ splits bodies by the receiver's frame size, so it would be a broken broker, and lapin ends the link.

use super::frame::{self, Head, HeadScan, Kind, methods};
use super::repair::{Outcome, repair};
use super::repair_log::RepairLog;
use super::returns::{Collected, Returns};
use super::shrink::Shrinking;
use super::sluice::Intake;
use super::wire::{Refusal, Wire};
use std::io;
use std::sync::Arc;
use std::task::{Poll, ready};

/// Largest method frame that is looked at. The longest needed is connection.start, below 2 KiB from RabbitMQ.
const METHOD_BYTES_MAX: usize = 64 * 1024;
/// Bytes read at once while a frame is gathered.
const GATHER_BYTES: usize = 16 * 1024;
/// A buffer above this is given back after use.
const KEPT_CAPACITY_MAX: usize = 256 * 1024;

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    Pass,
    /// Taken out unread.
    Drop,
    /// Judged as a whole.
    Judge,
    /// A content header that is too large: judged without its headers table.
    Shrink,
}

#[derive(Debug)]
enum State {
    /// At the start of a frame.
    Between,
    /// The start of a frame, its head perhaps not whole, is in `held`.
    Gathering(Gathering),
    Passing {
        left: usize,
    },
    Dropping {
        head: Head,
        left: usize,
    },
    /// Not AMQP any more: everything passes.
    Foreign,
}

#[derive(Debug)]
enum Gathering {
    Head,
    Whole { head: Head },
    Shrinking { head: Head, shrinking: Shrinking },
}

/// Whether a frame that is judged had to be shrunk before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Legal,
    Shrunk,
}

pub(super) struct Guard {
    /// The frame that is being gathered.
    held: Vec<u8>,
    /// A gathered frame on its way to lapin, from `spare_at` on.
    spare: Vec<u8>,
    spare_at: usize,
    /// Largest frame that lapin accepts.
    frame_bytes_max: usize,
    log: RepairLog,
    intake: Intake,
    returns: Returns,
    state: State,
    wire: Arc<Wire>,
}

impl Guard {
    /// `link` names the link in the log; `frame_bytes_max` is what lapin asks the broker for.
    pub(super) fn new(link: String, frame_bytes_max: u32, wire: Arc<Wire>) -> Guard {
        Guard {
            held: Vec::new(),
            spare: Vec::new(),
            spare_at: 0,
            frame_bytes_max: frame_bytes_max as usize,
            log: RepairLog::new(link),
            intake: Intake::new(wire.clone()),
            returns: Returns::new(wire.clone()),
            state: State::Between,
            wire,
        }
    }

    /// Reads into `destination` through the guard. `read` is the socket: bytes read, 0 at its end.
    pub(super) fn poll_fill(
        &mut self,
        destination: &mut [u8],
        mut read: impl FnMut(&mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if destination.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            if self.spare_at < self.spare.len() {
                return Poll::Ready(Ok(self.serve_spare(destination)));
            }
            if let State::Gathering(_) = self.state {
                if ready!(self.poll_gather(&mut read))? == 0 {
                    self.end_gathering();
                }
                continue;
            }
            let bytes = ready!(read(destination))?;
            let kept = self.filter(&mut destination[..bytes]);
            if kept > 0 || bytes == 0 {
                return Poll::Ready(Ok(kept));
            }
        }
    }

    fn serve_spare(&mut self, destination: &mut [u8]) -> usize {
        let bytes = destination.len().min(self.spare.len() - self.spare_at);
        destination[..bytes].copy_from_slice(&self.spare[self.spare_at..self.spare_at + bytes]);
        self.spare_at += bytes;
        if self.spare_at == self.spare.len() && self.spare.capacity() > KEPT_CAPACITY_MAX {
            self.spare = Vec::new();
        }
        bytes
    }

    /// Makes what is held the next that lapin reads.
    fn release_held(&mut self) {
        self.spare.clear();
        std::mem::swap(&mut self.spare, &mut self.held);
        self.spare_at = 0;
    }

    /// The stream ended within a frame: what was held is all there will be. What is left of a shrunk one is no frame.
    fn end_gathering(&mut self) {
        if matches!(self.state, State::Gathering(Gathering::Shrinking { .. })) {
            self.held.clear();
        }
        self.state = State::Foreign;
        self.release_held();
    }

    /// Reads on in the frame that is being gathered, not beyond its end.
    fn poll_gather(&mut self, read: &mut impl FnMut(&mut [u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let State::Gathering(gathering) = &mut self.state else { return Poll::Ready(Ok(0)) };
        let wanted = match gathering {
            Gathering::Head => frame::head_bytes_missing(&self.held),
            Gathering::Whole { head } => head.frame_bytes() - self.held.len(),
            Gathering::Shrinking { shrinking, .. } => shrinking.left(),
        };
        let from = self.held.len();
        self.held.resize(from + wanted.min(GATHER_BYTES), 0);
        let result = read(&mut self.held[from..]);
        let bytes = match &result {
            Poll::Ready(Ok(bytes)) => *bytes,
            _ => 0,
        };
        self.held.truncate(from + bytes);
        if let Gathering::Shrinking { shrinking, .. } = gathering {
            let read = self.held.split_off(from);
            shrinking.take(&read, &mut self.held);
        }
        self.finish_gathering();
        result
    }

    /// Ends the gathering if the frame, or the head alone, is whole.
    fn finish_gathering(&mut self) {
        let State::Gathering(gathering) = &self.state else { return };
        let head = match gathering {
            Gathering::Head => return self.finish_head(),
            Gathering::Whole { head } if self.held.len() == head.frame_bytes() => *head,
            Gathering::Shrinking { head, shrinking } if shrinking.left() == 0 => *head,
            Gathering::Whole { .. } | Gathering::Shrinking { .. } => return,
        };
        let size = if matches!(gathering, Gathering::Whole { .. }) { Size::Legal } else { Size::Shrunk };
        let mut held = std::mem::take(&mut self.held);
        let kept = self.judge(&head, size, &mut held);
        held.truncate(kept);
        self.held = held;
        self.state = State::Between;
        self.release_held();
    }

    fn finish_head(&mut self) {
        let head = match frame::scan_head(&self.held) {
            HeadScan::Incomplete => return,
            HeadScan::Foreign => {
                self.state = State::Foreign;
                return self.release_held();
            }
            HeadScan::Found(head) => head,
        };
        let left = head.frame_bytes() - self.held.len();
        match self.treatment(&head) {
            Treatment::Pass => {
                self.state = State::Passing { left };
                self.release_held();
            }
            Treatment::Drop => {
                self.state = State::Dropping { head, left };
                self.held.clear();
            }
            Treatment::Judge => self.state = State::Gathering(Gathering::Whole { head }),
            Treatment::Shrink => self.start_shrinking(head),
        }
    }

    /// Shrinks the frame whose head is held.
    fn start_shrinking(&mut self, head: Head) {
        let start = std::mem::take(&mut self.held);
        let mut shrinking = Shrinking::new(head.frame_bytes());
        shrinking.take(&start, &mut self.held);
        self.state = State::Gathering(Gathering::Shrinking { head, shrinking });
    }

    /// Moves what passes to the front of `bytes` and returns how much that is.
    fn filter(&mut self, bytes: &mut [u8]) -> usize {
        let (mut from, mut kept) = (0, 0);
        while from < bytes.len() {
            let offered = bytes.len() - from;
            let (run, passes) = match &mut self.state {
                State::Foreign => (offered, offered),
                State::Passing { left } => {
                    let run = (*left).min(offered);
                    *left -= run;
                    if *left == 0 {
                        self.state = State::Between;
                    }
                    (run, run)
                }
                State::Dropping { head, left } => {
                    let run = (*left).min(offered);
                    *left -= run;
                    if *left == 0 {
                        let head = *head;
                        self.state = State::Between;
                        self.returns.count_body(&head);
                        self.intake.count_body(&head);
                    }
                    (run, 0)
                }
                State::Between => match self.begin(&mut bytes[from..]) {
                    Some(judged) => judged,
                    None => continue,
                },
                // Only at the end of what was read.
                State::Gathering(_) => break,
            };
            if passes > 0 && from != kept {
                bytes.copy_within(from..from + passes, kept);
            }
            kept += passes;
            from += run;
        }
        kept
    }

    /// Begins the frame at the start of `bytes`. Judges it if it is whole: how long it was, and is now. Otherwise the new
    /// state says how to go on.
    fn begin(&mut self, bytes: &mut [u8]) -> Option<(usize, usize)> {
        let head = match frame::scan_head(bytes) {
            HeadScan::Incomplete => {
                self.hold(bytes, Gathering::Head);
                return None;
            }
            HeadScan::Foreign => {
                self.state = State::Foreign;
                return None;
            }
            HeadScan::Found(head) => head,
        };
        let frame_bytes = head.frame_bytes();
        match self.treatment(&head) {
            Treatment::Pass => self.state = State::Passing { left: frame_bytes },
            Treatment::Drop => self.state = State::Dropping { head, left: frame_bytes },
            Treatment::Judge => match bytes.get_mut(..frame_bytes) {
                Some(frame) => return Some((frame_bytes, self.judge(&head, Size::Legal, frame))),
                None => self.hold(bytes, Gathering::Whole { head }),
            },
            Treatment::Shrink => {
                let mut shrinking = Shrinking::new(frame_bytes);
                self.held.clear();
                let taken = shrinking.take(bytes, &mut self.held);
                if shrinking.left() > 0 {
                    self.state = State::Gathering(Gathering::Shrinking { head, shrinking });
                    return None;
                }
                let mut held = std::mem::take(&mut self.held);
                let kept = self.judge(&head, Size::Shrunk, &mut held);
                bytes[..kept].copy_from_slice(&held[..kept]);
                return Some((taken, kept));
            }
        }
        None
    }

    fn hold(&mut self, bytes: &[u8], gathering: Gathering) {
        self.held.clear();
        self.held.extend_from_slice(bytes);
        self.state = State::Gathering(gathering);
    }

    fn treatment(&mut self, head: &Head) -> Treatment {
        match head.kind {
            Kind::Method { class, method } => {
                self.returns.interrupt(head.channel);
                self.intake.interrupt(head.channel);
                match (class, method) {
                    _ if head.payload > METHOD_BYTES_MAX => Treatment::Pass,
                    methods::CONNECTION_START
                    | methods::CONNECTION_TUNE
                    | methods::CONNECTION_CLOSE
                    | methods::CHANNEL_CLOSE
                    | methods::BASIC_DELIVER
                    | methods::BASIC_RETURN => Treatment::Judge,
                    _ => Treatment::Pass,
                }
            }
            Kind::Header if head.frame_bytes() > self.frame_bytes_max => Treatment::Shrink,
            Kind::Header => Treatment::Judge,
            Kind::Body if self.returns.has_body(head.channel) || self.intake.has_body(head.channel) => Treatment::Drop,
            Kind::Body => Treatment::Pass,
            Kind::Heartbeat => Treatment::Pass,
        }
    }

    /// Reads a whole frame, repairs it if need be, and says how many bytes of it go to lapin.
    fn judge(&mut self, head: &Head, size: Size, frame: &mut [u8]) -> usize {
        if self.returns.collect(head, frame) == Collected::Taken || self.intake.collect(head, frame) == Collected::Taken
        {
            return 0;
        }
        let repaired = repair(head.kind, frame);
        let bytes = match repaired {
            Outcome::Untouched => frame.len(),
            Outcome::Repaired(bytes) => bytes,
        };
        self.observe(head, &frame[..bytes]);
        if size == Size::Shrunk || repaired != Outcome::Untouched {
            self.wire.record_repair();
            self.log.repaired(head);
        }
        bytes
    }

    fn observe(&mut self, head: &Head, frame: &[u8]) {
        let Kind::Method { class, method } = head.kind else { return };
        let Some(payload) = frame::payload(frame) else { return };
        match (class, method) {
            methods::CONNECTION_START => {
                if let Some(version) = frame::server_version(payload) {
                    self.wire.record_version(version);
                }
            }
            methods::CONNECTION_TUNE => {
                self.wire.record_authenticated();
                // The smaller of both is agreed upon; 0 is no limit.
                match frame::tune_frame_max(payload) {
                    None | Some(0) => {}
                    Some(bytes) => {
                        self.wire.record_frame_max(bytes);
                        self.frame_bytes_max = self.frame_bytes_max.min(bytes as usize);
                    }
                }
            }
            methods::CHANNEL_CLOSE => {
                if let Some((reply_code, reply_text)) = frame::channel_close(payload) {
                    self.wire.record_refusal(head.channel, Refusal { reply_code, reply_text });
                }
            }
            methods::BASIC_DELIVER => self.log.delivering(head.channel, payload),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
