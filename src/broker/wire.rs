//! What the guard saw of one AMQP connection: returns and refusals by channel, the broker's version, the end.
//!
//! Written by the guard on lapin's reading side, read by the sessions that own the channels. It records before lapin acts
//! on the same bytes: a return is here before the confirm that follows it resolves, so matching has no race.

use super::frame::Return;
use super::sluice::Sluice;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Returns kept per channel until their confirm arrives. The session bounds its unconfirmed publishes far below; beyond
/// this the oldest is dropped.
const RETURNS_PER_CHANNEL_MAX: usize = 4096;

/// A mandatory publish that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Returned {
    pub(super) message_id: Option<String>,
    pub(super) cause: Return,
}

/// A channel exception as the broker worded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reply_code: u16,
    pub(super) reply_text: String,
}

/// How far the broker let this connection in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing or connection.start: a refusal now is about the credentials.
    #[default]
    Authenticating,
    /// connection.tune came: a refusal now is about the virtual host.
    Authenticated,
}

#[derive(Default)]
struct ChannelRecord {
    refusal: Option<Refusal>,
    returns: VecDeque<Returned>,
    sluice: Option<Arc<Sluice>>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Record {
    channels: HashMap<u16, ChannelRecord>,
    phase: Phase,
    version: String,
}

pub(super) struct Wire {
    record: Mutex<Record>,
    broker_closed_channels: AtomicUsize,
    /// As the broker offers it; 0 is no limit, or not known.
    frame_max: AtomicU32,
    since: Instant,
    /// Milliseconds after `since`.
    last_read: AtomicU64,
    /// Of all links together, so that it outlives this one.
    repaired_frames: Arc<AtomicU64>,
    /// Cancelled when the stream has ended, for whatever reason.
    pub(super) ended: CancellationToken,
}

impl Default for Wire {
    fn default() -> Wire {
        Wire {
            record: Mutex::default(),
            broker_closed_channels: AtomicUsize::new(0),
            frame_max: AtomicU32::new(0),
            since: Instant::now(),
            last_read: AtomicU64::new(0),
            repaired_frames: Arc::default(),
            ended: CancellationToken::new(),
        }
    }
}

impl Wire {
    /// Bytes came from the broker.
    pub(super) fn heard(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_read.store(now, Ordering::Relaxed);
    }

    /// How long nothing has come from the broker.
    pub(super) fn silence(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_millis(self.last_read.load(Ordering::Relaxed)))
    }

    /// Counts repairs in `repaired_frames`.
    pub(super) fn new(repaired_frames: Arc<AtomicU64>) -> Wire {
        Wire { repaired_frames, ..Wire::default() }
    }

    pub(super) fn record_repair(&self) {
        self.repaired_frames.fetch_add(1, Ordering::Relaxed);
    }

    // A panic while the lock was held leaves plain data behind that is still consistent.
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn repaired_frames(&self) -> u64 {
        self.repaired_frames.load(Ordering::Relaxed)
    }

    /// Starts a fresh record for a channel that was just opened.
    pub(super) fn watch_channel(&self, channel: u16) {
        self.lock().channels.insert(channel, ChannelRecord::default());
    }

    /// From now on no more than this waits on the channel. Before anything is consumed on it.
    pub(super) fn limit_channel(&self, channel: u16, sluice: &Arc<Sluice>) {
        if let Some(channel) = self.lock().channels.get_mut(&channel) {
            channel.sluice = Some(sluice.clone());
        }
    }

    pub(super) fn sluice(&self, channel: u16) -> Option<Arc<Sluice>> {
        self.lock().channels.get(&channel)?.sluice.clone()
    }

    pub(super) fn forget_channel(&self, channel: u16) {
        self.lock().channels.remove(&channel);
    }

    pub(super) fn record_version(&self, version: String) {
        self.lock().version = version;
    }

    /// Whether connection.start came.
    pub(super) fn has_greeted(&self) -> bool {
        let record = self.lock();
        !record.version.is_empty() || record.phase == Phase::Authenticated
    }

    pub(super) fn version(&self) -> String {
        self.lock().version.clone()
    }

    pub(super) fn record_frame_max(&self, bytes: u32) {
        self.frame_max.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn frame_max(&self) -> u32 {
        self.frame_max.load(Ordering::Relaxed)
    }

    pub(super) fn record_authenticated(&self) {
        self.lock().phase = Phase::Authenticated;
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().phase
    }

    pub(super) fn record_return(&self, channel: u16, returned: Returned) {
        let mut record = self.lock();
        let Some(channel) = record.channels.get_mut(&channel) else { return };
        if channel.returns.len() == RETURNS_PER_CHANNEL_MAX {
            channel.returns.pop_front();
        }
        channel.returns.push_back(returned);
    }

    /// Takes the return that belongs to this publish, if there is one.
    pub(super) fn take_return(
        &self,
        channel: u16,
        message_id: Option<&str>,
        exchange: &str,
        routing_key: &str,
    ) -> Option<Returned> {
        let mut record = self.lock();
        let returns = &mut record.channels.get_mut(&channel)?.returns;
        let at = returns.iter().position(|returned| {
            returned.message_id.as_deref() == message_id
                && returned.cause.exchange == exchange
                && returned.cause.routing_key == routing_key
        })?;
        returns.remove(at)
    }

    pub(super) fn record_refusal(&self, channel: u16, refusal: Refusal) {
        self.broker_closed_channels.fetch_add(1, Ordering::Relaxed);
        let mut record = self.lock();
        let Some(channel) = record.channels.get_mut(&channel) else { return };
        channel.refusal = Some(refusal);
        if let Some(waker) = channel.waker.take() {
            drop(record);
            waker.wake();
        }
    }

    pub(super) fn refusal(&self, channel: u16) -> Option<Refusal> {
        self.lock().channels.get(&channel)?.refusal.clone()
    }

    /// Like [`Wire::refusal`], and wakes the task of `cx` when one comes.
    pub(super) fn poll_refusal(&self, channel: u16, cx: &Context<'_>) -> Option<Refusal> {
        let mut record = self.lock();
        let channel = record.channels.get_mut(&channel)?;
        if channel.refusal.is_none() && !channel.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            channel.waker = Some(cx.waker().clone());
        }
        channel.refusal.clone()
    }

    /// Channels that the broker closed since the connection was made; lapin never uses their numbers again.
    pub(super) fn broker_closed_channels(&self) -> usize {
        self.broker_closed_channels.load(Ordering::Relaxed)
    }
}
