//! Addresses in a configuration: where to listen, where RabbitMQ is.
//!
//! Resolves no host name: listening needs an IP address, and the broker's name is resolved at each connect.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::kind::{Kind, Shape, string};
use crate::auth::DocumentUrl;
use crate::listener::{HostPattern, OriginPattern};

/// The path of a listen URL that names none.
const DEFAULT_PATH: &str = "/ws";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `ws`, without TLS.
    Ws,
    /// `wss`, with TLS.
    Wss,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
        })
    }
}

/// Where WebSocket clients come in (RFC 6455, 3), such as `wss://0.0.0.0:443/ws`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    pub scheme: Scheme,
    /// Port 0 lets the system choose a free one.
    pub address: SocketAddr,
    /// Begins with a slash.
    pub path: String,
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.address, self.path)
    }
}

/// One RabbitMQ node, such as `amqps://mq1.example.com:5671`. It carries no login: clients bring their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUri {
    /// `amqps`.
    pub tls: bool,
    /// A host name or an IP address, IPv6 without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

pub(super) fn listen_url() -> Kind<ListenUrl> {
    Kind::simple("URLs `ws://HOST:PORT/PATH` or `wss://HOST:PORT/PATH`", Shape::Text, |value| {
        let text = string(value)?;
        parse_listen(text).map_err(|reason| format!("{} is not a listen URL: {reason}", shown(text)))
    })
}

/// Where a key set is.
pub(super) fn document_url() -> Kind<DocumentUrl> {
    Kind::simple("https URL", Shape::Text, |value| string(value)?.parse())
}

pub(super) fn broker_uri() -> Kind<BrokerUri> {
    Kind::simple("URIs `amqp://HOST:PORT` or `amqps://HOST:PORT`", Shape::Text, |value| {
        let text = string(value)?;
        parse_broker(text).map_err(|reason| format!("{} is not a broker URI: {reason}", shown(text)))
    })
}

/// A network in CIDR notation, or a single address.
pub(super) fn network() -> Kind<IpNet> {
    Kind::simple("network", Shape::Text, |value| {
        let text = string(value)?;
        let single = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse()
            .or_else(|_| single())
            .map_err(|_| format!("{text:?} is neither an address nor a network; write \"10.0.0.5\" or \"10.0.0.0/8\""))
    })
}

/// An origin of web pages (RFC 6454), or a pattern of origins.
pub(super) fn origin() -> Kind<OriginPattern> {
    Kind::simple("origin", Shape::Text, |value| string(value)?.trim().parse())
}

/// A name by which the relay may be called, or a pattern of names.
pub(super) fn host() -> Kind<HostPattern> {
    Kind::simple("host", Shape::Text, |value| string(value)?.trim().parse())
}

/// An address to listen on, or `none`.
pub(super) fn address_or_none() -> Kind<Option<SocketAddr>> {
    Kind::simple("`HOST:PORT` or \"none\"", Shape::Text, |value| match string(value)? {
        "none" => Ok(None),
        text => {
            let reason = |reason: String| format!("{text:?} is not an address: {reason}");
            let (host, port) = split_port(text).map_err(reason)?;
            let port =
                port.ok_or_else(|| reason("the port is missing; write \"127.0.0.1:15680\" or \"none\"".into()))?;
            Ok(Some(SocketAddr::new(local_host(host).map_err(reason)?, port)))
        }
    })
}

/// The text for an error message; user info could hold a password and is cut out.
fn shown(text: &str) -> String {
    match text.rsplit_once('@') {
        None => format!("{text:?}"),
        Some((before, after)) => {
            let scheme = before.split_once("://").map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
            format!("{:?}", format!("{scheme}***@{after}"))
        }
    }
}

fn parse_listen(text: &str) -> Result<ListenUrl, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some(("ws", rest)) => (Scheme::Ws, rest),
        Some(("wss", rest)) => (Scheme::Wss, rest),
        _ => return Err("it must begin with ws:// or wss://".to_owned()),
    };
    let (authority, path) = rest.find('/').map_or((rest, DEFAULT_PATH), |at| rest.split_at(at));
    if authority.contains('@') {
        return Err("it takes no user info".to_owned());
    }
    if let Some(odd) = path.chars().find(|character| !is_path_character(*character)) {
        return Err(format!("{odd:?} is not allowed in the path"));
    }
    let (host, port) = split_port(authority)?;
    let port = port.unwrap_or(match scheme {
        Scheme::Ws => 80,
        Scheme::Wss => 443,
    });
    Ok(ListenUrl { scheme, address: SocketAddr::new(local_host(host)?, port), path: path.to_owned() })
}

/// Unreserved characters and slashes (RFC 3986, 2.3): a path that needs no escapes needs no normalisation.
fn is_path_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '/' | '-' | '.' | '_' | '~')
}

fn parse_broker(text: &str) -> Result<BrokerUri, String> {
    let (tls, rest) = match text.split_once("://") {
        Some(("amqp", rest)) => (false, rest),
        Some(("amqps", rest)) => (true, rest),
        _ => return Err("it must begin with amqp:// or amqps://".to_owned()),
    };
    if rest.contains('@') {
        return Err("clients log in with their own RabbitMQ login and passcode; \
                    use auth.default_login for clients without"
            .to_owned());
    }
    if rest.contains(['?', '#']) {
        return Err("it takes no parameters".to_owned());
    }
    let (authority, vhost) = rest.split_once('/').unwrap_or((rest, ""));
    if !vhost.is_empty() {
        return Err("it names a virtual host; set broker.vhost instead".to_owned());
    }
    let (host, port) = split_port(authority)?;
    if let Some(odd) = host.chars().find(|odd| !(odd.is_ascii_alphanumeric() || matches!(odd, '-' | '.' | '_' | ':'))) {
        return Err(format!("{odd:?} is not allowed in a host name"));
    }
    if port == Some(0) {
        return Err("port 0 cannot be connected to".to_owned());
    }
    Ok(BrokerUri { tls, host: host.to_owned(), port: port.unwrap_or(if tls { 5671 } else { 5672 }) })
}

/// Splits `host:port` and `[v6]:port`; the brackets are dropped.
fn split_port(authority: &str) -> Result<(&str, Option<u16>), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the closing ] is missing")?;
            host.parse::<Ipv6Addr>().map_err(|_| format!("{host:?} is not an IPv6 address"))?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err("after ] comes :PORT".to_owned()),
            }
        }
        None => match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address stands between [ and ]".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err("the host is missing".to_owned());
    }
    let number = |port: &str| port.parse().map_err(|_| format!("{port:?} is not a port, 0 to 65535"));
    Ok((host, port.map(number).transpose()?))
}

/// An address of this machine: an IP literal, `localhost` (127.0.0.1) or `*` (every IPv4 address).
fn local_host(host: &str) -> Result<IpAddr, String> {
    match host {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        "*" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        _ => host.parse().map_err(|_| format!("{host:?} is neither an IP address nor localhost nor *")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_urls_are_shown_as_they_are_understood() {
        for (text, understood) in [
            ("wss://0.0.0.0:443/ws", "wss://0.0.0.0:443/ws"),
            ("wss://*", "wss://0.0.0.0:443/ws"),
            ("ws://localhost", "ws://127.0.0.1:80/ws"),
            ("ws://[::1]:0/a/b-c", "ws://[::1]:0/a/b-c"),
            ("ws://127.0.0.1:8080/", "ws://127.0.0.1:8080/"),
        ] {
            assert_eq!(parse_listen(text).map(|url| url.to_string()), Ok(understood.to_owned()), "{text}");
        }
    }

    #[test]
    fn broker_uris_are_shown_as_they_are_understood() {
        for (text, understood) in [
            ("amqp://mq", "amqp://mq:5672"),
            ("amqps://mq", "amqps://mq:5671"),
            ("amqps://mq1.example.com:5673/", "amqps://mq1.example.com:5673"),
            ("amqp://[::1]", "amqp://[::1]:5672"),
        ] {
            assert_eq!(parse_broker(text).map(|uri| uri.to_string()), Ok(understood.to_owned()), "{text}");
        }
    }

    #[test]
    fn passwords_are_cut_out_of_messages() {
        assert_eq!(shown("amqp://bob:canary@mq"), "\"amqp://***@mq\"");
        assert_eq!(shown("bob:can@ary@mq"), "\"***@mq\"");
    }
}
