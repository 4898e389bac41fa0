//! What TLS is served with now, and its renewal: the files are read again and again, and what they hold replaces what is
//! served once it is whole and fits together. Sessions that are open keep what they have, but for a client's certificate that is
//! withdrawn.
//!
//! Has no timer: who calls `refresh`, and how often, is decided above.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use tracing::{info, warn};

use super::certificates::Certificates;
use super::client::Judged;
use super::material::{Fingerprint, Material, exposure};
use super::{Leaf, MinVersion, NameSource, TlsConfig, TlsError, client};
use crate::metrics::TlsMetrics;
use crate::sparse::Sparse;

/// Sessions that resume by an id instead of a ticket, TLS 1.2 only; the oldest are forgotten.
const RESUMED_BY_ID_MAX: usize = 1024;

/// Remaining days below which a certificate is warned about when it is loaded.
const EXPIRY_WARNING_DAYS: i64 = 14;

/// The server's side of TLS, for all listeners.
pub struct Acceptor {
    config: TlsConfig,
    current: RwLock<Current>,
    /// Files that can't be used, as they were when `refresh` last saw them, and whether that was reported.
    broken: Mutex<Option<(Fingerprint, bool)>>,
    resumption: Resumption,
    pub(super) metrics: TlsMetrics,
    pub(super) refusals: Sparse,
}

struct Current {
    /// Who judges clients' certificates; None when clients are not asked for one.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    fingerprint: Fingerprint,
    judged: Judged,
    leaves: Vec<Leaf>,
    server: Arc<ServerConfig>,
}

/// What lets sessions resume; outlives a change of certificates.
#[derive(Clone, Debug)]
struct Resumption {
    by_id: Arc<dyn StoresServerSessions>,
    /// Its keys change every few hours and never leave memory.
    tickets: Arc<dyn ProducesTickets>,
}

/// What a look at the files has led to.
#[derive(Debug)]
pub enum Refresh {
    Same,
    /// New handshakes get what the files hold now.
    Replaced,
    /// The files can't be used; what was served before still is. Said once for each state of the files.
    Broken(TlsError),
    /// As `Broken`, but just changed or reported already: files that are written one after the other do not fit for a moment.
    Waiting,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Acceptor {
    /// TLS with `http/1.1` as the only ALPN protocol; sessions resume by tickets whose keys live in memory.
    ///
    /// # Errors
    /// A file cannot be read, holds nothing of the kind, has expired, or key and certificate do not belong together.
    pub fn new(config: TlsConfig, metrics: TlsMetrics) -> Result<Acceptor, TlsError> {
        let tickets = aws_lc_rs::Ticketer::new().map_err(setup)?;
        let resumption = Resumption { by_id: ServerSessionMemoryCache::new(RESUMED_BY_ID_MAX), tickets };
        Acceptor::with(config, resumption, metrics)
    }

    /// The same with another configuration; clients of this one can resume their sessions there.
    ///
    /// # Errors
    /// As [`Acceptor::new`].
    pub fn successor(&self, config: TlsConfig) -> Result<Acceptor, TlsError> {
        Acceptor::with(config, self.resumption.clone(), self.metrics.clone())
    }

    fn with(config: TlsConfig, resumption: Resumption, metrics: TlsMetrics) -> Result<Acceptor, TlsError> {
        let current = load(&config, &material(&config), &resumption)?;
        let (current, broken) = (RwLock::new(current), Mutex::default());
        Ok(Acceptor { config, current, broken, resumption, metrics, refusals: Sparse::default() })
    }

    /// Reads the files; blocks while it does.
    pub fn refresh(&self) -> Refresh {
        let material = material(&self.config);
        let fingerprint = material.fingerprint();
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if self.current.read().unwrap_or_else(PoisonError::into_inner).fingerprint == fingerprint {
            *broken = None;
            return Refresh::Same;
        }
        match load(&self.config, &material, &self.resumption) {
            Ok(current) => {
                *broken = None;
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
                Refresh::Replaced
            }
            Err(error) => match broken.take() {
                Some((seen, reported)) if seen == fingerprint => {
                    *broken = Some((seen, true));
                    if reported { Refresh::Waiting } else { Refresh::Broken(error) }
                }
                _ => {
                    *broken = Some((fingerprint, false));
                    Refresh::Waiting
                }
            },
        }
    }

    /// Says in the log and the metrics what is served.
    pub fn announce(&self) {
        let leaves = self.leaves();
        for leaf in &leaves {
            info!(certificate = %leaf, "TLS certificate in use");
            let days = leaf.days_left();
            if days < EXPIRY_WARNING_DAYS {
                warn!(certificate = %leaf, days, "a TLS certificate expires soon: renew it");
            }
        }
        for warning in self.config.certificates.iter().filter_map(|pair| exposure(&pair.key)) {
            warn!("{warning}");
        }
        self.metrics
            .certificates(leaves.iter().map(|leaf| (leaf.names.first().map_or("", String::as_str), leaf.expires)));
    }

    /// Whether a certificate that is served now is for this host name or address.
    pub fn is_for(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.leaves.iter().any(|leaf| leaf.is_for(bare))
    }

    /// What each certificate says, in the order of the configuration.
    pub fn leaves(&self) -> Vec<Leaf> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).leaves.clone()
    }

    /// Which part of a client's certificate is its name; None when clients are not asked for one.
    pub(super) fn name_source(&self) -> Option<NameSource> {
        self.config.client_auth.as_ref().map(|auth| auth.name)
    }

    pub(super) fn server(&self) -> (Arc<ServerConfig>, Judged) {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        (current.server.clone(), current.judged)
    }

    /// Whether a client whose certificates were let in at its handshake would be refused now because of them. `judged` is by
    /// which files that was found last, and is brought up to date.
    pub fn withdraws(&self, chain: &[CertificateDer<'_>], judged: &mut Judged) -> bool {
        let (now, clients) = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            (current.judged, current.clients.clone())
        };
        if std::mem::replace(judged, now) == now {
            return false;
        }
        // Where clients are no longer asked for certificates, no authority vouches for one.
        clients.is_none_or(|clients| client::is_withdrawn(&*clients, chain))
    }
}

fn material(config: &TlsConfig) -> Material {
    let pairs = config.certificates.iter().flat_map(|pair| [&pair.cert, &pair.key]);
    let clients = config.client_auth.iter().flat_map(|auth| [Some(&auth.ca), auth.crl.as_ref()]).flatten();
    Material::read(pairs.chain(clients).map(|path| -> &Path { path }))
}

fn load(config: &TlsConfig, material: &Material, resumption: &Resumption) -> Result<Current, TlsError> {
    // The provider is named here, so that it does not depend on what else the process has installed.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certificates = Certificates::load(&config.certificates, material, &provider)?;
    let versions: &[_] = match config.min_version {
        MinVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        MinVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let (judged, leaves) = (Judged::next(), certificates.leaves().to_vec());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).map_err(setup)?;
    let (mut server, clients) = match &config.client_auth {
        None => {
            let mut server = builder.with_no_client_auth().with_cert_resolver(Arc::new(certificates));
            server.session_storage = resumption.by_id.clone();
            server.ticketer = resumption.tickets.clone();
            (server, None)
        }
        // A resumed session would bring its certificate along unchecked: expired or revoked meanwhile, it would still work.
        Some(auth) => {
            let verifier = client::verifier(auth, material, provider, judged)?;
            let builder = builder.with_client_cert_verifier(verifier.clone());
            let mut server = builder.with_cert_resolver(Arc::new(certificates));
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
            (server, Some(verifier))
        }
    };
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    // All ciphers are strong, so the order matters little; but auditors' scanners want the server's.
    server.ignore_client_order = true;
    Ok(Current { clients, fingerprint: material.fingerprint(), judged, leaves, server: Arc::new(server) })
}

fn setup(error: rustls::Error) -> TlsError {
    TlsError::Setup(error.to_string())
}
