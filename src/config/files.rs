//! Files that a configuration names: read with a bound, certificates and keys checked.
//!
//! Keeps nothing that it reads but secrets: TLS is set up from the same files where it is used.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

/// No configuration, secret, key or bundle of certificates is as big as this, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads a file; the error says why not, without the path.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("cannot read: {error}");
    let mut bytes = Vec::new();
    File::open(path).map_err(cannot)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {} MiB", FILE_BYTES_MAX >> 20));
    }
    Ok(bytes)
}

/// Reads UTF-8 text.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    String::from_utf8(read(path)?).map_err(|_| "is not UTF-8 text".to_owned())
}

/// Reads a secret; one trailing newline is not part of it.
pub(super) fn read_secret(path: &Path) -> Result<String, String> {
    let mut text = read_text(path)?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// Reads PEM certificates, at least one.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|error| pem_text(&error, "certificate"))?;
    if chain.is_empty() {
        return Err("holds no PEM certificate".to_owned());
    }
    Ok(chain)
}

/// Reads PEM revocation lists, at least one.
pub(super) fn read_revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let bytes = read(path)?;
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    let lists = lists.map_err(|error| pem_text(&error, "revocation list"))?;
    if lists.is_empty() { Err("holds no PEM revocation list".to_owned()) } else { Ok(lists) }
}

/// Reads the certificate chain of a server, whose first certificate must not have expired.
pub(super) fn read_server_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = read_certificates(path)?;
    let (_, leaf) = X509Certificate::from_der(&chain[0]).map_err(|_| "holds a broken certificate".to_owned())?;
    let end = leaf.validity().not_after;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if end.timestamp() < i64::try_from(now).unwrap_or(i64::MAX) {
        return Err(format!("expired on {end}; renew the certificate"));
    }
    Ok(chain)
}

/// Whether lines can be added to a file, which is not made here if it does not exist: then its folder must.
pub(super) fn check_appendable(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => {
            OpenOptions::new().append(true).open(path).map(drop).map_err(|error| error.to_string())
        }
        Ok(found) if found.is_dir() => Err("is a folder; name a file".to_owned()),
        // A pipe or a device: opening it might wait for its other end.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if folder.is_dir() { Ok(()) } else { Err(format!("{} is no folder; make it first", folder.display())) }
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Reads one PEM private key.
pub(super) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = read(path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        if bytes.windows(9).any(|window| window == b"ENCRYPTED") {
            "is encrypted with a pass phrase; decrypt it first (openssl pkey -in KEY -out PLAIN)".to_owned()
        } else {
            pem_text(&error, "private key")
        }
    })
}

/// Whether the key belongs to the chain's first certificate, and is of a kind that TLS here can use.
///
/// `cert` is what the chain is called in the error.
pub(super) fn check_pair(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    cert: &str,
) -> Result<(), String> {
    match CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(format!("does not match {cert}")),
        Err(error) => Err(format!("cannot be used: {error}")),
    }
}

/// The parser's own text would show lines of the file, which may be a key's.
fn pem_text(error: &PemError, wanted: &str) -> String {
    match error {
        PemError::NoItemsFound => format!("holds no PEM {wanted}"),
        _ => format!("holds a broken PEM {wanted}"),
    }
}
