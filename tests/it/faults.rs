//! Faults, provoked for real against private nodes, and counted: sent, confirmed, delivered, repeated, lost, out of order,
//! disconnected.

mod alarm;
mod churn;
mod cluster;
mod descriptors;
mod neighbours;
mod network;
mod no_broker;
mod remains;
mod removal;
mod replicas;
mod single_node;
mod standstill;
mod stuck;
mod wire;

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::block_in_place;

use crate::support::relay::Relay;
use crate::support::relay_process::metric;
use crate::support::tally::{Promise, Report};
use crate::support::traffic::{Acks, Pace, Traffic};

/// Held by each test of this module: side by side they would only show that the machine is small.
pub async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// What must hold whatever the fault was, where the broker keeps the order too.
fn assert_unharmed(what: &str, report: &Report) {
    assert_unharmed_but_late(what, report);
    assert_eq!(report.late, 0, "{what}: {report}");
}

/// The same where the broker may give messages late, and says so.
fn assert_unharmed_but_late(what: &str, report: &Report) {
    println!("{what}: {report}");
    let Report { confirmed, disconnected, duplicates_unflagged, lost, reordered, .. } = *report;
    assert_eq!((disconnected, duplicates_unflagged, lost, reordered), (0, 0, 0, 0), "{what}: {report}");
    assert!(confirmed > 0, "{what}: nothing was confirmed: {report}");
}

/// How often sessions of this relay lost their lease: a fault that nobody felt shows nothing.
fn failovers(relay: &Relay) -> u64 {
    block_in_place(|| metric(&relay.admin.to_string(), "stomp_relay_failovers_total")) as u64
}

fn pace(milliseconds: u64) -> Pace {
    Pace { body_bytes: 100, every: Duration::from_millis(milliseconds), window: 64 }
}

/// How many subscribers of each kind.
#[derive(Clone, Copy)]
struct Mix {
    durable_topic: usize,
    plain_topic: usize,
    queues: usize,
}

/// Subscribers of every kind, then publishers to each of their destinations.
async fn load(relay: &Relay, traffic: &mut Traffic, mix: Mix) {
    let name = traffic.name.clone();
    let (plain, durable) = (format!("/topic/plain{name}"), format!("/topic/durable{name}"));
    for number in 0..mix.plain_topic {
        let acks = [Acks::Auto, Acks::Individual][number % 2];
        traffic.subscribe(relay.client().await, &plain, "", acks, Promise::WhileLinked).await;
    }
    for number in 0..mix.durable_topic {
        let headers = format!("durable:true\nauto-delete:false\nx-queue-name:durable{name}-{number}\n");
        let acks = [Acks::Auto, Acks::Client, Acks::Individual][number % 3];
        traffic.subscribe(relay.client().await, &durable, &headers, acks, Promise::All).await;
    }
    for number in 0..mix.queues {
        let destination = format!("/queue/q{name}-{number}");
        let acks = [Acks::Individual, Acks::Auto][number % 2];
        traffic.subscribe(relay.client().await, &destination, "", acks, Promise::All).await;
    }
    for _ in 0..2 {
        traffic.publish(relay.client().await, &plain, pace(100));
        traffic.publish(relay.client().await, &durable, pace(200));
    }
    for number in 0..mix.queues {
        traffic.publish(relay.client().await, &format!("/queue/q{name}-{number}"), pace(200));
    }
}
