//! Single operations on a channel of their own, which a refusal closes: no session's channel is at stake.

use super::barrier::barrier_close;
use super::convert::{short, table};
use super::fault::within;
use super::link::Link;
use super::wire::Refusal;
use crate::session::amqp::{Binding, ShortText};
use crate::session::event::Failure;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use std::sync::Arc;

/// What a queue says of itself. Without a leader a quorum queue says that it has nothing.
pub(super) struct Found {
    pub(super) consumers: u32,
    /// That are ready to be delivered.
    pub(super) messages: u32,
}

/// Asks for a queue on a channel of its own, which a refusal closes.
pub(super) async fn declare_passively(link: &Arc<Link>, queue: &ShortText) -> Result<Found, Failure> {
    let scratch = link.scratch().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let work = scratch.queue_declare(short(queue), options, FieldTable::default());
    let result = within(link.config.operation_timeout, "queue declare", work).await;
    barrier_close(&scratch, link).await;
    let found = result.map_err(|fault| link.failure(fault, None))?;
    Ok(Found { consumers: found.consumer_count(), messages: found.message_count() })
}

/// Takes a binding away from a channel of its own.
pub(super) async fn unbind_aside(link: &Arc<Link>, queue: &ShortText, binding: &Binding) -> Result<(), Failure> {
    let Binding { arguments, exchange, routing_key } = binding;
    let scratch = link.scratch().await?;
    let work = scratch.queue_unbind(short(queue), short(exchange), short(routing_key), table(arguments));
    let result = within(link.config.operation_timeout, "queue unbind", work).await;
    barrier_close(&scratch, link).await;
    result.map_err(|fault| link.failure(fault, None))
}

/// Deletes a queue from a channel of its own.
pub(super) async fn delete_aside(
    link: &Arc<Link>,
    queue: &ShortText,
    options: QueueDeleteOptions,
) -> Result<(), Failure> {
    let scratch = link.scratch().await?;
    let work = scratch.queue_delete(short(queue), options);
    let result = within(link.config.operation_timeout, "queue delete", work).await;
    barrier_close(&scratch, link).await;
    let no_refusal: Option<Refusal> = None;
    result.map(drop).map_err(|fault| link.failure(fault, no_refusal))
}
