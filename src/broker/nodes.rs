//! The broker's nodes: which are worth trying, whose turn it is, and a list that can be replaced while it is in use.
//!
//! A node that failed is tried again by one probe, with growing pauses; everybody else leaves it alone until the probe
//! reaches it. So an outage costs the network one attempt per node and second, however many sessions and identities wait.

use super::config::{BrokerConfig, ConfigError, Encryption, Node};
use super::pace::{PROBE_PAUSE_MAX, backoff};
use super::proving::LastOutage;
use super::tls;
use rustls::ClientConfig;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::{info, warn};

/// A node, and how TLS with it is spoken.
pub(super) struct Endpoint {
    pub(super) node: Node,
    /// There if the node wants it.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node.host, self.node.port)
    }
}

/// The nodes of a configuration.
///
/// # Errors
/// Certificates that can't be read.
pub(super) fn endpoints(config: &BrokerConfig) -> Result<Vec<Arc<Endpoint>>, ConfigError> {
    let encrypted = config.nodes.iter().any(|node| node.encryption == Encryption::Tls);
    let tls = if encrypted { Some(tls::client(config)?) } else { None };
    let endpoint = |node: &Node| {
        let tls = tls.clone().filter(|_| node.encryption == Encryption::Tls);
        Arc::new(Endpoint { node: node.clone(), tls })
    };
    Ok(config.nodes.iter().map(endpoint).collect())
}

/// What is known of each node, and whose turn it is.
pub(super) struct Nodes {
    list: Mutex<Vec<Known>>,
    next: AtomicUsize,
    /// A node answers again, or there are others.
    recovered: Notify,
}

struct Known {
    endpoint: Arc<Endpoint>,
    /// In a row; only an AMQP connection that was made ends the row.
    failures: u32,
    /// Why it can't be used now.
    down: Option<String>,
    /// When it last answered again after it could not be used.
    recoveries: Arc<LastOutage>,
}

impl Known {
    fn new(endpoint: Arc<Endpoint>) -> Known {
        Known { endpoint, failures: 0, down: None, recoveries: Arc::default() }
    }
}

/// Whether a failure has to be followed by a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    NowDown,
    /// A probe is at work already, or the node is in the list no more.
    NothingToDo,
}

impl Nodes {
    /// `first` is where the rotation starts, so that relays do not all start with the same node.
    pub(super) fn new(endpoints: Vec<Arc<Endpoint>>, first: usize) -> Nodes {
        let list = endpoints.into_iter().map(Known::new).collect();
        Nodes { list: Mutex::new(list), next: AtomicUsize::new(first), recovered: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these are tried. Connections to others stay until they are lost.
    pub(super) fn replace(&self, endpoints: Vec<Arc<Endpoint>>) {
        let mut list = self.lock();
        // A node that is to be reached in another way, or with other certificates, is another one: its probe, if there is
        // one, ends by itself.
        *list = endpoints.into_iter().map(Known::new).collect();
        drop(list);
        self.recovered.notify_waiters();
    }

    pub(super) fn all(&self) -> Vec<Arc<Endpoint>> {
        self.lock().iter().map(|known| known.endpoint.clone()).collect()
    }

    /// The nodes that may be tried, another one first each time; and why the others may not.
    pub(super) fn order(&self) -> (Vec<Arc<Endpoint>>, Vec<String>) {
        let list = self.lock();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let turns = (0..list.len()).map(|turn| &list[first.wrapping_add(turn) % list.len()]);
        let (mut usable, mut reasons) = (Vec::new(), Vec::new());
        for known in turns {
            match &known.down {
                None => usable.push(known.endpoint.clone()),
                Some(reason) => reasons.push(reason.clone()),
            }
        }
        (usable, reasons)
    }

    /// Acts on a node if it is still in the list.
    fn with<T>(&self, endpoint: &Arc<Endpoint>, act: impl FnOnce(&mut Known) -> T) -> Option<T> {
        self.lock().iter_mut().find(|known| Arc::ptr_eq(&known.endpoint, endpoint)).map(act)
    }

    pub(super) fn reached(&self, endpoint: &Arc<Endpoint>) {
        self.with(endpoint, |known| (known.failures, known.down) = (0, None));
    }

    /// The reason names the node.
    pub(super) fn failed(&self, endpoint: &Arc<Endpoint>, reason: &str) -> Failed {
        let failed = self.with(endpoint, |known| {
            known.failures = known.failures.saturating_add(1);
            match known.down.replace(reason.to_owned()) {
                Some(_) => Failed::NothingToDo,
                None => {
                    if known.failures == 1 {
                        warn!(reason, "broker node unavailable");
                    }
                    Failed::NowDown
                }
            }
        });
        failed.unwrap_or(Failed::NothingToDo)
    }

    /// The pause before the next probe of a node; none if it is in the list no more.
    pub(super) fn probe_pause(&self, endpoint: &Arc<Endpoint>) -> Option<Duration> {
        let failures = self.with(endpoint, |known| known.failures)?;
        Some(backoff(failures.saturating_sub(1)).min(PROBE_PAUSE_MAX))
    }

    /// A probe reached the node; it may be tried again.
    pub(super) fn answers(&self, endpoint: &Arc<Endpoint>) {
        self.with(endpoint, |known| {
            known.down = None;
            known.recoveries.note();
        });
        info!(node = %endpoint, "broker node answers again");
        self.recovered.notify_waiters();
    }

    /// When the node of this address last answered again. Nothing is known of one that is not in the list.
    pub(super) fn recoveries(&self, node: &str) -> Arc<LastOutage> {
        let list = self.lock();
        let known = list.iter().find(|known| known.endpoint.to_string() == node);
        known.map(|known| known.recoveries.clone()).unwrap_or_default()
    }

    /// A pause, cut short when a node comes back; not to less than `least`, so that not all come at once.
    pub(super) async fn pause(&self, pause: Duration, least: Duration) {
        let recovered = self.recovered.notified();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = recovered => tokio::time::sleep(least.min(pause)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::pace::BACKOFF_FIRST;

    fn named(hosts: &[&str]) -> Vec<Arc<Endpoint>> {
        let node = |host: &&str| Node { host: (*host).to_owned(), port: 5672, encryption: Encryption::Plain };
        endpoints(&BrokerConfig { nodes: hosts.iter().map(node).collect(), ..BrokerConfig::default() })
            .expect("no files")
    }

    fn order(nodes: &Nodes) -> (String, Vec<String>) {
        let (usable, reasons) = nodes.order();
        (usable.iter().map(|endpoint| endpoint.node.host.as_str()).collect(), reasons)
    }

    #[test]
    fn a_node_that_is_down_is_left_alone_until_it_answers() {
        let nodes = Nodes::new(named(&["a", "b", "c"]), 0);
        let c = nodes.all()[2].clone();
        assert_eq!(order(&nodes), ("abc".into(), vec![]));
        assert_eq!(order(&nodes), ("bca".into(), vec![]));
        assert_eq!(nodes.failed(&c, "c: refused"), Failed::NowDown);
        assert_eq!(nodes.failed(&c, "c: silent"), Failed::NothingToDo);
        assert_eq!(order(&nodes), ("ab".into(), vec!["c: silent".to_owned()]));
        nodes.answers(&c);
        assert_eq!(nodes.order().0.len(), 3);
    }

    #[test]
    fn a_node_that_answers_and_fails_again_is_probed_more_and_more_slowly() {
        let nodes = Nodes::new(named(&["a"]), 0);
        let a = nodes.all()[0].clone();
        let pauses = (0..8).map(|_| {
            nodes.failed(&a, "vhost is down");
            nodes.answers(&a);
            nodes.probe_pause(&a).expect("it is in the list")
        });
        let pauses = pauses.collect::<Vec<_>>();
        assert!(pauses[0] <= BACKOFF_FIRST && pauses[7] == PROBE_PAUSE_MAX, "{pauses:?}");
        nodes.reached(&a);
        assert!(nodes.probe_pause(&a).expect("it is in the list") <= BACKOFF_FIRST);
    }

    #[test]
    fn replaced_nodes_are_tried_and_probed_no_more() {
        let nodes = Nodes::new(named(&["a", "b"]), 0);
        let a = nodes.all()[0].clone();
        assert_eq!(nodes.failed(&a, "a: refused"), Failed::NowDown);
        nodes.replace(named(&["b", "c", "d"]));
        assert_eq!(nodes.probe_pause(&a), None);
        assert_eq!(nodes.failed(&a, "a: refused"), Failed::NothingToDo);
        nodes.reached(&a);
        assert_eq!(order(&nodes), ("bcd".into(), vec![]));
    }

    #[tokio::test]
    async fn a_pause_ends_soon_after_a_node_came_back() {
        let nodes = Nodes::new(named(&["a"]), 0);
        let a = nodes.all()[0].clone();
        let work = async {
            tokio::task::yield_now().await;
            nodes.answers(&a);
        };
        let both = async { tokio::join!(nodes.pause(Duration::from_secs(600), backoff(0)), work) };
        tokio::time::timeout(Duration::from_secs(10), both).await.expect("it does not last ten minutes");
    }
}
