//! The publish side of a lease: one AMQP channel in confirm mode, opened with the first publish. What comes back is `answers`.
//!
//! Few publishes are unwritten at a time, so that many share a write and a wake-up of lapin's thread, and no session fills
//! the queue that it shares with the others of its link. One that is queued behind a channel exception would be written after
//! lapin closed the channel, and RabbitMQ closes the whole connection for that: `outbound` drops it. Confirms are awaited in
//! the order of publishing and none is dropped before: lapin collects dropped ones for ever. Returned messages are matched by
//! message id with what the guard recorded; lapin's own pairing is not used.

mod answers;

use self::answers::Doubt;
use super::channel_limit;
use super::convert::{header_bytes, short, to_lapin};
use super::death::Loss;
use super::fault::{Fault, refused};
use super::idle::IdleTimer;
use super::link::{Leased, Link, Role, Slot};
use super::pool::Entry;
use super::proving::{Admission, Proving};
use super::quarantine::{Past, Suspicion};
use super::release::{PublishRemains, Remains};
use super::watch::LinkWatch;
use crate::patience::Timer;
use crate::session::command::{Outgoing, Publish};
use crate::session::event::{BrokerEvent, Concern, Failure, LoginFailure};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::PublisherConfirm;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

use super::consume::Ending;

/// The step that a late confirm belongs to.
const CONFIRM: &str = "publisher confirm";

const ACCESS_REFUSED: u16 = 403;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

/// Bytes that a session may have waiting to be written, headers included, or one message of any size.
const UNWRITTEN_BYTES_MAX: usize = 64 * 1024;

/// Publishes that a session may have waiting to be written.
const UNWRITTEN_MAX: usize = 64;

type Work = BoxFuture<'static, lapin::Result<PublisherConfirm>>;
pub(super) type Making = BoxFuture<'static, Result<Leased, Failure>>;

enum Opening {
    /// A place on a link is being found.
    Reserving(BoxFuture<'static, Result<Slot, Failure>>),
    /// Its link may be blocked, which the session has to know: the watch is there already.
    Making(Making),
}

/// What is needed of a publish after it was written.
struct Meta {
    publish: Publish,
    since: Instant,
}

pub(super) struct Writing {
    bytes: usize,
    meta: Meta,
    result: Option<lapin::Result<PublisherConfirm>>,
    work: Work,
}

impl Writing {
    /// Hands the frames to lapin. Only the oldest one's end is waited for, so this one has nobody to wake yet.
    fn begin(meta: Meta, mut work: Work) -> Writing {
        let result = match work.poll_unpin(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        };
        Writing { bytes: bytes_of(&meta.publish), meta, result, work }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Result<PublisherConfirm>> {
        match self.result.take() {
            Some(result) => Poll::Ready(result),
            None => self.work.poll_unpin(cx),
        }
    }

    /// The end of a publish that nobody reports any more.
    pub(super) async fn end(self) -> lapin::Result<PublisherConfirm> {
        match self.result {
            Some(result) => result,
            None => self.work.await,
        }
    }
}

struct Unconfirmed {
    meta: Meta,
    confirm: PublisherConfirm,
}

pub(super) struct PublishSide {
    channel: Option<Leased>,
    doubt: Option<Box<Doubt>>,
    entry: Arc<Entry>,
    idle: IdleTimer,
    /// The publish whose writing failed, or whose queue is away.
    failed: Option<Meta>,
    inquired_at: Option<Instant>,
    opening: Option<Opening>,
    proving: Proving,
    queue: VecDeque<Publish>,
    retry: Option<Pin<Box<Sleep>>>,
    timer: Option<Timer>,
    unblocked_at: Instant,
    unconfirmed: VecDeque<Unconfirmed>,
    suspicion: Suspicion,
    watch: Option<LinkWatch>,
    /// In the order of publishing.
    writing: VecDeque<Writing>,
}

impl PublishSide {
    pub(super) fn new(entry: Arc<Entry>) -> PublishSide {
        PublishSide {
            suspicion: Suspicion::default(),
            idle: IdleTimer::default(),
            channel: None,
            doubt: None,
            entry,
            failed: None,
            inquired_at: None,
            opening: None,
            proving: Proving::default(),
            queue: VecDeque::new(),
            retry: None,
            timer: None,
            unblocked_at: Instant::now(),
            unconfirmed: VecDeque::new(),
            watch: None,
            writing: VecDeque::new(),
        }
    }

    /// After a loss, on a place that is had already.
    pub(super) fn begin_anew(&mut self, slot: Slot, suspicion: Suspicion) {
        *self = PublishSide { suspicion: suspicion.comes_back(), ..PublishSide::new(self.entry.clone()) };
        self.open(slot);
    }

    /// What it leaves to the side that comes after it.
    pub(super) fn past(&self) -> Past {
        Past { link: self.link(), suspicion: self.suspicion, ..Past::default() }
    }

    pub(super) fn push(&mut self, publish: Publish) {
        self.queue.push_back(publish);
    }

    /// Publishes that lapin has not yet written to the socket.
    pub(super) fn unwritten(&self) -> usize {
        self.queue.len() + self.writing.len()
    }

    /// Everything given is written and answered.
    pub(super) fn is_idle(&self) -> bool {
        self.unwritten() == 0 && self.unconfirmed.is_empty() && self.doubt.is_none() && self.opening.is_none()
    }

    /// The link of the channel, if there is one.
    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.channel.as_ref().map(|channel| channel.link.clone())
    }

    /// Nothing is under way, so the channel may go and nobody misses it.
    fn holds_nothing(&self) -> bool {
        self.is_idle() && self.channel.is_some()
    }

    /// Nothing of what was given has been written on the channel.
    fn is_unused(&self) -> bool {
        let answered = self.unconfirmed.is_empty() && self.doubt.is_none();
        answered && self.writing.is_empty() && self.opening.is_none() && self.channel.is_some()
    }

    /// Gives back a channel that was not used for a while.
    fn poll_idle(&mut self, cx: &mut Context<'_>) {
        let idle = self.holds_nothing() && !self.is_blocked();
        if self.idle.poll_over(cx, idle, self.entry.config().channel_idle).is_ready() {
            self.give_back_channel();
        }
    }

    fn is_blocked(&self) -> bool {
        self.watch.as_ref().is_some_and(LinkWatch::blocked)
    }

    /// Nothing is under way on it, and the next publish opens another one. A blocked one stays: the session waits for its end.
    fn give_back_channel(&mut self) {
        if self.is_blocked() {
            return;
        }
        let remains = Remains { publish: self.remains(), ..Remains::default() };
        self.watch = None;
        remains.release_aside();
    }

    pub(super) fn remains(&mut self) -> PublishRemains {
        let making = self.opening.take().and_then(|opening| match opening {
            Opening::Reserving(_) => None,
            Opening::Making(work) => Some(work),
        });
        PublishRemains {
            channel: self.channel.take(),
            opening: making,
            writing: std::mem::take(&mut self.writing),
            confirms: self.unconfirmed.drain(..).map(|unconfirmed| unconfirmed.confirm).collect(),
        }
    }

    /// `ready` takes the answers that come before a failure.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ready: &mut VecDeque<BrokerEvent>,
    ) -> Poll<Result<BrokerEvent, Ending>> {
        if let Poll::Ready(result) = self.poll_link(cx) {
            return Poll::Ready(result.map_err(|failure| self.end(cx, ready, failure)));
        }
        loop {
            if let Poll::Ready(result) = self.poll_confirm(cx) {
                return Poll::Ready(result.map_err(|failure| self.end(cx, ready, failure)));
            }
            match self.poll_write(cx) {
                Ok(Progress::Some) => {}
                Ok(Progress::None) => break,
                Err(failure) => return Poll::Ready(Err(self.end(cx, ready, failure))),
            }
        }
        if let Some(ending) = self.poll_deadline(cx) {
            return Poll::Ready(Err(ending));
        }
        // A refusal with publishes under way reaches them through lapin, after the confirms that came before it.
        if let Some(channel) = &self.channel
            && let Some(refusal) = channel.link.wire.poll_refusal(channel.raw.id(), cx)
            && self.writing.is_empty()
            && self.unconfirmed.is_empty()
        {
            return Poll::Ready(Err((refused(refusal), Concern::Session)));
        }
        self.poll_idle(cx);
        Poll::Pending
    }

    fn poll_link(&mut self, cx: &mut Context<'_>) -> Poll<Result<BrokerEvent, Failure>> {
        let Some(watch) = &mut self.watch else { return Poll::Pending };
        let was_blocked = watch.blocked();
        let Poll::Ready(state) = watch.poll_change(cx) else { return Poll::Pending };
        // Changes that follow are seen at the next poll.
        cx.waker().wake_by_ref();
        match state.lost {
            Some(_) if self.is_unused() => {
                // The next publish opens another one; it was not written on this one.
                (self.channel, self.watch) = (None, None);
                if was_blocked { Poll::Ready(Ok(BrokerEvent::Unblocked)) } else { Poll::Pending }
            }
            // It says more of why.
            Some(_) if matches!(self.opening, Some(Opening::Making(_))) => Poll::Pending,
            Some(Loss { reason, .. }) => Poll::Ready(Err(Failure::LinkLost { reason })),
            None if state.blocked != was_blocked => {
                self.unblocked_at = Instant::now();
                Poll::Ready(Ok(if state.blocked { BrokerEvent::Blocked } else { BrokerEvent::Unblocked }))
            }
            None => Poll::Pending,
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<Progress, Failure> {
        if let Some(first) = self.writing.front_mut()
            && let Poll::Ready(result) = first.poll(cx)
            && let (Some(channel), Some(Writing { meta, .. })) = (&self.channel, self.writing.pop_front())
        {
            match result {
                Ok(confirm) => self.unconfirmed.push_back(Unconfirmed { meta, confirm }),
                Err(error) => {
                    self.failed = Some(meta);
                    return Err(channel.link.failure(Fault::Lapin(error), channel.refusal()));
                }
            }
            return Ok(Progress::Some);
        }
        match &mut self.opening {
            Some(Opening::Reserving(work)) => {
                let Poll::Ready(result) = work.poll_unpin(cx) else { return Ok(Progress::None) };
                self.opening = None;
                self.open(result?);
                // The watch has to be polled once, to be woken by it.
                cx.waker().wake_by_ref();
                Ok(Progress::Some)
            }
            Some(Opening::Making(work)) => {
                let Poll::Ready(result) = work.poll_unpin(cx) else { return Ok(Progress::None) };
                self.opening = None;
                self.channel = Some(result.map_err(|failure| self.not_opened(failure))?);
                self.proving.begin_anew();
                Ok(Progress::Some)
            }
            None => self.start_next(cx),
        }
    }

    fn open(&mut self, slot: Slot) {
        self.watch = Some(LinkWatch::new(slot.link()));
        self.opening = Some(Opening::Making(Box::pin(make(self.entry.clone(), slot))));
    }

    /// At RabbitMQ's limit on channels whoever comes back waits, where it hurts nobody.
    fn not_opened(&mut self, failure: Failure) -> Failure {
        match channel_limit::of_opening(&failure) {
            Some(refusal) if self.suspicion.is_newcomer() => refusal,
            Some(_) => {
                self.suspicion.keep_apart(Instant::now());
                failure
            }
            None => failure,
        }
    }

    fn start_next(&mut self, cx: &mut Context<'_>) -> Result<Progress, Failure> {
        let Some(next) = self.queue.front() else { return Ok(Progress::None) };
        let Some(channel) = &self.channel else {
            let now = Instant::now();
            let company = self.entry.channel_limit().company(self.suspicion.company(now), now);
            let reserve = self.entry.clone().reserve(Role::Publish, company);
            let work = async move { reserve.await.map_err(reserve_failure) };
            self.opening = Some(Opening::Reserving(Box::pin(work)));
            return Ok(Progress::Some);
        };
        if let Some(failure) = oversized(next, channel).or_else(|| unspeakable(next, channel)) {
            // The ones before it are answered first; then it is the only candidate.
            let first = self.unconfirmed.is_empty() && self.writing.is_empty();
            return if first { Err(failure) } else { Ok(Progress::None) };
        }
        if !self.may_write(bytes_of(next)) {
            return Ok(Progress::None);
        }
        let raw = channel.raw.clone();
        if self.poll_admission(cx).is_pending() {
            return Ok(Progress::None);
        }
        let Some(publish) = self.queue.pop_front() else { return Ok(Progress::None) };
        let message = publish.message.clone();
        let meta = Meta { publish, since: Instant::now() };
        let work = Box::pin(async move {
            let Outgoing { body, exchange, mandatory, properties, routing_key } = &*message;
            let options = BasicPublishOptions { mandatory: *mandatory, immediate: false };
            raw.basic_publish(short(exchange), short(routing_key), options, body, to_lapin(properties)).await
        });
        self.writing.push_back(Writing::begin(meta, work));
        Ok(Progress::Some)
    }

    /// Ready when the next publish may go, as far as outages are concerned: none goes while one before it is in doubt.
    fn poll_admission(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(next) = self.queue.front().filter(|_| self.doubt.is_none()) else { return Poll::Pending };
        let outage = self.channel.as_ref().and_then(|channel| channel.link.troubles.last());
        let under_way = !self.writing.is_empty() || !self.unconfirmed.is_empty();
        loop {
            let now = Instant::now();
            self.proving.follow(outage, now);
            match self.proving.admit(next, under_way, now) {
                Admission::Granted => return Poll::Ready(()),
                Admission::AfterAnswers => return Poll::Pending,
                Admission::NotBefore(at) => {
                    let retry = self.retry.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
                    ready!(retry.poll_unpin(cx));
                    self.retry = None;
                }
            }
        }
    }

    fn may_write(&self, bytes: usize) -> bool {
        let waiting = self.writing.iter().map(|writing| writing.bytes).sum::<usize>();
        self.writing.is_empty() || (self.writing.len() < UNWRITTEN_MAX && waiting + bytes <= UNWRITTEN_BYTES_MAX)
    }

    /// Deadlines stand still while the broker blocks publishing.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Option<Ending> {
        let channel = self.channel.as_ref()?;
        if self.watch.as_ref().is_some_and(LinkWatch::blocked) {
            return None;
        }
        let config = &channel.link.config;
        let due = |meta: &Meta, limit: Duration| meta.since.max(self.unblocked_at) + limit;
        let write =
            self.writing.front().map(|first| (due(&first.meta, config.operation_timeout), "publish", &first.meta));
        let confirm =
            self.unconfirmed.front().map(|first| (due(&first.meta, config.confirm_timeout), CONFIRM, &first.meta));
        let (at, step, meta) = write.into_iter().chain(confirm).min_by_key(|(at, ..)| *at)?;
        let token = meta.publish.token;
        // Progress does not move the timer: it may fire early, and is set again then.
        let timer = self.timer.get_or_insert_with(|| Timer::until(at));
        if at < timer.deadline() {
            timer.reset(at);
        }
        loop {
            if timer.poll_unpin(cx).is_pending() {
                return None;
            }
            if timer.deadline() >= at {
                break;
            }
            timer.reset(at);
        }
        // The link may be well: a queue without its majority does not confirm either.
        if step == CONFIRM {
            return Some((Failure::Unconfirmed, Concern::Publish(token)));
        }
        let failure = channel.link.failure(Fault::TimedOut(step), None);
        Some((failure, Concern::Publish(token)))
    }
}

enum Progress {
    Some,
    None,
}

/// What a publish puts into its link's queue.
fn bytes_of(publish: &Publish) -> usize {
    publish.message.body.len() + header_bytes(&publish.message.properties)
}

/// The second fence: lapin would write a content header beyond the frame size, and RabbitMQ would close the connection.
fn oversized(publish: &Publish, channel: &Leased) -> Option<Failure> {
    let (bytes, limit) = (header_bytes(&publish.message.properties), channel.link.frame_bytes_max().saturating_sub(8));
    let reply_text = format!("PRECONDITION_FAILED - message headers of {bytes} bytes exceed {limit}");
    (bytes > limit).then_some(Failure::Refused { reply_code: PRECONDITION_FAILED, reply_text })
}

/// Opens a channel in confirm mode.
async fn make(entry: Arc<Entry>, slot: Slot) -> Result<Leased, Failure> {
    let link = slot.link().clone();
    let limit = link.config.operation_timeout;
    // RabbitMQ reads nothing from a connection that it blocks, so a channel would not be opened in time.
    let _ = link.watch().wait_for(|state| !state.blocked || state.lost.is_some()).await;
    let channel = entry.channel_limit().open(slot).await?;
    let select = channel.raw.confirm_select(ConfirmSelectOptions::default());
    super::fault::within(limit, "confirm mode", select)
        .await
        .map_err(|fault| channel.link.failure(fault, channel.refusal()))?;
    Ok(channel)
}

/// A further link was needed and could not be opened.
pub(super) fn reserve_failure(failure: LoginFailure) -> Failure {
    match failure {
        LoginFailure::AccessRefused => Failure::Refused {
            reply_code: ACCESS_REFUSED,
            reply_text: "ACCESS_REFUSED - the broker no longer accepts these credentials".into(),
        },
        LoginFailure::Unavailable { reason } => Failure::LinkLost { reason },
        LoginFailure::VirtualHost { reply_text } => Failure::Refused { reply_code: NOT_ALLOWED, reply_text },
    }
}

/// RabbitMQ 4 would end the connection rather than the channel if it had to refuse this.
fn unspeakable(publish: &Publish, channel: &Leased) -> Option<Failure> {
    let Outgoing { exchange, properties, routing_key, .. } = &*publish.message;
    channel.link.judge_names(|text| text.publish(exchange, routing_key, properties.user_id.as_ref())).err()
}
