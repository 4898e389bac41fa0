//! Watches the certificate files, so that a renewed certificate is served without a restart or a signal.
//!
//! It looks at contents, not at times or events: that also sees a swapped link, a mounted secret and a network file system.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::state::Serving;
use crate::listener::tls::Refresh;

/// How often the files are read.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Looks again and again until `stopped`.
pub(super) async fn watch(serving: Arc<Serving>, stopped: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stopped.cancelled() => return,
        }
        let Some(acceptor) = serving.current().tls.clone() else { continue };
        let look = {
            let acceptor = acceptor.clone();
            tokio::task::spawn_blocking(move || acceptor.refresh())
        };
        match look.await {
            Ok(Refresh::Replaced) => {
                info!("TLS files changed: new connections get what they hold now");
                acceptor.announce();
                serving.look_again();
            }
            Ok(Refresh::Broken(error)) => {
                warn!(%error, "TLS files changed and cannot be used; what was served before stays in use");
            }
            Ok(Refresh::Same | Refresh::Waiting) => {}
            // Only when the runtime ends.
            Err(_) => return,
        }
    }
}
