//! The server's certificates: what each says, and which one a client gets.
//!
//! The names are those of the certificates themselves, so that no list beside them can be wrong.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};
use x509_parser::extensions::GeneralName;

use super::CertificateFiles;
use super::material::{Material, TlsError};

/// What the server's own certificate says, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Host names and addresses it is valid for; the common name if it has none.
    pub names: Vec<String>,
    /// Seconds since the Unix epoch after which it is no longer valid.
    pub expires: i64,
    expires_text: String,
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, expires {}", self.names.join(" "), self.expires_text)
    }
}

impl Leaf {
    /// Reads names and expiry of a certificate.
    fn of(certificate: &CertificateDer<'_>, path: &Path) -> Result<Leaf, TlsError> {
        let unusable = |reason: String| TlsError::Certificate { path: path.into(), reason };
        let parsed = x509_parser::parse_x509_certificate(certificate).map_err(|error| unusable(error.to_string()))?.1;
        let alternatives = parsed.subject_alternative_name().map_err(|error| unusable(error.to_string()))?;
        let alternatives = alternatives.iter().flat_map(|extension| &extension.value.general_names);
        let mut names: Vec<String> = alternatives.filter_map(alternative_name).collect();
        if names.is_empty() {
            names.extend(parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(String::from));
        }
        let expires = parsed.validity().not_after;
        if expires.timestamp() < unix_time() {
            return Err(unusable(format!("it expired on {expires}; renew it")));
        }
        Ok(Leaf { names, expires: expires.timestamp(), expires_text: expires.to_string() })
    }

    /// Whether it is valid for this name or address; a wildcard stands for one label (RFC 9525 section 6.3).
    pub(super) fn is_for(&self, host: &str) -> bool {
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(base) => parent.is_some_and(|parent| parent.eq_ignore_ascii_case(base)),
            None => name.eq_ignore_ascii_case(host),
        })
    }

    /// Days until it expires, from now.
    pub(super) fn days_left(&self) -> i64 {
        (self.expires - unix_time()) / (24 * 3600)
    }
}

/// Seconds; a clock before 1970 counts as 1970.
fn unix_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn alternative_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| std::net::Ipv4Addr::from(octets).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|octets| std::net::Ipv6Addr::from(octets).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// Chooses by the name that the client asks for (SNI, RFC 6066 section 3) and the signatures it can check.
#[derive(Debug)]
pub(super) struct Certificates {
    /// In the order of the configuration; the first is the default.
    keys: Vec<Arc<CertifiedKey>>,
    leaves: Vec<Leaf>,
    /// Where in `keys`, by name in lower case, wildcards as `*.example.com`.
    by_name: HashMap<String, Vec<usize>>,
}

impl Certificates {
    pub(super) fn load(
        files: &[CertificateFiles],
        material: &Material,
        provider: &CryptoProvider,
    ) -> Result<Certificates, TlsError> {
        let mut certificates = Certificates { keys: Vec::new(), leaves: Vec::new(), by_name: HashMap::new() };
        for (index, pair) in files.iter().enumerate() {
            let chain = material.certificates(&pair.cert)?;
            let leaf = match chain.first() {
                Some(first) => Leaf::of(first, &pair.cert)?,
                None => return Err(TlsError::NoCertificate(pair.cert.clone())),
            };
            let key = CertifiedKey::from_der(chain, material.private_key(&pair.key)?, provider);
            certificates.keys.push(Arc::new(key.map_err(|error| unusable(pair, &error))?));
            for name in &leaf.names {
                certificates.by_name.entry(name.to_ascii_lowercase()).or_default().push(index);
            }
            certificates.leaves.push(leaf);
        }
        Ok(certificates)
    }

    pub(super) fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Those for a name: its own before those of a wildcard, which stands for one label (RFC 9525 section 6.3).
    fn named(&self, name: &str) -> impl Iterator<Item = usize> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let found = [Some(name), wildcard].into_iter().flatten().filter_map(|name| self.by_name.get(&name));
        found.flatten().copied()
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = |index: &usize| self.keys[*index].key.choose_scheme(schemes).is_some();
        let named = name.and_then(|name| self.named(name).find(usable));
        let index = named.or_else(|| (0..self.keys.len()).find(usable))?;
        Some(self.keys[index].clone())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(client.server_name(), client.signature_schemes())
    }
}

fn unusable(pair: &CertificateFiles, error: &rustls::Error) -> TlsError {
    let (cert, key) = (pair.cert.clone(), pair.key.clone());
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch { cert, key },
        error => TlsError::Unusable { cert, key, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SignatureAlgorithm};
    use rustls::crypto::aws_lc_rs;
    use std::path::PathBuf;

    /// Certificates of these names and kinds of key, with their DER.
    fn certificates(
        folder: &str,
        wanted: &[(&str, &'static SignatureAlgorithm)],
    ) -> (Certificates, Vec<CertificateDer<'static>>) {
        let folder = std::env::temp_dir().join(format!("stomp-relay-{folder}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (mut files, mut all) = (Vec::new(), Vec::new());
        for (index, (name, algorithm)) in wanted.iter().enumerate() {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate = CertificateParams::new(vec![(*name).to_owned()]).unwrap().self_signed(&key).unwrap();
            let write = |ending: &str, text: String| -> PathBuf {
                let path = folder.join(format!("{index}{ending}"));
                std::fs::write(&path, text).unwrap();
                path
            };
            files.push(CertificateFiles {
                cert: write(".pem", certificate.pem()),
                key: write(".key", key.serialize_pem()),
            });
            all.push(certificate.der().clone());
        }
        let material = Material::read(files.iter().flat_map(|pair| [pair.cert.as_path(), pair.key.as_path()]));
        std::fs::remove_dir_all(&folder).unwrap();
        (Certificates::load(&files, &material, &aws_lc_rs::default_provider()).unwrap(), all)
    }

    #[test]
    fn a_client_gets_a_key_that_it_can_check() {
        let wanted = [
            ("default.example", &PKCS_ECDSA_P256_SHA256),
            ("two.example", &PKCS_RSA_SHA256),
            ("two.example", &PKCS_ECDSA_P256_SHA256),
        ];
        let (certificates, all) = certificates("choice", &wanted);
        let (rsa, ec) = (SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256);
        for (name, schemes, expected) in [
            (Some("two.example"), &[rsa][..], Some(1)),
            (Some("two.example"), &[ec], Some(2)),
            (Some("two.example"), &[ec, rsa], Some(1)),
            (Some("TWO.example."), &[ec], Some(2)),
            (Some("default.example"), &[ec], Some(0)),
            (Some("other.example"), &[ec], Some(0)),
            (None, &[ec], Some(0)),
            // Better the wrong name, which the client can report, than none.
            (Some("default.example"), &[rsa], Some(1)),
            (Some("two.example"), &[SignatureScheme::ED25519], None),
        ] {
            let chosen = certificates.choose(name, schemes).map(|key| key.cert[0].clone());
            assert_eq!(chosen, expected.map(|index: usize| all[index].clone()), "{name:?} {schemes:?}");
        }
    }

    #[test]
    fn a_wildcard_is_one_label() {
        let wanted = [("default.example", &PKCS_ECDSA_P256_SHA256), ("*.wild.example", &PKCS_ECDSA_P256_SHA256)];
        let (certificates, _) = certificates("wildcard", &wanted);
        for (name, expected) in [
            ("a.wild.example", &[1][..]),
            ("wild.example", &[]),
            ("a.b.wild.example", &[]),
            ("*.wild.example", &[1]),
            ("", &[]),
            (".", &[]),
            (".wild.example", &[1]),
        ] {
            let mut named: Vec<_> = certificates.named(name).collect();
            named.dedup();
            assert_eq!(named, expected, "{name}");
        }
    }
}
