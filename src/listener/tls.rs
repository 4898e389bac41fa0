//! TLS: the server's configuration from PEM files, what its certificate says, and the handshake under a deadline.
//!
//! Does not verify client certificates and does not reload: a changed file needs a new configuration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{InconsistentKeys, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::extensions::GeneralName;

/// First byte of a TLS handshake record (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 0x16;

/// Time that a client which spoke plain HTTP gets to take its answer.
const PLAINTEXT_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Answer to plain HTTP on a TLS port.
const PLAINTEXT_ANSWER: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 51\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n\
    This port speaks TLS: use https:// or wss:// here.\n";

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
}

/// Builds the server side of TLS 1.2 and 1.3 from a certificate chain (the server's own certificate first) and its key,
/// both PEM. ALPN offers `http/1.1` only; sessions resume by tickets whose keys live in memory.
///
/// # Errors
/// A file cannot be read, holds nothing of the kind, or key and certificate do not belong together.
pub fn server_config(cert_pem: &Path, key_pem: &Path) -> Result<ServerConfig, TlsError> {
    let chain = certificates(cert_pem)?;
    let key = private_key(key_pem)?;
    let unusable = |error: rustls::Error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::Mismatch { cert: cert_pem.into(), key: key_pem.into() }
        }
        error => TlsError::Unusable { cert: cert_pem.into(), key: key_pem.into(), reason: error.to_string() },
    };
    // The provider is named here, so that it does not depend on what else the process has installed.
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable)?;
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |error: pem::Error| TlsError::Read { path: path.into(), reason: reason(&error) };
    let chain: Vec<_> = CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if chain.is_empty() { Err(TlsError::NoCertificate(path.into())) } else { Ok(chain) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(path.into()),
        error => TlsError::Read { path: path.into(), reason: reason(&error) },
    })
}

/// The cause without the file's contents: a PEM error may quote the line it stumbled over, which may be part of a key.
fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "nothing found between BEGIN and END lines".into(),
        _ => "not valid PEM".into(),
    }
}

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

/// Reads names and expiry of the first certificate in a PEM file.
///
/// # Errors
/// The file cannot be read, holds no certificate, or the certificate is not X.509.
pub fn leaf(cert_pem: &Path) -> Result<Leaf, TlsError> {
    let chain = certificates(cert_pem)?;
    let first = chain.first().ok_or_else(|| TlsError::NoCertificate(cert_pem.into()))?;
    let unusable = |reason: String| TlsError::Certificate { path: cert_pem.into(), reason };
    let (_, certificate) = x509_parser::parse_x509_certificate(first).map_err(|error| unusable(error.to_string()))?;
    let alternatives = certificate.subject_alternative_name().map_err(|error| unusable(error.to_string()))?;
    let mut names: Vec<String> =
        alternatives.iter().flat_map(|extension| &extension.value.general_names).filter_map(alternative_name).collect();
    if names.is_empty() {
        names.extend(certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(String::from));
    }
    let expires = certificate.validity().not_after;
    Ok(Leaf { names, expires: expires.timestamp(), expires_text: expires.to_string() })
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

/// Does the TLS handshake. The caller puts it under a deadline.
///
/// # Errors
/// The peer failed the handshake or left. A peer that speaks plain HTTP is told so in plain HTTP first.
pub(super) async fn accept(mut socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if socket.peek(&mut first).await? == 1 && first[0] != HANDSHAKE_RECORD {
        if first[0].is_ascii_alphabetic() {
            let _ = tokio::time::timeout(PLAINTEXT_ANSWER_TIMEOUT, refuse_plaintext(&mut socket)).await;
        }
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not TLS: the peer does not start with a handshake"));
    }
    TlsAcceptor::from(config).accept(socket).await
}

/// Whether the peer starts with a TLS handshake; waits for its first byte.
pub(super) async fn is_handshake(socket: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(socket.peek(&mut first).await? == 1 && first[0] == HANDSHAKE_RECORD)
}

/// Answers, then reads until the peer closes: closing with unread bytes would reset the connection and lose the answer.
async fn refuse_plaintext(socket: &mut TcpStream) -> io::Result<()> {
    socket.write_all(PLAINTEXT_ANSWER.as_bytes()).await?;
    socket.shutdown().await?;
    let mut ignored = [0; 1024];
    while socket.read(&mut ignored).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("stomp-relay-tls-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Files(folder)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn certificate() -> (String, String) {
        let key = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]).unwrap();
        (key.cert.pem(), key.signing_key.serialize_pem())
    }

    #[test]
    fn builds_from_matching_files_and_names_the_leaf() {
        let files = Files::new("good");
        let (cert, key) = certificate();
        let (cert, key) = (files.write("cert.pem", &cert), files.write("key.pem", &key));
        let config = server_config(&cert, &key).unwrap();
        assert_eq!(config.alpn_protocols, [b"http/1.1"]);
        assert!(config.ticketer.enabled());
        let leaf = leaf(&cert).unwrap();
        assert_eq!(leaf.names, ["localhost", "127.0.0.1"]);
        assert!(leaf.expires > 1_700_000_000);
        assert!(leaf.to_string().starts_with("localhost 127.0.0.1, expires "), "{leaf}");
    }

    #[test]
    fn says_what_is_wrong_with_the_files() {
        let files = Files::new("bad");
        let (cert, key) = certificate();
        let (_, other_key) = certificate();
        let (cert_file, key_file) = (files.write("cert.pem", &cert), files.write("key.pem", &key));
        let other = files.write("other.pem", &other_key);
        let missing = files.0.join("missing.pem");
        let broken = files.write("broken.pem", "-----BEGIN PRIVATE KEY-----\nsecret!\n-----END PRIVATE KEY-----\n");

        assert!(matches!(server_config(&cert_file, &other), Err(TlsError::Mismatch { .. })));
        assert!(matches!(server_config(&key_file, &key_file), Err(TlsError::NoCertificate(_))));
        assert!(matches!(server_config(&cert_file, &cert_file), Err(TlsError::NoKey(_))));
        let error = server_config(&missing, &key_file).unwrap_err().to_string();
        assert!(error.contains("missing.pem") && error.contains("No such file"), "{error}");
        let error = server_config(&cert_file, &broken).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }

    #[test]
    fn the_answer_to_plaintext_has_the_length_it_says() {
        let (head, body) = PLAINTEXT_ANSWER.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
