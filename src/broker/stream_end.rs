//! Where a stream ends: RabbitMQ takes a consumer that wants to begin behind the end, and leaves it without a message until the
//! stream has grown so far, which may be never. Reads on a channel of its own, which a refusal closes.
//!
//! RabbitMQ 3.10 and 4.0 know no question for the end. `queue.declare` counts messages, but as they were some seconds ago. So the
//! end is read: `last` begins with the last chunk that was written together; when the acknowledgement of all that has come brings
//! nothing more, the newest of it is the last.

use super::aside::declare_passively;
use super::barrier::barrier_close;
use super::fault::within;
use super::link::Link;
use crate::patience;
use crate::session::amqp::ShortText;
use crate::session::event::Failure;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use std::sync::Arc;
use std::time::Duration;

const OFFSET: &str = "x-stream-offset";

/// Messages that are under way at a time.
const AT_A_TIME: u16 = 64;

/// A stream that gives nothing for so long has nothing.
const FIRST_MESSAGE: Duration = Duration::from_secs(3);

/// A replica of the stream may be behind the others for a moment: it is asked once more after this time.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// More than there are in a chunk, at [`AT_A_TIME`] each. A stream that grows faster than it is read has no end to be behind of.
const ROUNDS_MAX: usize = 256;

/// The offset that the stream's next message will have, if that is less than `offset`. None too where it can't be known: RabbitMQ
/// will say what is wrong.
pub(super) async fn end_before(link: &Arc<Link>, queue: &ShortText, offset: i64) -> Option<i64> {
    link.judge_names(|text| text.queue(queue, &[])).ok()?;
    // A stream has at least so many. Most offsets are within it, and then nothing is read.
    let known = declare_passively(link, queue).await.ok()?;
    if offset <= i64::from(known.messages) {
        return None;
    }
    read_end(link, queue, offset).await.ok()?.filter(|next| *next < offset)?;
    tokio::time::sleep(SECOND_LOOK).await;
    read_end(link, queue, offset).await.ok()?.filter(|next| *next < offset)
}

/// The offset of the next message; None if the end was not reached.
async fn read_end(link: &Arc<Link>, queue: &ShortText, offset: i64) -> Result<Option<i64>, Failure> {
    let scratch = link.scratch().await?;
    let limit = link.config.operation_timeout;
    let read = async {
        let mut arguments = FieldTable::default();
        arguments.insert(OFFSET.into(), AMQPValue::LongString(LongString::from("last")));
        scratch.basic_qos(AT_A_TIME, BasicQosOptions { global: false }).await?;
        let name = ShortString::try_new(queue.as_str()).unwrap_or_default();
        let consume = scratch.basic_consume(name, "end".into(), BasicConsumeOptions::default(), arguments);
        let mut consumer = consume.await?;
        let Ok(first) = patience::timeout(FIRST_MESSAGE, consumer.next()).await else {
            return Ok((consumer, Some(0)));
        };
        let mut newest = first.transpose()?;
        let mut next = None;
        for _ in 0..ROUNDS_MAX {
            // What came before the answer is there.
            scratch.basic_qos(AT_A_TIME, BasicQosOptions { global: false }).await?;
            while let Some(Some(delivery)) = consumer.next().now_or_never() {
                newest = Some(delivery?);
            }
            let Some(last) = newest.take() else { return Ok((consumer, next)) };
            next = offset_of(&last).map(|offset| offset.saturating_add(1));
            if next.is_none_or(|next| next >= offset) {
                return Ok((consumer, next));
            }
            scratch.basic_ack(last.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
        Ok((consumer, None))
    };
    let result = within(limit, "stream end", read).await;
    // The consumer goes behind its channel.
    barrier_close(&scratch, link).await;
    result.map(|(_, next)| next).map_err(|fault| link.failure(fault, None))
}

fn offset_of(delivery: &Delivery) -> Option<i64> {
    match delivery.properties.headers().as_ref()?.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => Some(*offset),
        _ => None,
    }
}
