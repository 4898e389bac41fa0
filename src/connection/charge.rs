//! What one client keeps in memory, told to its account, and how it leaves when that is too much.
//!
//! Decides about nobody: who has to leave is chosen by the budget.

use std::time::Instant;

use bytes::BytesMut;
use tracing::{debug, warn};

use super::{Channel, Close, Connection, Input};
use crate::budget::{Excess, SESSION_BYTES};
use crate::session::admission::Limit;

impl Connection {
    /// Tells what is kept now. Adds up numbers that are there, and tells only what has changed by some KiB.
    pub(super) fn charge(&self) {
        let (delivered, shared) =
            self.lease.as_ref().map_or((0, 0), |lease| (Channel::retained_bytes(lease), lease.shared_bytes()));
        let read = self.buffer.capacity() + self.socket.retained_bytes() + self.decoder.retained_bytes();
        self.place.account.set(SESSION_BYTES + read + self.session.retained_bytes() + delivered, shared);
    }

    /// What waits for the client is thrown away first: it is what has to be given back, and the client takes the reason only
    /// behind it.
    pub(super) fn give_way(&mut self, now: Instant, excess: Excess) -> Option<Close> {
        let (limit, key) = match excess {
            Excess::Process => (Limit::Memory, "limits.memory_max"),
            Excess::Session => (Limit::MemoryOfSession, "limits.session_bytes_max"),
            Excess::User => (Limit::MemoryOfUser, "limits.user_bytes_max"),
        };
        let (session, client, user) = (self.session.id(), &self.client, self.session.login());
        let bytes = self.place.account.bytes();
        if self.place.may_warn(now) {
            warn!(session, client, user, bytes, key, "a session is ended: it holds too much memory");
        } else {
            debug!(session, client, user, bytes, key, "a session is ended: it holds too much memory");
        }
        self.metrics.ended_for_memory(excess.label());
        self.buffer = BytesMut::new();
        self.socket.drop_messages();
        self.input(now, Input::NotAdmitted(limit))
    }
}
