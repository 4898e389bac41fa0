//! What new clients are served with. SIGHUP replaces it as a whole; clients that are in keep what they have.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use crate::auth::Authenticator;
use crate::config::{Config, Scheme};
use crate::connection::ConnectionConfig;
use crate::listener::{ListenerConfig, StaticRoot, tls};
use crate::metrics::Metrics;

/// One generation of settings.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) connection: Arc<ConnectionConfig>,
    /// In the order of `listen`.
    pub(super) listeners: Vec<Arc<ListenerConfig>>,
}

/// The current settings.
#[derive(Debug)]
pub(super) struct Serving(RwLock<Arc<Settings>>);

impl Serving {
    /// # Errors
    /// A text for people: a certificate, key or folder that can't be used.
    pub(super) fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Serving, String> {
        let auth = Authenticator::new(config.auth_config(), None, metrics)?;
        Ok(Serving(RwLock::new(Arc::new(settings(config, auth)?))))
    }

    /// # Errors
    /// As [`Serving::new`], or the addresses are not the ones that are bound; nothing is replaced then.
    pub(super) fn replace(&self, config: &Config, metrics: &Arc<Metrics>) -> Result<(), String> {
        let auth = Authenticator::new(config.auth_config(), Some(&self.current().connection.auth), metrics)?;
        let settings = Arc::new(settings(config, auth)?);
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if settings.listeners.len() != current.listeners.len() {
            return Err("the number of listen addresses changed, which needs a restart".to_owned());
        }
        *current = settings;
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<Settings> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn settings(config: &Config, auth: Authenticator) -> Result<Settings, String> {
    let root = match &config.http.root {
        Some(folder) => Some(static_root(folder)?),
        None => None,
    };
    let tls = match (&config.tls.cert_file, &config.tls.key_file) {
        (Some(cert), Some(key)) => Some(Arc::new(tls::server_config(cert, key).map_err(|error| error.to_string())?)),
        _ => None,
    };
    let listeners = config.listen.iter().map(|url| {
        let tls = match url.scheme {
            Scheme::Ws => None,
            Scheme::Wss => tls.clone(),
        };
        Arc::new(config.listener_config(&url.path, tls, root.clone()))
    });
    Ok(Settings { connection: Arc::new(config.connection_config(Arc::new(auth))), listeners: listeners.collect() })
}

fn static_root(folder: &Path) -> Result<StaticRoot, String> {
    StaticRoot::new(folder).map_err(|error| format!("http.root {}: {error}", folder.display()))
}
