//! Whom a connection comes from: the client's address, and the proxies between.
//!
//! Owns the rule whose word is taken for an address. How proxies write it down is in `proxy_protocol` and `forwarded`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::forwarded::ForwardedHeader;

/// Which proxies are believed.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfig {
    /// Proxies whose `header` is believed.
    pub trusted: Vec<IpNet>,
    /// Proxies whose connections begin with a PROXY protocol header; without one they are refused.
    pub protocol_from: Vec<IpNet>,
    /// The header that the trusted proxies write; the other is never read.
    pub header: ForwardedHeader,
}

impl ProxyConfig {
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        contains(&self.trusted, address)
    }

    pub(super) fn speaks_proxy_protocol(&self, address: IpAddr) -> bool {
        contains(&self.protocol_from, address)
    }
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// A client and the way it came. An IPv4 address in IPv6 form is kept as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    client: IpAddr,
    /// On this machine and directly connected.
    local: bool,
    /// A proxy's header came from an address that is not in `proxy.trusted`.
    unannounced: bool,
    /// The nearest to the client first; the last is the peer of the TCP connection. Empty: there is none.
    through: Vec<IpAddr>,
}

impl Source {
    /// A connection that nothing was said about.
    pub(super) fn direct(peer: SocketAddr, config: &ProxyConfig) -> Source {
        let client = peer.ip().to_canonical();
        // What a proxy forwards is not of this machine, wherever the proxy runs.
        let proxy = config.trusts(client) || config.speaks_proxy_protocol(client);
        Source { client, local: client.is_loopback() && !proxy, unannounced: false, through: Vec::new() }
    }

    /// What the client's nearest known hop says: the connection is from `address`, itself perhaps a proxy.
    pub(super) fn behind(mut self, address: IpAddr) -> Source {
        self.through.insert(0, self.client);
        Source { client: address.to_canonical(), local: false, unannounced: false, through: self.through }
    }

    /// The connection was forwarded by somebody, whoever that is.
    pub(super) fn forwarded(self) -> Source {
        Source { local: false, unannounced: true, ..self }
    }

    /// Whether a proxy's header came from an address that is not in `proxy.trusted`: a proxy that was not announced, or a client
    /// that says what is not believed.
    pub fn is_unannounced(&self) -> bool {
        self.unannounced
    }

    /// The client's address; a proxy's if it does not tell the client's.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Whether the client certainly runs on this machine. No proxy and no header can say so.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// The proxies between, the nearest to the client first.
    pub fn through(&self) -> &[IpAddr] {
        &self.through
    }
}

/// As in a log: `203.0.113.7 through 10.0.0.2, 10.0.0.1`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.client)?;
        for (index, proxy) in self.through.iter().enumerate() {
            write!(f, "{}{proxy}", if index == 0 { " through " } else { ", " })?;
        }
        Ok(())
    }
}
