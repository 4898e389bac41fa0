//! Takes the frames of returned messages out of the broker's stream and records the returns in [`Wire`].
//!
//! A return is three or more frames of one channel in a row: the method, the content header, the body.

use super::frame::{self, Head, Kind, methods};
use super::wire::{Returned, Wire};
use std::collections::HashMap;
use std::sync::Arc;

pub(super) struct Returns {
    /// By channel.
    coming: HashMap<u16, Coming>,
    wire: Arc<Wire>,
}

/// A returned message whose frames are still coming.
enum Coming {
    Header(Option<frame::Return>),
    Body { returned: Option<Returned>, left: u64 },
}

/// Whether a frame belonged to a return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Collected {
    Taken,
    Left,
}

impl Returns {
    pub(super) fn new(wire: Arc<Wire>) -> Returns {
        Returns { coming: HashMap::new(), wire }
    }

    /// A method comes where the rest of a message was expected.
    pub(super) fn interrupt(&mut self, channel: u16) {
        self.coming.remove(&channel);
    }

    /// Whether body frames of this channel belong to a return.
    pub(super) fn has_body(&self, channel: u16) -> bool {
        matches!(self.coming.get(&channel), Some(Coming::Body { .. }))
    }

    /// Takes a method or a content header if it belongs to a return.
    pub(super) fn collect(&mut self, head: &Head, frame: &[u8]) -> Collected {
        let payload = frame::payload(frame);
        match head.kind {
            Kind::Method { class, method } if (class, method) == methods::BASIC_RETURN => {
                self.coming.insert(head.channel, Coming::Header(payload.and_then(frame::basic_return)));
                Collected::Taken
            }
            Kind::Header if matches!(self.coming.get(&head.channel), Some(Coming::Header(_))) => {
                let Some(Coming::Header(cause)) = self.coming.remove(&head.channel) else { return Collected::Left };
                let message_id = payload.and_then(frame::message_id);
                let left = payload.and_then(frame::body_bytes).unwrap_or(0);
                self.go_on(head.channel, cause.map(|cause| Returned { message_id, cause }), left);
                Collected::Taken
            }
            _ => Collected::Left,
        }
    }

    /// A body frame was taken out.
    pub(super) fn count_body(&mut self, head: &Head) {
        if let Some(Coming::Body { returned, left }) = self.coming.remove(&head.channel) {
            self.go_on(head.channel, returned, left.saturating_sub(head.payload as u64));
        }
    }

    fn go_on(&mut self, channel: u16, returned: Option<Returned>, left: u64) {
        if left > 0 {
            self.coming.insert(channel, Coming::Body { returned, left });
        } else if let Some(returned) = returned {
            self.wire.record_return(channel, returned);
        }
    }
}
