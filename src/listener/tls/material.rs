//! The files that TLS is made of: read once, so that what is compared is what is used, and what is wrong with them.
//!
//! Keeps no key longer than the configuration takes to build.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

/// Largest file of certificates, keys or revocations, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {reason}")]
    Read { path: PathBuf, reason: String },
    #[error(
        "{0} holds no certificate: a PEM file with at least one CERTIFICATE block is needed, the server's own first"
    )]
    NoCertificate(PathBuf),
    #[error("{0} holds no private key: a PEM file with a PRIVATE KEY (PKCS#8), RSA or EC PRIVATE KEY block is needed")]
    NoKey(PathBuf),
    #[error("the key {key} does not belong to the certificate {cert}: check that both come from the same request")]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error("the first certificate of {path} is not usable: {reason}")]
    Certificate { path: PathBuf, reason: String },
    #[error("the certificate {cert} with the key {key} is not usable: {reason}")]
    Unusable { cert: PathBuf, key: PathBuf, reason: String },
    #[error("an authority in {path} is not usable: {reason}")]
    Authority { path: PathBuf, reason: String },
    #[error("{0} holds no revocation list: a PEM file with at least one X509 CRL block is needed")]
    NoRevocations(PathBuf),
    #[error("a revocation list in {path} is not usable: {reason}")]
    Revocations { path: PathBuf, reason: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// The contents of the files at one moment.
pub(super) struct Material(BTreeMap<PathBuf, Result<Vec<u8>, String>>);

/// Tells two materials apart without keeping them.
pub(super) type Fingerprint = Vec<u8>;

impl Material {
    pub(super) fn read<'a>(paths: impl Iterator<Item = &'a Path>) -> Material {
        Material(paths.map(|path| (path.to_owned(), read(path))).collect())
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let mut context = Context::new(&SHA256);
        for content in self.0.values() {
            // The length in front keeps the files apart.
            let (mark, bytes): (u8, &[u8]) = match content {
                Ok(bytes) => (0, bytes),
                Err(reason) => (1, reason.as_bytes()),
            };
            context.update(&[mark]);
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        }
        context.finish().as_ref().to_vec()
    }

    pub(super) fn certificates(&self, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let blocks: Vec<_> = self.blocks(path)?;
        if blocks.is_empty() { Err(TlsError::NoCertificate(path.into())) } else { Ok(blocks) }
    }

    pub(super) fn private_key(&self, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.bytes(path)?).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::NoKey(path.into()),
            error => TlsError::Read { path: path.into(), reason: reason(&error) },
        })
    }

    pub(super) fn revocations(&self, path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let lists: Vec<_> = self.blocks(path)?;
        if lists.is_empty() { Err(TlsError::NoRevocations(path.into())) } else { Ok(lists) }
    }

    fn blocks<T: PemObject>(&self, path: &Path) -> Result<Vec<T>, TlsError> {
        let blocks = T::pem_slice_iter(self.bytes(path)?).collect::<Result<_, _>>();
        blocks.map_err(|error| TlsError::Read { path: path.into(), reason: reason(&error) })
    }

    fn bytes(&self, path: &Path) -> Result<&[u8], TlsError> {
        match self.0.get(path) {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(reason)) => Err(TlsError::Read { path: path.into(), reason: reason.clone() }),
            None => Err(TlsError::Read { path: path.into(), reason: "it was not read".into() }),
        }
    }
}

/// For whom besides its owner a private key is open, and what to do about it; None if for nobody. A file of root may be readable
/// by a group: the usual way to give a key to a service.
pub fn exposure(key: &Path) -> Option<String> {
    // A file that can't be read is reported by whoever reads it.
    let file = std::fs::metadata(key).ok()?;
    let (mode, path) = (file.mode() & 0o7777, key.display());
    let open_to = match file.uid() {
        _ if mode & 0o007 != 0 => "everybody on this machine",
        0 if mode & 0o030 != 0 => "its group for more than reading",
        0 => return None,
        _ if mode & 0o070 != 0 => "its group",
        _ => return None,
    };
    Some(format!(
        "the private key {path} is open to {open_to} (mode {mode:04o}): chmod 0600 {path}, owned by the relay's user; or \
         chown root:GROUP {path} and chmod 0640 {path}, with a group of that user alone"
    ))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let open = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match open {
        Err(error) => Err(error.to_string()),
        Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => Err(format!("larger than {} MiB", FILE_BYTES_MAX >> 20)),
        Ok(_) => Ok(bytes),
    }
}

/// The cause without the file's contents: a PEM error may quote the line it stumbled over, which may be part of a key.
fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "nothing found between BEGIN and END lines".into(),
        _ => "not valid PEM".into(),
    }
}
