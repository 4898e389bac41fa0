//! The pool: links by virtual host, login and passcode; logins; re-checks; the status of all.
//!
//! A passcode is part of the key as a keyed hash, so another passcode is another entry and RabbitMQ checks it. An entry
//! keeps the credentials in clear, because lapin needs them when a further link is opened.

use super::channel::{Channel, Restored};
use super::channel_limit::ChannelLimit;
use super::config::{BrokerConfig, ConfigError};
use super::connect::{self, Connected, Target};
use super::counts::{ConnectCounts, Counts};
use super::exclusive::LeaseId;
use super::hub::Hub;
use super::inquiry::{Inquiry, Whereabouts};
use super::link::{Account, Anchor, Link, Role, Slot};
use super::nodes::{self, Endpoint, Failed, Nodes};
use super::pace::{Pass, RESUMING_MAX, RESUMING_PATIENCE, backoff};
use super::proving::{LastOutage, Troubles};
use super::quarantine::{Company, Past, Place, Quarantine, Seclusion};
use super::tenancy::{ASKING_MAX, Tenants};
use super::trial::Trials;
use crate::patience;
use crate::session::amqp::ShortText;
use crate::session::command::Credentials;
use crate::session::event::{BrokerInfo, LoginFailure};
use aws_lc_rs::hmac;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Mutex as TaskMutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tracing::debug;

/// The handle to all links; cheap to clone.
#[derive(Clone)]
pub struct Broker(Arc<Pool>);

/// Nodes with what is needed to connect to them.
pub struct NodeList(Vec<Arc<Endpoint>>);

/// A readable name of the client for the log, such as its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientLabel(pub String);

impl fmt::Display for ClientLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerStatus {
    pub links: Vec<LinkStatus>,
    /// Frames from the broker that had to be repaired for lapin, on all links since the start.
    pub repaired_frames: u64,
    /// Queues that serve shared subscriptions.
    pub shared_queues: usize,
    /// Subscriptions that are served from them.
    pub shared_subscribers: usize,
    /// Connections that were tried since the start.
    pub connects: ConnectCounts,
    /// Links that ended against the relay's will, since the start.
    pub links_lost: u64,
    /// Publishes that RabbitMQ refused after an outage and that were tried again, since the start.
    pub publishes_retried: u64,
    /// How long RabbitMQ has blocked publishing on at least one link, since the start.
    pub blocked: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    pub role: Role,
    pub vhost: String,
    pub login: String,
    /// `host:port`
    pub node: String,
    /// Sessions that hold a channel of this link.
    pub channels: usize,
    pub blocked: bool,
}

/// Of a connection's name.
const NAME_BYTES_MAX: usize = 128;

#[derive(PartialEq, Eq, Hash)]
struct Key {
    vhost: String,
    login: String,
    passcode: Vec<u8>,
}

pub(super) struct Pool {
    pub(super) config: Arc<BrokerConfig>,
    secret: hmac::Key,
    entries: Mutex<HashMap<Key, Arc<Entry>>>,
    links: Mutex<Vec<Weak<Link>>>,
    nodes: Nodes,
    pub(super) quarantine: Quarantine,
    resuming: Arc<Semaphore>,
    /// Places of those who ask about an identity that has sessions.
    asking: Semaphore,
    next_lease: AtomicU64,
    counts: Arc<Counts>,
    stopped: AtomicBool,
}

/// Whether credentials say themselves when they end, as a token does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limited {
    No,
    Yes,
}

/// The links of one identity.
pub(super) struct Entry {
    pool: Arc<Pool>,
    vhost: String,
    /// Replaced by [`LinkSecret`] only.
    credentials: Mutex<Credentials>,
    consume: RoleLinks,
    publish: RoleLinks,
    declare: RoleLinks,
    hub: Hub,
    limited: Limited,
    tenants: Tenants,
    trials: Trials,
    outages: Arc<LastOutage>,
    channel_limit: ChannelLimit,
    /// Held while RabbitMQ is asked about the credentials.
    checked: TaskMutex<Checked>,
}

#[derive(Default)]
struct Checked {
    accepted: Option<Instant>,
    failed: Option<(Instant, LoginFailure)>,
}

#[derive(Default)]
struct RoleLinks {
    links: Mutex<Vec<Arc<Link>>>,
    /// Held while a link is opened; what the last attempt came to, for those who waited meanwhile.
    opening: TaskMutex<Option<(Instant, LoginFailure)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    /// Checks the configuration and reads the certificates; connects nowhere yet.
    pub fn new(config: BrokerConfig) -> Result<Broker, ConfigError> {
        config.check()?;
        let endpoints = nodes::endpoints(&config)?;
        let mut secret = [0; 32];
        // aws-lc's generator seeds itself from the operating system and fails only if there is none.
        aws_lc_rs::rand::fill(&mut secret).expect("the operating system gives random bytes");
        Ok(Broker(Arc::new(Pool {
            nodes: Nodes::new(endpoints, usize::from(secret[0])),
            config: Arc::new(config),
            secret: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            entries: Mutex::default(),
            links: Mutex::default(),
            quarantine: Quarantine::default(),
            resuming: Arc::new(Semaphore::new(RESUMING_MAX)),
            asking: Semaphore::new(ASKING_MAX),
            next_lease: AtomicU64::new(1),
            counts: Arc::default(),
            stopped: AtomicBool::new(false),
        })))
    }

    /// Lets a session in: RabbitMQ checks the credentials and the virtual host, unless it did so for a live link within
    /// `recheck`. While no node can be reached it tries again for `login_wait`; one attempt takes at most the connect timeout
    /// per node, twice if others are logging in at the same time.
    pub async fn login(
        &self,
        vhost: &str,
        credentials: &Credentials,
        client: &ClientLabel,
    ) -> Result<(Channel, BrokerInfo), LoginFailure> {
        let mut patience = self.patience();
        let leased = loop {
            let entry = self.0.entry(vhost, credentials);
            let failure = match entry.clone().lease().await {
                Ok(leased) => break leased,
                Err(failure) => failure,
            };
            self.0.forget(vhost, credentials, entry, &failure);
            patience.wait(failure).await?;
        };
        debug!(%client, vhost, login = credentials.login, "logged in at the broker");
        Ok(leased)
    }

    /// The same for a session whose secret will be replaced while it lives: it gets links of its own, which end with it.
    pub async fn login_apart(
        &self,
        vhost: &str,
        credentials: &Credentials,
        client: &ClientLabel,
    ) -> Result<(Channel, BrokerInfo), LoginFailure> {
        let entry = Arc::new(Entry::new(&self.0, vhost, credentials, Limited::Yes));
        let mut patience = self.patience();
        let leased = loop {
            match entry.clone().lease().await {
                Ok(leased) => break leased,
                Err(failure) => patience.wait(failure).await?,
            }
        };
        debug!(%client, vhost, login = credentials.login, "logged in at the broker, on links of its own");
        Ok(leased)
    }

    fn patience(&self) -> Patience<'_> {
        Patience { attempts: 0, deadline: Instant::now() + self.0.config.login_wait, pool: &self.0 }
    }

    /// Whether some node can be reached and speaks AMQP; asks without credentials. The error names each node's reason.
    pub async fn probe(&self) -> Result<(), String> {
        let mut reasons = Vec::new();
        for endpoint in self.0.nodes.all() {
            match connect::probe(&self.0.config, &endpoint).await {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }

    /// The nodes of a configuration, for [`Broker::set_nodes`].
    ///
    /// # Errors
    /// Certificates that can't be read.
    pub fn read_nodes(config: &BrokerConfig) -> Result<NodeList, ConfigError> {
        config.check()?;
        nodes::endpoints(config).map(NodeList)
    }

    /// From now on these nodes are connected to. Connections that are up stay, whatever node they are to.
    pub fn set_nodes(&self, nodes: NodeList) {
        self.0.nodes.replace(nodes.0);
    }

    /// All links that are up.
    pub fn status(&self) -> BrokerStatus {
        let (links, counts) = (self.0.live_links(), &self.0.counts);
        let status = |link: &Arc<Link>| LinkStatus {
            role: link.role,
            vhost: link.vhost.clone(),
            login: link.login.clone(),
            node: link.node.clone(),
            channels: link.open_slots(),
            blocked: link.state().blocked,
        };
        BrokerStatus {
            links: links.iter().map(status).collect(),
            repaired_frames: counts.repaired_frames.load(Ordering::Relaxed),
            shared_queues: counts.shared_queues.load(Ordering::Relaxed),
            shared_subscribers: counts.shared_subscribers.load(Ordering::Relaxed),
            connects: counts.connects.read(),
            links_lost: counts.links_lost.load(Ordering::Relaxed),
            publishes_retried: counts.publishes_retried.load(Ordering::Relaxed),
            blocked: counts.blocked.total(),
        }
    }

    /// Closes all links, within the operation timeout. Sessions that are left get `LinkLost`; logins are refused.
    pub async fn shutdown(&self) {
        self.0.stopped.store(true, Ordering::Relaxed);
        let links = self.0.live_links();
        futures_util::future::join_all(links.iter().map(|link| link.close("the relay shuts down"))).await;
        lock(&self.0.entries).clear();
    }
}

/// Of a login, for `login_wait`, while no node can be reached.
struct Patience<'a> {
    attempts: u32,
    deadline: Instant,
    pool: &'a Pool,
}

impl Patience<'_> {
    /// Waits until it is time to try again, or gives the failure back.
    async fn wait(&mut self, failure: LoginFailure) -> Result<(), LoginFailure> {
        let pause = backoff(self.attempts);
        if !matches!(failure, LoginFailure::Unavailable { .. }) || Instant::now() + pause > self.deadline {
            return Err(failure);
        }
        self.attempts += 1;
        self.pool.nodes.pause(pause, backoff(0)).await;
        Ok(())
    }
}

impl Pool {
    fn key(&self, vhost: &str, credentials: &Credentials) -> Key {
        let passcode = hmac::sign(&self.secret, credentials.passcode.as_bytes());
        Key { vhost: vhost.to_owned(), login: credentials.login.clone(), passcode: passcode.as_ref().to_vec() }
    }

    fn entry(self: &Arc<Self>, vhost: &str, credentials: &Credentials) -> Arc<Entry> {
        let entry = || Arc::new(Entry::new(self, vhost, credentials, Limited::No));
        lock(&self.entries).entry(self.key(vhost, credentials)).or_insert_with(entry).clone()
    }

    /// Drops an entry that is of no use: refused credentials, or nothing connected and no session that waits for it.
    fn forget(&self, vhost: &str, credentials: &Credentials, entry: Arc<Entry>, failure: &LoginFailure) {
        let unavailable = matches!(failure, LoginFailure::Unavailable { .. });
        let key = self.key(vhost, credentials);
        let mut entries = lock(&self.entries);
        // The map's and the caller's. Given up within the lock, so that of several callers the last one sees it.
        let waited_for = Arc::strong_count(&entry) > 2;
        if !(unavailable && (entry.has_links() || waited_for))
            && entries.get(&key).is_some_and(|known| Arc::ptr_eq(known, &entry))
        {
            entries.remove(&key);
        }
        if !unavailable {
            entry.retire();
        }
        drop(entry);
        drop(entries);
    }

    /// Drops entries whose links are all gone.
    fn sweep(&self) {
        lock(&self.links).retain(|link| link.upgrade().is_some_and(|link| link.state().lost.is_none()));
        lock(&self.entries).retain(|_, entry| entry.has_links() || Arc::strong_count(entry) > 1);
    }

    /// From now on one probe tries the node, and nobody else does until it answers.
    fn node_failed(self: &Arc<Self>, endpoint: &Arc<Endpoint>, reason: &str) {
        if self.nodes.failed(endpoint, reason) == Failed::NothingToDo {
            return;
        }
        let (pool, endpoint) = (Arc::downgrade(self), endpoint.clone());
        tokio::spawn(async move {
            loop {
                let Some(pause) = pool.upgrade().and_then(|pool| pool.nodes.probe_pause(&endpoint)) else { return };
                tokio::time::sleep(pause).await;
                let Some(pool) = pool.upgrade().filter(|pool| !pool.stopped.load(Ordering::Relaxed)) else { return };
                match connect::probe(&pool.config, &endpoint).await {
                    Ok(()) => {
                        return pool.nodes.answers(&endpoint);
                    }
                    Err(reason) => drop(pool.nodes.failed(&endpoint, &reason)),
                }
            }
        });
    }

    fn live_links(&self) -> Vec<Arc<Link>> {
        let links = lock(&self.links).iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        links.into_iter().filter(|link| link.state().lost.is_none()).collect()
    }
}

impl Drop for Entry {
    /// Links that no entry knows any more take no session; they close when their last one is gone.
    fn drop(&mut self) {
        self.retire();
    }
}

impl Entry {
    fn new(pool: &Arc<Pool>, vhost: &str, credentials: &Credentials, limited: Limited) -> Entry {
        Entry {
            pool: pool.clone(),
            vhost: vhost.to_owned(),
            credentials: Mutex::new(credentials.clone()),
            consume: RoleLinks::default(),
            publish: RoleLinks::default(),
            declare: RoleLinks::default(),
            hub: Hub::default(),
            limited,
            tenants: Tenants::default(),
            trials: Trials::default(),
            outages: Arc::default(),
            channel_limit: ChannelLimit::default(),
            checked: TaskMutex::default(),
        }
    }

    fn credentials(&self) -> Credentials {
        lock(&self.credentials).clone()
    }

    /// A lease, after a check of the credentials if one is due.
    async fn lease(self: Arc<Self>) -> Result<(Channel, BrokerInfo), LoginFailure> {
        let version = self.check().await?;
        let lease = self.next_lease();
        Ok((Channel::new(self, lease), BrokerInfo { version }))
    }

    /// For a session that lost its consume side. Those who come back wait for a pass, so that not all of them make their
    /// subscriptions at once.
    pub(super) async fn restore_consuming(self: Arc<Self>, attempt: u32, past: Past) -> Result<Restored, LoginFailure> {
        let suspicion = past.judge().await;
        let attempt = attempt.max(suspicion.attempt(Instant::now()));
        self.pool.nodes.pause(backoff(attempt), backoff(attempt / 3)).await;
        let version = self.check().await?;
        if let Some(queue) = &past.absent {
            self.clone().await_presence(queue).await?;
        }
        let pass = Pass::take(&self.pool.resuming, RESUMING_PATIENCE).await;
        // Where every node has been asked, each is again: it may run its replica by now.
        let all = self.pool.nodes.all();
        let mut avoid = past.avoid;
        if avoid.as_ref().is_some_and(|nodes| all.iter().all(|node| nodes.0.contains(&node.to_string()))) {
            avoid = None;
        }
        Ok(Restored::Consume { avoid, lease: self.next_lease(), pass, suspicion, version })
    }

    /// For a session that lost its publish side. A place on a link is all it needs.
    pub(super) async fn restore_publishing(
        self: Arc<Self>,
        attempt: u32,
        past: Past,
    ) -> Result<Restored, LoginFailure> {
        let suspicion = past.judge().await;
        let attempt = attempt.max(suspicion.attempt(Instant::now()));
        self.pool.nodes.pause(backoff(attempt), backoff(attempt / 3)).await;
        let slot = self.reserve(Role::Publish, suspicion.company(Instant::now())).await?;
        Ok(Restored::Publish { slot, suspicion })
    }

    /// Fails while the node of a queue is away.
    async fn await_presence(self: Arc<Self>, queue: &ShortText) -> Result<(), LoginFailure> {
        let slot = self.reserve(Role::Consume, Company::Any).await?;
        match Inquiry::begin(slot.link().clone(), queue.clone()).answer().await {
            Whereabouts::Away(failure) => Err(LoginFailure::Unavailable { reason: format!("{failure:?}") }),
            Whereabouts::Led | Whereabouts::Missing | Whereabouts::There => Ok(()),
        }
    }

    pub(super) fn quarantine(&self) -> &Quarantine {
        &self.pool.quarantine
    }

    pub(super) fn channel_limit(&self) -> &ChannelLimit {
        &self.channel_limit
    }

    pub(super) fn vhost(&self) -> &str {
        &self.vhost
    }

    pub(super) fn next_lease(&self) -> LeaseId {
        LeaseId(self.pool.next_lease.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn config(&self) -> &Arc<BrokerConfig> {
        &self.pool.config
    }

    pub(super) fn tenants(&self) -> &Tenants {
        &self.tenants
    }

    pub(super) fn login(&self) -> String {
        lock(&self.credentials).login.clone()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.pool.stopped.load(Ordering::Relaxed)
    }

    /// How often RabbitMQ is asked while there are sessions; None: what was shown says itself when it ends.
    pub(super) fn recheck_interval(&self) -> Option<Duration> {
        (self.limited == Limited::No).then_some(self.config().recheck)
    }

    /// A place among those who ask.
    pub(super) async fn asking(&self) -> Option<SemaphorePermit<'_>> {
        self.pool.asking.acquire().await.ok()
    }

    /// Has a consuming link stay, and opens one if there is none.
    pub(super) async fn anchor(self: &Arc<Self>) -> Result<Anchor, LoginFailure> {
        let usable = || lock(&self.consume.links).iter().find_map(Link::anchor);
        match usable() {
            Some(anchor) => Ok(anchor),
            None => {
                self.clone().open(Role::Consume, Instant::now(), None, Vec::new()).await?;
                usable().ok_or_else(|| LoginFailure::Unavailable { reason: "the connection was lost at once".into() })
            }
        }
    }

    /// Asks RabbitMQ about the identity if that was not done within `recheck`; in how long it is due again.
    pub(super) async fn ask_if_due(self: &Arc<Self>) -> Result<Option<Duration>, LoginFailure> {
        let Some(interval) = self.recheck_interval() else { return Ok(None) };
        let accepted = self.checked.lock().await.accepted;
        match accepted.and_then(|last| interval.checked_sub(last.elapsed())).filter(|left| !left.is_zero()) {
            Some(left) => Ok(Some(left)),
            None => self.clone().ask_now().await.map(|()| Some(interval)),
        }
    }

    pub(super) async fn ask_now(self: Arc<Self>) -> Result<(), LoginFailure> {
        self.clone().ask_again().await?;
        self.checked.lock().await.accepted = Some(Instant::now());
        Ok(())
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(super) fn trials(&self) -> &Trials {
        &self.trials
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.pool.counts
    }

    fn role(&self, role: Role) -> &RoleLinks {
        match role {
            Role::Consume => &self.consume,
            Role::Declare => &self.declare,
            Role::Publish => &self.publish,
        }
    }

    fn has_links(&self) -> bool {
        Role::ALL.into_iter().any(|role| !lock(&self.role(role).links).is_empty())
    }

    fn retire(&self) {
        for role in Role::ALL {
            lock(&self.role(role).links).iter().for_each(|link| link.retire());
        }
    }

    /// Has RabbitMQ check the credentials if it did not lately; returns its version. Logins that come meanwhile wait and
    /// share the result of the one that asks.
    async fn check(self: &Arc<Self>) -> Result<String, LoginFailure> {
        let asked = Instant::now();
        let mut checked = self.checked.lock().await;
        match &checked.failed {
            Some((at, failure)) if *at >= asked => return Err(failure.clone()),
            _ => {}
        }
        let usable = lock(&self.consume.links).iter().find(|link| link.is_usable()).cloned();
        let fresh = checked.accepted.is_some_and(|last| last.elapsed() <= self.config().recheck);
        let result = match usable {
            Some(link) if fresh => return Ok(link.version.clone()),
            Some(link) => self.clone().ask_again().await.map(|()| link),
            None => self.clone().open(Role::Consume, asked, None, Vec::new()).await,
        };
        match result {
            Ok(link) => {
                checked.accepted = Some(Instant::now());
                Ok(link.version.clone())
            }
            Err(failure) => {
                checked.failed = Some((Instant::now(), failure.clone()));
                self.tenants.doubt(&failure);
                Err(failure)
            }
        }
    }

    /// A place on a link of this role for a session that may keep such company; opens a link if all are full.
    pub(super) async fn reserve(self: Arc<Self>, role: Role, company: Company) -> Result<Slot, LoginFailure> {
        self.reserve_away(role, company, Vec::new()).await
    }

    /// The same on another node than these.
    pub(super) async fn reserve_away(
        self: Arc<Self>,
        role: Role,
        company: Company,
        avoid: Vec<String>,
    ) -> Result<Slot, LoginFailure> {
        let asked = Instant::now();
        loop {
            if let Some(slot) = self.try_reserve(role, company, &avoid) {
                return Ok(slot);
            }
            let quarantined = match company {
                Company::Any => None,
                Company::Suspects | Company::Alone => {
                    let place = self.pool.quarantine.place().await;
                    Some((company, place.map_err(|reason| LoginFailure::Unavailable { reason })?))
                }
            };
            self.clone().open(role, asked, quarantined, avoid.clone()).await?;
        }
    }

    fn try_reserve(&self, role: Role, company: Company, avoid: &[String]) -> Option<Slot> {
        let links = lock(&self.role(role).links);
        links
            .iter()
            .filter(|link| link.is_usable() && !avoid.contains(&link.node))
            .find_map(|link| link.reserve(company))
    }

    /// Opens a link unless another task just did. The work goes on when the caller goes away: a half-made connection
    /// that nobody waits for would keep lapin's thread.
    async fn open(
        self: Arc<Self>,
        role: Role,
        asked: Instant,
        quarantined: Option<(Company, Place)>,
        avoid: Vec<String>,
    ) -> Result<Arc<Link>, LoginFailure> {
        let work = tokio::spawn(async move {
            let mut last = self.role(role).opening.lock().await;
            match &*last {
                Some((at, failure)) if *at >= asked => return Err(failure.clone()),
                _ => {}
            }
            let (company, place) = quarantined.map_or((Company::Any, None), |(company, place)| (company, Some(place)));
            let fits = |link: &&Arc<Link>| link.is_open_to(company) && !avoid.contains(&link.node);
            if let Some(link) = lock(&self.role(role).links).iter().find(fits).cloned() {
                return Ok(link);
            }
            let result = self.connect(role, Seclusion::new(company, place), &avoid).await;
            *last = result.as_ref().err().map(|failure| (Instant::now(), failure.clone()));
            result
        });
        work.await.unwrap_or_else(|error| Err(LoginFailure::Unavailable { reason: error.to_string() }))
    }

    async fn connect(
        self: &Arc<Self>,
        role: Role,
        seclusion: Seclusion,
        avoid: &[String],
    ) -> Result<Arc<Link>, LoginFailure> {
        let credentials = self.credentials();
        let connected = self.dial(role.name(), &credentials, avoid).await?;
        let (config, counts) = (self.config().clone(), self.pool.counts.clone());
        let troubles = Troubles { account: self.outages.clone(), node: self.pool.nodes.recoveries(&connected.node) };
        let account = Account { login: credentials.login.clone(), troubles, vhost: self.vhost.clone() };
        let link = Link::new(connected, role, account, config, counts, seclusion);
        lock(&self.role(role).links).push(link.clone());
        lock(&self.pool.links).push(Arc::downgrade(&link));
        let (followed, entry, pool) = (link.clone(), Arc::downgrade(self), Arc::downgrade(&self.pool));
        tokio::spawn(async move {
            followed.clone().supervise().await;
            if let Some(entry) = entry.upgrade() {
                lock(&entry.role(role).links).retain(|link| !Arc::ptr_eq(link, &followed));
            }
            if let Some(pool) = pool.upgrade() {
                pool.sweep();
            }
        });
        // Another secret may have come while this one was being shown.
        let newest = self.credentials();
        if newest != credentials {
            link.update_secret(&newest.passcode).await;
        }
        Ok(link)
    }

    /// Asks RabbitMQ about the credentials that it has accepted before.
    async fn ask_again(self: Arc<Self>) -> Result<(), LoginFailure> {
        let credentials = self.credentials();
        match self.ask(credentials).await {
            // RabbitMQ judges the credentials before its limits, and who is asked about has its connections.
            Err(failure) if failure.connection_limit().is_some() => Ok(()),
            result => result,
        }
    }

    /// Asks RabbitMQ about credentials on a connection of its own.
    async fn ask(self: Arc<Self>, credentials: Credentials) -> Result<(), LoginFailure> {
        let work = tokio::spawn(async move {
            let Connected { connection, switch, .. } = self.dial("check", &credentials, &[]).await?;
            let limit = self.config().operation_timeout;
            let _ = patience::timeout(limit, connection.close(200, "OK".into())).await;
            switch.cut();
            Ok(())
        });
        work.await.unwrap_or_else(|error| Err(LoginFailure::Unavailable { reason: error.to_string() }))
    }

    /// RabbitMQ closes a connection whose new secret it refuses, so it is asked on another one first. A link that is lost
    /// nevertheless is made again with the new secret.
    async fn update_secret(self: Arc<Self>, credentials: Credentials) -> Result<(), LoginFailure> {
        if self.credentials() == credentials {
            return Ok(());
        }
        self.clone().ask(credentials.clone()).await?;
        *lock(&self.credentials) = credentials.clone();
        for role in Role::ALL {
            let links = lock(&self.role(role).links).clone();
            for link in links {
                link.update_secret(&credentials.passcode).await;
            }
        }
        Ok(())
    }

    async fn dial(
        &self,
        purpose: &str,
        credentials: &Credentials,
        avoid: &[String],
    ) -> Result<Connected, LoginFailure> {
        if self.pool.stopped.load(Ordering::Relaxed) {
            return Err(LoginFailure::Unavailable { reason: "the relay shuts down".into() });
        }
        let target = Target {
            avoid,
            config: &self.pool.config,
            vhost: &self.vhost,
            credentials,
            name: connection_name(purpose, &credentials.login, &self.vhost),
            repaired_frames: &self.pool.counts.repaired_frames,
        };
        let down = |endpoint: &Arc<Endpoint>, reason: &str| self.pool.node_failed(endpoint, reason);
        let result = connect::connect(&target, &self.pool.nodes, down).await;
        self.counts().connects.note(&result);
        result
    }
}

/// The secret of the links of one session that came in by [`Broker::login_apart`].
pub struct LinkSecret(pub(super) Arc<Entry>);

impl LinkSecret {
    /// Has RabbitMQ check a newer secret, such as a token, and take it for the live links. Goes on when the caller goes away.
    ///
    /// # Errors
    /// RabbitMQ refuses it, or can't be reached; then everything is as before.
    pub async fn update(self, credentials: Credentials) -> Result<(), LoginFailure> {
        let work = tokio::spawn(self.0.update_secret(credentials));
        work.await.unwrap_or_else(|error| Err(LoginFailure::Unavailable { reason: error.to_string() }))
    }
}

/// What RabbitMQ shows. Cut, because it stands in the same frame as the credentials, whose size RabbitMQ limits.
fn connection_name(purpose: &str, login: &str, vhost: &str) -> String {
    let name = format!("stomp-relay {purpose} {login}@{vhost}");
    let whole = |(at, character): &(usize, char)| at + character.len_utf8() <= NAME_BYTES_MAX;
    name.char_indices().take_while(whole).map(|(_, character)| character).collect()
}
