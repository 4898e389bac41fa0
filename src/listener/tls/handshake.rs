//! One TLS handshake under its deadline: how it ended, counted and logged. A peer that fails gets its alert, and one that
//! speaks plain HTTP an answer that it can read.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, HandshakeKind, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};

use super::client::Judged;
use super::{Acceptor, ClientCertificate, Metered, NameSource};
use crate::listener::{proxy_protocol, refusals};
use crate::patience;

/// First byte of a TLS handshake record (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 0x16;

/// Time that a peer which was refused gets to take the answer: closing with unread bytes would reset the connection and
/// lose it.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of a refused peer that are read and thrown away for the same reason.
const REFUSED_BYTES_MAX: usize = 64 << 10;

/// Bytes of a handshake, of all its messages: a hello has two or three KiB, and what comes behind the handshake in the same
/// read counts too. The library would take messages of 64 KiB.
const HANDSHAKE_BYTES_MAX: usize = 16 << 10;

/// The same where clients show certificates, with those of their authorities.
const CERTIFIED_HANDSHAKE_BYTES_MAX: usize = 32 << 10;

/// What a client may send for its handshake, and the library keep of it.
pub fn handshake_bytes_max(shows_certificate: bool) -> usize {
    if shows_certificate { CERTIFIED_HANDSHAKE_BYTES_MAX } else { HANDSHAKE_BYTES_MAX }
}

/// Answer to plain HTTP on a TLS port.
const PLAINTEXT_ANSWER: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 51\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n\
    This port speaks TLS: use https:// or wss:// here.\n";

/// How a handshake ended, as the metric `tls_handshakes_total` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    Full,
    /// With the keys of an earlier session.
    Resumed,
    /// Not finished in time.
    Timeout,
    /// The peer left, or its network did.
    Lost,
    /// The first byte is not TLS.
    NotTls,
    /// `tls.client_auth = "require"`, and the client has shown no certificate.
    NoClientCertificate,
    /// The client's certificate is not from a known authority, not valid now, revoked, not for clients, or has no name.
    BadClientCertificate,
    /// Malformed bytes, no version or cipher in common, an alert of the peer.
    Failed,
}

impl Handshake {
    pub fn label(self) -> &'static str {
        match self {
            Handshake::Full => "full",
            Handshake::Resumed => "resumed",
            Handshake::Timeout => "timeout",
            Handshake::Lost => "lost",
            Handshake::NotTls => "not_tls",
            Handshake::NoClientCertificate => "no_client_certificate",
            Handshake::BadClientCertificate => "bad_client_certificate",
            Handshake::Failed => "failed",
        }
    }
}

/// A client whose handshake is done.
pub(in crate::listener) struct Accepted {
    pub(in crate::listener) stream: TlsStream<Metered>,
    pub(in crate::listener) certificate: Option<ClientCertificate>,
}

struct Failure {
    result: Handshake,
    reason: String,
}

impl Acceptor {
    /// Does the TLS handshake, or returns None when the peer does not get that far in `timeout`.
    pub(in crate::listener) async fn accept(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        timeout: Duration,
    ) -> Option<Accepted> {
        let start = Instant::now();
        let outcome = patience::timeout(timeout, shake_hands(socket, self.server(), self.name_source())).await;
        let outcome = outcome.unwrap_or_else(|_| {
            Err((Failure { result: Handshake::Timeout, reason: "not finished in time".into() }, None))
        });
        match outcome {
            Ok(accepted) => {
                let (_, connection) = accepted.stream.get_ref();
                let result = match connection.handshake_kind() {
                    Some(HandshakeKind::Resumed) => Handshake::Resumed,
                    _ => Handshake::Full,
                };
                self.metrics.handshake(result.label(), version(connection.protocol_version()));
                self.metrics.handshake_duration(start.elapsed());
                Some(accepted)
            }
            Err((failure, socket)) => {
                self.metrics.handshake(failure.result.label(), "none");
                self.log(peer, &failure);
                if let Some(socket) = socket {
                    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, let_go(socket, failure.result)).await;
                }
                None
            }
        }
    }

    /// Who runs clients with certificates wants to know why one is refused; the rest of the internet is noise.
    fn log(&self, peer: SocketAddr, failure: &Failure) {
        let reason = failure.reason.as_str();
        match failure.result {
            Handshake::NoClientCertificate | Handshake::BadClientCertificate => {
                if let Some(suppressed) = self.refusals.line() {
                    info!(%peer, reason, suppressed, "TLS client refused");
                }
            }
            _ => debug!(%peer, reason, "TLS handshake failed"),
        }
    }
}

/// A failure comes with the socket when there is something to tell the peer.
async fn shake_hands(
    socket: TcpStream,
    (config, judged): (Arc<ServerConfig>, Judged),
    name: Option<NameSource>,
) -> Result<Accepted, (Failure, Option<TcpStream>)> {
    let mut first = [0];
    match socket.peek(&mut first).await {
        Ok(1) if first[0] != HANDSHAKE_RECORD => {
            let reason = "not TLS: the peer does not start with a handshake".to_owned();
            let talks_http = first[0].is_ascii_alphabetic();
            if proxy_protocol::begins(&socket).await
                && let Ok(peer) = socket.peer_addr()
            {
                refusals::proxy_header(peer);
            }
            return Err((Failure { result: Handshake::NotTls, reason }, talks_http.then_some(socket)));
        }
        Ok(1) => {}
        Ok(_) => return Err((lost(&io::ErrorKind::UnexpectedEof.into()), None)),
        Err(error) => return Err((lost(&error), None)),
    }
    let bytes_max = handshake_bytes_max(name.is_some());
    match TlsAcceptor::from(config).accept(Metered::new(socket, bytes_max)).into_fallible().await {
        Ok(mut stream) => {
            stream.get_mut().0.release();
            match certificate(&stream, name, judged) {
                Ok(certificate) => Ok(Accepted { stream, certificate }),
                Err(reason) => Err((Failure { result: Handshake::BadClientCertificate, reason }, None)),
            }
        }
        Err((error, socket)) => Err(match rustls_error(&error) {
            Some(error) => (failure(error), Some(socket.into_inner())),
            None if socket.is_used_up() => {
                let reason = format!("the handshake takes more than {bytes_max} bytes");
                (Failure { result: Handshake::Failed, reason }, Some(socket.into_inner()))
            }
            None => (lost(&error), None),
        }),
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn lost(error: &io::Error) -> Failure {
    Failure { result: Handshake::Lost, reason: format!("connection lost: {error}") }
}

fn failure(error: &rustls::Error) -> Failure {
    match error {
        rustls::Error::NoCertificatesPresented => Failure {
            result: Handshake::NoClientCertificate,
            reason: "the client shows no certificate, and tls.client_auth is \"require\"".to_owned(),
        },
        rustls::Error::InvalidCertificate(reason) => {
            Failure { result: Handshake::BadClientCertificate, reason: bad_certificate(reason) }
        }
        error => Failure { result: Handshake::Failed, reason: error.to_string() },
    }
}

fn bad_certificate(error: &CertificateError) -> String {
    let text = match error {
        CertificateError::UnknownIssuer => "it is not signed by an authority of tls.client_ca_file",
        CertificateError::Revoked => "it is revoked by tls.client_crl_file",
        CertificateError::UnknownRevocationStatus => {
            "tls.client_crl_file has no list of the authority that signed it or one above"
        }
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "the list of its authority in tls.client_crl_file is out of date: renew the file"
        }
        CertificateError::Other(reason) => return reason.to_string(),
        error => return format!("the client's certificate is refused: {error}"),
    };
    format!("the client's certificate is refused: {text}")
}

/// What the verified certificate of the peer says; the handshake has checked that it says it.
fn certificate(
    stream: &TlsStream<Metered>,
    name: Option<NameSource>,
    judged: Judged,
) -> Result<Option<ClientCertificate>, String> {
    let shown: Option<&CertificateDer<'_>> = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    shown.zip(name).map(|(shown, name)| ClientCertificate::read(shown, name, judged)).transpose()
}

fn version(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_3) => "1.3",
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        _ => "none",
    }
}

/// Tells the peer what there is to tell (its alert is written already), then reads on until it closes.
async fn let_go(mut socket: TcpStream, result: Handshake) -> io::Result<()> {
    if result == Handshake::NotTls {
        socket.write_all(PLAINTEXT_ANSWER.as_bytes()).await?;
    }
    socket.shutdown().await?;
    let (mut ignored, mut total) = ([0; 1024], 0);
    while total < REFUSED_BYTES_MAX {
        match socket.read(&mut ignored).await? {
            0 => break,
            read => total += read,
        }
    }
    Ok(())
}

/// Whether the peer starts with a TLS handshake; waits for its first byte.
pub(in crate::listener) async fn is_handshake(socket: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(socket.peek(&mut first).await? == 1 && first[0] == HANDSHAKE_RECORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plaintext_has_the_length_it_says() {
        let (head, body) = PLAINTEXT_ANSWER.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
