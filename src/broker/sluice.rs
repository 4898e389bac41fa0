//! How many bytes RabbitMQ may put before one session that has not taken them: a prefetch counts messages, whatever their size.
//!
//! RabbitMQ sends all that the prefetch allows at once, and lapin keeps it. So the guard below lapin takes out what comes while
//! as much as allowed waits. It is not settled, so it stays RabbitMQ's, and counts in the prefetch; of it only the tag is kept.
//! When the session has taken what waits, as much as fits is requeued, in order, and comes again. Until the last has come, nothing
//! new passes it. So each message is sent twice at most while nobody else reads the queue, and its delivery count grows by one.
//!
//! Streams know no requeue: of them nothing is taken out, their prefetch alone bounds them.

use super::frame::{self, Head, Kind, methods};
use super::returns::Collected;
use super::wire::Wire;
use memchr::memmem;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a delivery takes beside its body, if its head is not large.
const SMALL_HEAD: usize = 1024;

/// In each delivery of a stream.
const STREAM_OFFSET: &[u8] = b"\x0fx-stream-offset";

/// What a consumer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Queue,
    Stream,
}

#[derive(Debug)]
struct Withheld {
    /// Known when its content header has come.
    bytes: usize,
    consumer: Vec<u8>,
    tag: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Heads above the usual size, by delivery tag.
    large_heads: HashMap<u64, usize>,
    /// Requeued, and not seen again.
    returning: usize,
    sources: HashMap<Vec<u8>, Source>,
    /// In the order in which they came.
    withheld: VecDeque<Withheld>,
}

/// Of one AMQP channel.
#[derive(Debug)]
pub(super) struct Sluice {
    bytes_max: usize,
    /// How many large heads there are.
    large_heads: AtomicUsize,
    /// Not yet taken by the session.
    waiting: AtomicUsize,
    /// Something is withheld, or on its way back.
    overflows: AtomicBool,
    state: Mutex<State>,
}

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    /// The first of its consumer that is looked at: its head says what the consumer reads.
    PassAndLearn,
    Withhold,
}

impl Sluice {
    pub(super) fn new(bytes_max: usize) -> Sluice {
        Sluice {
            bytes_max,
            large_heads: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            overflows: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that wait for the session.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether [`Sluice::give_back`] may have something to say.
    pub(super) fn overflows(&self) -> bool {
        self.overflows.load(Ordering::Acquire)
    }

    fn is_full(&self) -> bool {
        self.waiting() >= self.bytes_max
    }

    fn judge(&self, delivered: &Delivered<'_>) -> Verdict {
        if !self.is_full() && !self.overflows() {
            return Verdict::Pass;
        }
        let mut state = self.lock();
        match state.sources.get(delivered.consumer) {
            None => return Verdict::PassAndLearn,
            Some(Source::Stream) => return Verdict::Pass,
            Some(Source::Queue) => {}
        }
        let awaited = delivered.redelivered && state.returning > 0;
        if awaited {
            state.returning -= 1;
        }
        let behind = state.returning > 0 || state.withheld.iter().any(|other| other.consumer == delivered.consumer);
        if !self.is_full() && (awaited || delivered.redelivered || !behind) {
            self.note(&state);
            return Verdict::Pass;
        }
        state.withheld.push_back(Withheld { bytes: 0, consumer: delivered.consumer.to_vec(), tag: delivered.tag });
        self.note(&state);
        Verdict::Withhold
    }

    fn note(&self, state: &State) {
        self.overflows.store(state.returning > 0 || !state.withheld.is_empty(), Ordering::Release);
    }

    /// A delivery goes to lapin.
    fn passed(&self, tag: u64, head: usize, body: usize) {
        if head > SMALL_HEAD {
            self.lock().large_heads.insert(tag, head);
            self.large_heads.fetch_add(1, Ordering::Relaxed);
        }
        self.waiting.fetch_add(body + head.max(SMALL_HEAD), Ordering::Relaxed);
    }

    fn learned(&self, consumer: Vec<u8>, source: Source) {
        self.lock().sources.insert(consumer, source);
    }

    fn weighed(&self, tag: u64, bytes: usize) {
        if let Some(withheld) = self.lock().withheld.iter_mut().rev().find(|withheld| withheld.tag == tag) {
            withheld.bytes = bytes;
        }
    }

    /// The session, or the end of its subscription, took a delivery.
    pub(super) fn took(&self, tag: u64, body: usize) {
        let mut head = None;
        if self.large_heads.load(Ordering::Relaxed) > 0 {
            head = self.lock().large_heads.remove(&tag);
            self.large_heads.fetch_sub(usize::from(head.is_some()), Ordering::Relaxed);
        }
        self.waiting.fetch_sub(body + head.unwrap_or(SMALL_HEAD), Ordering::Relaxed);
    }

    /// Tags to requeue now. `patience` is over: what was requeued went to somebody else.
    pub(super) fn give_back(&self, patience: Patience) -> Vec<u64> {
        let mut state = self.lock();
        if patience == Patience::Over {
            state.returning = 0;
        }
        let mut tags = Vec::new();
        let mut bytes = self.waiting();
        if state.returning == 0 && bytes <= self.bytes_max / 2 {
            while let Some(withheld) = state.withheld.front()
                && (tags.is_empty() || bytes + withheld.bytes <= self.bytes_max)
            {
                bytes += withheld.bytes;
                tags.push(withheld.tag);
                state.withheld.pop_front();
            }
            state.returning = tags.len();
        }
        self.note(&state);
        tags
    }

    /// Tags of a consumer that is cancelled: nothing of it comes again here.
    pub(super) fn end(&self, consumer: &[u8]) -> Vec<u64> {
        let mut state = self.lock();
        state.sources.remove(consumer);
        let (ended, others) = std::mem::take(&mut state.withheld).into_iter().partition(|w| w.consumer == consumer);
        state.withheld = others;
        let ended: VecDeque<Withheld> = ended;
        self.note(&state);
        ended.into_iter().map(|withheld| withheld.tag).collect()
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
                    let stream = memmem::find(payload, STREAM_OFFSET).is_some();
                    sluice.learned(consumer, if stream { Source::Stream } else { Source::Queue });
                }
                sluice.passed(tag, payload.len(), bytes);
                Collected::Left
            }
            Some(Coming::Withheld { sluice, tag }) => {
                sluice.weighed(tag, bytes.saturating_add(payload.len()));
                if body > 0 {
                    self.coming.insert(channel, Coming::WithheldBody { left: body });
                }
                Collected::Taken
            }
            Some(coming @ Coming::WithheldBody { .. }) => {
                self.coming.insert(channel, coming);
                Collected::Left
            }
            None => Collected::Left,
        }
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
