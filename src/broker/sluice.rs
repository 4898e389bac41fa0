//! How many bytes RabbitMQ may put before one session that has not taken them: a prefetch counts messages, whatever their size.
//!
//! RabbitMQ sends all that the prefetch allows at once, and lapin keeps it. So the guard below lapin takes out what comes while
//! as much as allowed waits. It is not settled, so it stays RabbitMQ's, and counts in the prefetch; of it only the tag is kept.
//! When the session has taken what waits, as much as fits is requeued, in order, and comes again. Until the last has come, nothing
//! new passes it. So each message is sent twice at most while nobody else reads the queue, and its delivery count grows by one.
//!
//! While the process has hardly any memory left, [`SPARING`] is allowed: RabbitMQ would fill what those leave who are ended for it.
//!
//! Streams know no requeue. Once something of a stream's consumer is taken out, everything behind it is, until the session has
//! the consumer made anew from there ([`super::consume`]); what was taken out is then acknowledged, which a stream does not mind.

use super::frame::{self, Head, Kind, methods};
use super::returns::Collected;
use super::table;
use super::wire::Wire;
use crate::budget::{Budget, Charge};
use futures_util::task::AtomicWaker;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// What a delivery takes beside its body, if its head is not large.
const SMALL_HEAD: usize = 1024;

/// The session is told of what waits when it has grown by so much, whether or not it can take anything: its account knows of it
/// only then.
const GROWTH: usize = 64 << 10;

/// What may wait for one session while the process has hardly any memory left, or a message beyond.
const SPARING: usize = 64 << 10;

/// What is kept of a delivery that is taken out, with the room of a list that grows.
const WITHHELD_BYTES: usize = 2 * size_of::<Withheld>();

/// In each delivery of a stream, as a number. RabbitMQ puts it there, whatever the publisher wrote under this name; but who reads a
/// stream and publishes the same headers to a queue makes messages that look like a stream's.
pub(super) const STREAM_OFFSET: &str = "x-stream-offset";

/// What a consumer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Queue,
    Stream,
}

#[derive(Debug)]
struct Withheld {
    /// Known when its content header has come.
    bytes: usize,
    consumer: u32,
    tag: u64,
}

/// What was taken out of a stream's consumer.
#[derive(Debug, Default)]
struct Cut {
    /// Of bodies and heads.
    bytes: usize,
    /// Where the first one stands in the stream; none if its header does not say.
    first: Option<i64>,
    tags: Vec<u64>,
}

/// How much was taken out of a stream's consumer, and from where on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CutOff {
    pub(super) first: Option<i64>,
    /// Of one message, on the average.
    pub(super) mean_bytes: usize,
}

#[derive(Debug)]
struct Consumer {
    cut: Cut,
    number: u32,
    source: Source,
}

#[derive(Debug, Default)]
struct State {
    /// Those of which it is known what they read.
    consumers: HashMap<Vec<u8>, Consumer>,
    /// How many of them are cut off.
    cuts: usize,
    /// Heads above the usual size, by delivery tag.
    large_heads: HashMap<u64, usize>,
    next: u32,
    /// How many at the front of `withheld` had been requeued and found no room when they came again: they are before all others.
    returned: usize,
    /// Requeued, and not seen again.
    returning: usize,
    /// Of queues, in the order in which they came.
    withheld: VecDeque<Withheld>,
    /// How many of them are of each consumer that has some, by its number.
    withheld_of: HashMap<u32, usize>,
}

/// Of one AMQP channel.
#[derive(Debug)]
pub(super) struct Sluice {
    budget: Budget,
    bytes_max: usize,
    /// Counts what waits where no session's account does.
    charge: Option<Charge>,
    /// How many large heads there are.
    large_heads: AtomicUsize,
    /// Not yet taken by the session.
    waiting: AtomicUsize,
    /// So much waited when the session last asked.
    told: AtomicUsize,
    /// Of the session, for what has grown since then.
    growth: AtomicWaker,
    /// How many deliveries are taken out.
    taken_out: AtomicUsize,
    /// Something is withheld, or on its way back.
    overflows: AtomicBool,
    state: Mutex<State>,
    /// Of whoever takes what waits.
    waker: AtomicWaker,
}

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    /// The first of its consumer that is looked at: its head says what the consumer reads.
    PassAndLearn,
    Withhold,
    /// The same of a stream.
    CutOff,
}

impl Sluice {
    pub(super) fn new(bytes_max: usize, budget: Budget) -> Sluice {
        Sluice {
            budget,
            bytes_max,
            charge: None,
            large_heads: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            told: AtomicUsize::new(0),
            growth: AtomicWaker::new(),
            taken_out: AtomicUsize::new(0),
            overflows: AtomicBool::new(false),
            state: Mutex::default(),
            waker: AtomicWaker::new(),
        }
    }

    /// For what many will get: what waits is counted here.
    pub(super) fn charged(bytes_max: usize, budget: Budget) -> Sluice {
        Sluice { charge: Some(budget.charge(0)), ..Sluice::new(bytes_max, budget) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes that wait for the session.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What waits, and what is kept of what was taken out. Growth counts from here.
    pub(super) fn tell(&self) -> usize {
        let waiting = self.waiting();
        self.told.store(waiting, Ordering::Relaxed);
        waiting + self.taken_out.load(Ordering::Relaxed) * WITHHELD_BYTES
    }

    /// Ready when much more waits than when the session last asked.
    pub(super) fn poll_growth(&self, cx: &Context<'_>) -> Poll<()> {
        self.growth.register(cx.waker());
        if self.has_grown(self.waiting()) { Poll::Ready(()) } else { Poll::Pending }
    }

    fn has_grown(&self, waiting: usize) -> bool {
        waiting > self.told.load(Ordering::Relaxed) + GROWTH
    }

    /// Whether [`Sluice::give_back`] or [`Sluice::cut_off`] may have something to say.
    pub(super) fn overflows(&self) -> bool {
        self.overflows.load(Ordering::Acquire)
    }

    /// Ready while something is taken out or on its way back. What waits may have been taken before it is known that something
    /// did not fit, so nothing else need wake the task.
    pub(super) fn poll_overflow(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.overflows() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn is_full(&self) -> bool {
        let waiting = self.waiting();
        waiting >= self.bytes_max || (waiting >= SPARING && self.spares())
    }

    /// What may wait now.
    fn allowed(&self) -> usize {
        if self.spares() { self.bytes_max.min(SPARING) } else { self.bytes_max }
    }

    /// What waits for many waits for none of them, so that those who work need not feel the others.
    fn spares(&self) -> bool {
        self.charge.is_none() && self.budget.is_full()
    }

    fn judge(&self, delivered: &Delivered<'_>) -> Verdict {
        if !self.is_full() && !self.overflows() {
            return Verdict::Pass;
        }
        let mut state = self.lock();
        let full = self.is_full();
        let State { consumers, cuts, returned, returning, withheld, withheld_of, .. } = &mut *state;
        let verdict = match consumers.get_mut(delivered.consumer) {
            None => return Verdict::PassAndLearn,
            Some(Consumer { cut, source: Source::Stream, .. }) => {
                if !full && cut.tags.is_empty() {
                    return Verdict::Pass;
                }
                *cuts += usize::from(cut.tags.is_empty());
                cut.tags.push(delivered.tag);
                self.taken_out.fetch_add(1, Ordering::Relaxed);
                Verdict::CutOff
            }
            Some(consumer) => {
                let awaited = delivered.redelivered && *returning > 0;
                *returning -= usize::from(awaited);
                let behind = *returning > 0 || withheld_of.contains_key(&consumer.number);
                let overtakes = awaited && *returned > 0;
                if !full && !overtakes && (awaited || delivered.redelivered || !behind) {
                    Verdict::Pass
                } else {
                    *withheld_of.entry(consumer.number).or_default() += 1;
                    self.taken_out.fetch_add(1, Ordering::Relaxed);
                    let at = if awaited { *returned } else { withheld.len() };
                    *returned += usize::from(awaited);
                    withheld.insert(at, Withheld { bytes: 0, consumer: consumer.number, tag: delivered.tag });
                    Verdict::Withhold
                }
            }
        };
        self.note(&state);
        verdict
    }

    fn note(&self, state: &State) {
        let overflows = state.returning > 0 || !state.withheld.is_empty() || state.cuts > 0;
        if self.overflows.swap(overflows, Ordering::AcqRel) != overflows && overflows {
            self.waker.wake();
        }
    }

    /// A delivery goes to lapin.
    fn passed(&self, tag: u64, head: usize, body: usize) {
        if head > SMALL_HEAD {
            self.lock().large_heads.insert(tag, head);
            self.large_heads.fetch_add(1, Ordering::Relaxed);
        }
        let bytes = body + head.max(SMALL_HEAD);
        let waiting = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.has_grown(waiting) {
            self.growth.wake();
        }
        if let Some(charge) = &self.charge {
            charge.grow(bytes);
        }
    }

    /// What a consumer reads, if that is known; from its first delivery at the latest.
    pub(super) fn learned(&self, consumer: &[u8], source: Source) {
        let mut state = self.lock();
        let number = state.next;
        state.next = number.wrapping_add(1);
        let consumer_state = Consumer { cut: Cut::default(), number, source };
        state.consumers.entry(consumer.to_vec()).or_insert(consumer_state);
    }

    fn weighed(&self, tag: u64, bytes: usize) {
        let mut state = self.lock();
        // It came last, of those or of all, unless its consumer has ended meanwhile.
        let of_returned =
            state.returned.checked_sub(1).filter(|at| state.withheld.get(*at).is_some_and(|w| w.tag == tag));
        let Some(at) = of_returned.or(state.withheld.len().checked_sub(1)) else { return };
        if let Some(withheld) = state.withheld.get_mut(at).filter(|withheld| withheld.tag == tag) {
            withheld.bytes = bytes;
        }
    }

    fn weighed_of_stream(&self, consumer: &[u8], tag: u64, payload: &[u8], bytes: usize) {
        let mut state = self.lock();
        let Some(Consumer { cut, .. }) = state.consumers.get_mut(consumer) else { return };
        cut.bytes = cut.bytes.saturating_add(bytes);
        if cut.tags.first() == Some(&tag) {
            cut.first = table::number_in_headers(payload, STREAM_OFFSET.as_bytes());
        }
    }

    /// The session, or the end of its subscription, took a delivery.
    pub(super) fn took(&self, tag: u64, body: usize) {
        let mut head = None;
        if self.large_heads.load(Ordering::Relaxed) > 0 {
            head = self.lock().large_heads.remove(&tag);
            self.large_heads.fetch_sub(usize::from(head.is_some()), Ordering::Relaxed);
        }
        let bytes = body + head.unwrap_or(SMALL_HEAD);
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(charge) = &self.charge {
            charge.shrink(bytes);
        }
    }

    /// Tags to requeue now. `patience` is over: what was requeued went to somebody else.
    pub(super) fn give_back(&self, patience: Patience) -> Vec<u64> {
        let mut state = self.lock();
        if patience == Patience::Over {
            state.returning = 0;
        }
        let mut tags = Vec::new();
        let (mut bytes, allowed) = (self.waiting(), self.allowed());
        if state.returning == 0 && bytes <= allowed / 2 {
            while let Some(withheld) = state.withheld.front()
                && (tags.is_empty() || bytes + withheld.bytes <= allowed)
            {
                bytes += withheld.bytes;
                tags.push(withheld.tag);
                let number = withheld.consumer;
                state.withheld.pop_front();
                state.returned = state.returned.saturating_sub(1);
                state.give_up_one(number);
            }
            state.returning = tags.len();
        }
        self.taken_out.fetch_sub(tags.len(), Ordering::Relaxed);
        self.note(&state);
        tags
    }

    /// Of a stream's consumer that has to be made anew.
    pub(super) fn cut_off(&self, consumer: &[u8]) -> Option<CutOff> {
        let state = self.lock();
        let cut = &state.consumers.get(consumer)?.cut;
        let count = cut.tags.len();
        (count > 0).then(|| CutOff { first: cut.first, mean_bytes: cut.bytes / count })
    }

    /// What looked like a stream is none: what was taken out of it is given back like that of any queue.
    pub(super) fn is_queue(&self, consumer: &[u8]) {
        let mut state = self.lock();
        let State { consumers, cuts, withheld, withheld_of, .. } = &mut *state;
        let Some(consumer) = consumers.get_mut(consumer) else { return };
        consumer.source = Source::Queue;
        let Cut { bytes, tags, .. } = std::mem::take(&mut consumer.cut);
        if tags.is_empty() {
            return;
        }
        *cuts -= 1;
        *withheld_of.entry(consumer.number).or_default() += tags.len();
        let bytes = bytes / tags.len();
        withheld.extend(tags.into_iter().map(|tag| Withheld { bytes, consumer: consumer.number, tag }));
        self.note(&state);
    }

    /// Tags of a consumer that is cancelled: nothing of it comes again here.
    pub(super) fn end(&self, consumer: &[u8]) -> Vec<u64> {
        let mut state = self.lock();
        let Some(Consumer { cut, number, .. }) = state.consumers.remove(consumer) else { return Vec::new() };
        state.cuts -= usize::from(!cut.tags.is_empty());
        let mut tags = cut.tags;
        if state.withheld_of.remove(&number).is_some() {
            let ended = state.withheld.iter().take(state.returned).filter(|withheld| withheld.consumer == number);
            state.returned -= ended.count();
            let all = std::mem::take(&mut state.withheld).into_iter();
            let (ended, others) = all.partition::<VecDeque<_>, _>(|withheld| withheld.consumer == number);
            state.withheld = others;
            tags.extend(ended.into_iter().map(|withheld| withheld.tag));
        }
        self.taken_out.fetch_sub(tags.len(), Ordering::Relaxed);
        self.note(&state);
        tags
    }
}

impl State {
    /// Of this consumer one fewer is withheld.
    fn give_up_one(&mut self, number: u32) {
        if let Some(count) = self.withheld_of.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                self.withheld_of.remove(&number);
            }
        }
    }
}

/// Whether what was requeued may still come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    Lasts,
    Over,
}

/// What a `basic.deliver` says.
struct Delivered<'a> {
    consumer: &'a [u8],
    redelivered: bool,
    tag: u64,
}

impl Delivered<'_> {
    fn read(payload: &[u8]) -> Option<Delivered<'_>> {
        let mut rest = payload.get(4..)?;
        let consumer = frame::split_short_string(&mut rest)?;
        let tag = u64::from_be_bytes(rest.get(..8)?.try_into().ok()?);
        Some(Delivered { consumer, redelivered: *rest.get(8)? != 0, tag })
    }
}

/// A delivery whose content header, or body, is still coming.
enum Coming {
    Passing { learn: Option<Vec<u8>>, sluice: Arc<Sluice>, tag: u64 },
    Withheld { sluice: Arc<Sluice>, tag: u64 },
    CutOff { consumer: Vec<u8>, sluice: Arc<Sluice>, tag: u64 },
    WithheldBody { left: u64 },
}

/// Takes deliveries out of the broker's stream; used by the guard.
pub(super) struct Intake {
    /// By channel.
    coming: HashMap<u16, Coming>,
    wire: Arc<Wire>,
}

impl Intake {
    pub(super) fn new(wire: Arc<Wire>) -> Intake {
        Intake { coming: HashMap::new(), wire }
    }

    /// A method comes where the rest of a message was expected.
    pub(super) fn interrupt(&mut self, channel: u16) {
        self.coming.remove(&channel);
    }

    /// Whether body frames of this channel are taken out.
    pub(super) fn has_body(&self, channel: u16) -> bool {
        matches!(self.coming.get(&channel), Some(Coming::WithheldBody { .. }))
    }

    /// Takes a method or a content header if it belongs to a delivery that is withheld.
    pub(super) fn collect(&mut self, head: &Head, frame: &[u8]) -> Collected {
        let Some(payload) = frame::payload(frame) else { return Collected::Left };
        match head.kind {
            Kind::Method { class, method } if (class, method) == methods::BASIC_DELIVER => {
                self.begin(head.channel, payload)
            }
            Kind::Header => self.weigh(head.channel, payload),
            _ => Collected::Left,
        }
    }

    fn begin(&mut self, channel: u16, payload: &[u8]) -> Collected {
        let Some(sluice) = self.wire.sluice(channel) else { return Collected::Left };
        let Some(delivered) = Delivered::read(payload) else { return Collected::Left };
        let tag = delivered.tag;
        match sluice.judge(&delivered) {
            Verdict::Withhold => {
                self.coming.insert(channel, Coming::Withheld { sluice, tag });
                return Collected::Taken;
            }
            Verdict::CutOff => {
                let consumer = delivered.consumer.to_vec();
                self.coming.insert(channel, Coming::CutOff { consumer, sluice, tag });
                return Collected::Taken;
            }
            Verdict::PassAndLearn => {
                let learn = Some(delivered.consumer.to_vec());
                self.coming.insert(channel, Coming::Passing { learn, sluice, tag });
            }
            Verdict::Pass => {
                self.coming.insert(channel, Coming::Passing { learn: None, sluice, tag });
            }
        }
        Collected::Left
    }

    fn weigh(&mut self, channel: u16, payload: &[u8]) -> Collected {
        let body = frame::body_bytes(payload).unwrap_or(0);
        let bytes = usize::try_from(body).unwrap_or(usize::MAX);
        match self.coming.remove(&channel) {
            Some(Coming::Passing { learn, sluice, tag }) => {
                if let Some(consumer) = learn {
                    let offset = table::number_in_headers(payload, STREAM_OFFSET.as_bytes());
                    sluice.learned(&consumer, if offset.is_some() { Source::Stream } else { Source::Queue });
                }
                sluice.passed(tag, payload.len(), bytes);
                return Collected::Left;
            }
            Some(Coming::Withheld { sluice, tag }) => sluice.weighed(tag, bytes.saturating_add(payload.len())),
            Some(Coming::CutOff { consumer, sluice, tag }) => {
                sluice.weighed_of_stream(&consumer, tag, payload, bytes.saturating_add(payload.len()));
            }
            Some(coming @ Coming::WithheldBody { .. }) => {
                self.coming.insert(channel, coming);
                return Collected::Left;
            }
            None => return Collected::Left,
        }
        if body > 0 {
            self.coming.insert(channel, Coming::WithheldBody { left: body });
        }
        Collected::Taken
    }

    /// A body frame was taken out.
    pub(super) fn count_body(&mut self, head: &Head) {
        if let Some(Coming::WithheldBody { left }) = self.coming.get_mut(&head.channel) {
            *left = left.saturating_sub(head.payload as u64);
            if *left == 0 {
                self.coming.remove(&head.channel);
            }
        }
    }
}
