//! TLS towards clients: several certificates by name, client certificates, and new files on disk served without a restart.
//!
//! `acceptor` holds what is served now, `certificates` the choice by name, `client` who a client's certificate says it is,
//! `handshake` one handshake under its deadline, `material` the files. Nothing here decides what a client may do.

mod acceptor;
mod certificates;
mod client;
mod handshake;
mod material;
mod metered;

use std::path::PathBuf;

pub use self::acceptor::{Acceptor, Refresh};
pub use self::certificates::Leaf;
pub use self::client::{ClientAuth, ClientCertificate, Demand, Judged, NAME_BYTES_MAX, NameSource};
pub(super) use self::handshake::is_handshake;
pub use self::handshake::{Handshake, handshake_bytes_max};
pub use self::material::{TlsError, exposure};
pub(super) use self::metered::Metered;

/// What TLS is served with. Files are named, not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// At least one. The first is the default: for clients that name no server, or one that no certificate is for.
    pub certificates: Vec<CertificateFiles>,
    pub min_version: MinVersion,
    /// None: clients are not asked for a certificate.
    pub client_auth: Option<ClientAuth>,
}

/// A certificate chain (the server's own certificate first) and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinVersion {
    Tls12,
    Tls13,
}
