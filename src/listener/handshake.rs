//! The WebSocket opening handshake (RFC 6455 section 4.2), read from a request's headers. Pure: no sockets, no answers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    AsHeaderName, CONNECTION, HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The only version of the protocol there is (RFC 6455 section 4.1).
pub(super) const VERSION: &str = "13";

/// Bytes of a decoded `Sec-WebSocket-Key`.
const KEY_BYTES: usize = 16;

/// A WebSocket subprotocol of this endpoint, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subprotocol {
    V10,
    V11,
    V12,
}

impl Subprotocol {
    const ALL: [Subprotocol; 3] = [Subprotocol::V10, Subprotocol::V11, Subprotocol::V12];

    /// The registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            Subprotocol::V10 => "v10.stomp",
            Subprotocol::V11 => "v11.stomp",
            Subprotocol::V12 => "v12.stomp",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }
}

/// Why a request is no opening handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HandshakeError {
    /// An ordinary request, or one whose hop-by-hop headers a proxy took away.
    #[error("the request does not ask for an upgrade to websocket in its Upgrade and Connection headers")]
    NotAsked,
    #[error("Sec-WebSocket-Version is missing; this server speaks version 13")]
    NoVersion,
    #[error("Sec-WebSocket-Version is not 13, the only version this server speaks")]
    OtherVersion,
    #[error("Sec-WebSocket-Key is missing, repeated or not 16 bytes in base64")]
    Key,
}

/// A valid opening handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handshake {
    /// Value of `Sec-WebSocket-Accept`.
    pub(super) accept: String,
    /// The highest that was offered, whatever the order: every known STOMP server answers so. None if none of ours was
    /// offered, which is accepted: some clients offer none.
    pub(super) subprotocol: Option<Subprotocol>,
}

impl Handshake {
    /// Reads the handshake. Some proxies send a second `Connection` header or add tokens: all values of a header are
    /// one list (RFC 9110 section 5.3).
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, HandshakeError> {
        if !has_token(headers, UPGRADE, "websocket") || !has_token(headers, CONNECTION, "upgrade") {
            return Err(HandshakeError::NotAsked);
        }
        let mut versions = tokens(headers, SEC_WEBSOCKET_VERSION);
        match (versions.next(), versions.next()) {
            (None, _) => return Err(HandshakeError::NoVersion),
            (Some(VERSION), None) => {}
            _ => return Err(HandshakeError::OtherVersion),
        }
        let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
        let (Some(key), None) = (keys.next(), keys.next()) else { return Err(HandshakeError::Key) };
        match STANDARD.decode(key.as_bytes()) {
            Ok(nonce) if nonce.len() == KEY_BYTES => {}
            _ => return Err(HandshakeError::Key),
        }
        let subprotocol = subprotocols(headers).filter_map(Subprotocol::from_name).max();
        Ok(Handshake { accept: derive_accept_key(key.as_bytes()), subprotocol })
    }
}

/// All that the client offers.
pub(super) fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    tokens(headers, SEC_WEBSOCKET_PROTOCOL)
}

fn has_token(headers: &HeaderMap, name: impl AsHeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

fn tokens(headers: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");

    #[test]
    fn reads_the_example_of_the_rfc() {
        let map = headers(&[
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            KEY,
            ("sec-websocket-protocol", "chat, v10.stomp"),
            ("sec-websocket-protocol", "v12.stomp ,v11.stomp"),
        ]);
        let handshake = Handshake::read(&map).unwrap();
        assert_eq!(handshake.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(handshake.subprotocol, Some(Subprotocol::V12));
    }

    #[test]
    fn refuses_what_is_no_handshake() {
        let read = |lines: &[(&'static str, &'static str)]| Handshake::read(&headers(lines)).unwrap_err();
        let (upgrade, connection) = (("upgrade", "websocket"), ("connection", "Upgrade"));
        let version = ("sec-websocket-version", "13");
        assert_eq!(read(&[connection, version, KEY]), HandshakeError::NotAsked);
        assert_eq!(read(&[upgrade, version, KEY]), HandshakeError::NotAsked);
        assert_eq!(read(&[upgrade, connection, KEY]), HandshakeError::NoVersion);
        assert_eq!(read(&[upgrade, connection, KEY, ("sec-websocket-version", "8")]), HandshakeError::OtherVersion);
        assert_eq!(read(&[upgrade, connection, version]), HandshakeError::Key);
        assert_eq!(read(&[upgrade, connection, version, KEY, KEY]), HandshakeError::Key);
        assert_eq!(read(&[upgrade, connection, version, ("sec-websocket-key", "c2hvcnQ=")]), HandshakeError::Key);
    }
}
