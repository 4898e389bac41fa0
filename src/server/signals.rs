//! Unix signals as a stream of wishes: SIGHUP reloads, SIGTERM and SIGINT stop.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{ServeError, Signal, runtime};

/// Signals that wait to be looked at; more of the same say nothing new.
const WAITING_MAX: usize = 8;

/// SIGXFSZ of Linux on most processors, and of the BSDs.
const FILE_TOO_LARGE: i32 = 25;

/// Watches from now on, for the rest of the process.
pub(super) fn watch() -> Result<mpsc::Receiver<Signal>, ServeError> {
    let on = |kind| signal(kind).map_err(runtime);
    let mut hangup = on(SignalKind::hangup())?;
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut terminate = on(SignalKind::terminate())?;
    // A file that reached its limit is an error of the write, not the end of the process. Not read: handled is enough.
    let file_too_large = on(SignalKind::from_raw(FILE_TOO_LARGE))?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    // A task because the signals arrive while the server waits for other things too, and must not be missed.
    tokio::spawn(async move {
        let _handled = file_too_large;
        loop {
            let wish = tokio::select! {
                _ = hangup.recv() => Signal::Reload,
                _ = interrupt.recv() => Signal::Stop,
                _ = terminate.recv() => Signal::Stop,
            };
            if sender.send(wish).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
