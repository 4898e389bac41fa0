//! The operations on a consume channel, each from its first AMQP method to its last answer.
//!
//! They run as futures that own what they need. A session that goes away leaves them to the release of its lease, which
//! runs them to their end: so what was half made is known and cleaned up.

use super::aside::{declare_passively, delete_aside};
use super::barrier::barrier_close;
use super::convert::{METHOD_BYTES_BESIDE_TABLE_MAX, declared_arguments, short, short_text, table, table_bytes};
use super::exclusive::{LeaseId, Reservation};
use super::fault::{Fault, within};
use super::link::Link;
use super::pool::Entry;
use super::sluice::{STREAM_OFFSET, Source};
use super::stream_end::end_before;
use super::trial::Trial;
use crate::session::amqp::{Binding, FieldValue, QueueDeclaration, ShortText};
use crate::session::command::{AfterUnsubscribe, Subscribe, SubscribedQueue, SubscriptionKey};
use crate::session::event::Failure;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, ShortString};
use std::sync::Arc;

const RESOURCE_LOCKED: u16 = 405;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// A session's consume channel, to be owned by an operation.
#[derive(Clone)]
pub(super) struct Operator {
    pub(super) entry: Arc<Entry>,
    pub(super) lease: LeaseId,
    pub(super) link: Arc<Link>,
    pub(super) raw: lapin::Channel,
}

/// A delivery that was given back without anybody having seen it.
pub(super) struct Unseen {
    /// Of the body.
    pub(super) bytes: usize,
    pub(super) tag: u64,
}

/// How RabbitMQ knows a subscription's consumer.
pub(super) fn tag_of(key: SubscriptionKey) -> ShortString {
    ShortString::try_new(format!("s{}", key.0)).unwrap_or_default()
}

/// The same after it was made anew for the so-manieth time, so that settlements of before are not taken for its own.
pub(super) fn tag_of_renewal(key: SubscriptionKey, number: u32) -> ShortString {
    ShortString::try_new(format!("s{}.{number}", key.0)).unwrap_or_default()
}

/// What a consumer is made with.
pub(super) struct Making {
    pub(super) arguments: Vec<(ShortText, FieldValue)>,
    pub(super) exclusive: bool,
    pub(super) prefetch: u16,
}

/// A consumer that runs.
pub(super) struct Subscribed {
    pub(super) consumer: lapin::Consumer,
    pub(super) queue: ShortText,
    pub(super) tag: ShortString,
    pub(super) fate: QueueFate,
    /// None: of what the client did not declare it is not known.
    pub(super) source: Option<Source>,
    /// To make it anew; of a queue that is not needed.
    pub(super) making: Option<Box<Making>>,
    /// Whether its queue may be a quorum queue.
    pub(super) replicated: bool,
}

/// What a subscription will read.
fn source_of(subscribe: &Subscribe) -> Option<Source> {
    // RabbitMQ refuses this argument for anything but a stream.
    if subscribe.consumer_arguments.iter().any(|(name, _)| name.as_str() == STREAM_OFFSET) {
        return Some(Source::Stream);
    }
    let SubscribedQueue::Declared(queue) = &subscribe.queue else { return None };
    let is_stream = |(name, value): &(ShortText, FieldValue)| {
        name.as_str() == "x-queue-type" && matches!(value, FieldValue::Text(kind) if kind == "stream")
    };
    Some(if queue.arguments.iter().any(is_stream) { Source::Stream } else { Source::Queue })
}

/// Whether a message looks like one of a stream. Every message of a stream does, and few others.
pub(super) fn offset_of(delivery: &lapin::message::Delivery) -> Option<i64> {
    let headers = delivery.properties.headers().as_ref()?;
    match headers.inner().get(STREAM_OFFSET) {
        Some(AMQPValue::LongLongInt(offset)) => Some(*offset),
        _ => None,
    }
}

/// What becomes of a subscription's queue when its consumer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueFate {
    Stays,
    /// Exclusive and auto-delete: the broker deletes it.
    Vanishes,
}

impl Operator {
    async fn call<T>(&self, step: &'static str, work: impl Future<Output = lapin::Result<T>>) -> Result<T, Failure> {
        within(self.link.config.operation_timeout, step, work).await.map_err(|fault| self.failure(fault))
    }

    /// lapin would write a method beyond the frame size, and RabbitMQ would close the connection.
    fn check_size(&self, arguments: &[(ShortText, FieldValue)]) -> Result<(), Failure> {
        let limit = self.link.frame_bytes_max().saturating_sub(METHOD_BYTES_BESIDE_TABLE_MAX);
        let bytes = table_bytes(arguments);
        if bytes > limit {
            let reply_text = format!("PRECONDITION_FAILED - arguments of {bytes} bytes exceed {limit}");
            return Err(Failure::Refused { reply_code: PRECONDITION_FAILED, reply_text });
        }
        Ok(())
    }

    pub(super) fn failure(&self, fault: Fault) -> Failure {
        self.link.failure(fault, self.link.wire.refusal(self.raw.id()))
    }

    /// Something harmless that has an answer, behind everything before it on this channel: the prefetch is for consumers to
    /// come, and each sets its own.
    pub(super) async fn ask(&self) -> Result<(), Failure> {
        self.call("acknowledgement", self.raw.basic_qos(1, BasicQosOptions { global: false })).await
    }

    /// Declares a queue and returns its name.
    pub(super) async fn declare(&self, queue: &QueueDeclaration) -> Result<ShortText, Failure> {
        self.declare_queue(queue, None).await.map(|declared| short_text(declared.name()))
    }

    /// `binding` is what the queue is made for.
    async fn declare_queue(
        &self,
        queue: &QueueDeclaration,
        binding: Option<&Binding>,
    ) -> Result<lapin::Queue, Failure> {
        let arguments = declared_arguments(queue);
        self.check_size(&arguments)?;
        self.link.judge_names(|text| text.queue(&queue.name, &arguments))?;
        let reservation = self.reserve(queue)?;
        // What this lease has already was tried then.
        if reservation != Some(Reservation::Own)
            && let Some(trial) = Trial::of_queue(queue, binding)
            && let Err(failure) = trial.run(&self.entry).await
        {
            if reservation.is_some() {
                self.link.exclusive.release(&queue.name, self.lease);
            }
            return Err(failure);
        }
        let options = QueueDeclareOptions {
            passive: false,
            durable: queue.durable,
            exclusive: queue.exclusive,
            auto_delete: queue.auto_delete,
            nowait: false,
        };
        let work = self.raw.queue_declare(short(&queue.name), options, table(&arguments));
        let result = self.call("queue declare", work).await;
        match (&result, reservation) {
            (Ok(declared), _) if queue.exclusive => {
                self.link.exclusive.created(&short_text(declared.name()), self.lease);
            }
            (Err(_), Some(Reservation::New)) => self.link.exclusive.release(&queue.name, self.lease),
            _ => {}
        }
        result
    }

    fn reserve(&self, queue: &QueueDeclaration) -> Result<Option<Reservation>, Failure> {
        if !queue.exclusive || queue.name.is_empty() {
            self.check_lock(&queue.name)?;
            return Ok(None);
        }
        match self.link.exclusive.reserve(&queue.name, self.lease) {
            Reservation::Locked => Err(self.locked(&queue.name)),
            reservation => Ok(Some(reservation)),
        }
    }

    fn check_lock(&self, queue: &ShortText) -> Result<(), Failure> {
        if self.link.exclusive.locked_for(queue, self.lease) { Err(self.locked(queue)) } else { Ok(()) }
    }

    /// What RabbitMQ says to another connection.
    fn locked(&self, queue: &ShortText) -> Failure {
        let vhost = &self.link.vhost;
        let reply_text =
            format!("RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{queue}' in vhost '{vhost}'");
        Failure::Refused { reply_code: RESOURCE_LOCKED, reply_text }
    }

    /// Declare, bind, set the prefetch, consume. With a binding, a queue that this created is deleted if a step fails.
    pub(super) async fn subscribe(&self, subscribe: &Subscribe) -> Result<Subscribed, Failure> {
        let (queue, leftover) = match &subscribe.queue {
            SubscribedQueue::Existing(name) => {
                self.link.judge_names(|text| text.queue(name, &[]))?;
                self.check_lock(name)?;
                (name.clone(), Leftover::NotOurs)
            }
            SubscribedQueue::Declared(declaration) if subscribe.exclusive => {
                (self.declare(declaration).await?, Leftover::NotOurs)
            }
            SubscribedQueue::Declared(declaration) => self.declare_to_bind(declaration, &subscribe.binding).await?,
        };
        let fate = match &subscribe.queue {
            SubscribedQueue::Declared(QueueDeclaration { exclusive: true, auto_delete: true, .. }) => {
                QueueFate::Vanishes
            }
            _ => QueueFate::Stays,
        };
        let result = self.bind_and_consume(subscribe, &queue, fate).await;
        if result.is_err() && subscribe.binding.is_some() {
            self.undo(&queue, leftover).await;
        }
        result
    }

    /// Finds out on the way whether the queue is new.
    ///
    /// An exclusive queue is new unless this lease had it, and so is one that the broker named. Auto-delete: new, or as
    /// good as new, if it has neither messages nor consumers. Any other must not be deleted on a guess, so it is looked
    /// for first, on a channel that may fail.
    async fn declare_to_bind(
        &self,
        declaration: &QueueDeclaration,
        binding: &Option<Binding>,
    ) -> Result<(ShortText, Leftover), Failure> {
        let created_before = self.link.exclusive.created_by(self.lease).contains(&declaration.name);
        let exact = declaration.exclusive || declaration.name.is_empty();
        let existed = match binding {
            Some(_) if !exact && !declaration.auto_delete => {
                self.link.judge_names(|text| text.queue(&declaration.name, &[]))?;
                self.check_lock(&declaration.name)?;
                self.exists(&declaration.name).await?
            }
            _ => false,
        };
        if let Some(Binding { arguments, exchange, routing_key }) = binding {
            self.check_size(arguments)?;
            self.link.judge_names(|text| text.binding(exchange, routing_key, arguments))?;
        }
        let declared = self.declare_queue(declaration, binding.as_ref()).await?;
        let deserted = declared.message_count() == 0 && declared.consumer_count() == 0;
        let leftover = match () {
            () if exact && !created_before => Leftover::Ours,
            () if declaration.auto_delete && !exact && deserted => Leftover::Deserted,
            () if !exact && !declaration.auto_delete && !existed => Leftover::Ours,
            () => Leftover::NotOurs,
        };
        Ok((short_text(declared.name()), leftover))
    }

    async fn exists(&self, queue: &ShortText) -> Result<bool, Failure> {
        match declare_passively(&self.link, queue).await {
            Ok(_) => Ok(true),
            Err(Failure::Refused { reply_code: NOT_FOUND, .. }) => Ok(false),
            // Whatever else is wrong with it, the declaration itself will say; the queue is there.
            Err(Failure::Refused { .. }) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    async fn bind_and_consume(
        &self,
        subscribe: &Subscribe,
        queue: &ShortText,
        fate: QueueFate,
    ) -> Result<Subscribed, Failure> {
        self.check_size(&subscribe.consumer_arguments)?;
        if let Some(binding) = &subscribe.binding {
            let Binding { arguments, exchange, routing_key } = binding;
            self.check_size(arguments)?;
            self.link.judge_names(|text| text.binding(exchange, routing_key, arguments))?;
            if !matches!(&subscribe.queue, SubscribedQueue::Declared(queue) if queue.exclusive)
                && let Some(trial) = Trial::of_binding(binding, queue)
            {
                trial.run(&self.entry).await?;
            }
        }
        if let Some(offset) = subscribe.begins_at
            && let Some(next) = end_before(&self.link, queue, offset).await
        {
            return Err(Failure::BehindEnd { offset, next });
        }
        // Not global: it is for the next consumer of this channel only.
        let qos = self.raw.basic_qos(subscribe.prefetch.max(1), BasicQosOptions { global: false });
        let tag = tag_of(subscribe.key);
        let options =
            BasicConsumeOptions { exclusive: subscribe.exclusive, no_ack: false, ..BasicConsumeOptions::default() };
        let consume = self.raw.basic_consume(short(queue), tag.clone(), options, table(&subscribe.consumer_arguments));
        // Polls in this order, always; lapin takes a method at the first poll. They are answered in order, and those behind
        // one that is refused are ignored.
        let (bound, limited, consumer) = futures_util::join!(
            self.bind(queue, subscribe.binding.as_ref()),
            self.call("prefetch", qos),
            self.call("consume", consume),
        );
        let consumer = bound.and(limited).and(consumer)?;
        let source = source_of(subscribe);
        let making = (source != Some(Source::Queue)).then(|| {
            let Subscribe { consumer_arguments: arguments, exclusive, prefetch, .. } = subscribe;
            Box::new(Making { arguments: arguments.clone(), exclusive: *exclusive, prefetch: (*prefetch).max(1) })
        });
        let replicated = may_be_replicated(&subscribe.queue);
        Ok(Subscribed { consumer, queue: queue.clone(), tag, fate, source, making, replicated })
    }

    async fn bind(&self, queue: &ShortText, binding: Option<&Binding>) -> Result<(), Failure> {
        let Some(Binding { arguments, exchange, routing_key }) = binding else { return Ok(()) };
        let options = QueueBindOptions::default();
        let work = self.raw.queue_bind(short(queue), short(exchange), short(routing_key), options, table(arguments));
        self.call("queue bind", work).await
    }

    /// Deletes a queue from another channel: this one is closed by the failure.
    async fn undo(&self, queue: &ShortText, leftover: Leftover) {
        let options = match leftover {
            Leftover::NotOurs => return,
            Leftover::Ours => QueueDeleteOptions { if_unused: true, if_empty: false, nowait: false },
            Leftover::Deserted => QueueDeleteOptions { if_unused: true, if_empty: true, nowait: false },
        };
        if delete_aside(&self.link, queue, options).await.is_ok() {
            self.link.exclusive.release(queue, self.lease);
        }
    }

    /// Cancels a consumer and gives back what it was delivered beyond what the session saw. `doubtful`: some of that is kept
    /// elsewhere, and looks like a stream's.
    pub(super) async fn unsubscribe(
        &self,
        mut from: Subscribed,
        then: AfterUnsubscribe,
        doubtful: bool,
    ) -> Result<Given, Failure> {
        self.call("cancel", self.raw.basic_cancel(from.tag.clone(), BasicCancelOptions::default())).await?;
        if doubtful {
            self.source(&mut from).await?;
        }
        let mut unseen = Vec::new();
        // Ends with the consumer: lapin marks the end of the stream when the broker has answered the cancel.
        while let Some(delivery) = self.next_of(&mut from.consumer).await? {
            let source = match offset_of(&delivery) {
                Some(_) => self.source(&mut from).await?,
                None => Source::Queue,
            };
            let tag = delivery.delivery_tag;
            match source {
                Source::Queue => {
                    let give_back = BasicNackOptions { multiple: false, requeue: true };
                    self.call("requeue", self.raw.basic_nack(tag, give_back)).await?;
                }
                // It keeps its messages, and takes none back: RabbitMQ would close the connection (540).
                Source::Stream => {
                    self.call("acknowledgement", self.raw.basic_ack(tag, BasicAckOptions::default())).await?;
                }
            }
            unseen.push(Unseen { bytes: delivery.data.len(), tag });
        }
        if then == AfterUnsubscribe::Delete {
            // From another channel: this one declared the queue, and RabbitMQ remembers per channel what was permitted.
            delete_aside(&self.link, &from.queue, QueueDeleteOptions::default()).await?;
        }
        if then == AfterUnsubscribe::Delete || from.fate == QueueFate::Vanishes {
            self.link.exclusive.release(&from.queue, self.lease);
        }
        Ok(Given { source: from.source.unwrap_or(Source::Queue), tag: from.tag, unseen })
    }

    async fn source(&self, from: &mut Subscribed) -> Result<Source, Failure> {
        let source = match from.source {
            Some(source) => source,
            None => self.find_source(&from.queue).await?,
        };
        from.source = Some(source);
        Ok(source)
    }

    /// Asks RabbitMQ whether this is a stream: it lets nothing else be read from an offset. Nothing is read on the way.
    pub(super) async fn find_source(&self, queue: &ShortText) -> Result<Source, Failure> {
        let scratch = self.link.scratch().await?;
        let limit = self.link.config.operation_timeout;
        let arguments = table(&[(ShortText::lit(STREAM_OFFSET), FieldValue::Text("next".into()))]);
        let consume = scratch.basic_consume(short(queue), "".into(), BasicConsumeOptions::default(), arguments);
        let limited = within(limit, "prefetch", scratch.basic_qos(1, BasicQosOptions { global: false })).await;
        let result = match limited {
            Ok(()) => within(limit, "consume", consume).await,
            Err(fault) => Err(fault),
        };
        barrier_close(&scratch, &self.link).await;
        match result.map(drop).map_err(|fault| self.link.failure(fault, None)) {
            Ok(()) => Ok(Source::Stream),
            Err(Failure::Refused { reply_code: PRECONDITION_FAILED, .. }) => Ok(Source::Queue),
            Err(failure) => Err(failure),
        }
    }

    /// Ends a stream's consumer; what was delivered by then is still to be read from it.
    pub(super) async fn pause(
        &self,
        queue: &ShortText,
        tag: ShortString,
        source: Option<Source>,
    ) -> Result<Source, Failure> {
        let source = match source {
            Some(source) => source,
            None => self.find_source(queue).await?,
        };
        if source == Source::Stream {
            self.call("cancel", self.raw.basic_cancel(tag, BasicCancelOptions::default())).await?;
        }
        Ok(source)
    }

    /// Makes a stream's consumer anew, from `offset` on.
    pub(super) async fn resume(&self, renewal: Renewal) -> Result<lapin::Consumer, Failure> {
        let Renewal { mut arguments, exclusive, offset, prefetch, queue, tag } = renewal;
        arguments.retain(|(name, _)| name.as_str() != STREAM_OFFSET);
        arguments.push((ShortText::lit(STREAM_OFFSET), FieldValue::Integer(offset)));
        let options = BasicConsumeOptions { exclusive, no_ack: false, ..BasicConsumeOptions::default() };
        let qos = self.raw.basic_qos(prefetch, BasicQosOptions { global: false });
        let consume = self.raw.basic_consume(short(&queue), tag, options, table(&arguments));
        let (limited, consumer) = futures_util::join!(self.call("prefetch", qos), self.call("consume", consume));
        limited.and(consumer)
    }

    async fn next_of(&self, consumer: &mut lapin::Consumer) -> Result<Option<lapin::message::Delivery>, Failure> {
        let next = async { consumer.next().await.transpose() };
        self.call("cancel", next).await
    }
}

/// What an unsubscribe gave back.
pub(super) struct Given {
    pub(super) source: Source,
    pub(super) tag: ShortString,
    pub(super) unseen: Vec<Unseen>,
}

/// What a stream's consumer is made anew with.
pub(super) struct Renewal {
    pub(super) arguments: Vec<(ShortText, FieldValue)>,
    pub(super) exclusive: bool,
    pub(super) offset: i64,
    pub(super) prefetch: u16,
    pub(super) queue: ShortText,
    pub(super) tag: ShortString,
}

/// A quorum queue is neither exclusive nor auto-delete, and what kind it is may be the virtual host's choice.
fn may_be_replicated(queue: &SubscribedQueue) -> bool {
    match queue {
        SubscribedQueue::Existing(_) => true,
        SubscribedQueue::Declared(queue) => {
            let kind = queue.arguments.iter().find(|(name, _)| name.as_str() == "x-queue-type");
            let other = kind.is_some_and(|(_, kind)| !matches!(kind, FieldValue::Text(kind) if kind == "quorum"));
            !queue.exclusive && !queue.auto_delete && !other
        }
    }
}

/// What a failed subscription leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leftover {
    NotOurs,
    /// Created by it.
    Ours,
    /// Auto-delete and without messages and consumers.
    Deserted,
}
