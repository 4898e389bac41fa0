//! The consumer of one shared queue as a stream whose items say which queue they are of, so that many can be merged.

use futures_util::stream::Stream;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Numbers the queues of a hub channel.
pub(super) type QueueNumber = u64;

/// What a shared queue's consumer says.
pub(super) enum Item {
    Delivery(lapin::message::Delivery),
    /// Of the whole channel.
    Error(lapin::Error),
    End,
}

/// One consumer's stream, with its queue's number at every item.
pub(super) struct SharedConsumer {
    number: QueueNumber,
    /// None after its end: lapin's must not be polled again.
    stream: Option<lapin::Consumer>,
}

impl SharedConsumer {
    pub(super) fn new(number: QueueNumber, stream: lapin::Consumer) -> SharedConsumer {
        SharedConsumer { number, stream: Some(stream) }
    }
}

impl Stream for SharedConsumer {
    type Item = (QueueNumber, Item);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let number = self.number;
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let Poll::Ready(item) = Pin::new(stream).poll_next(cx) else { return Poll::Pending };
        let item = match item {
            Some(Ok(delivery)) => Item::Delivery(delivery),
            Some(Err(error)) => Item::Error(error),
            None => {
                self.stream = None;
                Item::End
            }
        };
        Poll::Ready(Some((number, item)))
    }
}
