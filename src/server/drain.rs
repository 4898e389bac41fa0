//! The way out: unready at once, a while later no more new clients, then one client after the other is asked
//! to reconnect elsewhere, and at the latest after `drain.timeout` the process ends.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::Signal;
use crate::clients::Clients;
use crate::config::Drain;
use crate::readiness::Readiness;

/// How often it is looked whether the last client has gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Time at the end, at most a quarter of the whole, for what is still said to clients and to RabbitMQ.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Drained,
    /// By a second stop signal.
    Forced,
}

/// The end of the process at the latest, if it is being stopped now.
pub(super) fn deadline(drain: &Drain) -> Instant {
    Instant::now() + drain.timeout
}

pub(super) async fn run(
    drain: &Drain,
    deadline: Instant,
    readiness: &Readiness,
    clients: &Clients,
    signals: &mut mpsc::Receiver<Signal>,
) -> Ended {
    clients.set_drain_until((deadline - drain.timeout.min(4 * GOODBYE_MAX) / 4).into_std());
    readiness.draining();
    info!(clients = clients.count(), "draining");
    tokio::select! {
        () = leave(drain, clients) => Ended::Drained,
        () = sleep_until(deadline) => {
            warn!(clients = clients.count(), "drain timeout: ending with clients connected");
            Ended::Drained
        }
        () = stop_again(signals) => Ended::Forced,
    }
}

/// Without a sender nobody is left to hurry.
async fn stop_again(signals: &mut mpsc::Receiver<Signal>) {
    loop {
        match signals.recv().await {
            Some(Signal::Stop) => return,
            Some(Signal::Reload) => {}
            None => std::future::pending().await,
        }
    }
}

async fn leave(drain: &Drain, clients: &Clients) {
    if clients.count() > 0 {
        sleep(drain.delay).await;
    }
    clients.stop_accepting();
    let drains = clients.drains();
    let pause = drain.spread.checked_div(u32::try_from(drains.len()).unwrap_or(u32::MAX)).unwrap_or_default();
    let start = Instant::now();
    for (index, client) in drains.into_iter().enumerate() {
        client.cancel();
        sleep_until(start + pause * u32::try_from(index).unwrap_or(u32::MAX)).await;
    }
    while clients.count() > 0 {
        sleep(LOOK_INTERVAL).await;
    }
}
