//! Clients under load: publishers with receipts at a pace, subscribers in every ack mode, all written down in a [`Tally`].
//!
//! One task per client. A client that gets an ERROR or is closed before it was told to end counts as disconnected.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stomp_relay::stomp::{Command, Frame};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::stomp::{Client, Received};
use super::tally::{Promise, Publisher, Report, Subscriber, Tally};

/// For everything that takes as long as a broker needs to come back.
pub const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    Auto,
    /// Cumulative, every tenth message.
    Client,
    Individual,
}

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub body_bytes: usize,
    pub every: Duration,
    /// Receipts that may be outstanding.
    pub window: usize,
}

#[derive(Default)]
pub struct Traffic {
    pub tally: Tally,
    /// Part of every destination, where a broker is shared.
    pub name: String,
    barrier: Arc<Barrier>,
    publishers: JoinSet<()>,
    publishing_stops: CancellationToken,
    stops: CancellationToken,
    subscribers: JoinSet<()>,
}

/// Shows that subscriptions are established: a further one of the same session waits for that.
#[derive(Default)]
pub struct Barrier {
    asked: watch::Sender<u64>,
    /// Subscribers, by the address of what they write down: one that begins anew is the same.
    passed: Mutex<BTreeSet<usize>>,
}

impl Barrier {
    /// Waits until so many sessions have passed.
    pub async fn pass(&self, sessions: usize) {
        self.lock().clear();
        self.asked.send_modify(|number| *number += 1);
        until("every subscription is there", PATIENCE, || self.lock().len() >= sessions).await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the condition holds.
///
/// # Panics
/// It does not within `limit`.
pub async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Traffic {
    pub fn named(name: &str) -> Traffic {
        Traffic { name: name.to_owned(), ..Traffic::default() }
    }

    /// Subscribes and waits for the RECEIPT. `headers` are further header lines of SUBSCRIBE, each ended by `\n`.
    pub async fn subscribe(
        &mut self,
        mut client: Client,
        destination: &str,
        headers: &str,
        acks: Acks,
        promise: Promise,
    ) {
        subscribe_as(&mut client, destination, headers, acks).await.expect("the subscription is made");
        let log = self.tally.subscriber(destination, promise);
        let (tally, barrier, stops) = (self.tally.clone(), self.barrier.clone(), self.stops.clone());
        self.subscribers.spawn(async move {
            if let Err(reason) = consume(&mut client, acks, &log, &barrier, &stops).await {
                eprintln!("a subscriber of {} was disconnected: {reason}", log.destination);
                tally.disconnected();
            }
        });
    }

    /// Sends persistent messages with receipts until [`Traffic::finish`].
    pub fn publish(&mut self, client: Client, destination: &str, pace: Pace) {
        self.publish_to(client, destination, destination, pace);
    }

    /// The same where SEND names the queue of `destination` by another destination, `sent_to`.
    pub fn publish_to(&mut self, mut client: Client, destination: &str, sent_to: &str, pace: Pace) {
        let (numbers, sent_to) = (self.tally.publisher(destination), sent_to.to_owned());
        let (tally, stops) = (self.tally.clone(), self.publishing_stops.clone());
        self.publishers.spawn(async move {
            match publish(&mut client, &numbers, &sent_to, pace, &stops).await {
                Ok(()) => client.disconnect().await,
                Err(reason) => {
                    eprintln!("a publisher to {} was disconnected: {reason}", numbers.destination);
                    tally.disconnected();
                }
            }
        });
    }

    /// Waits until every subscription is established at the broker.
    pub async fn barrier(&self) {
        self.barrier.pass(self.subscribers.len()).await;
    }

    /// Waits until so many messages more have been confirmed.
    pub async fn confirmed_more(&self, messages: u64) {
        let goal = self.tally.report().confirmed + messages;
        until("confirms go on", PATIENCE, || self.tally.report().confirmed >= goal).await;
    }

    /// Lets the publishers collect their receipts and the subscribers what was promised; then ends all.
    pub async fn finish(mut self) -> Report {
        self.publishing_stops.cancel();
        let end = async {
            while let Some(ended) = self.publishers.join_next().await {
                ended.expect("a publisher does not panic");
            }
        };
        if tokio::time::timeout(PATIENCE, end).await.is_err() {
            panic!("publishers still wait for receipts: {}", self.tally.report());
        }
        let (end, mark) = (Instant::now() + PATIENCE, self.tally.mark());
        while self.tally.lost_before(&mark) > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let missing = self.tally.missing();
        if !missing.is_empty() {
            eprintln!("{missing}");
        }
        self.stops.cancel();
        while let Some(ended) = self.subscribers.join_next().await {
            ended.expect("a subscriber does not panic");
        }
        self.tally.report()
    }
}

/// SUBSCRIBE with the id `s`, and its RECEIPT. `headers` are further header lines, each ended by `\n`.
pub async fn subscribe_as(client: &mut Client, destination: &str, headers: &str, acks: Acks) -> Result<(), String> {
    let ack = match acks {
        Acks::Auto => "auto",
        Acks::Client => "client",
        Acks::Individual => "client-individual",
    };
    let head = format!("id:s\ndestination:{destination}\nack:{ack}\nreceipt:subscribed\n{headers}");
    client.try_send(&format!("SUBSCRIBE\n{head}\n")).await?;
    while expect(client.next().await, "RECEIPT")?.is_none() {}
    Ok(())
}

/// Until `stops` and the last receipt; the error says what the relay said.
pub async fn publish(
    client: &mut Client,
    numbers: &Publisher,
    destination: &str,
    pace: Pace,
    stops: &CancellationToken,
) -> Result<(), String> {
    let mut ticks = tokio::time::interval(pace.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open = 0;
    loop {
        let going = !stops.is_cancelled();
        if !going && open == 0 {
            return Ok(());
        }
        tokio::select! {
            () = stops.cancelled(), if going => {}
            _ = ticks.tick(), if going && open < pace.window => {
                let (number, body) = numbers.next(pace.body_bytes);
                let headers = format!("destination:{destination}\npersistent:true\nreceipt:{number}");
                client.try_send(&format!("SEND\n{headers}\n\n{body}")).await?;
                open += 1;
            }
            received = client.next() => {
                let receipt = expect(received, "RECEIPT")?;
                if let Some(receipt) = receipt {
                    numbers.confirmed(receipt.header("receipt-id").and_then(|id| id.parse().ok()).ok_or("a strange id")?);
                    open -= 1;
                }
            }
        }
    }
}

/// Until `stops`; the error says what the relay said.
pub async fn consume(
    client: &mut Client,
    acks: Acks,
    log: &Subscriber,
    barrier: &Barrier,
    stops: &CancellationToken,
) -> Result<(), String> {
    let mut asked = barrier.asked.subscribe();
    // It may have been asked while there was no session.
    if *asked.borrow() > 0 {
        asked.mark_changed();
    }
    let mut since_ack = 0;
    loop {
        let received = tokio::select! {
            () = stops.cancelled() => return Ok(()),
            _ = asked.changed() => {
                // What was lost of the session's subscriptions is made anew before another one is.
                client.try_send("SUBSCRIBE\nid:barrier\ndestination:/topic/barrier\nreceipt:barrier\n\n").await?;
                client.try_send("UNSUBSCRIBE\nid:barrier\n\n").await?;
                continue;
            }
            received = client.next() => received,
        };
        let frame = match received {
            Received::Frame(frame) if frame.command == Command::Receipt => {
                barrier.lock().insert(std::ptr::from_ref(log).addr());
                continue;
            }
            other => expect(other, "MESSAGE")?,
        };
        let Some(frame) = frame else { continue };
        log.delivered(&frame);
        since_ack += 1;
        let every = match acks {
            Acks::Auto => continue,
            Acks::Client => 10,
            Acks::Individual => 1,
        };
        if since_ack >= every {
            since_ack = 0;
            client.try_send(&format!("ACK\nid:{}\n\n", frame.header("ack").ok_or("no ack header")?)).await?;
        }
    }
}

/// A frame of this command, or a heart-beat.
fn expect(received: Received, command: &str) -> Result<Option<Frame>, String> {
    match received {
        Received::Heartbeat => Ok(None),
        Received::Frame(frame) if frame.command.as_str() == command => Ok(Some(frame)),
        Received::Frame(frame) => Err(format!("{frame:?}")),
        Received::Close(code, reason) => Err(format!("closed with {code} {reason}")),
    }
}
