//! Makes, proves and deletes the queues of shared subscriptions on a channel beside the hub's, which a refusal may close.
//!
//! One queue at a time. What makes it is written at once and answered in order: if a method is refused, the channel is
//! closed, and RabbitMQ ignores those behind it.

use super::barrier::barrier_close;
use super::config::PERMISSION_AGE_MAX;
use super::convert::{declared_arguments, short, short_text, table};
use super::exclusive::LeaseId;
use super::fault::{Fault, within};
use super::link::Link;
use crate::session::amqp::{Binding, QueueDeclaration, ShortText};
use crate::session::event::Failure;
use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use std::sync::Arc;
use tokio::time::Instant;

pub(super) struct Workbench {
    /// With the time at which it was opened: RabbitMQ may remember from then on what it permitted on it.
    channel: Option<(lapin::Channel, Instant)>,
    /// Owns the queues, so that no session takes one of them for its own.
    owner: LeaseId,
    link: Arc<Link>,
}

impl Workbench {
    pub(super) fn new(link: Arc<Link>, owner: LeaseId) -> Workbench {
        Workbench { channel: None, owner, link }
    }

    /// A queue that is bound and that may be consumed, and when RabbitMQ was asked for it.
    ///
    /// Not auto-delete, though the command may say so: the queue has to outlive the loss of the hub's channel. Exclusive, so
    /// it ends with the connection at the latest.
    ///
    /// Reading from the queue, which is empty as long as it is not bound, needs the same permission as consuming it. So that
    /// is refused here and not on the hub's channel.
    pub(super) async fn prepare(
        &mut self,
        declaration: &QueueDeclaration,
        binding: &Binding,
    ) -> Result<(ShortText, Instant), Failure> {
        let Binding { arguments, exchange, routing_key } = binding;
        self.link.judge_names(|text| text.binding(exchange, routing_key, arguments))?;
        let (channel, since) = self.fresh_channel().await?;
        let (name, limit) = (short(&declaration.name), self.link.config.operation_timeout);
        let declared_with = table(&declared_arguments(declaration));
        let options = QueueDeclareOptions { durable: declaration.durable, exclusive: true, ..Default::default() };
        let declare = channel.queue_declare(name.clone(), options, declared_with);
        let read = channel.basic_get(name.clone(), BasicGetOptions { no_ack: true });
        let options = QueueBindOptions::default();
        let bind = channel.queue_bind(name, short(exchange), short(routing_key), options, table(arguments));
        // Polls in this order, always; lapin takes a method at the first poll.
        let (declared, read, bound) = futures_util::join!(
            within(limit, "queue declare", declare),
            within(limit, "queue check", read),
            within(limit, "queue bind", bind),
        );
        let queue = match declared {
            Ok(declared) => short_text(declared.name()),
            Err(fault) => return Err(self.failed(fault).await),
        };
        self.link.exclusive.created(&queue, self.owner);
        if let Err(fault) = read.and(bound) {
            let failure = self.failed(fault).await;
            // It is the refusal that the subscribers have to know.
            let _ = self.delete(&queue).await;
            return Err(failure);
        }
        Ok((queue, since))
    }

    /// Asks RabbitMQ everything about a shared queue that it would be asked for a new one: whether queues like it may be
    /// declared and read, by way of `sample`, and whether this one may be bound to its exchange, which must be there. A
    /// binding that is gone is made anew. Returns since when the answer holds.
    pub(super) async fn prove(
        &mut self,
        queue: &ShortText,
        binding: &Binding,
        sample: &QueueDeclaration,
    ) -> Result<Instant, Failure> {
        let Binding { arguments, exchange, routing_key } = binding;
        let (channel, since) = self.fresh_channel().await?;
        let (name, limit) = (short(&sample.name), self.link.config.operation_timeout);
        let options = QueueDeclareOptions { durable: sample.durable, exclusive: true, ..Default::default() };
        let declare = channel.queue_declare(name.clone(), options, table(&declared_arguments(sample)));
        let read = channel.basic_get(name, BasicGetOptions { no_ack: true });
        let options = QueueBindOptions::default();
        let bind = channel.queue_bind(short(queue), short(exchange), short(routing_key), options, table(arguments));
        // Polls in this order, always; lapin takes a method at the first poll.
        let (declared, read, bound) = futures_util::join!(
            within(limit, "queue declare", declare),
            within(limit, "queue check", read),
            within(limit, "queue bind", bind),
        );
        if declared.is_ok() {
            self.link.exclusive.created(&sample.name, self.owner);
        }
        match declared.map(drop).and(read.map(drop)).and(bound) {
            Ok(()) => Ok(since),
            Err(fault) => Err(self.failed(fault).await),
        }
    }

    pub(super) async fn delete(&mut self, queue: &ShortText) -> Result<(), Failure> {
        let (channel, _) = self.channel().await?;
        let deletion = channel.queue_delete(short(queue), QueueDeleteOptions::default());
        if let Err(fault) = within(self.link.config.operation_timeout, "queue delete", deletion).await {
            return Err(self.failed(fault).await);
        }
        self.link.exclusive.release(queue, self.owner);
        Ok(())
    }

    /// Gives the channel back, until it is needed again.
    pub(super) async fn clear(&mut self) {
        if let Some((channel, _)) = self.channel.take() {
            barrier_close(&channel, &self.link).await;
        }
    }

    /// On an old channel RabbitMQ may permit what it would not any more. Whoever waits for an answer does not wait for its end.
    async fn fresh_channel(&mut self) -> Result<(lapin::Channel, Instant), Failure> {
        let old = self.channel.take_if(|(_, since)| since.elapsed() > PERMISSION_AGE_MAX);
        if let Some((old, _)) = old {
            let link = self.link.clone();
            tokio::spawn(async move { barrier_close(&old, &link).await });
        }
        self.channel().await
    }

    async fn channel(&mut self) -> Result<(lapin::Channel, Instant), Failure> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let since = Instant::now();
        // If none can be had, the link has no usable channel numbers left.
        let opened = self.link.scratch().await.inspect_err(|_| self.link.retire())?;
        self.channel = Some((opened.clone(), since));
        Ok((opened, since))
    }

    async fn failed(&mut self, fault: Fault) -> Failure {
        let failure = self.link.failure(fault, None);
        self.clear().await;
        failure
    }
}
