//! Makes and deletes the queues of shared subscriptions on a channel beside the hub's, which a refusal may close.

use super::convert::{short, short_text, table};
use super::exclusive::LeaseId;
use super::fault::within;
use super::link::Link;
use super::release::barrier_close;
use crate::session::amqp::{Binding, QueueDeclaration, ShortText};
use crate::session::event::Failure;
use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use std::sync::Arc;

pub(super) struct Workbench {
    channel: Option<lapin::Channel>,
    /// Owns the queues, so that no session takes one of them for its own.
    owner: LeaseId,
    link: Arc<Link>,
}

impl Workbench {
    pub(super) fn new(link: Arc<Link>, owner: LeaseId) -> Workbench {
        Workbench { channel: None, owner, link }
    }

    /// A queue that is bound and that may be consumed.
    ///
    /// Not auto-delete, though the command may say so: the queue has to outlive the loss of the hub's channel. Exclusive, so
    /// it ends with the connection at the latest.
    pub(super) async fn prepare(
        &mut self,
        declaration: &QueueDeclaration,
        binding: &Binding,
    ) -> Result<ShortText, Failure> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { durable: declaration.durable, exclusive: true, ..Default::default() };
        let declared = channel.queue_declare(short(&declaration.name), options, table(&declaration.arguments));
        let queue = short_text(self.call("queue declare", declared).await?.name());
        self.link.exclusive.created(&queue, self.owner);
        if let Err(failure) = self.prove_and_bind(&queue, binding).await {
            // It is the refusal that the subscribers have to know.
            let _ = self.delete(&queue).await;
            return Err(failure);
        }
        Ok(queue)
    }

    /// Reading from the queue, which is empty as long as it is not bound, needs the same permission as consuming it. So that
    /// is refused here and not on the hub's channel.
    async fn prove_and_bind(&mut self, queue: &ShortText, binding: &Binding) -> Result<(), Failure> {
        let channel = self.channel().await?;
        let read = channel.basic_get(short(queue), BasicGetOptions { no_ack: true });
        self.call("queue check", read).await?;
        let Binding { arguments, exchange, routing_key } = binding;
        self.link.judge_names(|text| text.binding(exchange, routing_key, arguments))?;
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(short(queue), short(exchange), short(routing_key), options, table(arguments));
        self.call("queue bind", bound).await
    }

    pub(super) async fn delete(&mut self, queue: &ShortText) -> Result<(), Failure> {
        let channel = self.channel().await?;
        let deleted = channel.queue_delete(short(queue), QueueDeleteOptions::default());
        self.call("queue delete", deleted).await?;
        self.link.exclusive.release(queue, self.owner);
        Ok(())
    }

    /// Gives the channel back, until it is needed again.
    pub(super) async fn clear(&mut self) {
        if let Some(channel) = self.channel.take() {
            barrier_close(&channel, &self.link).await;
        }
    }

    async fn channel(&mut self) -> Result<lapin::Channel, Failure> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        // If none can be had, the link has no usable channel numbers left.
        let opened = self.link.scratch().await.inspect_err(|_| self.link.retire())?;
        self.channel = Some(opened.clone());
        Ok(opened)
    }

    async fn call<T>(
        &mut self,
        step: &'static str,
        work: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Failure> {
        match within(self.link.config.operation_timeout, step, work).await {
            Ok(done) => Ok(done),
            Err(fault) => {
                let failure = self.link.failure(fault, None);
                self.clear().await;
                Err(failure)
            }
        }
    }
}
