//! Content headers that are larger than lapin accepts.
//!
//! RabbitMQ splits bodies by the receiver's frame size but never a content header, and a publisher may have negotiated a
//! larger one. Its headers table goes by without being held; all else that a legal content header has fits
//! [`KEPT_BYTES_MAX`], whatever the size of the frame.

use super::frame::{self, CONTENT_HEAD_BYTES, END_BYTES, HEAD_BYTES};
use super::repair::write_size;

/// Takes one such frame in and keeps it without its headers table.
#[derive(Debug)]
pub(super) struct Shrinking {
    /// Bytes of the frame to come.
    left: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    BeforeTable,
    Table(usize),
    AfterTable,
}

/// Frame head, fixed part, content type and encoding, length of the table: after so many bytes the table is found.
const BEFORE_TABLE_BYTES_MAX: usize = HEAD_BYTES + CONTENT_HEAD_BYTES + 2 * 256 + 4;
/// What is kept of an oversize content header. The other properties, eight texts of 256 bytes among them, need fewer; and it
/// is less than the smallest frame size of AMQP, 4096.
const KEPT_BYTES_MAX: usize = 3072;

impl Shrinking {
    pub(super) fn new(frame_bytes: usize) -> Shrinking {
        Shrinking { left: frame_bytes, stage: Stage::BeforeTable }
    }

    /// Bytes to come until the end of the frame.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Takes bytes of the frame, at most to its end, and adds to `kept` what is kept. Returns how many were taken. When none
    /// are left, `kept` is a whole frame.
    pub(super) fn take(&mut self, bytes: &[u8], kept: &mut Vec<u8>) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && self.left > 0 {
            let offered = &bytes[taken..];
            let run = match self.stage {
                Stage::BeforeTable => BEFORE_TABLE_BYTES_MAX - kept.len(),
                Stage::Table(table) => table,
                // The end octet is kept in any case.
                Stage::AfterTable if self.left > 1 => self.left - 1,
                Stage::AfterTable => 1,
            };
            let run = run.min(offered.len()).min(self.left);
            let room = match self.stage {
                Stage::BeforeTable => run,
                Stage::Table(_) => 0,
                Stage::AfterTable if self.left > 1 => KEPT_BYTES_MAX.saturating_sub(kept.len()),
                Stage::AfterTable => 1,
            };
            kept.extend_from_slice(&offered[..run.min(room)]);
            self.left -= run;
            taken += run;
            self.advance(run, kept);
        }
        // Without the end octet as well: lapin is to see what is wrong at once.
        if self.left == 0 && kept.len() > HEAD_BYTES {
            let payload = kept.len() - HEAD_BYTES - END_BYTES;
            write_size(kept, payload);
        }
        taken
    }

    fn advance(&mut self, run: usize, kept: &mut Vec<u8>) {
        match &mut self.stage {
            Stage::BeforeTable if kept.len() == BEFORE_TABLE_BYTES_MAX => self.cut_table(kept),
            Stage::Table(left) => {
                *left -= run;
                if *left == 0 {
                    self.stage = Stage::AfterTable;
                }
            }
            Stage::BeforeTable | Stage::AfterTable => {}
        }
    }

    /// Makes the table in `kept` an empty one.
    fn cut_table(&mut self, kept: &mut Vec<u8>) {
        self.stage = Stage::AfterTable;
        let Some(length_at) = frame::table_at(&kept[HEAD_BYTES..]).map(|at| HEAD_BYTES + at) else { return };
        let Some(bytes) = frame::u32_at(kept, length_at) else { return };
        kept[length_at..length_at + 4].fill(0);
        let content_at = length_at + 4;
        let here = (bytes as usize).min(kept.len() - content_at);
        kept.drain(content_at..content_at + here);
        // A table that claims more than the frame ends with it.
        let to_come = (bytes as usize - here).min(self.left.saturating_sub(END_BYTES));
        if to_come > 0 {
            self.stage = Stage::Table(to_come);
        }
    }
}
