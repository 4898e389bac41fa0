//! The commands of a consume side, one after another: each from its turn to its answer. What they do on AMQP is `subscribe`'s.

use super::streams::Stage;
use super::{ConsumeSide, Consumer, Ending};
use crate::broker::aside::{delete_aside, unbind_aside};
use crate::broker::channel_limit;
use crate::broker::fanout::Membership;
use crate::broker::hub::SharedSubscribe;
use crate::broker::link::{Leased, Role};
use crate::broker::publish::reserve_failure;
use crate::broker::quarantine::Company;
use crate::broker::sluice::{Sluice, Source};
use crate::broker::subscribe::{Given, Operator, Subscribed};
use crate::broker::watch::LinkWatch;
use crate::session::amqp::{Binding, QueueDeclaration, ShortText};
use crate::session::command::{AfterUnsubscribe, DeclareToken, Subscribe, SubscriptionKey};
use crate::session::event::{BrokerEvent, Concern, Failure};
use futures_util::future::BoxFuture;
use lapin::options::QueueDeleteOptions;
use lapin::types::ShortString;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;
use tracing::debug;

pub(in crate::broker) enum ConsumeCommand {
    Declare {
        token: DeclareToken,
        queue: QueueDeclaration,
    },
    /// The queue, or only this binding of it.
    Delete {
        queue: ShortText,
        only: Option<Binding>,
    },
    /// Ends a stream's consumer that is to be made anew.
    Pause {
        key: SubscriptionKey,
    },
    /// That the settlements before it have arrived.
    Prove,
    /// Makes a stream's consumer anew.
    Resume {
        key: SubscriptionKey,
    },
    Subscribe(Subscribe),
    Unsubscribe {
        key: SubscriptionKey,
        queue: AfterUnsubscribe,
    },
}

impl ConsumeCommand {
    /// The queue that it is about to consume, if it is known by then.
    fn consumes(&self) -> Option<&ShortText> {
        match self {
            ConsumeCommand::Subscribe(subscribe) => Some(subscribe.queue.name()).filter(|name| !name.is_empty()),
            ConsumeCommand::Declare { .. }
            | ConsumeCommand::Delete { .. }
            | ConsumeCommand::Pause { .. }
            | ConsumeCommand::Prove
            | ConsumeCommand::Resume { .. }
            | ConsumeCommand::Unsubscribe { .. } => None,
        }
    }

    /// The queue that has to be there.
    fn queue(&self) -> Option<&ShortText> {
        match self {
            ConsumeCommand::Declare { queue, .. } => Some(&queue.name),
            ConsumeCommand::Subscribe(subscribe) => Some(subscribe.queue.name()),
            ConsumeCommand::Delete { .. }
            | ConsumeCommand::Pause { .. }
            | ConsumeCommand::Prove
            | ConsumeCommand::Resume { .. }
            | ConsumeCommand::Unsubscribe { .. } => None,
        }
    }

    fn concern(&self) -> Concern {
        match self {
            ConsumeCommand::Declare { token, .. } => Concern::Declare(*token),
            ConsumeCommand::Delete { .. } | ConsumeCommand::Prove => Concern::Session,
            ConsumeCommand::Subscribe(subscribe) => Concern::Subscription(subscribe.key),
            ConsumeCommand::Pause { key }
            | ConsumeCommand::Resume { key }
            | ConsumeCommand::Unsubscribe { key, .. } => Concern::Subscription(*key),
        }
    }
}

/// A command under way.
pub(in crate::broker) struct Running {
    concern: Concern,
    /// A channel, this session's or one of shared subscriptions.
    opens: bool,
    pub(in crate::broker) work: BoxFuture<'static, Result<Completed, Failure>>,
}

pub(in crate::broker) enum Completed {
    Deleted,
    Declared {
        token: DeclareToken,
        queue: ShortText,
    },
    Joined {
        key: SubscriptionKey,
        membership: Membership,
        queue: ShortText,
    },
    Opened(Leased),
    Paused {
        key: SubscriptionKey,
        source: Source,
    },
    Proven,
    /// None if the subscription is gone.
    Resumed(Option<(SubscriptionKey, lapin::Consumer, ShortString)>),
    Subscribed {
        key: SubscriptionKey,
        subscribed: Subscribed,
    },
    /// And what that gave back; nothing of a shared subscription.
    Unsubscribed {
        key: SubscriptionKey,
        given: Option<Given>,
    },
}

impl ConsumeSide {
    pub(super) fn poll_commands(&mut self, cx: &mut Context<'_>) -> Poll<Result<BrokerEvent, Ending>> {
        loop {
            let Some(running) = &mut self.running else {
                if !self.start_next() {
                    return Poll::Pending;
                }
                continue;
            };
            let Poll::Ready(result) = running.work.as_mut().poll(cx) else { return Poll::Pending };
            let (concern, opens) = (running.concern, running.opens);
            self.running = None;
            match result {
                Err(failure) => {
                    let failure = if opens { self.not_opened(failure) } else { failure };
                    self.absent = self.asked.take().filter(|_| failure.is_absence()).map(Box::new);
                    if failure.is_elsewhere()
                        && let Some(link) = self.link()
                    {
                        self.avoid.get_or_insert_default().0.push(link.node.clone());
                    }
                    return Poll::Ready(Err((failure, concern)));
                }
                Ok(completed) => {
                    self.proven = self.proving.max(self.proven);
                    if let Some(event) = self.complete(completed) {
                        return Poll::Ready(Ok(event));
                    }
                }
            }
        }
    }

    /// Starts the next command, or the opening of the channel that it needs.
    fn start_next(&mut self) -> bool {
        if self.link().is_some_and(|link| link.state().lost.is_some()) && self.is_unused() {
            (self.channel, self.watch) = (None, None);
        }
        let Some(concern) = self.commands.front().map(ConsumeCommand::concern) else { return false };
        if let Some(work) = self.shared_operation() {
            // Not on this channel.
            self.proving = self.proven;
            self.running = Some(Running { concern, opens: true, work });
            return true;
        }
        let Some(command) = self.commands.front() else { return false };
        let opens = self.channel.is_none();
        let work: BoxFuture<'static, Result<Completed, Failure>> = match &self.channel {
            None => {
                let (entry, company) = (self.entry.clone(), self.company(command));
                let avoid = self.avoid.as_ref().map_or_else(Vec::new, |avoid| avoid.0.clone());
                Box::pin(async move {
                    let slot = match entry.clone().reserve_away(Role::Consume, company, avoid.clone()).await {
                        // The others are down: this one may have what is wanted by now.
                        Err(_) if !avoid.is_empty() => entry.clone().reserve(Role::Consume, company).await,
                        slot => slot,
                    };
                    let slot = slot.map_err(reserve_failure)?;
                    entry.channel_limit().open(slot).await.map(Completed::Opened)
                })
            }
            Some(channel) => {
                let operator = Operator {
                    entry: self.entry.clone(),
                    lease: self.lease,
                    link: channel.link.clone(),
                    raw: channel.raw.clone(),
                };
                let alone = channel.link.seclusion.is_for_one();
                let blamed = command.consumes().filter(|queue| self.is_blamed(queue)).cloned();
                let Some(command) = self.commands.pop_front() else { return false };
                match blamed.filter(|_| !alone) {
                    // Others are on this link.
                    Some(queue) => Box::pin(std::future::ready(Err(Failure::Poisoned { queues: vec![queue] }))),
                    None => self.operation(operator, command),
                }
            }
        };
        self.running = Some(Running { concern, opens, work });
        true
    }

    /// Which links this session may be on, if this is its first command on one.
    fn company(&self, command: &ConsumeCommand) -> Company {
        let blamed = command.consumes().is_some_and(|queue| self.is_blamed(queue));
        let now = Instant::now();
        match blamed {
            true => Company::Alone,
            false => self.entry.channel_limit().company(self.suspicion.company(now), now),
        }
    }

    /// At RabbitMQ's limit on channels whoever comes back waits, where it hurts nobody.
    fn not_opened(&mut self, failure: Failure) -> Failure {
        match channel_limit::of_opening(&failure) {
            Some(refusal) if self.suspicion.is_newcomer() => refusal,
            Some(_) => {
                self.suspicion.keep_apart(Instant::now());
                failure
            }
            None => failure,
        }
    }

    fn is_blamed(&self, queue: &ShortText) -> bool {
        self.entry.quarantine().is_blamed(self.entry.vhost(), queue, Instant::now())
    }

    /// The next command if it is about a shared subscription, which needs no channel of this session.
    fn shared_operation(&mut self) -> Option<BoxFuture<'static, Result<Completed, Failure>>> {
        let work: BoxFuture<'static, _> = match self.commands.front()? {
            ConsumeCommand::Subscribe(subscribe) => {
                let shared = SharedSubscribe::of(subscribe)?;
                let (entry, inbox) = (self.entry.clone(), self.inbox.clone());
                Box::pin(async move {
                    let key = shared.key;
                    let (membership, queue) = shared.join(entry, inbox).await?;
                    Ok(Completed::Joined { key, membership, queue })
                })
            }
            ConsumeCommand::Unsubscribe { key, .. } => {
                let key = *key;
                self.memberships.remove(&key)?;
                Box::pin(std::future::ready(Ok(Completed::Unsubscribed { key, given: None })))
            }
            ConsumeCommand::Declare { .. }
            | ConsumeCommand::Delete { .. }
            | ConsumeCommand::Pause { .. }
            | ConsumeCommand::Prove
            | ConsumeCommand::Resume { .. } => return None,
        };
        self.commands.pop_front();
        if self.commands.is_empty() {
            // Most sessions give their commands at the beginning.
            self.commands = VecDeque::new();
        }
        Some(work)
    }

    fn operation(
        &mut self,
        operator: Operator,
        command: ConsumeCommand,
    ) -> BoxFuture<'static, Result<Completed, Failure>> {
        self.starting = command.consumes().cloned();
        self.asked = command.queue().cloned();
        // What is not handed to lapin yet is proven another time, and what this channel is not asked for proves nothing.
        let asks = match &command {
            ConsumeCommand::Prove | ConsumeCommand::Subscribe(_) => true,
            ConsumeCommand::Unsubscribe { key, .. } => self.consumers.iter().any(|consumer| consumer.key == *key),
            ConsumeCommand::Declare { .. }
            | ConsumeCommand::Delete { .. }
            | ConsumeCommand::Pause { .. }
            | ConsumeCommand::Resume { .. } => false,
        };
        self.proving = if asks && self.ledger.is_flushed() { self.given } else { self.proven };
        match command {
            ConsumeCommand::Declare { token, queue } => {
                self.declared_transient |= !queue.durable;
                Box::pin(async move {
                    let queue = operator.declare(&queue).await?;
                    Ok(Completed::Declared { token, queue })
                })
            }
            ConsumeCommand::Delete { queue, only } => Box::pin(async move {
                let done = match only {
                    Some(binding) => unbind_aside(&operator.link, &queue, &binding).await,
                    None => delete_aside(&operator.link, &queue, QueueDeleteOptions::default()).await,
                };
                if let Err(failure) = done {
                    debug!(%queue, ?failure, "a queue or binding that nobody has a right to was not deleted");
                }
                Ok(Completed::Deleted)
            }),
            ConsumeCommand::Pause { key } => self.pausing(operator, key),
            ConsumeCommand::Resume { key } => self.resuming(operator, key),
            ConsumeCommand::Prove => Box::pin(async move { operator.ask().await.map(|()| Completed::Proven) }),
            ConsumeCommand::Subscribe(subscribe) => Box::pin(async move {
                let subscribed = operator.subscribe(&subscribe).await?;
                Ok(Completed::Subscribed { key: subscribe.key, subscribed })
            }),
            ConsumeCommand::Unsubscribe { key, queue } => {
                let at = self.consumers.iter().position(|consumer| consumer.key == key);
                let consumer = at.map(|at| self.consumers.swap_remove(at));
                let doubtful = consumer.as_ref().is_some_and(|consumer| self.is_cut_off(consumer));
                Box::pin(async move {
                    let given = match consumer {
                        Some(Consumer { subscribed, .. }) => {
                            Some(operator.unsubscribe(subscribed, queue, doubtful).await?)
                        }
                        // The broker cancelled it before.
                        None => None,
                    };
                    Ok(Completed::Unsubscribed { key, given })
                })
            }
        }
    }

    fn complete(&mut self, completed: Completed) -> Option<BrokerEvent> {
        match completed {
            Completed::Deleted => None,
            Completed::Opened(channel) => {
                self.watch = Some(LinkWatch::new(&channel.link));
                let config = &channel.link.config;
                let sluice = Arc::new(Sluice::new(config.delivery_bytes_max, config.budget.clone()));
                channel.link.wire.limit_channel(channel.raw.id(), &sluice);
                self.sluice = Some(sluice);
                self.channel = Some(channel);
                self.orders = 0;
                // Tags begin anew with each channel.
                self.tags_before += std::mem::take(&mut self.ledger).end();
                None
            }
            Completed::Declared { token, queue } => Some(BrokerEvent::Declared { token, queue }),
            Completed::Joined { key, membership, queue } => {
                self.memberships.insert(key, membership);
                self.inbox.open(key);
                Some(BrokerEvent::Subscribed { key, queue })
            }
            Completed::Paused { key, source } => {
                self.paused(key, source);
                None
            }
            Completed::Resumed(resumed) => {
                if let Some((key, consumer, tag)) = resumed {
                    self.resumed(key, consumer, tag);
                }
                None
            }
            Completed::Proven => {
                self.told = self.proven;
                Some(BrokerEvent::Settled { count: self.told })
            }
            Completed::Subscribed { key, subscribed } => {
                let queue = subscribed.queue.clone();
                self.starting = None;
                if let (Some(sluice), Some(source)) = (&self.sluice, subscribed.source) {
                    sluice.learned(subscribed.tag.as_str().as_bytes(), source);
                }
                self.consumers.push(Consumer {
                    key,
                    stage: Stage::Runs,
                    subscribed,
                    unsettled: BTreeSet::new(),
                    window: None,
                });
                Some(BrokerEvent::Subscribed { key, queue })
            }
            Completed::Unsubscribed { key, given } => {
                if let Some(Given { source, tag, unseen }) = given {
                    if let Some(sluice) = self.sluice.clone() {
                        unseen.iter().for_each(|unseen| sluice.took(unseen.tag, unseen.bytes));
                        self.give_back(source, sluice.end(tag.as_str().as_bytes()));
                    }
                    self.orders += unseen.len() as u64;
                    unseen.into_iter().for_each(|unseen| self.ledger.gave_back(unseen.tag));
                }
                Some(BrokerEvent::Unsubscribed { key })
            }
        }
    }
}
