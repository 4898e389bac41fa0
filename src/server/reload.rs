//! SIGHUP: a new configuration is read and judged as a whole; then it is applied as far as it can be, and what that means is said
//! key by key. One with a problem changes nothing.

use std::sync::Arc;

use tracing::{info, warn};

use super::Reload;
use super::state::Serving;
use crate::audit;
use crate::broker::Broker;
use crate::budget::{Budget, machine};
use crate::clients::Clients;
use crate::config::Config;
use crate::descriptors::Descriptors;
use crate::metrics::Metrics;

/// Keys of what is made once, at the start. What all others mean holds for clients, connections and events that come later, but
/// for those of [`OF_OPEN_SESSIONS`].
const AT_START: [&str; 17] = [
    "admin.hosts",
    "admin.listen",
    "auth.recheck",
    "broker.channels_per_connection_max",
    "broker.connect_timeout",
    "broker.credentials_bytes_max",
    "broker.frame_bytes_max",
    "broker.heartbeat",
    "broker.login_wait",
    "broker.operation_timeout",
    "http.redirect_listen",
    "listen",
    "log.audit_file",
    "log.format",
    "runtime.worker_threads",
    "session.confirm_timeout",
    "session.delivery_bytes_max",
];

/// Keys that sessions which are open obey from now on too.
const OF_OPEN_SESSIONS: [&str; 1] = ["rules"];

/// What a reload acts upon.
pub(super) struct Reloadable<'a> {
    pub(super) broker: &'a Broker,
    pub(super) budget: &'a Budget,
    pub(super) clients: &'a Clients,
    pub(super) descriptors: Descriptors,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) serving: &'a Serving,
}

impl Reloadable<'_> {
    /// The configuration that holds from now on; None if that is the old one.
    pub(super) fn reload(&self, reload: &Reload, old: &Config) -> Option<Config> {
        let new = (reload.load)().map_err(|problems| problems.to_string());
        match new.and_then(|new| nothing_left_out(old, new)).and_then(|new| self.apply(new)) {
            Ok(new) => {
                (reload.applied)(&new);
                if let Some(acceptor) = &self.serving.current().tls {
                    acceptor.announce();
                }
                announce(&old.changed_keys(&new));
                new.openings().iter().for_each(|opening| warn!("{opening}"));
                Some(new)
            }
            Err(reason) => {
                warn!(reason, "configuration not reloaded, nothing changed");
                audit::not_reloaded(&reason);
                None
            }
        }
    }

    fn apply(&self, new: Config) -> Result<Config, String> {
        // What can fail comes first.
        let nodes = Broker::read_nodes(&new.broker_config()).map_err(|error| error.to_string())?;
        self.serving.replace(&new, self.metrics)?;
        self.broker.set_nodes(nodes);
        self.clients.set_limits(super::affordable(new.client_limits(), self.descriptors));
        self.budget.set_limits(new.budget_limits(machine::memory()));
        Ok(new)
    }
}

/// A reload never opens by silence what was closed.
fn nothing_left_out(old: &Config, new: Config) -> Result<Config, String> {
    let left_out = old.defences_left_out(&new);
    match left_out.is_empty() {
        true => Ok(new),
        false => Err(format!("it leaves out what protects: {}", left_out.join("; "))),
    }
}

fn announce(changed: &[String]) {
    let (need_restart, applied): (Vec<String>, Vec<String>) =
        changed.iter().cloned().partition(|key| AT_START.contains(&key.as_str()));
    for key in &applied {
        match OF_OPEN_SESSIONS.contains(&key.as_str()) {
            true => info!(key, "changed: applies from now on, to sessions that are open too"),
            false => info!(key, "changed: applies from now on, to new clients where it is about clients"),
        }
    }
    for key in &need_restart {
        warn!(key, "changed: needs a restart, until then the old value holds");
    }
    info!(
        applied = applied.len(),
        need_restart = need_restart.len(),
        "configuration reloaded; all other keys are unchanged, and certificates, keys and lists were read again"
    );
    audit::reloaded(&applied, &need_restart);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::render_reference;

    #[test]
    fn keys_that_need_a_restart_exist() {
        let page = render_reference();
        for path in AT_START {
            let (section, key) = path.split_once('.').unwrap_or(("", path));
            let title = if section.is_empty() { "## Above all sections".to_owned() } else { format!("## [{section}]") };
            let rest = page.split(&format!("{title}\n")).nth(1).unwrap_or_else(|| panic!("no section {section}"));
            let rows = rest.split("\n## ").next().unwrap_or_default();
            assert!(rows.contains(&format!("| `{key}` |")), "{path}");
        }
    }
}
