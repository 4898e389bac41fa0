//! Consumers of streams that bring more than fits: a stream takes nothing back, so the consumer is ended and made anew where it
//! was cut off, with a prefetch for messages of that size, and for more of them when they have become small.
//!
//! The client notices nothing of it: what was delivered goes on to count in the prefetch it asked for, and what comes next is the
//! next message. A client that collects more messages than the smaller prefetch before it acknowledges any would wait in vain: so
//! the consumer is also made anew when all that it was granted is unsettled, and the client asked for more.
//! Which deliveries are cut off is `sluice`'s.

use super::{Completed, ConsumeCommand, ConsumeSide, Consumer};
use crate::broker::sluice::{CutOff, Source};
use crate::broker::subscribe::{Operator, Renewal, offset_of, tag_of_renewal};
use crate::session::command::{Settlement, SubscriptionKey};
use crate::session::event::Failure;
use futures_util::future::BoxFuture;
use lapin::types::ShortString;
use std::collections::BTreeSet;
use std::task::Context;

/// Messages of a stream that have to be small, and at least four times the prefetch, before that grows.
const CALM: usize = 64;
/// By which it grows then.
const GROWTH: usize = 4;
/// What a delivery takes at least.
const SMALL: usize = 1024;

/// Of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Runs,
    /// It is being cancelled; `over` is whether all that it had was read.
    Pausing {
        over: bool,
    },
    /// It was cancelled.
    Paused {
        over: bool,
    },
    /// It is being made anew.
    Resuming,
}

impl Stage {
    /// It has nothing more.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Stage::Pausing { over: true } | Stage::Paused { over: true } | Stage::Resuming)
    }

    /// Its end is nothing that the session is told.
    pub(super) fn is_ending(self) -> bool {
        matches!(self, Stage::Pausing { .. } | Stage::Paused { .. })
    }

    pub(super) fn end(&mut self) {
        if let Stage::Pausing { over } | Stage::Paused { over } = self {
            *over = true;
        }
    }
}

/// How many messages of a stream may be on their way.
#[derive(Debug)]
pub(super) struct Window {
    /// The first delivery since the consumer was made.
    first: Option<u64>,
    granted: usize,
    /// The last one that was handed out.
    last: Option<i64>,
    /// Bytes of the largest one of those that `taken` counts.
    largest: usize,
    /// How often the consumer was made anew.
    renewals: u32,
    /// Handed out since it was last looked at how large they are.
    taken: usize,
}

impl Window {
    fn new(granted: usize) -> Window {
        Window { first: None, granted, last: None, largest: SMALL, renewals: 0, taken: 0 }
    }

    fn note(&mut self, delivery: &lapin::message::Delivery) {
        self.first.get_or_insert(delivery.delivery_tag);
        self.last = offset_of(delivery).or(self.last);
        self.largest = self.largest.max(delivery.data.len());
        self.taken += 1;
    }

    fn has_seen_enough(&self) -> bool {
        self.taken >= CALM.max(GROWTH * self.granted)
    }

    /// Whether more messages of the size that came lately would fit.
    fn has_room(&self, bytes_max: usize) -> bool {
        self.largest * self.granted * GROWTH <= bytes_max / 2
    }

    /// One large message must not count for ever.
    fn look_again(&mut self, bytes_max: usize) {
        if self.has_seen_enough() && !self.has_room(bytes_max) {
            self.begin_count();
        }
    }

    fn begin_count(&mut self) {
        (self.largest, self.taken) = (SMALL, 0);
    }

    /// Whether more than now would fit. `left` is what is left of the client's prefetch.
    fn is_narrow(&self, bytes_max: usize, left: usize) -> bool {
        self.has_seen_enough() && left >= 2 * self.granted && self.has_room(bytes_max)
    }

    /// Whether nothing more comes before the client settles something, although it asked for more.
    fn is_used_up(&self, unsettled: &BTreeSet<u64>, left: usize) -> bool {
        let of_this = || self.first.map_or(0, |first| unsettled.range(first..).take(self.granted).count());
        left > 0 && of_this() >= self.granted
    }

    /// What the next consumer is granted, and where it begins; none if that is not known.
    fn renew(&mut self, cut: Option<CutOff>, bytes_max: usize, left: usize) -> Option<(usize, i64)> {
        let granted = match cut {
            Some(cut) => (bytes_max / 2 / cut.mean_bytes.max(SMALL)).min(self.granted / 2),
            None if self.is_narrow(bytes_max, left) => self.granted * GROWTH,
            None => self.granted,
        };
        let before = std::mem::replace(&mut self.granted, granted.min(left).max(1));
        let from = cut.and_then(|cut| cut.first).or(self.last.map(|last| last.saturating_add(1)));
        self.first = None;
        if self.granted != before {
            self.begin_count();
        }
        self.renewals += 1;
        from.map(|from| (self.granted, from))
    }
}

impl Consumer {
    /// What is left of the prefetch that a client asked for, where it may be a stream's.
    fn left(&self) -> Option<usize> {
        let making = self.subscribed.making.as_ref()?;
        Some(usize::from(making.prefetch).saturating_sub(self.unsettled.len()))
    }

    /// Notes a delivery that is handed out.
    pub(super) fn note(&mut self, delivery: &lapin::message::Delivery) {
        if self.subscribed.making.is_some() {
            self.unsettled.insert(delivery.delivery_tag);
        }
        if let Some(window) = &mut self.window {
            window.note(delivery);
        }
    }
}

impl ConsumeSide {
    /// A delivery was settled; on the present channel it has this tag.
    pub(super) fn note_settled(&mut self, tag: u64) {
        for consumer in self.consumers.iter_mut().filter(|consumer| !consumer.unsettled.is_empty()) {
            consumer.unsettled.remove(&tag);
        }
    }

    fn consumer_mut(&mut self, key: SubscriptionKey) -> Option<&mut Consumer> {
        self.consumers.iter_mut().find(|consumer| consumer.key == key)
    }

    pub(super) fn is_cut_off(&self, consumer: &Consumer) -> bool {
        self.cut_of(consumer).is_some()
    }

    fn cut_of(&self, consumer: &Consumer) -> Option<CutOff> {
        self.sluice.as_ref()?.cut_off(consumer.subscribed.tag.as_str().as_bytes())
    }

    /// Begins to make consumers anew, as far as they need it and are ready for it.
    pub(super) fn renew_streams(&mut self, cx: &mut Context<'_>) {
        let Some(sluice) = self.sluice.clone() else { return };
        if !sluice.overflows() && self.consumers.iter().all(|consumer| consumer.window.is_none()) {
            return;
        }
        for at in 0..self.consumers.len() {
            if let Some(window) = &mut self.consumers[at].window {
                window.look_again(sluice.bytes_max());
            }
            let consumer = &self.consumers[at];
            let (key, Some(left)) = (consumer.key, consumer.left()) else { continue };
            let command = match consumer.stage {
                Stage::Runs => {
                    let is_wrong = |window: &Window| {
                        window.is_narrow(sluice.bytes_max(), left) || window.is_used_up(&consumer.unsettled, left)
                    };
                    if !consumer.window.as_deref().is_some_and(is_wrong) && !self.is_cut_off(consumer) {
                        continue;
                    }
                    let asked = left + consumer.unsettled.len();
                    self.consumers[at].window.get_or_insert_with(|| Box::new(Window::new(asked)));
                    self.consumers[at].stage = Stage::Pausing { over: false };
                    ConsumeCommand::Pause { key }
                }
                // With all of its prefetch unsettled there is nothing to come.
                Stage::Paused { over: true } if left > 0 => {
                    self.consumers[at].stage = Stage::Resuming;
                    ConsumeCommand::Resume { key }
                }
                Stage::Paused { .. } | Stage::Pausing { .. } | Stage::Resuming => continue,
            };
            self.commands.push_back(command);
            cx.waker().wake_by_ref();
        }
    }

    pub(super) fn pausing(
        &mut self,
        operator: Operator,
        key: SubscriptionKey,
    ) -> BoxFuture<'static, Result<Completed, Failure>> {
        let Some(consumer) = self.consumer_mut(key) else { return gone() };
        let subscribed = &consumer.subscribed;
        let (queue, tag, source) = (subscribed.queue.clone(), subscribed.tag.clone(), subscribed.source);
        Box::pin(async move {
            let source = operator.pause(&queue, tag, source).await?;
            Ok(Completed::Paused { key, source })
        })
    }

    pub(super) fn paused(&mut self, key: SubscriptionKey, source: Source) {
        let Some(sluice) = self.sluice.clone() else { return };
        let Some(consumer) = self.consumer_mut(key) else { return };
        consumer.subscribed.source = Some(source);
        consumer.stage = match (source, consumer.stage) {
            (Source::Stream, Stage::Pausing { over }) => Stage::Paused { over },
            _ => Stage::Runs,
        };
        if source == Source::Queue {
            (consumer.subscribed.making, consumer.window) = (None, None);
            consumer.unsettled.clear();
            sluice.is_queue(consumer.subscribed.tag.as_str().as_bytes());
        }
    }

    pub(super) fn resuming(
        &mut self,
        operator: Operator,
        key: SubscriptionKey,
    ) -> BoxFuture<'static, Result<Completed, Failure>> {
        let Some(sluice) = self.sluice.clone() else { return gone() };
        let Some(consumer) = self.consumer_mut(key) else { return gone() };
        let left = consumer.left().unwrap_or(1);
        let subscribed = &consumer.subscribed;
        let (Some(window), Some(making)) = (&mut consumer.window, &subscribed.making) else { return gone() };
        let cut = sluice.cut_off(subscribed.tag.as_str().as_bytes());
        let Some((granted, offset)) = window.renew(cut, sluice.bytes_max(), left) else {
            let reason = "a message of a stream does not say where it stands".to_owned();
            return Box::pin(std::future::ready(Err(Failure::LinkLost { reason })));
        };
        let tag = tag_of_renewal(key, window.renewals);
        let renewal = Renewal {
            arguments: making.arguments.clone(),
            exclusive: making.exclusive,
            offset,
            prefetch: u16::try_from(granted).unwrap_or(u16::MAX),
            queue: subscribed.queue.clone(),
            tag: tag.clone(),
        };
        Box::pin(async move {
            let consumer = operator.resume(renewal).await?;
            Ok(Completed::Resumed(Some((key, consumer, tag))))
        })
    }

    pub(super) fn resumed(&mut self, key: SubscriptionKey, made: lapin::Consumer, tag: ShortString) {
        let Some(sluice) = self.sluice.clone() else { return };
        sluice.learned(tag.as_str().as_bytes(), Source::Stream);
        let Some(consumer) = self.consumer_mut(key) else { return };
        consumer.subscribed.consumer = made;
        let before = std::mem::replace(&mut consumer.subscribed.tag, tag);
        consumer.stage = Stage::Runs;
        self.give_back(Source::Stream, sluice.end(before.as_str().as_bytes()));
    }

    /// Settles deliveries that the session never saw. A stream keeps them anyway.
    pub(super) fn give_back(&mut self, source: Source, tags: Vec<u64>) {
        let outcome = match source {
            Source::Queue => Settlement::Nack { requeue: true },
            Source::Stream => Settlement::Ack,
        };
        for tag in tags {
            self.ledger.hand_out(tag);
            // It was handed out right above.
            let _ = self.ledger.settle(tag, outcome);
        }
    }
}

/// A subscription that has ended needs nothing.
fn gone() -> BoxFuture<'static, Result<Completed, Failure>> {
    Box::pin(std::future::ready(Ok(Completed::Resumed(None))))
}
