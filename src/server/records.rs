//! Watches whether the audit log can be written, and says in the log if not; and how many lines the log itself has lost.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{audit, lost_lines};

/// How often it is looked.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the same is said again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// Looks again and again until `stopped`.
pub(super) async fn watch(stopped: CancellationToken) {
    let (mut told, mut next) = (0, Instant::now());
    let (mut lines_told, mut next_of_lines) = (0, Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stopped.cancelled() => return,
        }
        let lines = lost_lines::count();
        // It may be lost too: then it is said again.
        if lines > lines_told && Instant::now() >= next_of_lines {
            warn!(
                lost = lines - lines_told,
                "standard error did not take all lines of the log: these are missing in it"
            );
            if lost_lines::count() == lines {
                (lines_told, next_of_lines) = (lines, Instant::now() + REPEAT_INTERVAL);
            }
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
