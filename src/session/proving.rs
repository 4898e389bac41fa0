//! The first publish on a lease that was had anew: it goes alone until RabbitMQ has taken it.
//!
//! After a node went down, a quorum queue may be without a leader for a while, and RabbitMQ refuses (`basic.nack`) the first
//! publish of a channel to it. That is no verdict on the message: it is tried again. As nothing was sent after it, the order
//! of the publisher is kept.

use std::time::{Duration, Instant};

use super::Session;
use super::command::PublishToken;
use super::state::State;
use super::transaction::Action;

/// After this a refusal is the answer, as on any other day: a queue may really be full.
const PROVING_MAX: Duration = Duration::from_secs(30);

/// Between two attempts.
const RETRY_AFTER: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
pub(super) struct Proving {
    give_up_at: Instant,
    retry_at: Option<Instant>,
}

impl Session {
    /// With every lease but the first.
    pub(super) fn start_proving(&mut self) {
        self.publishing.proving = Some(Proving { give_up_at: self.now + PROVING_MAX, retry_at: None });
    }

    /// RabbitMQ has taken a publish.
    pub(super) fn end_proving(&mut self) {
        self.publishing.proving = None;
    }

    pub(super) fn waits_for_proof(&self) -> bool {
        self.publishing.proving.is_some_and(|proving| {
            self.publishing.has_unconfirmed() || proving.retry_at.is_some_and(|at| self.now < at)
        })
    }

    /// Takes a refused SEND back if it is to be tried again.
    pub(super) fn retry_rejected(&mut self, token: PublishToken) -> bool {
        let Some(proving) = self.publishing.proving else { return false };
        if self.now >= proving.give_up_at || !matches!(self.state, State::Open { .. }) {
            return false;
        }
        let Some(send) = self.take_back(token) else { return false };
        self.actions.push_front(Action::Publish(send));
        self.publishing.proving = Some(Proving { retry_at: Some(self.now + RETRY_AFTER), ..proving });
        true
    }

    pub(super) fn retry_deadline(&self) -> Option<Instant> {
        self.publishing.proving?.retry_at
    }

    /// The wait is over; what it was for goes out as soon as nothing else keeps it.
    pub(super) fn end_retry_wait(&mut self) {
        if let Some(proving) = &mut self.publishing.proving {
            proving.retry_at = proving.retry_at.filter(|at| self.now < *at);
        }
    }
}
