//! Two relays in front of one broker: one is killed again and again, and its clients go to the other with what they have in
//! doubt. What a client of a relay has to do itself is done here by hand: connect again, subscribe again, send again what has no
//! RECEIPT, under the same message id.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stomp_relay::stomp::{Command, Frame};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::alone;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::{Client, Received};
use crate::support::tally::{Promise, Publisher, Subscriber, Tally};
use crate::support::traffic::{PATIENCE, until};

const QUEUES: usize = 6;
const KILLS: usize = 6;
const WINDOW: usize = 32;

/// The addresses of the relays that are there, and how often a client had to look for one.
#[derive(Clone, Default)]
struct Replicas {
    urls: Arc<Mutex<Vec<String>>>,
    moves: Arc<AtomicU64>,
}

impl Replicas {
    async fn client(&self) -> Client {
        let end = Instant::now() + PATIENCE;
        for turn in self.moves.fetch_add(1, Ordering::Relaxed).. {
            let url = {
                let urls = self.urls.lock().unwrap();
                urls[turn as usize % urls.len()].clone()
            };
            match Client::log_in(&url).await {
                Ok(client) => return client,
                Err(reason) => assert!(Instant::now() < end, "no relay lets anybody in: {reason}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!("the turns have no end")
    }
}

struct Sender {
    client: Client,
    destination: String,
    /// Without a RECEIPT so far.
    open: BTreeMap<usize, String>,
    replicas: Replicas,
}

impl Sender {
    async fn send(&mut self, number: usize, body: &str) -> Result<(), String> {
        let destination = &self.destination;
        let headers = format!("destination:{destination}\npersistent:true\nreceipt:{number}");
        let id = format!("{destination}-{number}");
        self.client.try_send(&format!("SEND\n{headers}\namqp-message-id:{id}\n\n{body}")).await
    }

    /// Another relay gets what is in doubt, in order.
    async fn move_on(&mut self) {
        'relays: loop {
            self.client = self.replicas.client().await;
            for (number, body) in self.open.clone() {
                if self.send(number, &body).await.is_err() {
                    continue 'relays;
                }
            }
            return;
        }
    }

    async fn run(mut self, numbers: Arc<Publisher>, stops: CancellationToken) {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let going = !stops.is_cancelled();
            if !going && self.open.is_empty() {
                return;
            }
            let there = tokio::select! {
                () = stops.cancelled(), if going => true,
                _ = ticks.tick(), if going && self.open.len() < WINDOW => {
                    let (number, body) = numbers.next(100);
                    self.open.insert(number, body.clone());
                    self.send(number, &body).await.is_ok()
                }
                received = self.client.next() => match received {
                    Received::Heartbeat => true,
                    Received::Frame(frame) if frame.command == Command::Receipt => {
                        let number = receipt_number(&frame);
                        self.open.remove(&number);
                        numbers.confirmed(number);
                        true
                    }
                    Received::Frame(frame) => panic!("a publisher got {frame:?}"),
                    Received::Close(..) => false,
                },
            };
            if !there {
                self.move_on().await;
            }
        }
    }
}

fn receipt_number(frame: &Frame) -> usize {
    frame.header("receipt-id").and_then(|id| id.parse().ok()).expect("the number of a SEND")
}

/// Consumes a queue from whatever relay is there, and acknowledges each message.
async fn consume(replicas: Replicas, destination: String, log: Arc<Subscriber>, stops: CancellationToken) {
    while !stops.is_cancelled() {
        let mut client = replicas.client().await;
        let subscribe = format!("SUBSCRIBE\nid:0\ndestination:{destination}\nack:client-individual\n\n");
        let mut there = client.try_send(&subscribe).await.is_ok();
        while there {
            let received = tokio::select! {
                () = stops.cancelled() => return,
                received = client.next() => received,
            };
            there = match received {
                Received::Heartbeat => true,
                Received::Frame(frame) if frame.command == Command::Message => {
                    log.delivered(&frame);
                    let id = frame.header("ack").expect("an id to acknowledge by");
                    client.try_send(&format!("ACK\nid:{id}\n\n")).await.is_ok()
                }
                Received::Frame(frame) => panic!("a subscriber got {frame:?}"),
                Received::Close(..) => false,
            };
        }
    }
}

fn relay() -> RelayProcess {
    block_in_place(|| RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[Rabbit::shared().uri()], "", 1024))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_costs_its_clients_a_connection_and_nothing_else() {
    let _alone = alone().await;
    let mut relays = [relay(), relay()];
    let replicas = Replicas::default();
    *replicas.urls.lock().unwrap() = relays.iter().map(|relay| relay.ws.clone()).collect();
    let (tally, stops, ends) = (Tally::default(), CancellationToken::new(), CancellationToken::new());
    let (mut publishers, mut subscribers) = (JoinSet::new(), JoinSet::new());
    for number in 0..QUEUES {
        let destination = unique(&format!("/queue/replicas-{number}"));
        let log = tally.subscriber(&destination, Promise::All);
        subscribers.spawn(consume(replicas.clone(), destination.clone(), log, ends.clone()));
        let numbers = tally.publisher(&destination);
        let (client, open) = (replicas.client().await, BTreeMap::new());
        let sender = Sender { client, destination, open, replicas: replicas.clone() };
        publishers.spawn(sender.run(numbers, stops.clone()));
    }
    let before = replicas.moves.load(Ordering::Relaxed);
    for kill in 0..KILLS {
        let goal = tally.report().confirmed + 200;
        until("confirms go on", PATIENCE, || tally.report().confirmed >= goal).await;
        // Dropping it is SIGKILL.
        relays[kill % 2] = relay();
        *replicas.urls.lock().unwrap() = relays.iter().map(|relay| relay.ws.clone()).collect();
    }
    stops.cancel();
    while let Some(ended) = publishers.join_next().await {
        ended.expect("a publisher gets its receipts");
    }
    let mark = tally.mark();
    until("everything confirmed has arrived", PATIENCE, || tally.lost_before(&mark) == 0).await;
    ends.cancel();
    while let Some(ended) = subscribers.join_next().await {
        ended.expect("a subscriber gets messages only");
    }
    let report = tally.report();
    println!("relay killed {KILLS} times: {report}");
    assert!(replicas.moves.load(Ordering::Relaxed) >= before + KILLS as u64, "the kills were not felt");
    assert_eq!((report.lost, report.duplicates_unflagged), (0, 0), "{report}");
    assert_eq!(report.confirmed, report.sent, "{report}");
}
