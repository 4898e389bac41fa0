//! The first publish to a queue or exchange after an outage: it goes alone until RabbitMQ has taken it.
//!
//! After a node went down, a quorum queue may be without a leader for a while, and RabbitMQ refuses (`basic.nack`) the first
//! publish of a channel to it. That is no verdict on the message: it is tried again. As nothing was published after it, the
//! order of the publisher is kept. Says what may go when, and publishes nothing.

use crate::session::amqp::ShortText;
use crate::session::command::{Outgoing, Publish, PublishToken};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// So long after an outage a refusal is no answer. Later it is, as on any other day: a queue may really be full.
const PROVING_MAX: Duration = Duration::from_secs(30);

/// Targets that a session's proof is remembered of; further ones are proven with each publish.
const PROVEN_MAX: usize = 1000;

/// Between two attempts.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// When the broker was last in trouble, as far as the links know: one was lost, or a node answers again.
#[derive(Default)]
pub(super) struct LastOutage(Mutex<Option<Instant>>);

impl LastOutage {
    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self) {
        *self.lock() = Some(Instant::now());
    }

    pub(super) fn at(&self) -> Option<Instant> {
        *self.lock()
    }
}

/// What may be without a leader.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Exchange(ShortText),
    Queue(ShortText),
}

impl Target {
    /// The default exchange routes to the queue of that name.
    fn of(message: &Outgoing) -> Target {
        match message.exchange.is_empty() {
            true => Target::Queue(message.routing_key.clone()),
            false => Target::Exchange(message.exchange.clone()),
        }
    }
}

/// Whether the next publish may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Granted,
    /// Not before what is under way is answered.
    AfterAnswers,
    NotBefore(Instant),
}

#[derive(Debug, Default)]
pub(super) struct Proving {
    /// Under way, and nothing behind it.
    alone: Option<PublishToken>,
    /// The one that is still felt.
    outage: Option<Instant>,
    proven: BTreeSet<Target>,
    retry_at: Option<Instant>,
}

impl Proving {
    /// `outage` is the last one; an outage that is over, or another one, changes everything.
    pub(super) fn follow(&mut self, outage: Option<Instant>, now: Instant) {
        let outage = outage.filter(|at| now < *at + PROVING_MAX);
        match (self.outage, outage) {
            (before, after) if before == after => {}
            (_, None) => *self = Proving::default(),
            (_, Some(_)) => {
                self.outage = outage;
                self.proven.clear();
            }
        }
    }

    /// Asks for a publish, of which it is remembered that it goes alone if it has to.
    pub(super) fn admit(&mut self, publish: &Publish, under_way: bool, now: Instant) -> Admission {
        if self.outage.is_none() {
            return Admission::Granted;
        }
        if self.alone.is_some() {
            return Admission::AfterAnswers;
        }
        if let Some(at) = self.retry_at.filter(|at| now < *at) {
            return Admission::NotBefore(at);
        }
        if self.proven.contains(&Target::of(&publish.message)) {
            return Admission::Granted;
        }
        if under_way {
            return Admission::AfterAnswers;
        }
        self.alone = Some(publish.token);
        Admission::Granted
    }

    /// RabbitMQ has taken a publish, or returned it.
    pub(super) fn taken(&mut self, publish: &Publish) {
        if self.alone.take_if(|alone| *alone == publish.token).is_some() && self.proven.len() < PROVEN_MAX {
            self.proven.insert(Target::of(&publish.message));
        }
    }

    /// Whether a refused publish is to be tried again; then none goes before it.
    pub(super) fn tries_again(&mut self, publish: &Publish, now: Instant) -> bool {
        let again = self.alone.take_if(|alone| *alone == publish.token).is_some() && publish.repeatable;
        self.retry_at = again.then_some(now + RETRY_AFTER);
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Admission::{AfterAnswers, Granted, NotBefore};
    use std::sync::Arc;

    fn publish(token: u64, exchange: &str, routing_key: &str) -> Publish {
        let short = |text: &str| ShortText::new(text).expect("short");
        let (exchange, routing_key) = (short(exchange), short(routing_key));
        let (body, properties) = Default::default();
        let message = Arc::new(Outgoing { body, exchange, mandatory: false, properties, routing_key });
        Publish { message, repeatable: true, token: PublishToken(token) }
    }

    #[test]
    fn without_an_outage_everything_goes() {
        let mut proving = Proving::default();
        let now = Instant::now();
        proving.follow(None, now);
        assert_eq!(proving.admit(&publish(1, "", "q"), true, now), Granted);
        assert!(!proving.tries_again(&publish(1, "", "q"), now));
    }

    #[test]
    fn each_target_is_proven_by_one_that_goes_alone() {
        let mut proving = Proving::default();
        let now = Instant::now();
        proving.follow(Some(now), now);
        assert_eq!(proving.admit(&publish(1, "", "q"), true, now), AfterAnswers, "others are under way");
        assert_eq!(proving.admit(&publish(1, "", "q"), false, now), Granted);
        assert_eq!(proving.admit(&publish(2, "", "q"), true, now), AfterAnswers);
        assert!(proving.tries_again(&publish(1, "", "q"), now));
        assert_eq!(proving.admit(&publish(1, "", "q"), false, now), NotBefore(now + RETRY_AFTER));
        let later = now + RETRY_AFTER;
        assert_eq!(proving.admit(&publish(1, "", "q"), false, later), Granted);
        proving.taken(&publish(1, "", "q"));
        assert_eq!(proving.admit(&publish(2, "", "q"), true, later), Granted, "this queue has a leader");
        assert!(!proving.tries_again(&publish(2, "", "q"), later), "so a refusal is the answer");
        assert_eq!(proving.admit(&publish(2, "", "other"), true, later), AfterAnswers);
        assert_eq!(proving.admit(&publish(2, "amq.topic", "a"), false, later), Granted);
        proving.taken(&publish(2, "amq.topic", "a"));
        assert_eq!(proving.admit(&publish(1, "amq.topic", "b"), true, later), Granted, "exchanges count as a whole");
        proving.follow(Some(later), later);
        assert_eq!(proving.admit(&publish(1, "", "q"), true, later), AfterAnswers, "there was another outage");
    }

    #[test]
    fn what_may_not_be_repeated_is_refused() {
        let mut proving = Proving::default();
        let now = Instant::now();
        proving.follow(Some(now), now);
        let once = Publish { repeatable: false, ..publish(1, "", "q") };
        assert_eq!(proving.admit(&once, false, now), Granted);
        assert!(!proving.tries_again(&once, now));
        assert_eq!(proving.admit(&publish(2, "", "q"), false, now), Granted, "at once");
        assert_eq!(proving.admit(&publish(3, "", "q"), true, now), AfterAnswers, "the second is the proof now");
    }

    #[test]
    fn past_the_limit_a_refusal_is_the_answer() {
        let mut proving = Proving::default();
        let outage = Instant::now();
        proving.follow(Some(outage), outage);
        assert_eq!(proving.admit(&publish(1, "", "q"), false, outage), Granted);
        let end = outage + PROVING_MAX;
        proving.follow(Some(outage), end);
        assert!(!proving.tries_again(&publish(1, "", "q"), end));
        assert_eq!(proving.admit(&publish(2, "", "other"), true, end), Granted);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut proving = Proving::default();
        let now = Instant::now();
        proving.follow(Some(now), now);
        for number in 0..PROVEN_MAX + 5 {
            let publish = publish(1, "", &number.to_string());
            assert_eq!(proving.admit(&publish, false, now), Granted);
            proving.taken(&publish);
        }
        assert_eq!(proving.proven.len(), PROVEN_MAX);
    }
}
