//! TLS towards RabbitMQ: our own rustls configuration, so that `amqps` is encrypted by code that is tested here.
//!
//! lapin's TLS is not used: with one wrong Cargo feature it connects in plaintext without an error.

use super::config::{BrokerConfig, ConfigError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// Builds the client side. Roots come from `config.ca`, else from the operating system.
pub(super) fn client(config: &BrokerConfig) -> Result<Arc<ClientConfig>, ConfigError> {
    let roots = match &config.ca {
        Some(path) => roots_from(path)?,
        None => system_roots()?,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| unusable("TLS versions", error))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn roots_from(path: &Path) -> Result<RootCertStore, ConfigError> {
    let name = path.display().to_string();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(&name, error))? {
        let certificate = certificate.map_err(|error| unusable(&name, error))?;
        roots.add(certificate).map_err(|error| unusable(&name, error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&name, "it holds no certificate"));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, ConfigError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let reason = found.errors.first().map_or("none found".to_owned(), ToString::to_string);
        return Err(unusable("the operating system", reason));
    }
    Ok(roots)
}

fn unusable(path: &str, reason: impl ToString) -> ConfigError {
    ConfigError::Certificates { path: path.to_owned(), reason: reason.to_string() }
}
