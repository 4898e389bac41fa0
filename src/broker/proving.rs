//! The first publish to a queue or exchange on a channel, and after an outage: it goes alone until RabbitMQ has judged it.
//!
//! A quorum queue may be without a leader for a while, and RabbitMQ refuses (`basic.nack`) the first publish of a channel to it.
//! That is no verdict on the message, whether or not the relay has felt the outage: it is tried again. As nothing was published
//! after it, the order of the publisher is kept. How long is bounded by the publish's own age, and it ends at once when the queue
//! has shown that it has a leader and refuses after that. Says what may go when, and publishes nothing.

use crate::session::amqp::ShortText;
use crate::session::command::{Outgoing, Publish, PublishToken};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// So long after an outage, and so long after it was first given, a publish's refusal is no answer. Later it is, as on any other
/// day: a queue may really be full.
const PROVING_MAX: Duration = Duration::from_secs(30);

/// The same for a new channel's first publish to an exchange where no outage was felt: a leader behind it may have been on a node
/// without a link. RabbitMQ can't be asked which queue has refused, so a full one has its answer only then. An election takes four
/// seconds when a node dies, and seven when it falls silent.
const UNFELT_MAX: Duration = Duration::from_secs(10);

/// Targets that a channel's proof is remembered of. Further ones are proven with each publish after an outage, and not at all
/// without one.
const PROVEN_MAX: usize = 1000;

/// Queues of subscriptions and of brokers' own naming, to which answers are sent, each to another one: they have no leader.
const LEADERLESS: [&str; 2] = ["amq.gen-", "stomp-subscription-"];

/// Between two attempts.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// When an account's links, or a node, were last in trouble.
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

/// What concerns a link: trouble of its account's links, and of its node. What others feel elsewhere says nothing.
pub(super) struct Troubles {
    pub(super) account: Arc<LastOutage>,
    pub(super) node: Arc<LastOutage>,
}

impl Troubles {
    pub(super) fn last(&self) -> Option<Instant> {
        self.account.at().max(self.node.at())
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
    tried: Option<Tried>,
}

/// A publish that is being tried again.
#[derive(Clone, Copy, Debug)]
struct Tried {
    /// Its queue has had a leader since the last attempt.
    led: bool,
    since: Instant,
    token: PublishToken,
}

/// What a refused publish is tried again for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// It is the answer.
    Over,
    /// Once more.
    Again,
    /// Once more, when the queue has been asked whether it has a leader.
    Ask,
}

impl Proving {
    /// `outage` is the last one; an outage that is over, or another one, changes everything.
    pub(super) fn follow(&mut self, outage: Option<Instant>, now: Instant) {
        let outage = outage.filter(|at| now < *at + PROVING_MAX);
        if outage.is_some() && outage != self.outage {
            self.proven.clear();
        }
        self.outage = outage;
    }

    /// On a new channel nothing is proven; what is being tried again goes on.
    pub(super) fn begin_anew(&mut self) {
        *self = Proving { outage: self.outage, retry_at: self.retry_at, tried: self.tried, ..Proving::default() };
    }

    /// Asks for a publish, of which it is remembered that it goes alone if it has to.
    pub(super) fn admit(&mut self, publish: &Publish, under_way: bool, now: Instant) -> Admission {
        if self.alone.is_some() {
            return Admission::AfterAnswers;
        }
        if let Some(at) = self.retry_at.filter(|at| now < *at) {
            return Admission::NotBefore(at);
        }
        if self.is_beyond_doubt(&publish.message) {
            return Admission::Granted;
        }
        if under_way {
            return Admission::AfterAnswers;
        }
        self.alone = Some(publish.token);
        Admission::Granted
    }

    fn is_beyond_doubt(&self, message: &Outgoing) -> bool {
        if self.proven.contains(&Target::of(message)) {
            return true;
        }
        let answers = || LEADERLESS.iter().any(|prefix| message.routing_key.as_str().starts_with(prefix));
        self.outage.is_none() && (self.proven.len() >= PROVEN_MAX || (message.exchange.is_empty() && answers()))
    }

    /// RabbitMQ has taken a publish, or returned it, or its refusal is the answer: there is nothing left to prove.
    pub(super) fn judged(&mut self, publish: &Publish) {
        self.tried.take_if(|tried| tried.token == publish.token);
        if self.alone.take_if(|alone| *alone == publish.token).is_some() && self.proven.len() < PROVEN_MAX {
            self.proven.insert(Target::of(&publish.message));
        }
    }

    /// Whether a refused publish is to be tried again; then none goes before it.
    pub(super) fn tries_again(&mut self, publish: &Publish, now: Instant) -> Trial {
        let alone = self.alone == Some(publish.token);
        let to_queue = publish.message.exchange.is_empty();
        let before = self.tried.filter(|tried| tried.token == publish.token);
        let Tried { led, since, .. } = before.unwrap_or(Tried { led: false, since: now, token: publish.token });
        let limit = if self.outage.is_some() || to_queue { PROVING_MAX } else { UNFELT_MAX };
        if !alone || !publish.repeatable || led || now >= since + limit {
            self.judged(publish);
            return Trial::Over;
        }
        self.tried = Some(Tried { led, since, token: publish.token });
        (self.alone, self.retry_at) = (None, Some(now + RETRY_AFTER));
        if before.is_none() || !to_queue { Trial::Again } else { Trial::Ask }
    }

    /// The queue that has refused has a leader now. The refusal may be older than that: it is tried once more, at once.
    pub(super) fn is_led(&mut self) {
        self.retry_at = None;
        if let Some(tried) = &mut self.tried {
            tried.led = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Admission::{AfterAnswers, Granted, NotBefore};

    fn publish(token: u64, exchange: &str, routing_key: &str) -> Publish {
        let short = |text: &str| ShortText::new(text).expect("short");
        let (exchange, routing_key) = (short(exchange), short(routing_key));
        let (body, properties) = Default::default();
        let message = Arc::new(Outgoing { body, exchange, mandatory: false, properties, routing_key });
        Publish { message, repeatable: true, token: PublishToken(token) }
    }

    #[test]
    fn the_first_of_a_channel_goes_alone_without_an_outage_too() {
        let mut proving = Proving::default();
        let now = Instant::now();
        proving.follow(None, now);
        assert_eq!(proving.admit(&publish(1, "", "q"), false, now), Granted);
        assert_eq!(proving.admit(&publish(2, "", "q"), true, now), AfterAnswers);
        assert_eq!(proving.tries_again(&publish(1, "", "q"), now), Trial::Again);
        let later = now + RETRY_AFTER;
        assert_eq!(proving.admit(&publish(1, "", "q"), false, later), Granted);
        proving.judged(&publish(1, "", "q"));
        assert_eq!(proving.admit(&publish(2, "", "q"), true, later), Granted);
        assert_eq!(proving.tries_again(&publish(2, "", "q"), later), Trial::Over, "a refusal is the answer");
        // Answers go to queues without leaders, each to another one.
        assert_eq!(proving.admit(&publish(3, "", "amq.gen-x"), true, later), Granted);
        proving.begin_anew();
        assert_eq!(proving.admit(&publish(4, "", "q"), true, later), AfterAnswers, "another channel");
    }

    #[test]
    fn a_refusal_is_bounded_by_the_age_of_the_publish() {
        let mut proving = Proving::default();
        let mut now = Instant::now();
        let start = now;
        // Somebody's trouble that never ends.
        loop {
            proving.follow(Some(now), now);
            assert_eq!(proving.admit(&publish(1, "e", ""), false, now), Granted);
            if proving.tries_again(&publish(1, "e", ""), now) == Trial::Over {
                break;
            }
            now += RETRY_AFTER;
        }
        assert_eq!(now - start, PROVING_MAX);
        assert_eq!(
            proving.admit(&publish(2, "e", ""), true, now),
            Granted,
            "and the next ones do not wait for it again"
        );
    }

    #[test]
    fn a_queue_is_believed_when_it_refuses_after_it_had_a_leader() {
        let mut proving = Proving::default();
        let now = Instant::now();
        assert_eq!(proving.admit(&publish(1, "", "q"), false, now), Granted);
        assert_eq!(proving.tries_again(&publish(1, "", "q"), now), Trial::Again);
        let later = now + RETRY_AFTER;
        assert_eq!(proving.admit(&publish(1, "", "q"), false, later), Granted);
        assert_eq!(proving.tries_again(&publish(1, "", "q"), later), Trial::Ask);
        proving.is_led();
        assert_eq!(proving.admit(&publish(1, "", "q"), false, later), Granted, "at once");
        assert_eq!(proving.tries_again(&publish(1, "", "q"), later), Trial::Over);
        assert_eq!(proving.admit(&publish(2, "", "q"), true, later), Granted);
        assert_eq!(proving.tries_again(&publish(2, "", "q"), later), Trial::Over);
    }

    /// Longer than an election takes: a leader may die on a node without a link, and nobody here feels it.
    #[test]
    fn a_queue_that_shows_no_leader_is_tried_as_long_as_after_an_outage() {
        let mut proving = Proving::default();
        let (start, last) = (Instant::now(), Instant::now() + PROVING_MAX);
        let mut now = start;
        loop {
            assert_eq!(proving.admit(&publish(1, "", "q"), false, now), Granted);
            if proving.tries_again(&publish(1, "", "q"), now) == Trial::Over {
                break;
            }
            now += RETRY_AFTER;
        }
        assert!(now >= last - RETRY_AFTER, "{:?}", now - start);
    }

    #[test]
    fn each_target_is_proven_by_one_that_goes_alone() {
        let mut proving = Proving::default();
        let now = Instant::now();
        proving.follow(Some(now), now);
        assert_eq!(proving.admit(&publish(1, "", "q"), true, now), AfterAnswers, "others are under way");
        assert_eq!(proving.admit(&publish(1, "", "q"), false, now), Granted);
        assert_eq!(proving.admit(&publish(2, "", "q"), true, now), AfterAnswers);
        assert_eq!(proving.tries_again(&publish(1, "", "q"), now), Trial::Again);
        assert_eq!(proving.admit(&publish(1, "", "q"), false, now), NotBefore(now + RETRY_AFTER));
        let later = now + RETRY_AFTER;
        assert_eq!(proving.admit(&publish(1, "", "q"), false, later), Granted);
        proving.judged(&publish(1, "", "q"));
        assert_eq!(proving.admit(&publish(2, "", "q"), true, later), Granted, "this queue has a leader");
        assert_eq!(proving.tries_again(&publish(2, "", "q"), later), Trial::Over, "so a refusal is the answer");
        assert_eq!(proving.admit(&publish(2, "", "other"), true, later), AfterAnswers);
        assert_eq!(proving.admit(&publish(2, "amq.topic", "a"), false, later), Granted);
        proving.judged(&publish(2, "amq.topic", "a"));
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
        assert_eq!(proving.tries_again(&once, now), Trial::Over);
        assert_eq!(proving.admit(&publish(2, "", "q"), false, now), Granted, "at once");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut proving = Proving::default();
        let now = Instant::now();
        proving.follow(Some(now), now);
        for number in 0..PROVEN_MAX + 5 {
            let publish = publish(1, "", &number.to_string());
            assert_eq!(proving.admit(&publish, false, now), Granted);
            proving.judged(&publish);
        }
        assert_eq!(proving.proven.len(), PROVEN_MAX);
    }
}
