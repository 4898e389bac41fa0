//! The workbenches of one hub channel, and what waits for them: queues to be made, bindings to be proven, queues to be deleted.
//!
//! Several queues are made at a time, each on a bench of its own, so that a refusal ends no other's work. Deletions and the
//! proofs that nobody waits for go one after another. A bench that has had nothing to do for a while gives its channel back.
//!
//! Consumes nothing, and knows no subscriber.

use super::config::{SHARED_LINGER, WORKBENCH_QUEUE_MAX, WORKBENCHES_MAX};
use super::exclusive::LeaseId;
use super::fanout::{Fanout, ProofNumber};
use super::link::Link;
use super::workbench::Workbench;
use crate::session::amqp::{QueueDeclaration, ShortText};
use crate::session::event::Failure;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::warn;

/// A queue that was asked for.
pub(super) struct Prepared {
    pub(super) fanout: Arc<Fanout>,
    /// Its name, and when RabbitMQ was asked for it.
    pub(super) queue: Result<(ShortText, Instant), Failure>,
}

/// A binding that RabbitMQ was asked about.
pub(super) struct Proven {
    pub(super) fanout: Arc<Fanout>,
    pub(super) number: ProofNumber,
    /// Since when the answer holds.
    pub(super) since: Result<Instant, Failure>,
}

pub(super) enum Product {
    Prepared(Prepared),
    Proven(Proven),
}

/// Work that somebody waits for.
pub(super) enum Request {
    Prepare(Arc<Fanout>),
    Prove(Arc<Fanout>, ShortText),
}

enum Done {
    Cleared,
    Deleted,
    Made(Product),
    /// Of the routine.
    Reviewed(Proven),
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
    requests: VecDeque<Request>,
    /// Whether a bench is at work on the routine.
    reviewing: bool,
    /// Bindings with members that RabbitMQ has not been asked about for a while.
    routine: VecDeque<(Arc<Fanout>, ShortText)>,
    /// Never bound and never consumed: whether it may be read is what may be said of its siblings. Made by the first proof.
    sample: QueueDeclaration,
    running: FuturesUnordered<BoxFuture<'static, (Workbench, Done)>>,
}

impl Workshop {
    pub(super) fn new(link: Arc<Link>, owner: LeaseId) -> Workshop {
        let sample = QueueDeclaration {
            arguments: Vec::new(),
            auto_delete: false,
            durable: false,
            exclusive: true,
            name: sample_name(),
        };
        Workshop {
            deleting: false,
            deletions: VecDeque::new(),
            idle: Vec::new(),
            idle_until: None,
            link,
            owner,
            preparing: 0,
            requests: VecDeque::new(),
            reviewing: false,
            routine: VecDeque::new(),
            running: FuturesUnordered::new(),
            sample,
        }
    }

    pub(super) fn request(&mut self, request: Request) {
        self.requests.push_back(request);
    }

    /// Has RabbitMQ asked about a binding when nobody waits for anything.
    pub(super) fn review(&mut self, fanout: Arc<Fanout>, queue: ShortText) {
        self.routine.push_back((fanout, queue));
    }

    /// Whether all bindings that were given to [`Workshop::review`] have been begun.
    pub(super) fn has_reviewed(&self) -> bool {
        self.routine.is_empty()
    }

    pub(super) fn delete(&mut self, queue: ShortText) {
        self.deletions.push_back(queue);
    }

    /// Nothing is asked for and nothing is being done.
    pub(super) fn is_idle(&self) -> bool {
        let waiting = self.requests.is_empty() && self.routine.is_empty() && self.deletions.is_empty();
        waiting && self.running.is_empty()
    }

    pub(super) fn is_at_work(&self) -> bool {
        !self.running.is_empty()
    }

    /// Gives the benches work. `is_wanted` is asked about a fan-out just before its queue is made.
    pub(super) fn start(&mut self, is_wanted: impl Fn(&Arc<Fanout>) -> bool) {
        while let Some(bench) = self.bench_for_request() {
            let wanted = |request: &Request| match request {
                Request::Prepare(fanout) => is_wanted(fanout),
                // Whoever joins meanwhile waits for this very proof.
                Request::Prove(..) => true,
            };
            match std::iter::from_fn(|| self.requests.pop_front()).find(wanted) {
                None => self.idle.push(bench),
                Some(Request::Prepare(fanout)) => {
                    self.preparing += 1;
                    self.running.push(Box::pin(prepare(bench, fanout)));
                }
                Some(Request::Prove(fanout, queue)) => {
                    self.preparing += 1;
                    let work = prove(bench, fanout, queue, self.sample.clone());
                    self.running
                        .push(Box::pin(work.map(|(bench, proven)| (bench, Done::Made(Product::Proven(proven))))));
                }
            }
        }
        if !self.reviewing
            && let Some((fanout, queue)) = self.routine.pop_front()
        {
            self.reviewing = true;
            let bench = self.idle.pop().unwrap_or_else(|| self.new_bench());
            let work = prove(bench, fanout, queue, self.sample.clone());
            self.running.push(Box::pin(work.map(|(bench, proven)| (bench, Done::Reviewed(proven)))));
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
    pub(super) async fn next(&mut self) -> Option<Product> {
        let (bench, done) = self.running.next().await?;
        self.put_back(bench, done)
    }

    fn put_back(&mut self, bench: Workbench, done: Done) -> Option<Product> {
        let product = match done {
            Done::Cleared => return None,
            Done::Deleted => {
                self.deleting = false;
                None
            }
            Done::Made(product) => {
                self.preparing -= 1;
                Some(product)
            }
            Done::Reviewed(proven) => {
                self.reviewing = false;
                Some(Product::Proven(proven))
            }
        };
        self.idle.push(bench);
        self.idle_until = Some(Instant::now() + SHARED_LINGER);
        product
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
            match self.put_back(bench, done) {
                Some(Product::Prepared(Prepared { queue: Ok((queue, _)), .. })) => queues.push(queue),
                Some(Product::Prepared(_) | Product::Proven(_)) | None => {}
            }
        }
        if self.link.exclusive.created_by(self.owner).contains(&self.sample.name) {
            queues.push(self.sample.name.clone());
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

/// It has the form of the names of subscriptions that end with their session, so that it is permitted where they are, and nobody
/// can guess it.
fn sample_name() -> ShortText {
    let mut random = [0; 11];
    // aws-lc's generator seeds itself from the operating system and fails only if there is none.
    let _ = aws_lc_rs::rand::fill(&mut random);
    // 26 + 15 bytes, far below 255.
    ShortText::new(format!("stomp-subscription-sample-{}", URL_SAFE_NO_PAD.encode(random))).unwrap_or_default()
}

async fn prepare(mut bench: Workbench, fanout: Arc<Fanout>) -> (Workbench, Done) {
    let queue = bench.prepare(&fanout.declaration, &fanout.binding).await;
    (bench, Done::Made(Product::Prepared(Prepared { fanout, queue })))
}

async fn prove(
    mut bench: Workbench,
    fanout: Arc<Fanout>,
    queue: ShortText,
    sample: QueueDeclaration,
) -> (Workbench, Proven) {
    let number = fanout.begin_proof();
    let since = bench.prove(&queue, &fanout.binding, &sample).await;
    (bench, Proven { fanout, number, since })
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
