//! By which names clients may call the relay: the `Host` of a request against the list. Pure.
//!
//! A page whose own name was made to point here (DNS rebinding) is of the same origin as the relay in the browser's eyes; what gives
//! it away is that the name is not the relay's. An address in place of a name can't be made to point elsewhere.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use hyper::header::{HOST, HeaderMap};
use hyper::{Uri, Version};

use super::origin::host_and_port;
use super::tls::Acceptor;

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    Any,
    /// Every name below this one.
    Below(String),
    /// In lower case; an IPv6 address between brackets.
    Exact(String),
}

impl FromStr for HostPattern {
    type Err = String;

    /// # Errors
    /// What an entry looks like.
    fn from_str(text: &str) -> Result<HostPattern, String> {
        if text == "*" {
            return Ok(HostPattern::Any);
        }
        let bracketed = text.parse::<std::net::Ipv6Addr>().map(|address| format!("[{address}]"));
        let (base, below) = match text.strip_prefix("*.") {
            Some(base) => (base, true),
            None => (text, false),
        };
        match host_and_port(bracketed.as_deref().unwrap_or(base)) {
            Some((name, None)) if below => Ok(HostPattern::Below(name)),
            Some((name, None)) => Ok(HostPattern::Exact(name)),
            _ => Err(format!(
                "{text:?} is no host; write \"chat.example.com\", \"*.example.com\", \"10.0.0.5\" or \"*\", without scheme, \
                 port and path"
            )),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("*"),
            HostPattern::Below(name) => write!(f, "*.{name}"),
            HostPattern::Exact(name) => f.write_str(name),
        }
    }
}

impl HostPattern {
    fn allows(&self, host: &str) -> bool {
        match self {
            HostPattern::Any => true,
            HostPattern::Below(base) => {
                host.strip_suffix(base).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            HostPattern::Exact(name) => name == host,
        }
    }
}

/// Which addresses in place of names are the relay's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Literals {
    /// The listener is at every address of the machine, or behind a translation of addresses.
    Any,
    /// Besides those of loopback.
    Only(IpAddr),
}

/// What is a name of the relay.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Set by the operator: nothing else counts then. Empty: all of the following.
    pub listed: Vec<HostPattern>,
    pub further: Vec<HostPattern>,
    pub literals: Literals,
    /// Also names that nobody on the internet can own: without a dot, `.local`, `.internal`.
    pub private: bool,
    /// Names of the certificates that are served.
    pub certificates: Option<Arc<Acceptor>>,
}

impl HostConfig {
    /// Whatever the client says.
    pub fn any() -> HostConfig {
        let listed = vec![HostPattern::Any];
        HostConfig { listed, further: Vec::new(), literals: Literals::Any, private: false, certificates: None }
    }

    /// `host` is a `Host` header's value, with or without a port.
    pub fn knows(&self, host: &str) -> bool {
        let Some((name, _)) = host_and_port(host) else { return false };
        let name = name.strip_suffix('.').unwrap_or(&name);
        if !self.listed.is_empty() {
            return self.listed.iter().any(|pattern| pattern.allows(name));
        }
        if let Some(address) = literal(name) {
            let own = match self.literals {
                Literals::Any => true,
                Literals::Only(own) => address == own.to_canonical() || address.is_loopback(),
            };
            return own || self.further.iter().any(|pattern| pattern.allows(name)) || self.is_certified(name);
        }
        name == "localhost"
            || name.ends_with(".localhost")
            || self.private && is_private(name)
            || self.further.iter().any(|pattern| pattern.allows(name))
            || self.is_certified(name)
    }

    /// Whether the operator said which names there are: then programs are held to them too.
    pub fn is_listed(&self) -> bool {
        !self.listed.is_empty()
    }

    fn is_certified(&self, name: &str) -> bool {
        self.certificates.as_ref().is_some_and(|certificates| certificates.is_for(name))
    }
}

fn literal(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

fn is_private(name: &str) -> bool {
    !name.contains('.') || name.ends_with(".local") || name.ends_with(".internal")
}

/// The entry of the list that would let this name in, and no other; None for what can be no name.
pub fn host_entry_for(host: &str) -> Option<String> {
    let (name, _) = host_and_port(host)?;
    let name = name.strip_suffix('.').unwrap_or(&name);
    name.parse::<HostPattern>()
        .ok()
        .filter(|pattern| matches!(pattern, HostPattern::Exact(_)))
        .map(|entry| entry.to_string())
}

/// Why a request names no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the request has no Host header")]
    Missing,
    #[error("the request has more than one Host header")]
    Repeated,
    #[error("the Host header is no host with or without a port")]
    Malformed,
    #[error("the request's target names another host than its Host header")]
    Contradicted,
}

/// The host that a request is for, as it stands there (RFC 9112 section 3.2). Empty for HTTP/1.0 without the header, which no
/// browser speaks.
///
/// # Errors
/// See [`HostError`].
pub fn named_host<'a>(headers: &'a HeaderMap, target: &'a Uri, version: Version) -> Result<&'a str, HostError> {
    let mut values = headers.get_all(HOST).iter();
    let host = match (values.next(), values.next()) {
        (None, _) if version == Version::HTTP_10 => return Ok(""),
        (None, _) => return Err(HostError::Missing),
        (Some(_), Some(_)) => return Err(HostError::Repeated),
        (Some(host), None) => host.to_str().map_err(|_| HostError::Malformed)?,
    };
    if host_and_port(host).is_none() {
        return Err(HostError::Malformed);
    }
    match target.authority() {
        Some(authority) if !authority.as_str().eq_ignore_ascii_case(host) => Err(HostError::Contradicted),
        _ => Ok(host),
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn derived(further: &[&str], literals: Literals, private: bool) -> HostConfig {
        let further = further.iter().map(|text| text.parse().unwrap()).collect();
        HostConfig { listed: Vec::new(), further, literals, private, certificates: None }
    }

    #[test]
    fn what_the_relay_is_called_without_a_list() {
        let own = derived(&["chat.example.com", "*.partner.example"], Literals::Only([10, 0, 0, 5].into()), false);
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "a.localhost",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:8080",
            "10.0.0.5:8080",
            "[::ffff:10.0.0.5]",
            "chat.example.com:443",
            "CHAT.example.com.",
            "a.b.partner.example",
        ] {
            assert!(own.knows(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "evillocalhost",
            "10.0.0.6",
            "203.0.113.1",
            "[::2]",
            "chat.example.com.evil.example",
            "partner.example",
            ".partner.example",
            "evilpartner.example",
            "relay",
            "relay.local",
            "a b",
            "user@localhost",
            "localhost/x",
        ] {
            assert!(!own.knows(host), "{host}");
        }
        let everywhere = derived(&[], Literals::Any, true);
        for host in
            ["203.0.113.1:15680", "[2001:db8::1]", "relay", "relay-0.relay.default.svc.cluster.local", "r.internal"]
        {
            assert!(everywhere.knows(host), "{host}");
        }
        assert!(!everywhere.knows("evil.example") && !everywhere.knows("internal.evil.example"));
    }

    #[test]
    fn a_list_replaces_all_that() {
        let listed = ["chat.example.com", "*.example.org", "::1"].map(|text| text.parse().unwrap()).to_vec();
        let config = HostConfig { listed, ..derived(&["other.example"], Literals::Any, true) };
        for (host, known) in [
            ("chat.example.com:8443", true),
            ("a.example.org", true),
            ("[::1]", true),
            ("example.org", false),
            ("other.example", false),
            ("localhost", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(config.knows(host), known, "{host}");
        }
        assert!(HostConfig::any().knows("evil.example") && !HostConfig::any().knows("a b"));
    }

    #[test]
    fn wrong_entries_are_explained() {
        for text in ["", "https://chat.example.com", "chat.example.com:443", "a/b", "*x", "*.", "a.*.b", "a b", "**"] {
            let problem = text.parse::<HostPattern>().unwrap_err();
            assert!(problem.contains("chat.example.com"), "{text}: {problem}");
        }
    }

    #[test]
    fn exactly_one_host_is_named() {
        let read = |lines: &[&'static str], target: &'static str, version| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(HOST, HeaderValue::from_static(line));
            }
            named_host(&headers, &Uri::from_static(target), version).map(str::to_owned)
        };
        assert_eq!(read(&["a:1"], "/", Version::HTTP_11), Ok("a:1".to_owned()));
        assert_eq!(read(&["A"], "http://a/ws", Version::HTTP_11), Ok("A".to_owned()));
        assert_eq!(read(&[], "/", Version::HTTP_10), Ok(String::new()));
        assert_eq!(read(&[], "/", Version::HTTP_11), Err(HostError::Missing));
        assert_eq!(read(&["a", "a"], "/", Version::HTTP_11), Err(HostError::Repeated));
        assert_eq!(read(&["a", "b"], "/", Version::HTTP_10), Err(HostError::Repeated));
        assert_eq!(read(&["a"], "http://b/ws", Version::HTTP_11), Err(HostError::Contradicted));
        for host in ["", "a b", "a,b", "a/b", "a:b", "user@a", "[::1", "http://a"] {
            let mut headers = HeaderMap::new();
            headers.append(HOST, HeaderValue::from_static(host));
            assert_eq!(
                named_host(&headers, &Uri::from_static("/"), Version::HTTP_11),
                Err(HostError::Malformed),
                "{host}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_suggested_is_an_entry_that_allows_it(host in "[ -~]{0,12}(:[0-9]{1,5})?") {
            if let Some(entry) = host_entry_for(&host) {
                let listed = vec![entry.parse().unwrap()];
                let config = HostConfig { listed, ..HostConfig::any() };
                proptest::prop_assert!(config.knows(&host), "{entry:?}");
                proptest::prop_assert!(!entry.contains(['"', '\\', '*', ',']));
            }
        }
    }
}
