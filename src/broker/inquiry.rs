//! What became of a queue that takes or gives no more messages: deleted, or on a node that is away.
//!
//! While a node of a cluster is down, RabbitMQ returns what is published to its classic queues and cancels their consumers, with
//! the same words as for deleted ones. Only a declaration tells: `queue.declare` with `passive`, on a channel of its own.

use super::aside::{Found, declare_passively};
use super::link::Link;
use crate::session::amqp::ShortText;
use crate::session::event::Failure;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::task::JoinHandle;

/// RabbitMQ tells the consumers of a quorum queue or stream that it is deleted before it has forgotten the queue, and whoever makes
/// a queue again needs a moment.
const SETTLING: Duration = Duration::from_secs(1);

/// What RabbitMQ says of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// It is there and its node is not, so it comes back; or the link was lost and there is no answer.
    Away(Failure),
    /// There is no such queue, or nothing is known of it.
    Missing,
    There,
    /// It says that it has messages or consumers, so that somebody leads it if it is replicated.
    Led,
}

/// A question that RabbitMQ has not answered yet. It is answered in a task of its own: nobody may leave its channel half closed.
pub(super) struct Inquiry(JoinHandle<Whereabouts>);

impl Inquiry {
    pub(super) fn begin(link: Arc<Link>, queue: ShortText) -> Inquiry {
        Inquiry(tokio::spawn(async move { ask(&link, &queue).await }))
    }

    /// The same of a queue whose consumer was just cancelled: it may be about to go, or to be made again.
    pub(super) fn begin_later(link: Arc<Link>, queue: ShortText) -> Inquiry {
        Inquiry(tokio::spawn(async move {
            tokio::time::sleep(SETTLING).await;
            ask(&link, &queue).await
        }))
    }

    pub(super) async fn answer(mut self) -> Whereabouts {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Whereabouts> {
        // It fails only when the runtime ends.
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(cx)).unwrap_or(Whereabouts::Missing))
    }
}

async fn ask(link: &Arc<Link>, queue: &ShortText) -> Whereabouts {
    if link.judge_names(|text| text.queue(queue, &[])).is_err() {
        return Whereabouts::Missing;
    }
    match declare_passively(link, queue).await {
        Ok(Found { messages: 0, consumers: 0 }) => Whereabouts::There,
        Ok(_) => Whereabouts::Led,
        Err(failure) if failure.is_absence() || matches!(failure, Failure::LinkLost { .. }) => {
            Whereabouts::Away(failure)
        }
        Err(_) => Whereabouts::Missing,
    }
}
