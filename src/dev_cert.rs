//! Makes a throw-away certificate authority and a certificate for localhost, for development.
//!
//! The authority's key is never written, so nothing else can be signed with it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// Browsers refuse long-lived certificates, and a forgotten one should end by itself.
const VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);

/// A client whose clock is a little behind must not find the certificate "not valid yet".
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// The names and addresses of this machine for itself.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// What to do with files of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Keep,
    Replace,
}

/// The files that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevCert {
    /// Certificate of the authority, to be trusted by clients.
    pub ca: PathBuf,
    /// Certificate for localhost, signed by the authority.
    pub cert: PathBuf,
    /// Its key, readable by the owner only.
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum DevCertError {
    #[error("{0} exists already; remove it, or replace it with --force")]
    Exists(PathBuf),
    #[error("cannot write {path}: {reason}")]
    Write { path: PathBuf, reason: std::io::Error },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Writes `ca.pem`, `cert.pem` and `key.pem` into `directory`, which is created if needed.
///
/// # Errors
/// `Exists`, with nothing written, when one of the files is there and `existing` says to keep it.
pub fn write(directory: &Path, existing: Existing) -> Result<DevCert, DevCertError> {
    let files =
        DevCert { ca: directory.join("ca.pem"), cert: directory.join("cert.pem"), key: directory.join("key.pem") };
    for path in [&files.ca, &files.cert, &files.key] {
        if existing == Existing::Keep && path.symlink_metadata().is_ok() {
            return Err(DevCertError::Exists(path.clone()));
        }
    }
    let pem = make()?;
    fs::create_dir_all(directory).map_err(|reason| DevCertError::Write { path: directory.to_owned(), reason })?;
    for (path, mode, text) in
        [(&files.ca, 0o644, &pem.ca), (&files.cert, 0o644, &pem.cert), (&files.key, 0o600, &pem.key)]
    {
        create(path, mode, text, existing).map_err(|reason| DevCertError::Write { path: path.clone(), reason })?;
    }
    Ok(files)
}

/// Creates the file anew, so that its mode is ours and no link is followed.
fn create(path: &Path, mode: u32, text: &str, existing: Existing) -> std::io::Result<()> {
    if existing == Existing::Replace {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(text.as_bytes())
}

struct Pem {
    ca: String,
    cert: String,
    key: String,
}

fn make() -> Result<Pem, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = params("stomp-relay development CA", Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_pem = ca.self_signed(&ca_key)?.pem();

    let key = KeyPair::generate()?;
    let mut leaf = params("localhost", NAMES.map(String::from).to_vec())?;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let cert = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key))?;
    Ok(Pem { ca: ca_pem, cert: cert.pem(), key: key.serialize_pem() })
}

fn params(common_name: &str, names: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // A clock before 1970 counts as 1970: there the certificate is as useless as any other.
    let now = date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + VALIDITY;
    Ok(params)
}
