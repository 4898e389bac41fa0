//! Makes one AMQP connection to one node and says why it could not.
//!
//! TCP and TLS are connected first, without lapin; lapin gets a ready stream and starts its thread only then. Both parts
//! share one deadline, and a peer that falls silent within the AMQP handshake is cut off, so that the thread ends.

use super::config::{BrokerConfig, Node};
use super::fault::reason;
use super::guard::Guard;
use super::nodes::{Endpoint, Nodes};
use super::runtime;
use super::stream::{GuardedStream, KillSwitch, Transport};
use super::wire::{Phase, Wire};
use crate::patience::{self, timeout_at};
use crate::session::amqp::SHORT_TEXT_BYTES_MAX;
use crate::session::command::Credentials;
use crate::session::event::LoginFailure;
use crate::sparse::Sparse;
use lapin::protocol::AMQPErrorKind;
use lapin::types::LongString;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{AsyncTcpStream, ConnectionProperties, ErrorKind};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tracing::info;

/// Log lines about credentials that are too long.
static TOO_LONG: Sparse = Sparse::new();

const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;
/// The protocol header of AMQP 0-9-1 (4.2.2).
const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";

/// How a server that is no RabbitMQ is reported.
const NOT_AMQP: &str = "does not speak AMQP 0-9-1";

/// An AMQP connection that is open, with what belongs to it.
pub(super) struct Connected {
    pub(super) connection: lapin::Connection,
    pub(super) node: String,
    pub(super) switch: KillSwitch,
    pub(super) wire: Arc<Wire>,
}

/// What a connection is made with.
pub(super) struct Target<'a> {
    /// Nodes that are of no use for what the connection is for.
    pub(super) avoid: &'a [String],
    pub(super) config: &'a BrokerConfig,
    pub(super) vhost: &'a str,
    pub(super) credentials: &'a Credentials,
    /// Shown by RabbitMQ as the connection's name.
    pub(super) name: String,
    pub(super) repaired_frames: &'a Arc<AtomicU64>,
}

/// Tries the nodes that are not known to be down, in turn. A refusal ends the round: every node would answer the same.
/// `down` is told of each node that can't be reached.
pub(super) async fn connect(
    target: &Target<'_>,
    nodes: &Nodes,
    down: impl Fn(&Arc<Endpoint>, &str),
) -> Result<Connected, LoginFailure> {
    check(target)?;
    let (order, mut reasons) = nodes.order();
    for endpoint in order {
        if target.avoid.contains(&endpoint.to_string()) {
            continue;
        }
        match connect_to(target, &endpoint).await {
            Err(LoginFailure::Unavailable { reason }) => {
                down(&endpoint, &reason);
                reasons.push(reason);
            }
            done => {
                nodes.reached(&endpoint);
                return done;
            }
        }
    }
    Err(LoginFailure::Unavailable { reason: reasons.join("; ") })
}

/// Refuses what would have another meaning on the wire, or makes lapin panic.
fn check(target: &Target<'_>) -> Result<(), LoginFailure> {
    if target.vhost.len() > SHORT_TEXT_BYTES_MAX {
        let reply_text = format!("NOT_ALLOWED - virtual host names have at most {SHORT_TEXT_BYTES_MAX} bytes");
        return Err(LoginFailure::VirtualHost { reply_text });
    }
    // PLAIN separates login and passcode by NUL (RFC 4616).
    let Credentials { login, passcode } = target.credentials;
    if login.contains('\0') || passcode.contains('\0') {
        return Err(LoginFailure::AccessRefused);
    }
    let (bytes, limit) = (login.len() + passcode.len(), target.config.credentials_bytes_max);
    if bytes > limit {
        // RabbitMQ would end the connection without a word, as if it were down.
        if let Some(suppressed) = TOO_LONG.line() {
            info!(bytes, limit, suppressed, "credentials refused: longer than broker.credentials_bytes_max");
        }
        return Err(LoginFailure::AccessRefused);
    }
    Ok(())
}

async fn connect_to(target: &Target<'_>, endpoint: &Endpoint) -> Result<Connected, LoginFailure> {
    let name = endpoint.to_string();
    let unavailable = |reason: String| LoginFailure::Unavailable { reason: format!("{name}: {reason}") };
    let deadline = Instant::now() + target.config.connect_timeout;
    let limit = target.config.connect_timeout;

    let (transport, switch) = timeout_at(deadline, Transport::connect(&endpoint.node, endpoint.tls.as_ref()))
        .await
        .map_err(|_| unavailable(format!("not connected within {limit:?}")))?
        .map_err(|error| unavailable(error.to_string()))?;
    let wire = Arc::new(Wire::new(target.repaired_frames.clone()));
    let guard = Guard::new(target.name.clone(), target.config.frame_bytes_max, wire.clone());
    let stream = Mutex::new(Some(GuardedStream::new(transport, guard, wire.clone(), target.config)));
    // Called once: there is no recovery and no retry.
    let hand_over = async move |_, _| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        stream.map(AsyncTcpStream::Plain).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
    };
    let handshake = lapin::Connection::connector(
        uri(target, &endpoint.node),
        runtime::current(),
        hand_over,
        properties(&target.name),
    );
    match timeout_at(deadline, handshake).await {
        Ok(Ok(connection)) => Ok(Connected { connection, node: name, switch, wire }),
        Ok(Err(error)) => {
            switch.cut();
            Err(login_failure(&error, wire.phase()).unwrap_or_else(|| unavailable(handshake_error(&error, &wire))))
        }
        Err(_) => {
            switch.cut();
            Err(unavailable(format!("no AMQP handshake within {limit:?}")))
        }
    }
}

/// What lapin says of a peer that never greeted helps nobody.
fn handshake_error(error: &lapin::Error, wire: &Wire) -> String {
    match error.kind() {
        _ if wire.has_greeted() => reason(error),
        ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => NOT_AMQP.to_owned(),
        _ => format!(
            "closed the connection before the AMQP handshake ({}); is it the AMQP port, with or without TLS as configured?",
            reason(error)
        ),
    }
}

fn login_failure(error: &lapin::Error, phase: Phase) -> Option<LoginFailure> {
    let ErrorKind::ProtocolError(amqp) = error.kind() else { return None };
    match (phase, amqp.get_id(), amqp.kind()) {
        (Phase::Authenticating, ACCESS_REFUSED, AMQPErrorKind::Soft(_)) => Some(LoginFailure::AccessRefused),
        (Phase::Authenticated, ACCESS_REFUSED | NOT_ALLOWED, _) => {
            Some(LoginFailure::VirtualHost { reply_text: amqp.get_message().to_string() })
        }
        _ => None,
    }
}

fn uri(target: &Target<'_>, node: &Node) -> AMQPUri {
    AMQPUri {
        // The stream is encrypted already where it has to be.
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: target.credentials.login.clone(),
                password: target.credentials.passcode.clone(),
            },
            host: node.host.clone(),
            port: node.port,
        },
        vhost: target.vhost.to_owned(),
        query: AMQPQueryString {
            frame_max: Some(target.config.frame_bytes_max),
            channel_max: None,
            heartbeat: Some(u16::try_from(target.config.heartbeat.as_secs()).unwrap_or(u16::MAX)),
            connection_timeout: None,
            auth_mechanism: Some(SASLMechanism::Plain),
        },
    }
}

fn properties(name: &str) -> ConnectionProperties {
    let text = |text: &str| LongString::from(text.as_bytes());
    ConnectionProperties::default()
        .with_connection_name(text(name))
        .with_client_property("product".into(), text("stomp-relay"))
        .with_client_property("version".into(), text(env!("CARGO_PKG_VERSION")))
}

/// Whether this node speaks AMQP: the protocol header is answered by connection.start. Needs no credentials.
pub(super) async fn probe(config: &BrokerConfig, endpoint: &Endpoint) -> Result<(), String> {
    let name = endpoint.to_string();
    let answer = async {
        let (mut transport, _) = Transport::connect(&endpoint.node, endpoint.tls.as_ref()).await?;
        transport.write_all(PROTOCOL_HEADER).await?;
        transport.flush().await?;
        // Frame head, class 10, method 10.
        let mut head = [0; 11];
        transport.read_exact(&mut head).await?;
        Ok::<_, io::Error>(head[0] == 1 && head[7..] == [0, 10, 0, 10])
    };
    match patience::timeout(config.connect_timeout, answer).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(format!("{name}: {NOT_AMQP}")),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(format!("{name}: {NOT_AMQP}")),
        Ok(Err(error)) => Err(format!("{name}: {error}")),
        Err(_) => Err(format!("{name}: no answer within {:?}", config.connect_timeout)),
    }
}
