//! Where keys come from, and how long they are good: a file, a URL or an issuer's discovery, with a cache.
//!
//! ```text
//!  age of the keys   0 ───── refresh ───── 2 × refresh ───────── stale_max
//!  a login           uses them │ uses them,     │ waits for newer ones, │ waits; fails without
//!                              │ newer ones are │ uses them if there    │
//!                              │ fetched aside  │ are none              │
//! ```
//!
//! One fetch at a time, and not more often than `refetch_min`, whatever tokens ask for. A fetch goes on when the login that
//! asked for it goes away.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex as TaskMutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::fetch::{DocumentUrl, Fetcher};
use super::key::{KEY_SET_BYTES_MAX, KeySet, Symmetric};
use crate::metrics::Metrics;

/// How soon a changed file is seen at the latest.
const FILE_REFRESH: Duration = Duration::from_secs(10);
/// Between two attempts while there are no keys at all, and between two readings of a file.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A JWKS or PEM file.
    File(PathBuf),
    /// An OpenID issuer, whose discovery document names its key set.
    Issuer(String),
    /// A JWKS.
    Url(DocumentUrl),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::File(path) => path.display().fmt(f),
            Origin::Issuer(issuer) => f.write_str(issuer),
            Origin::Url(url) => url.fmt(f),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySourceConfig {
    /// PEM file with the authorities that the server is checked against; none: those of the operating system.
    pub ca: Option<PathBuf>,
    pub origin: Origin,
    /// For one fetch.
    pub timeout: Duration,
    /// Age at which keys are fetched again.
    pub refresh: Duration,
    /// Time between two fetches, when a token names a key that is not known.
    pub refetch_min: Duration,
    /// Age up to which keys are used while newer ones can't be had.
    pub stale_max: Duration,
}

/// Keys that are kept up to date; cheap to clone.
#[derive(Clone, Debug)]
pub struct KeySource(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: KeySourceConfig,
    /// Held while keys are fetched.
    fetching: TaskMutex<()>,
    /// None for a file.
    fetcher: Option<Fetcher>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    keys: Option<(Arc<KeySet>, Instant)>,
    tried: Option<Instant>,
}

impl KeySource {
    /// Fetches nothing yet.
    ///
    /// # Errors
    /// A text for people: there are no certificates to trust.
    pub fn new(config: KeySourceConfig, metrics: Arc<Metrics>) -> Result<KeySource, String> {
        let fetcher = match config.origin {
            Origin::File(_) => None,
            Origin::Issuer(_) | Origin::Url(_) => Some(Fetcher::new(config.ca.as_deref(), config.timeout)?),
        };
        let (fetching, state) = (TaskMutex::default(), Mutex::default());
        Ok(KeySource(Arc::new(Inner { config, fetching, fetcher, metrics, state })))
    }

    pub fn config(&self) -> &KeySourceConfig {
        &self.0.config
    }

    /// The keys to verify with now; none if there are none that may be used.
    pub async fn current(&self) -> Option<Arc<KeySet>> {
        let refresh = self.0.refresh_interval();
        let known = self.0.state().keys.clone().map(|(keys, since)| (keys, since.elapsed()));
        match known {
            Some((keys, age)) if age < refresh => return Some(keys),
            Some((keys, age)) if age < 2 * refresh => {
                if self.0.may_try() {
                    drop(self.start_fetch());
                }
                return Some(keys);
            }
            _ => self.fetch().await,
        }
        let (keys, since) = self.0.state().keys.clone()?;
        (since.elapsed() < self.0.config.stale_max.max(2 * refresh)).then_some(keys)
    }

    /// Newer keys than these, fetched if that was not done lately: for a token whose key is not known.
    pub async fn newer(&self, than: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        let newer = || self.0.state().keys.clone().map(|(keys, _)| keys).filter(|keys| !Arc::ptr_eq(keys, than));
        if let Some(keys) = newer() {
            return Some(keys);
        }
        self.fetch().await;
        newer()
    }

    /// Waits for a fetch that is allowed now, or for the one that is under way.
    async fn fetch(&self) {
        let _ = self.start_fetch().await;
    }

    fn start_fetch(&self) -> tokio::task::JoinHandle<()> {
        let inner = self.0.clone();
        tokio::spawn(async move {
            let _one = inner.fetching.lock().await;
            // Who waited here finds that another has just tried.
            if inner.may_try() {
                inner.state().tried = Some(Instant::now());
                let result = inner.load().await;
                inner.take(result);
            }
        })
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refresh_interval(&self) -> Duration {
        match self.config.origin {
            Origin::File(_) => FILE_REFRESH.min(self.config.refresh),
            Origin::Issuer(_) | Origin::Url(_) => self.config.refresh,
        }
    }

    fn may_try(&self) -> bool {
        let state = self.state();
        let pause = match (&state.keys, &self.config.origin) {
            (None, _) | (_, Origin::File(_)) => RETRY.min(self.config.refetch_min),
            (Some(_), Origin::Issuer(_) | Origin::Url(_)) => self.config.refetch_min,
        };
        state.tried.is_none_or(|tried| tried.elapsed() >= pause)
    }

    fn take(&self, result: Result<KeySet, String>) {
        let origin = &self.config.origin;
        self.metrics.jwks_refreshed(result.is_ok());
        match result {
            Ok(keys) => {
                info!(%origin, keys = keys.len(), "keys for tokens read");
                self.state().keys = Some((Arc::new(keys), Instant::now()));
            }
            Err(reason) => warn!(%origin, reason, "keys for tokens cannot be read; those that are known are used on"),
        }
    }

    async fn load(&self) -> Result<KeySet, String> {
        let (bytes, symmetric) = match (&self.config.origin, &self.fetcher) {
            (Origin::File(path), _) => (read(path).await?, Symmetric::Allowed),
            (_, None) => return Err("nothing to fetch with".to_owned()),
            (Origin::Url(url), Some(fetcher)) => (fetcher.get(url).await?.to_vec(), Symmetric::Refused),
            (Origin::Issuer(issuer), Some(fetcher)) => {
                let url = discover(fetcher, issuer).await?;
                (fetcher.get(&url).await?.to_vec(), Symmetric::Refused)
            }
        };
        KeySet::parse(&bytes, symmetric).map_err(|reason| format!("the key set {reason}"))
    }
}

/// The URL of an issuer's key set (OpenID Connect Discovery 1.0, 4).
async fn discover(fetcher: &Fetcher, issuer: &str) -> Result<DocumentUrl, String> {
    let url = discovery_url(issuer)?;
    let page = fetcher.get(&url).await?;
    let page: Value = serde_json::from_slice(&page).map_err(|_| format!("{url}: is no JSON"))?;
    // Section 4.3: else the page is about somebody else.
    if page.get("issuer").and_then(Value::as_str) != Some(issuer) {
        return Err(format!("{url}: its issuer is not auth.issuer"));
    }
    let keys = page.get("jwks_uri").and_then(Value::as_str).ok_or_else(|| format!("{url}: names no jwks_uri"))?;
    keys.parse().map_err(|reason| format!("{url}: jwks_uri {reason}"))
}

/// # Errors
/// The issuer is no URL that may be asked.
pub fn discovery_url(issuer: &str) -> Result<DocumentUrl, String> {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')).parse()
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("cannot read: {error}");
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file that is too large is seen as such.
    let file = tokio::fs::File::open(path).await.map_err(cannot)?;
    file.take(KEY_SET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await.map_err(cannot)?;
    Ok(bytes)
}
