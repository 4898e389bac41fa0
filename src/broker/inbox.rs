//! What waits for one session of its shared subscriptions: a bounded buffer for each of them.
//!
//! Filled by the hub, emptied by the session's task. A message is in memory once for all sessions; what is counted here is
//! the share of it that this session would have to write. Knows nothing of queues and AMQP.

use crate::session::command::{Overflow, SubscriptionKey};
use crate::session::event::{BrokerEvent, Delivery, Failure, Message};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How much may wait for one subscription. A single message of any size fits into an empty buffer, else it could never
/// be delivered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) bytes: usize,
    pub(super) messages: usize,
}

/// A message on its way to many subscribers.
#[derive(Clone)]
pub(super) struct Parcel {
    /// Of body and properties.
    pub(super) bytes: usize,
    pub(super) message: Arc<Message>,
    pub(super) redelivered: bool,
}

/// Why a subscription gets nothing more.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// The broker cancelled the consumer.
    Cancelled,
    Failed(Failure),
}

/// Why a subscription failed.
pub(super) type Ended = (Failure, SubscriptionKey);

/// Whether a subscription goes on after a message was put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intake {
    GoesOn,
    /// It overflowed, or is gone.
    Over,
}

/// What a session wants to be woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    Everything,
    /// It can take no messages now.
    Overflows,
}

struct Buffer {
    bytes: usize,
    /// Since the last report.
    dropped: u64,
    end: Option<End>,
    overflow: Overflow,
    parcels: VecDeque<Parcel>,
    /// Whether it stands in `turns`.
    listed: bool,
    /// Before the session knows of the subscription, nothing is handed out.
    open: bool,
}

#[derive(Default)]
struct State {
    buffers: HashMap<SubscriptionKey, Buffer>,
    /// In all buffers together.
    bytes: usize,
    overflowed: VecDeque<SubscriptionKey>,
    /// Open buffers with something in them; they take turns.
    turns: VecDeque<SubscriptionKey>,
    waiting: Option<(Interest, Waker)>,
}

pub(super) struct Inbox {
    limits: Limits,
    state: Mutex<State>,
}

impl Inbox {
    pub(super) fn new(limits: Limits) -> Inbox {
        Inbox { limits, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a buffer that collects at once, but hands out nothing before [`Inbox::open`].
    pub(super) fn add(&self, key: SubscriptionKey, overflow: Overflow) {
        let buffer =
            Buffer { bytes: 0, dropped: 0, end: None, overflow, parcels: VecDeque::new(), listed: false, open: false };
        self.lock().buffers.insert(key, buffer);
    }

    pub(super) fn open(&self, key: SubscriptionKey) {
        let mut state = self.lock();
        if let Some(buffer) = state.buffers.get_mut(&key) {
            buffer.open = true;
        }
        state.list(key);
        state.wake(Interest::Everything);
    }

    pub(super) fn remove(&self, key: SubscriptionKey) {
        let mut state = self.lock();
        state.remove(key);
        state.overflowed.retain(|overflowed| *overflowed != key);
    }

    /// Never waits and never fails: what does not fit is dealt with as the subscription's rule says.
    pub(super) fn put(&self, key: SubscriptionKey, parcel: &Parcel) -> Intake {
        let mut state = self.lock();
        let State { buffers, bytes, .. } = &mut *state;
        let Some(buffer) = buffers.get_mut(&key) else { return Intake::Over };
        if buffer.end.is_some() {
            return Intake::Over;
        }
        while buffer.is_full_for(parcel, self.limits) {
            match buffer.overflow {
                Overflow::DropOldest => *bytes -= buffer.drop_oldest(),
                Overflow::Disconnect => {
                    state.remove(key);
                    state.overflowed.push_back(key);
                    state.wake(Interest::Overflows);
                    return Intake::Over;
                }
            }
        }
        *bytes += parcel.bytes;
        buffer.bytes += parcel.bytes;
        buffer.parcels.push_back(parcel.clone());
        state.list(key);
        state.wake(Interest::Everything);
        Intake::GoesOn
    }

    /// What waits is still handed out.
    pub(super) fn end(&self, key: SubscriptionKey, end: End) {
        let mut state = self.lock();
        if let Some(buffer) = state.buffers.get_mut(&key) {
            buffer.end.get_or_insert(end);
        }
        state.list(key);
        state.wake(Interest::Everything);
    }

    /// The next event of any subscription; they take turns. An error ends the lease.
    pub(super) fn poll(&self, cx: &mut Context<'_>, interest: Interest) -> Poll<Result<BrokerEvent, Ended>> {
        let mut state = self.lock();
        if let Some(key) = state.overflowed.pop_front() {
            return Poll::Ready(Ok(BrokerEvent::Overflowed { key }));
        }
        if interest == Interest::Everything
            && let Some(event) = state.next()
        {
            return Poll::Ready(event);
        }
        match &mut state.waiting {
            Some((waits_for, waker)) if waker.will_wake(cx.waker()) => *waits_for = interest,
            waiting => *waiting = Some((interest, cx.waker().clone())),
        }
        Poll::Pending
    }

    /// The session's share of what waits, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// The deliveries that can be had at once, for a lease that ends: the broker does not have them any more.
    pub(super) fn drain(&self) -> Vec<BrokerEvent> {
        let mut state = self.lock();
        let mut events = Vec::new();
        while let Some(event) = state.next() {
            events.extend(event.ok());
        }
        events
    }
}

impl State {
    fn remove(&mut self, key: SubscriptionKey) {
        self.bytes -= self.buffers.remove(&key).map_or(0, |buffer| buffer.bytes);
    }

    fn list(&mut self, key: SubscriptionKey) {
        let Some(buffer) = self.buffers.get_mut(&key) else { return };
        if buffer.open && !buffer.listed && buffer.has_news() {
            buffer.listed = true;
            self.turns.push_back(key);
        }
    }

    /// At most once per poll: the waker is taken.
    fn wake(&mut self, cause: Interest) {
        if let Some((waits_for, _)) = &self.waiting
            && (*waits_for == Interest::Everything || cause == Interest::Overflows)
            && let Some((_, waker)) = self.waiting.take()
        {
            waker.wake();
        }
    }

    fn next(&mut self) -> Option<Result<BrokerEvent, Ended>> {
        while let Some(key) = self.turns.pop_front() {
            let Some(buffer) = self.buffers.get_mut(&key) else { continue };
            let before = buffer.bytes;
            let event = buffer.next(key);
            buffer.listed = false;
            self.bytes -= before - buffer.bytes;
            self.list(key);
            if event.is_some() {
                return event;
            }
        }
        None
    }
}

impl Buffer {
    fn has_news(&self) -> bool {
        self.dropped > 0 || !self.parcels.is_empty() || self.end.is_some()
    }

    fn is_full_for(&self, parcel: &Parcel, limits: Limits) -> bool {
        !self.parcels.is_empty() && (self.parcels.len() >= limits.messages || self.bytes + parcel.bytes > limits.bytes)
    }

    /// How many bytes that gives back.
    fn drop_oldest(&mut self) -> usize {
        let Some(parcel) = self.parcels.pop_front() else { return 0 };
        self.bytes -= parcel.bytes;
        self.dropped += 1;
        parcel.bytes
    }

    fn next(&mut self, key: SubscriptionKey) -> Option<Result<BrokerEvent, Ended>> {
        if self.dropped > 0 {
            let messages = std::mem::take(&mut self.dropped);
            return Some(Ok(BrokerEvent::Dropped { key, messages }));
        }
        if let Some(Parcel { bytes, message, redelivered }) = self.parcels.pop_front() {
            self.bytes -= bytes;
            return Some(Ok(BrokerEvent::Delivery(Delivery { key, message, redelivered, tag: None })));
        }
        match self.end.take()? {
            End::Cancelled => Some(Ok(BrokerEvent::SubscriptionCancelled { key })),
            End::Failed(failure) => Some(Err((failure, key))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::amqp::{Properties, ShortText};
    use bytes::Bytes;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    const KEY: SubscriptionKey = SubscriptionKey(1);

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn parcel(body: &'static str) -> Parcel {
        let message = Message {
            body: Bytes::from_static(body.as_bytes()),
            exchange: ShortText::lit("amq.topic"),
            properties: Properties::default(),
            routing_key: ShortText::lit("k"),
        };
        Parcel { bytes: body.len(), message: Arc::new(message), redelivered: false }
    }

    fn inbox(bytes: usize, messages: usize, overflow: Overflow) -> Inbox {
        let inbox = Inbox::new(Limits { bytes, messages });
        inbox.add(KEY, overflow);
        inbox.open(KEY);
        inbox
    }

    fn put(inbox: &Inbox, key: SubscriptionKey, bodies: &[&'static str]) {
        bodies.iter().for_each(|body| {
            inbox.put(key, &parcel(body));
        });
    }

    /// What is there, in words, until nothing is.
    fn all(inbox: &Inbox) -> Vec<String> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut words = Vec::new();
        while let Poll::Ready(event) = inbox.poll(&mut cx, Interest::Everything) {
            words.push(match event {
                Ok(BrokerEvent::Delivery(delivery)) => String::from_utf8_lossy(&delivery.message.body).into_owned(),
                Ok(BrokerEvent::Dropped { messages, .. }) => format!("dropped {messages}"),
                Ok(BrokerEvent::Overflowed { .. }) => "overflowed".to_owned(),
                Ok(BrokerEvent::SubscriptionCancelled { .. }) => "cancelled".to_owned(),
                other => format!("{other:?}"),
            });
        }
        words
    }

    #[test]
    fn the_oldest_go_by_count_and_by_bytes() {
        let by_count = inbox(1000, 2, Overflow::DropOldest);
        for body in ["a", "b", "c", "d"] {
            assert_eq!(by_count.put(KEY, &parcel(body)), Intake::GoesOn);
        }
        assert_eq!(all(&by_count), ["dropped 2", "c", "d"]);
        let by_bytes = inbox(6, 100, Overflow::DropOldest);
        for body in ["aaa", "bbb", "cc", "larger than all of it"] {
            assert_eq!(by_bytes.put(KEY, &parcel(body)), Intake::GoesOn);
        }
        assert_eq!(all(&by_bytes), ["dropped 3", "larger than all of it"]);
        by_bytes.put(KEY, &parcel("e"));
        assert_eq!(all(&by_bytes), ["e"]);
    }

    #[test]
    fn an_overflow_is_told_and_frees_the_buffer() {
        let inbox = inbox(1000, 2, Overflow::Disconnect);
        let intake = ["a", "b", "c", "d"].map(|body| inbox.put(KEY, &parcel(body)));
        assert_eq!(intake, [Intake::GoesOn, Intake::GoesOn, Intake::Over, Intake::Over]);
        assert_eq!(all(&inbox), ["overflowed"]);
    }

    #[test]
    fn nothing_comes_before_the_subscription_is_known() {
        let inbox = Inbox::new(Limits { bytes: 10, messages: 10 });
        inbox.add(KEY, Overflow::Disconnect);
        inbox.put(KEY, &parcel("a"));
        assert!(all(&inbox).is_empty());
        inbox.open(KEY);
        assert_eq!(all(&inbox), ["a"]);
        inbox.put(KEY, &parcel("b"));
        inbox.remove(KEY);
        assert!(all(&inbox).is_empty());
    }

    #[test]
    fn subscriptions_take_turns_and_the_end_comes_last() {
        let inbox = inbox(100, 100, Overflow::Disconnect);
        let other = SubscriptionKey(2);
        inbox.add(other, Overflow::Disconnect);
        inbox.open(other);
        put(&inbox, KEY, &["a", "b"]);
        put(&inbox, other, &["x", "y"]);
        inbox.end(KEY, End::Cancelled);
        assert_eq!(inbox.put(KEY, &parcel("late")), Intake::Over);
        assert_eq!(all(&inbox), ["a", "x", "b", "y", "cancelled"]);
    }

    #[test]
    fn one_wake_for_many_messages_and_none_for_what_is_not_wanted() {
        let inbox = inbox(1000, 3, Overflow::Disconnect);
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let count = || wakes.0.load(Ordering::Relaxed);
        assert!(inbox.poll(&mut cx, Interest::Everything).is_pending());
        put(&inbox, KEY, &["a", "b"]);
        assert_eq!(count(), 1);
        all(&inbox);
        assert!(inbox.poll(&mut cx, Interest::Overflows).is_pending());
        put(&inbox, KEY, &["a", "b", "c"]);
        assert_eq!(count(), 1);
        inbox.put(KEY, &parcel("d"));
        assert_eq!(count(), 2);
    }
}
