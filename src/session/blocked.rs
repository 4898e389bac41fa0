//! RabbitMQ blocks publishing while it is short of memory or disk (`connection.blocked`): SENDs wait, everything else goes on.
//!
//! A client that has nothing to publish is not concerned. One whose SEND waits too long is told, so that it can do something
//! better than wait. What RabbitMQ may take from it afterwards is as uncertain as after any lost connection.

use std::time::Instant;

use super::Session;
use super::refusal::{CloseCode, Refusal};
use super::state::State;
use super::transaction::Action;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Publishable {
    /// RabbitMQ takes publishes.
    #[default]
    Yes,
    /// It does not. Since when a SEND of this session has been waiting for that, if one has.
    Blocked { waiting_since: Option<Instant> },
}

impl Session {
    pub(super) fn handle_blocked(&mut self) {
        self.end_publish_outage();
        self.publishable = Publishable::Blocked { waiting_since: None };
    }

    pub(super) fn handle_unblocked(&mut self) {
        self.publishable = Publishable::Yes;
    }

    /// After every input: the time counts from when both hold, a block and a SEND that waits.
    pub(super) fn note_blocked_sends(&mut self) {
        let Publishable::Blocked { waiting_since } = self.publishable else { return };
        let waits = self.publishing.has_unconfirmed() || matches!(self.actions.front(), Some(Action::Publish(_)));
        let since = if waits { waiting_since.or(Some(self.now)) } else { None };
        self.publishable = Publishable::Blocked { waiting_since: since };
    }

    /// When the wait ends.
    pub(super) fn blocked_deadline(&self) -> Option<Instant> {
        match (&self.state, self.publishable) {
            (State::Open { .. }, Publishable::Blocked { waiting_since: Some(since) }) => {
                Some(since + self.config.blocked_timeout)
            }
            _ => None,
        }
    }

    pub(super) fn give_up_blocked(&mut self) {
        let receipt = self.publishing.first_receipt().or_else(|| self.waiting_receipt()).map(str::to_owned);
        let seconds = self.config.blocked_timeout.as_secs_f32();
        let refusal = Refusal::fatal(
            "broker.blocked",
            "Broker blocked",
            format!("RabbitMQ has taken no message for {seconds} s, it is short of memory or disk\n"),
            "Connect again later and repeat what was not confirmed; ask the broker's administrator to clear the alarm.",
        );
        self.refuse(refusal.about_receipt(receipt.as_deref()).closing(CloseCode::TryAgainLater));
    }
}
