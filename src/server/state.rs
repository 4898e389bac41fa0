//! What clients are served with. SIGHUP replaces it as a whole. Clients that are in see that, and take the part of it that is
//! meant for them too.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use crate::auth::Authenticator;
use crate::config::Config;
use crate::connection::ConnectionConfig;
use crate::listener::tls::{Acceptor, TlsConfig, TlsError};
use crate::listener::{HostConfig, ListenerConfig, StaticRoot};
use crate::metrics::Metrics;

/// One generation of settings.
#[derive(Debug)]
pub(super) struct Settings {
    /// In the order of `listen`.
    pub(super) listeners: Vec<Arc<ListenerConfig>>,
    /// Names that requests in the clear are sent on to.
    pub(super) redirect_hosts: Arc<HostConfig>,
    /// Shared by all listeners with TLS.
    pub(super) tls: Option<Arc<Acceptor>>,
}

/// The current settings.
#[derive(Debug)]
pub(super) struct Serving {
    sessions: watch::Sender<Arc<ConnectionConfig>>,
    settings: RwLock<Arc<Settings>>,
}

impl Serving {
    /// # Errors
    /// A text for people: a certificate, key or folder that can't be used.
    pub(super) fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Serving, String> {
        let auth = Authenticator::new(config.auth_config(), None, metrics)?;
        let settings = settings(config, |tls| Acceptor::new(tls, metrics.tls.clone()))?;
        let sessions = watch::Sender::new(Arc::new(config.connection_config(Arc::new(auth), settings.tls.clone())));
        Ok(Serving { sessions, settings: RwLock::new(Arc::new(settings)) })
    }

    /// # Errors
    /// As [`Serving::new`], or the addresses are not the ones that are bound; nothing is replaced then.
    pub(super) fn replace(&self, config: &Config, metrics: &Arc<Metrics>) -> Result<(), String> {
        let before = self.current();
        let auth = Authenticator::new(config.auth_config(), Some(&self.sessions.borrow().auth), metrics)?;
        let settings = Arc::new(settings(config, |tls| match &before.tls {
            Some(acceptor) => acceptor.successor(tls),
            None => Acceptor::new(tls, metrics.tls.clone()),
        })?);
        let mut current = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        if settings.listeners.len() != current.listeners.len() {
            return Err("the number of listen addresses changed, which needs a restart".to_owned());
        }
        let sessions = config.connection_config(Arc::new(auth), settings.tls.clone());
        *current = settings;
        self.sessions.send_replace(Arc::new(sessions));
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same settings, but files that they name have changed.
    pub(super) fn look_again(&self) {
        self.sessions.send_modify(|_| {});
    }

    pub(super) fn sessions(&self) -> watch::Receiver<Arc<ConnectionConfig>> {
        self.sessions.subscribe()
    }
}

fn settings(
    config: &Config,
    acceptor: impl FnOnce(TlsConfig) -> Result<Acceptor, TlsError>,
) -> Result<Settings, String> {
    let root = match &config.http.root {
        Some(folder) => Some(static_root(folder)?),
        None => None,
    };
    let tls = config.tls_config().map(acceptor).transpose().map_err(|error| error.to_string())?.map(Arc::new);
    let listeners =
        config.listen.iter().map(|url| Arc::new(config.listener_config(url, tls.clone(), root.clone()))).collect();
    let redirect = config.http.redirect_listen.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
    let redirect_hosts = Arc::new(config.host_config(redirect, tls.clone()));
    Ok(Settings { listeners, redirect_hosts, tls })
}

fn static_root(folder: &Path) -> Result<StaticRoot, String> {
    StaticRoot::new(folder).map_err(|error| format!("http.root {}: {error}", folder.display()))
}
