//! The way out of one client: what it has sent and the relay has read is finished first, up to the deadline of the whole
//! process. What cannot be finished is told by the session.

use std::time::Instant;

use futures_util::FutureExt;

use super::{Connection, READ_AHEAD_MAX};
use crate::listener::{Event, Read, Write};
use crate::session::io::Input;
use crate::session::refusal::Close;
use crate::stomp::Item;

/// How far the way out has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Draining {
    No,
    /// What was read is being handed over; nothing more is read.
    Until(Instant),
    /// The session knows.
    Told,
}

impl Connection {
    /// Takes what has arrived by now, as far as there is room.
    pub(super) fn begin_drain(&mut self, now: Instant) -> Option<Close> {
        while !self.socket_failed && !self.peer_gone && self.buffer.len() < READ_AHEAD_MAX {
            match self.socket.drive(Read::Yes, Write::No).now_or_never() {
                Some(Ok(Event::Incoming(incoming))) => {
                    if let Some(close) = self.handle_incoming(now, incoming) {
                        return Some(close);
                    }
                }
                Some(Ok(Event::Flushed)) => {
                    if let Some(close) = self.input(now, Input::Flushed) {
                        return Some(close);
                    }
                }
                Some(Err(error)) => return self.handle_socket_error(now, error),
                None => break,
            }
        }
        self.draining = Draining::Until(self.place.drain_until());
        // Without anything left to hand over it need not be waited for, whatever the session waits for.
        if self.buffer.is_empty() && !self.session.wants_frames() { self.tell_drain(now) } else { None }
    }

    /// When the session is told, whatever is left.
    pub(super) fn drain_deadline(&self) -> Option<Instant> {
        match self.draining {
            Draining::Until(until) => Some(until),
            Draining::No | Draining::Told => None,
        }
    }

    /// All that could be handed over has been.
    pub(super) fn tell_drain(&mut self, now: Instant) -> Option<Close> {
        let Draining::Until(until) = self.draining else { return None };
        self.draining = Draining::Told;
        let mut unread = 0;
        while let Ok(Some(item)) = self.decoder.decode(&mut self.buffer) {
            unread += usize::from(matches!(item, Item::Frame(_)));
        }
        self.input(now, Input::Drain { until, unread })
    }
}
