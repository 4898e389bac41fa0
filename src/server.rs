//! Binds, accepts, drains. Not written yet: this holds the signature that `main` calls, and waits for a signal.

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;

/// Why serving ended, other than by a drain that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {reason}")]
    Bind { address: String, reason: String },
    #[error("the broker is unavailable: {reason}")]
    BrokerUnavailable { reason: String },
    #[error("stopped at once by a second signal; what was in flight is lost or will be delivered again")]
    Forced,
    #[error("{reason}")]
    Runtime { reason: String },
}

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(_config: Config, _require_broker: bool) -> Result<(), ServeError> {
    let runtime = |error: std::io::Error| ServeError::Runtime { reason: format!("cannot watch for signals: {error}") };
    let mut terminate = signal(SignalKind::terminate()).map_err(runtime)?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        result = tokio::signal::ctrl_c() => result.map_err(runtime),
    }
}
