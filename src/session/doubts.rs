//! What failed, or may have, without the client having been told: a SEND without receipt has no answer, and neither has an
//! acknowledgement. DISCONNECT's RECEIPT is for everything before it, so it is not given where something is in doubt.

use super::Session;
use super::refusal::{CloseCode, Refusal};

#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Settlements that were given to the broker side in this lease, automatic ones included.
    given: u64,
    /// The client's ACKs and NACKs among them that are not known to have reached RabbitMQ.
    unproven: u64,
    /// The number of the last of those.
    last: u64,
    /// Those of leases that are gone. What is lost with a lease comes again, flagged, before what is newer: they are in doubt until
    /// the client has acknowledged something since.
    lost_settlements: u64,
    /// SENDs that RabbitMQ refused, or that may be lost with a connection.
    lost_sends: u64,
}

impl Doubts {
    /// The relay settles by itself what it has written to the socket.
    pub(super) fn settled_automatically(&mut self, count: usize) {
        self.given += count as u64;
    }

    pub(super) fn settled(&mut self) {
        self.given += 1;
        self.unproven += 1;
        self.last = self.given;
    }

    /// The first `count` settlements of this lease have reached RabbitMQ.
    pub(super) fn proven(&mut self, count: u64) {
        if count >= self.last && self.unproven > 0 {
            (self.unproven, self.lost_settlements) = (0, 0);
        }
    }

    /// All settlements of this lease have reached RabbitMQ.
    pub(super) fn all_proven(&mut self) {
        self.proven(u64::MAX);
    }

    /// The consuming side of the lease is gone.
    pub(super) fn lose_lease(&mut self) {
        self.lost_settlements += self.unproven;
        (self.given, self.unproven, self.last) = (0, 0, 0);
    }

    /// A SEND whose client is not told.
    pub(super) fn lose_send(&mut self) {
        self.lost_sends += 1;
    }
}

impl Session {
    /// Instead of DISCONNECT's RECEIPT.
    pub(super) fn doubt(&self) -> Option<Refusal> {
        let Doubts { lost_settlements, lost_sends, .. } = self.doubts;
        let mut body = String::new();
        if lost_sends > 0 {
            body.push_str(&format!("SENDs without receipt that RabbitMQ refused, or that may be lost: {lost_sends}\n"));
        }
        if lost_settlements > 0 {
            body.push_str(&format!(
                "acknowledgements that may not have reached RabbitMQ, so that the messages come again: {lost_settlements}\n"
            ));
        }
        let hint = "Ask for a receipt with each SEND that matters, and expect repeated messages.";
        (!body.is_empty()).then(|| {
            Refusal::fatal("disconnect.incomplete", "Not everything arrived", body, hint)
                .closing(CloseCode::InternalError)
        })
    }
}
