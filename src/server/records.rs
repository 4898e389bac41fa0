//! Watches whether the audit log can be written, and says in the log if not.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::audit;

/// How often it is looked.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the same is said again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// Looks again and again until `stopped`.
pub(super) async fn watch(stopped: CancellationToken) {
    let (mut told, mut next) = (0, Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stopped.cancelled() => return,
        }
        let (lost, reason) = audit::losses();
        if lost == told {
            continue;
        }
        if !audit::is_failing() {
            info!(lost = lost - told, "the audit log is written again; these events are missing in it");
            (told, next) = (lost, Instant::now());
        } else if Instant::now() >= next {
            let policy = "log.audit_failure says whether clients come in all the same";
            warn!(lost, reason, policy, "the audit log can't be written, and events are lost: make room for it");
            next = Instant::now() + REPEAT_INTERVAL;
        }
    }
}
