//! Which web pages may connect: the origin of a page against the list of those allowed. Pure.
//!
//! A browser says truthfully whose page connects, and a page can't change it. Programs that are no browser send no origin and
//! are not concerned.

use std::fmt;
use std::str::FromStr;

/// Longest origin that is read; a host name has at most 253 bytes (RFC 1035 section 2.3.4).
const ORIGIN_BYTES_MAX: usize = 512;

/// Scheme, host and port of a page (RFC 6454), in lower case. `ws` and `wss` count as `http` and `https`: some libraries name the
/// address they connect to. For these the port is always there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    /// May be empty for schemes of applications, as in `file://`.
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// `scheme://host[:port]`, and nothing behind it but one slash.
    fn parse(text: &str) -> Option<Origin> {
        if text.len() > ORIGIN_BYTES_MAX {
            return None;
        }
        let (scheme, rest) = text.split_once("://")?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => ("http".to_owned(), 80),
            "https" | "wss" => ("https".to_owned(), 443),
            other if is_scheme(other) => {
                let (host, port) = if authority.is_empty() { Default::default() } else { host_and_port(authority)? };
                return Some(Origin { scheme: other.to_owned(), host, port });
            }
            _ => return None,
        };
        let (host, port) = host_and_port(authority)?;
        Some(Origin { scheme, host, port: Some(port.unwrap_or(default_port)) })
    }

    fn is_web(&self) -> bool {
        matches!(self.scheme.as_str(), "http" | "https")
    }
}

/// RFC 3986 section 3.1; in lower case.
fn is_scheme(text: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(rest)
}

/// Host in lower case, and the port if there is one. Used for the `Host` header too.
pub(super) fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        // The last colon may belong to an IPv6 address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
        Some(_) => return None,
    };
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let valid = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(name),
    };
    valid.then(|| (host.to_ascii_lowercase(), port))
}

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPattern {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Any,
    Exact,
    /// Pages without an origin: files, sandboxed frames.
    Null,
    /// Every name below the host.
    Subdomains,
}

impl FromStr for OriginPattern {
    type Err = String;

    /// # Errors
    /// What an entry looks like.
    fn from_str(text: &str) -> Result<OriginPattern, String> {
        let exact = |text: &str| Origin::parse(text);
        let kind = match text {
            "*" => Kind::Any,
            "null" => Kind::Null,
            _ if text.contains("://*.") && exact(&text.replacen("*.", "", 1)).is_some_and(|base| base.is_web()) => {
                Kind::Subdomains
            }
            _ if exact(text).is_some() => Kind::Exact,
            _ => {
                return Err(format!(
                    "{text:?} is no origin; write \"https://app.example.com\", \"https://*.example.com\", with a port if \
                     it is not the scheme's, and no path; an application's as it sends it, such as \"capacitor://localhost\""
                ));
            }
        };
        Ok(OriginPattern { text: text.to_owned(), kind })
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl OriginPattern {
    /// Whether pages of anybody may come: all, or those without an origin, which every page can make (a sandboxed frame).
    pub fn admits_anybody(&self) -> bool {
        matches!(self.kind, Kind::Any | Kind::Null)
    }

    /// Whether whoever is on the way can change its pages.
    pub fn is_in_clear(&self) -> bool {
        self.text.starts_with("http://")
    }

    /// Whether it stands for all files of the visitor's machine.
    pub fn is_of_files(&self) -> bool {
        self.text.starts_with("file:")
    }

    /// The host that the entry names, and whether it stands for all names below.
    pub fn host(&self) -> Option<(String, bool)> {
        let below = self.kind == Kind::Subdomains;
        let base = if below { self.text.replacen("*.", "", 1) } else { self.text.clone() };
        let origin = Origin::parse(&base).filter(Origin::is_web)?;
        Some((origin.host, below))
    }

    fn allows(&self, text: &str, origin: Option<&Origin>) -> bool {
        match (&self.kind, origin) {
            (Kind::Any, _) => true,
            (Kind::Null, _) => text == "null",
            (_, None) => false,
            (Kind::Exact, Some(origin)) => Origin::parse(&self.text).as_ref() == Some(origin),
            (Kind::Subdomains, Some(origin)) => {
                let base = self.text.replacen("*.", "", 1);
                let Some(base) = Origin::parse(&base) else { return false };
                let below = origin.host.strip_suffix(&base.host).and_then(|rest| rest.strip_suffix('.'));
                (&origin.scheme, origin.port) == (&base.scheme, base.port) && below.is_some_and(|name| !name.is_empty())
            }
        }
    }
}

/// Where the request was sent, as the client sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// Whether the client speaks TLS, with us or with a trusted proxy.
    pub(super) https: bool,
    /// The `Host` header.
    pub(super) host: &'a str,
}

/// Whether a page of this origin may connect: it is in the list, or the list is empty and it is the page's own host.
pub(super) fn is_allowed(text: &str, patterns: &[OriginPattern], target: Target<'_>) -> bool {
    let origin = Origin::parse(text);
    if !patterns.is_empty() {
        return patterns.iter().any(|pattern| pattern.allows(text, origin.as_ref()));
    }
    let (Some(origin), Some((host, port))) = (origin, host_and_port(target.host)) else { return false };
    let (scheme, default_port) = if target.https { ("https", 443) } else { ("http", 80) };
    (origin.scheme.as_str(), origin.host, origin.port) == (scheme, host, Some(port.unwrap_or(default_port)))
}

/// The entry of the list that would let pages of this origin in, and no others. None for what can be no entry, and for what would
/// let in more than it says: whoever connects writes this text.
pub fn entry_for(text: &str) -> Option<String> {
    let text = text.trim();
    let shortest = text.strip_suffix('/').filter(|rest| rest.contains("://")).unwrap_or(text);
    let pattern: OriginPattern = shortest.parse().ok()?;
    let is_one = matches!(pattern.kind, Kind::Exact | Kind::Null);
    (is_one && pattern.allows(text, Origin::parse(text).as_ref())).then_some(pattern.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origin: &str, patterns: &[&str]) -> bool {
        let patterns: Vec<OriginPattern> = patterns.iter().map(|text| text.parse().unwrap()).collect();
        is_allowed(origin, &patterns, Target { https: true, host: "relay.example.com" })
    }

    #[test]
    fn the_same_origin_is_allowed_without_a_list() {
        for (origin, https, host) in [
            ("https://chat.example.com", true, "chat.example.com"),
            ("https://chat.example.com", true, "CHAT.example.com:443"),
            ("https://chat.example.com:443", true, "chat.example.com"),
            ("https://localhost:8443", true, "localhost:8443"),
            ("http://localhost:8080", false, "localhost:8080"),
            ("http://localhost", false, "localhost"),
            ("https://[::1]:8443", true, "[::1]:8443"),
            ("https://[2001:DB8::1]", true, "[2001:db8::1]"),
            ("https://chat.example.com/", true, "chat.example.com"),
            ("HTTPS://chat.example.com", true, "chat.example.com"),
            ("wss://chat.example.com", true, "chat.example.com"),
            ("wss://chat.example.com:8443/", true, "chat.example.com:8443"),
            ("ws://localhost:8080", false, "localhost:8080"),
            ("ws://localhost", false, "localhost:80"),
        ] {
            assert!(is_allowed(origin, &[], Target { https, host }), "{origin} at {host}");
        }
    }

    #[test]
    fn other_origins_are_refused_without_a_list() {
        for origin in [
            "https://evil.example",
            "http://chat.example.com",
            "https://chat.example.com:8443",
            "https://chat.example.com.evil.example",
            "https://evilchat.example.com",
            "https://chat.example.com//",
            "https://chat.example.com/path",
            "https://chat.example.com/path/",
            "https://chat.example.com?",
            "https://user@chat.example.com",
            "https://chat.example.com:443:443",
            "https://chat.example.com:",
            "https://chat.example.com:+443",
            "https://chat.example.com:99999",
            " https://chat.example.com",
            "https://chat.example.com https://evil.example",
            "https://chat.example.com\u{1f4a5}",
            "ws://chat.example.com",
            "wss://evil.example",
            "wss://chat.example.com:8443",
            "capacitor://chat.example.com",
            "file://",
            "null",
            "*",
            "",
            "https://",
            "chat.example.com",
        ] {
            let target = Target { https: true, host: "chat.example.com" };
            // An empty port is no port number; browsers never send it.
            assert!(!is_allowed(origin, &[], target), "{origin:?}");
        }
        for host in ["", "chat.example.com/x", "a b", "chat.example.com:x"] {
            assert!(!is_allowed("https://chat.example.com", &[], Target { https: true, host }), "{host:?}");
        }
    }

    #[test]
    fn a_list_replaces_the_same_origin() {
        let list = ["https://app.example.com", "https://*.partner.example:8443", "http://localhost:3000"];
        for origin in [
            "https://app.example.com",
            "https://app.example.com:443",
            "https://APP.example.com",
            "https://a.partner.example:8443",
            "https://a.b.partner.example:8443",
            "http://localhost:3000",
        ] {
            assert!(allowed(origin, &list), "{origin}");
        }
        for origin in [
            "https://relay.example.com",
            "http://app.example.com",
            "https://app.example.com:444",
            "https://x.app.example.com",
            "https://app.example.com.evil.example",
            "https://partner.example:8443",
            "https://.partner.example:8443",
            "https://a.partner.example",
            "https://evilpartner.example:8443",
            "https://a.partner.example.evil:8443",
            "https://*.partner.example:8443",
            "null",
        ] {
            assert!(!allowed(origin, &list), "{origin}");
        }
        // A library names the address that it connects to.
        assert!(allowed("wss://app.example.com", &list) && allowed("https://app.example.com/", &list));
        assert!(allowed("null", &["null"]) && !allowed("https://a.example", &["null"]));
        for origin in ["null", "https://anything.example", "app://x", ""] {
            assert!(allowed(origin, &["*"]), "{origin}");
        }
    }

    #[test]
    fn wrong_entries_are_explained() {
        for text in [
            "",
            "app.example.com",
            "https://app.example.com/x",
            "https://app.example.com//",
            "https://*",
            "https://*.",
            "https://a.*.example.com",
            "https://*.*.example.com",
            "https://*x.example.com",
            "capacitor://*.localhost",
            "1app://localhost",
            "://localhost",
            "app:localhost",
            "https://app.example.com:x",
            "*.example.com",
            "https://a b",
        ] {
            let problem = text.parse::<OriginPattern>().unwrap_err();
            assert!(problem.contains("https://app.example.com"), "{text:?}: {problem}");
        }
    }

    #[test]
    fn an_application_is_named_exactly() {
        let schemes = ["capacitor://localhost", "ionic://localhost", "file://", "app://-", "tauri://localhost:1430"];
        for own in schemes.iter().chain(&["chrome-extension://abcdefghijklmnop", "moz-extension://0-1", "null"]) {
            assert!(allowed(own, &[own]), "{own}");
            assert!(!allowed(own, &["https://relay.example.com", "http://localhost"]), "{own}");
            assert!(!allowed(own, &[]), "{own}: not of the same origin");
        }
        assert!(allowed("file:///", &["file://"]) && allowed("Capacitor://LOCALHOST/", &["capacitor://localhost"]));
        for other in ["capacitor://localhost:1", "capacitor://evil", "ionic://localhost", "http://localhost", "file://"]
        {
            assert!(!allowed(other, &["capacitor://localhost"]), "{other}");
        }
    }

    #[test]
    fn no_suggestion_opens_the_door_wider_than_it_says() {
        for text in
            ["*", "https://*.example.com", "https://*", "", "/", "https://a\"]", "https://a b", "x", "file:///x"]
        {
            assert_eq!(entry_for(text), None, "{text}");
        }
        for (text, entry) in [
            ("https://app.example.com", "https://app.example.com"),
            ("https://app.example.com/", "https://app.example.com"),
            ("wss://app.example.com:8443", "wss://app.example.com:8443"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("file://", "file://"),
            ("null", "null"),
        ] {
            assert_eq!(entry_for(text).as_deref(), Some(entry));
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_suggested_is_an_entry_that_allows_it(
            text in "([a-zA-Z][a-zA-Z0-9+.-]{0,8}:/{0,3})?[ -~\u{80}-\u{ff}]{0,20}/?",
        ) {
            if let Some(entry) = entry_for(&text) {
                proptest::prop_assert!(allowed(text.trim(), &[&entry]), "{entry:?}");
                proptest::prop_assert!(entry.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\*,".contains(&byte)));
            } else {
                // Only what no entry but `*` could allow.
                proptest::prop_assert!(text.parse::<OriginPattern>().is_err() || text.contains('*'));
            }
        }
    }
}
