//! What the service manager is told (sd_notify(3)): ready, reloading, stopping. Without one nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// Beyond `drain.timeout`, for what comes after the clients: acknowledgements, AMQP connections.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Clients are served, again or for the first time.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is read anew; `ready` follows. The time is what `Type=notify-reload` wants to see.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reloading the configuration")]),
        Err(error) => debug!(%error, "the clock cannot be read for the service manager"),
    }
}

/// No new clients; the others leave within this time, which the manager shall wait whatever its own limit is.
pub(super) fn stopping(drain: Duration, clients: usize) {
    let longest = u32::try_from((drain + STOP_MARGIN).as_micros()).unwrap_or(u32::MAX);
    let status = format!("draining {clients} clients");
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(longest), NotifyState::Status(&status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager cannot be told");
    }
}
