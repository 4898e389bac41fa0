//! Declarations with arguments from clients are tried on an AMQP connection that nothing else depends on, before they are made
//! on the session's own: RabbitMQ ends the whole connection over some that it can't read, and over queues that it can't make at
//! the moment, such as quorum queues without a majority.
//!
//! Several are tried at a time. When the connection dies of one of them, each is tried once more, alone: the one that kills it
//! again is the culprit, its session is told, and it is not tried again for a while. The others notice a pause.
//!
//! What is left on RabbitMQ is what the declaration was to make; exclusive queues are deleted again, as they belong to the
//! connection that declared them.

use super::barrier::barrier_close;
use super::convert::{declared_arguments, short, table};
use super::death::{Death, Loss};
use super::fault::within;
use super::link::{Leased, Link, Role};
use super::pool::Entry;
use super::publish::reserve_failure;
use super::quarantine::{self, Company};
use crate::session::amqp::{Binding, FieldValue, QueueDeclaration, ShortText};
use crate::session::event::Failure;
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::warn;

/// Declarations of one identity that are tried at a time.
const TRIALS_MAX: u32 = 8;
/// Attempts alone of one whose connection goes before anything is found out.
const LONE_ATTEMPTS_MAX: u32 = 3;
/// How long a declaration that killed its connection is refused without another trial.
const CULPRIT_KEPT: Duration = Duration::from_secs(10);
/// Those that are remembered; beyond it the oldest are forgotten.
const CULPRITS_MAX: usize = 64;

/// Of one identity.
pub(super) struct Trials {
    culprits: Mutex<VecDeque<Culprit>>,
    places: Semaphore,
}

struct Culprit {
    failure: Failure,
    since: Instant,
    trial: Trial,
}

impl Default for Trials {
    fn default() -> Trials {
        Trials { culprits: Mutex::default(), places: Semaphore::new(TRIALS_MAX as usize) }
    }
}

impl Trials {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Culprit>> {
        self.culprits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, trial: &Trial, now: Instant) -> Option<Failure> {
        let mut culprits = self.lock();
        culprits.retain(|culprit| now < culprit.since + CULPRIT_KEPT);
        culprits.iter().find(|culprit| culprit.trial == *trial).map(|culprit| culprit.failure.clone())
    }

    fn remember(&self, trial: Trial, failure: Failure, now: Instant) {
        let mut culprits = self.lock();
        if culprits.len() >= CULPRITS_MAX {
            culprits.pop_front();
        }
        culprits.push_back(Culprit { failure, since: now, trial });
    }
}

/// A queue, and what binds it. A queue without declaration is there already.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trial {
    pub(super) binding: Option<Binding>,
    pub(super) queue: ShortText,
    pub(super) declaration: Option<QueueDeclaration>,
}

impl Trial {
    /// None for what needs no trial: without arguments, or with those only that every client may have.
    pub(super) fn of_queue(declaration: &QueueDeclaration, binding: Option<&Binding>) -> Option<Trial> {
        let binding = binding.filter(|binding| declaration.exclusive && !binding.arguments.is_empty());
        let needed = binding.is_some() || !declaration.arguments.iter().all(is_harmless);
        needed.then(|| Trial {
            binding: binding.cloned(),
            queue: declaration.name.clone(),
            declaration: Some(declaration.clone()),
        })
    }

    /// Of a queue that is there; one that is exclusive can't be reached from another connection, and was tried as a whole.
    pub(super) fn of_binding(binding: &Binding, queue: &ShortText) -> Option<Trial> {
        let needed = !binding.arguments.is_empty();
        needed.then(|| Trial { binding: Some(binding.clone()), queue: queue.clone(), declaration: None })
    }

    /// Until RabbitMQ has said that it can live with it, or why not.
    pub(super) async fn run(self, entry: &Arc<Entry>) -> Result<(), Failure> {
        if let Some(failure) = entry.trials().known(&self, Instant::now()) {
            return Err(failure);
        }
        if let Verdict::Known(result) = self.attempt(entry, 1).await {
            return result;
        }
        let mut verdict = self.attempt(entry, TRIALS_MAX).await;
        // The connection was on its way out already: nothing was found out.
        for _ in 1..LONE_ATTEMPTS_MAX {
            if !matches!(verdict, Verdict::Lost(_)) {
                break;
            }
            verdict = self.attempt(entry, TRIALS_MAX).await;
        }
        match verdict {
            Verdict::Known(result) => result,
            Verdict::Lost(failure) => Err(failure),
            Verdict::Killed { reply_code, reason } => {
                let queue = &self.queue;
                warn!(%queue, vhost = entry.vhost(), reply_code, reason, "a declaration ended its AMQP connection");
                let reply_text = format!("{reason} (RabbitMQ ended the AMQP connection over this declaration)");
                let failure = Failure::Refused { reply_code, reply_text };
                entry.trials().remember(self, failure.clone(), Instant::now());
                Err(failure)
            }
        }
    }

    /// Beside others, or alone if it takes all places.
    async fn attempt(&self, entry: &Arc<Entry>, places: u32) -> Verdict {
        // Never closed.
        let Ok(_place) = entry.trials().places.acquire_many(places).await else {
            return Verdict::Known(Err(Failure::TimedOut { step: "queue declare" }));
        };
        let slot = match entry.clone().reserve(Role::Declare, Company::Any).await {
            Ok(slot) => slot,
            Err(failure) => return Verdict::Known(Err(reserve_failure(failure))),
        };
        let link = slot.link().clone();
        let channel = match link.open_channel(slot).await {
            Ok(channel) => channel,
            // Somebody else's trial, or none: this one has asked for nothing yet.
            Err(failure @ Failure::LinkLost { .. }) => return Verdict::Lost(failure),
            Err(failure) => return Verdict::Known(Err(failure)),
        };
        match self.perform(&channel).await {
            Err(Failure::LinkLost { reason }) => match quarantine::loss(&link).await {
                Some(Loss { death: Death::Protocol { reply_code } | Death::State { reply_code }, reason }) => {
                    Verdict::Killed { reply_code, reason }
                }
                _ => Verdict::Lost(Failure::LinkLost { reason }),
            },
            result => Verdict::Known(result),
        }
    }

    async fn perform(&self, channel: &Leased) -> Result<(), Failure> {
        let result = self.declare_and_bind(channel).await;
        let link = channel.link.clone();
        // A queue that RabbitMQ named is another one each time.
        let made_for_this = |queue: &QueueDeclaration| queue.exclusive || queue.name.is_empty();
        if result.is_ok() && self.declaration.as_ref().is_some_and(made_for_this) {
            let deletion = channel.raw.queue_delete(short(&self.queue), QueueDeleteOptions::default());
            // What is not deleted is gone with the connection.
            let _ = within(link.config.operation_timeout, "queue delete", deletion).await;
        }
        barrier_close(&channel.raw, &link).await;
        result
    }

    async fn declare_and_bind(&self, channel: &Leased) -> Result<(), Failure> {
        let (raw, link) = (&channel.raw, &channel.link);
        let limit = link.config.operation_timeout;
        let refusal = |fault| failure(link, fault, channel);
        if let Some(queue) = &self.declaration {
            let options = QueueDeclareOptions {
                passive: false,
                durable: queue.durable,
                exclusive: queue.exclusive,
                auto_delete: queue.auto_delete,
                nowait: false,
            };
            let work = raw.queue_declare(short(&queue.name), options, table(&declared_arguments(queue)));
            within(limit, "queue declare", work).await.map_err(refusal)?;
        }
        if let Some(Binding { arguments, exchange, routing_key }) = &self.binding {
            let (queue, options) = (short(&self.queue), QueueBindOptions::default());
            let work = raw.queue_bind(queue, short(exchange), short(routing_key), options, table(arguments));
            within(limit, "queue bind", work).await.map_err(refusal)?;
        }
        Ok(())
    }
}

fn failure(link: &Link, fault: super::fault::Fault, channel: &Leased) -> Failure {
    link.failure(fault, channel.refusal())
}

enum Verdict {
    /// The connection died of something that was tried on it.
    Killed {
        reply_code: u16,
        reason: String,
    },
    Known(Result<(), Failure>),
    /// The connection is gone, and it is not known over what.
    Lost(Failure),
}

/// What the relay itself asks for: its queues are classic, and some expire.
fn is_harmless((name, value): &(ShortText, FieldValue)) -> bool {
    match (name.as_str(), value) {
        ("x-queue-type", FieldValue::Text(kind)) => kind == "classic",
        ("x-expires", FieldValue::Integer(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declaration(name: &str, arguments: &[(&'static str, FieldValue)], exclusive: bool) -> QueueDeclaration {
        QueueDeclaration {
            arguments: arguments.iter().map(|(name, value)| (ShortText::lit(name), value.clone())).collect(),
            auto_delete: false,
            durable: true,
            exclusive,
            name: ShortText::new(name).expect("short"),
        }
    }

    #[test]
    fn what_everybody_may_have_needs_no_trial() {
        let text = |text: &str| FieldValue::Text(text.into());
        let tried = |arguments: &[(&'static str, FieldValue)]| {
            Trial::of_queue(&declaration("q", arguments, false), None).is_some()
        };
        assert!(!tried(&[]));
        assert!(!tried(&[("x-queue-type", text("classic")), ("x-expires", FieldValue::Integer(1))]));
        assert!(tried(&[("x-queue-type", text("quorum"))]));
        assert!(tried(&[("x-queue-type", text("classic")), ("x-max-length", FieldValue::Integer(1))]));
    }

    #[test]
    fn a_binding_is_tried_with_its_queue_only_if_that_is_exclusive() {
        let arguments = vec![(ShortText::lit("x-match"), FieldValue::Text("any".into()))];
        let binding = Binding { arguments, exchange: ShortText::lit("e"), routing_key: ShortText::lit("k") };
        assert!(
            Trial::of_queue(&declaration("q", &[], true), Some(&binding)).is_some_and(|trial| trial.binding.is_some())
        );
        assert_eq!(Trial::of_queue(&declaration("q", &[], false), Some(&binding)), None);
        assert!(Trial::of_binding(&binding, &ShortText::lit("q")).is_some());
        assert_eq!(Trial::of_binding(&Binding { arguments: vec![], ..binding }, &ShortText::lit("q")), None);
    }

    #[test]
    fn culprits_are_remembered_for_a_while_and_in_bounds() {
        let (trials, now) = (Trials::default(), Instant::now());
        let trial = |number: usize| {
            let arguments = [("x-max-length", FieldValue::Integer(1))];
            Trial::of_queue(&declaration(&format!("q{number}"), &arguments, false), None).expect("it has arguments")
        };
        let failure = Failure::Refused { reply_code: 541, reply_text: "INTERNAL_ERROR".into() };
        (0..=CULPRITS_MAX).for_each(|number| trials.remember(trial(number), failure.clone(), now));
        assert_eq!(trials.known(&trial(0), now), None, "forgotten for the latest");
        assert_eq!(trials.known(&trial(1), now), Some(failure));
        assert_eq!(trials.known(&trial(1), now + CULPRIT_KEPT), None);
    }
}
