//! The workbenches of one hub channel, and what waits for them: queues to be made and queues to be deleted.
//!
//! Several queues are made at a time, each on a bench of its own, so that a refusal ends no other's work. Deletions go one
//! after another: nobody waits for them. A bench that has had nothing to do for a while gives its channel back.
//!
//! Consumes nothing, and knows no subscriber.

use super::config::{SHARED_LINGER, WORKBENCH_QUEUE_MAX, WORKBENCHES_MAX};
use super::exclusive::LeaseId;
use super::fanout::Fanout;
use super::link::Link;
use super::workbench::Workbench;
use crate::session::amqp::ShortText;
use crate::session::event::Failure;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::warn;

/// A queue that was asked for.
pub(super) struct Prepared {
    pub(super) fanout: Arc<Fanout>,
    pub(super) queue: Result<ShortText, Failure>,
}

enum Done {
    Cleared,
    Deleted,
    Prepared(Prepared),
}

pub(super) struct Workshop {
    /// Whether a bench is at work on a deletion.
    deleting: bool,
    deletions: VecDeque<ShortText>,
    idle: Vec<Workbench>,
    /// When the idle benches give their channels back.
    idle_until: Option<Instant>,
    link: Arc<Link>,
    owner: LeaseId,
    /// Benches at work on `requests`.
    preparing: usize,
    requests: VecDeque<Arc<Fanout>>,
    running: FuturesUnordered<BoxFuture<'static, (Workbench, Done)>>,
}

impl Workshop {
    pub(super) fn new(link: Arc<Link>, owner: LeaseId) -> Workshop {
        Workshop {
            deleting: false,
            deletions: VecDeque::new(),
            idle: Vec::new(),
            idle_until: None,
            link,
            owner,
            preparing: 0,
            requests: VecDeque::new(),
            running: FuturesUnordered::new(),
        }
    }

    /// Has the queue of a fan-out made.
    pub(super) fn prepare(&mut self, fanout: Arc<Fanout>) {
        self.requests.push_back(fanout);
    }

    pub(super) fn delete(&mut self, queue: ShortText) {
        self.deletions.push_back(queue);
    }

    /// Nothing is asked for and nothing is being done.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.deletions.is_empty() && self.running.is_empty()
    }

    pub(super) fn is_at_work(&self) -> bool {
        !self.running.is_empty()
    }

    /// Gives the benches work. `is_wanted` is asked about a fan-out just before its queue is made.
    pub(super) fn start(&mut self, is_wanted: impl Fn(&Arc<Fanout>) -> bool) {
        while let Some(bench) = self.bench_for_request() {
            match std::iter::from_fn(|| self.requests.pop_front()).find(&is_wanted) {
                None => self.idle.push(bench),
                Some(fanout) => {
                    self.preparing += 1;
                    self.running.push(Box::pin(prepare(bench, fanout)));
                }
            }
        }
        if !self.deleting
            && let Some(queue) = self.deletions.pop_front()
        {
            self.deleting = true;
            let bench = self.idle.pop().unwrap_or_else(|| self.new_bench());
            self.running.push(Box::pin(delete(bench, queue)));
        }
    }

    /// An idle one, or a new one where so many wait that it is worth its channel.
    fn bench_for_request(&mut self) -> Option<Workbench> {
        if self.requests.is_empty() || self.preparing >= WORKBENCHES_MAX {
            return None;
        }
        let worth_another = self.preparing == 0 || self.requests.len() >= WORKBENCH_QUEUE_MAX;
        self.idle.pop().or_else(|| worth_another.then(|| self.new_bench()))
    }

    fn new_bench(&self) -> Workbench {
        Workbench::new(self.link.clone(), self.owner)
    }

    /// The next queue that was asked for. Pends while nothing is at work, and may be dropped at any time.
    pub(super) async fn next(&mut self) -> Option<Prepared> {
        let (bench, done) = self.running.next().await?;
        self.put_back(bench, done)
    }

    fn put_back(&mut self, bench: Workbench, done: Done) -> Option<Prepared> {
        let prepared = match done {
            Done::Cleared => return None,
            Done::Deleted => {
                self.deleting = false;
                None
            }
            Done::Prepared(prepared) => {
                self.preparing -= 1;
                Some(prepared)
            }
        };
        self.idle.push(bench);
        self.idle_until = Some(Instant::now() + SHARED_LINGER);
        prepared
    }

    pub(super) fn idle_until(&self) -> Option<Instant> {
        self.idle_until
    }

    /// Gives back the channels of the benches that are idle, if it is time.
    pub(super) fn clear(&mut self) {
        if self.idle_until.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.idle_until = None;
        for mut bench in self.idle.drain(..) {
            self.running.push(Box::pin(async move {
                bench.clear().await;
                (bench, Done::Cleared)
            }));
        }
    }

    /// Ends the work that was begun, deletes these queues and those that nobody got any more, and gives the channels back.
    pub(super) async fn close(mut self, queues: impl Iterator<Item = ShortText>) {
        let mut queues = queues.chain(self.deletions.drain(..)).collect::<Vec<_>>();
        while let Some((bench, done)) = self.running.next().await {
            let prepared = self.put_back(bench, done);
            queues.extend(prepared.and_then(|prepared| prepared.queue.ok()));
        }
        if self.link.state().lost.is_some() {
            return;
        }
        let mut bench = self.idle.pop().unwrap_or_else(|| self.new_bench());
        for queue in &queues {
            if bench.delete(queue).await.is_err() {
                break;
            }
        }
        self.idle.push(bench);
        for bench in &mut self.idle {
            bench.clear().await;
        }
    }
}

async fn prepare(mut bench: Workbench, fanout: Arc<Fanout>) -> (Workbench, Done) {
    let queue = bench.prepare(&fanout.declaration, &fanout.binding).await;
    (bench, Done::Prepared(Prepared { fanout, queue }))
}

async fn delete(mut bench: Workbench, queue: ShortText) -> (Workbench, Done) {
    match bench.delete(&queue).await {
        // It ended with the connection.
        Ok(()) | Err(Failure::LinkLost { .. }) => {}
        // It is still consumed, so it does not grow.
        Err(failure) => warn!(%queue, ?failure, "the queue of a shared subscription could not be deleted"),
    }
    (bench, Done::Deleted)
}
