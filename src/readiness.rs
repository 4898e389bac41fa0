//! Whether load balancers should send clients here: listeners up, broker reached, not draining.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::audit;
use crate::broker::Broker;

/// How often the broker is asked whether it is there.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    broker: Option<Result<(), String>>,
    draining: bool,
    listening: bool,
}

impl Readiness {
    pub fn draining(&self) {
        self.state().draining = true;
    }

    pub fn listening(&self) {
        self.state().listening = true;
    }

    pub fn is_draining(&self) -> bool {
        self.state().draining
    }

    /// One line per condition, `[+]name ok` or `[-]name failed: why`; ready if none failed.
    pub fn report(&self) -> (bool, String) {
        let state = self.state().clone();
        let broker = match state.broker {
            None => Err("not asked yet".to_owned()),
            Some(result) => result,
        };
        let conditions = [
            ("listener", if state.listening { Ok(()) } else { Err("not bound yet".to_owned()) }),
            ("broker", broker),
            ("audit", if audit::keeps_out() { Err("the audit log can't be written".to_owned()) } else { Ok(()) }),
            ("drain", if state.draining { Err("draining".to_owned()) } else { Ok(()) }),
        ];
        let ready = conditions.iter().all(|(_, result)| result.is_ok());
        let lines = conditions.iter().map(|(name, result)| match result {
            Ok(()) => format!("[+]{name} ok\n"),
            Err(reason) => format!("[-]{name} failed: {reason}\n"),
        });
        (ready, lines.collect())
    }

    /// Asks the broker again and again; logs when the answer changes.
    pub async fn watch(self, broker: Broker, stopped: CancellationToken) {
        loop {
            // A node that does not answer must not hold the end up.
            let result = tokio::select! {
                result = broker.probe() => result,
                () = stopped.cancelled() => return,
            };
            let before = self.state().broker.replace(result.clone());
            match (&result, before) {
                (Ok(()), Some(Ok(()))) | (Err(_), Some(Err(_))) => {}
                (Ok(()), _) => info!("broker reached"),
                (Err(reason), _) => warn!(reason, "broker not reached; clients get an ERROR until it is"),
            }
            tokio::select! {
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
                () = stopped.cancelled() => return,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
