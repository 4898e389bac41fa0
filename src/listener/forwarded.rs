//! `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded` (RFC 7239): what trusted HTTP proxies say of the client.
//!
//! Read from the right: each entry was added by the hop behind it, so the first one that is not itself a trusted proxy is the
//! client, and everything to its left is the client's own invention.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{FORWARDED, HeaderMap, HeaderName};

use super::source::{ProxyConfig, Source};

/// Proxies in a row that are followed; the client counts as the next one.
pub const HOPS_MAX: usize = 16;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The header that proxies write. One at a time: a proxy that writes one passes the other on as the client sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    Forwarded,
    #[default]
    XForwardedFor,
}

/// The client behind `source`, as far as trusted proxies name it.
pub(super) fn client_of(source: Source, headers: &HeaderMap, config: &ProxyConfig) -> Source {
    if !config.trusts(source.client()) {
        // Not believed, but it says that this is no program on this machine that connects directly.
        let any = [FORWARDED, X_FORWARDED_FOR, X_REAL_IP].iter().any(|name| headers.contains_key(name));
        return if any { source.forwarded() } else { source };
    }
    let mut hops = match config.header {
        ForwardedHeader::Forwarded => elements(headers, FORWARDED).map(forwarded_for).collect(),
        ForwardedHeader::XForwardedFor => elements(headers, X_FORWARDED_FOR).map(address).collect::<Vec<_>>(),
    };
    let mut source = source;
    for _ in 0..HOPS_MAX {
        // What is no address, such as `unknown`, ends the chain: whose word the rest is can't be told.
        let Some(Some(hop)) = hops.pop() else { return source };
        source = source.behind(hop);
        if !config.trusts(source.client()) {
            return source;
        }
    }
    source
}

/// Whether the trusted proxy in front was reached over TLS; None if it does not say.
pub(super) fn is_https(headers: &HeaderMap, header: ForwardedHeader) -> Option<bool> {
    let protocol = match header {
        ForwardedHeader::Forwarded => parameter(elements(headers, FORWARDED).last()?, "proto")?,
        ForwardedHeader::XForwardedFor => elements(headers, X_FORWARDED_PROTO).last()?,
    };
    let is = |known: &[&str]| known.iter().any(|known| protocol.eq_ignore_ascii_case(known));
    if is(&["https", "wss"]) {
        return Some(true);
    }
    is(&["http", "ws"]).then_some(false)
}

/// The elements of a list header over all its lines; commas between quotes do not separate.
fn elements(headers: &HeaderMap, name: HeaderName) -> impl DoubleEndedIterator<Item = &str> {
    let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect();
    values.into_iter().flat_map(|value| split(value, ',').into_iter()).map(str::trim)
}

/// Splits outside of quoted strings.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character| {
        let separates = character == separator && !quoted;
        match character {
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && character == '\\' && !escaped;
        separates
    })
    .collect()
}

fn forwarded_for(element: &str) -> Option<IpAddr> {
    address(parameter(element, "for")?)
}

/// The value of a parameter that occurs once, without its quotes.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let pairs = split(element, ';').into_iter().filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(found, _)| found.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value)),
        _ => None,
    }
}

/// An address as proxies write it: with or without port, IPv6 with or without brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        map
    }

    fn config(header: ForwardedHeader) -> ProxyConfig {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        ProxyConfig { trusted: networks(&["10.0.0.0/8", "127.0.0.1/32", "fd00::/8"]), header, ..ProxyConfig::default() }
    }

    fn seen(peer: &str, header: ForwardedHeader, lines: &[(&'static str, &str)]) -> (String, bool) {
        let config = config(header);
        let source = Source::direct(peer.parse().unwrap(), &config);
        let source = client_of(source, &headers(lines), &config);
        (source.to_string(), source.is_local())
    }

    #[test]
    fn the_right_most_untrusted_hop_is_the_client() {
        for (value, expected) in [
            ("203.0.113.7", "203.0.113.7 through 10.0.0.1"),
            ("1.1.1.1, 203.0.113.7", "203.0.113.7 through 10.0.0.1"),
            ("1.1.1.1, 203.0.113.7,10.0.0.2", "203.0.113.7 through 10.0.0.2, 10.0.0.1"),
            ("203.0.113.7:4711", "203.0.113.7 through 10.0.0.1"),
            ("[2001:db8::7]:4711", "2001:db8::7 through 10.0.0.1"),
            ("[2001:db8::7]", "2001:db8::7 through 10.0.0.1"),
            ("2001:db8::7", "2001:db8::7 through 10.0.0.1"),
            ("::ffff:203.0.113.7", "203.0.113.7 through 10.0.0.1"),
            ("::ffff:10.0.0.2", "10.0.0.2 through 10.0.0.1"),
            ("127.0.0.1", "127.0.0.1 through 10.0.0.1"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3 through 10.0.0.2, 10.0.0.1"),
            ("fd00::1", "fd00::1 through 10.0.0.1"),
            // What is no address ends the chain.
            ("203.0.113.7, unknown", "10.0.0.1"),
            ("203.0.113.7, unknown, 10.0.0.2", "10.0.0.2 through 10.0.0.1"),
            ("203.0.113.7,", "10.0.0.1"),
            ("", "10.0.0.1"),
            ("203.0.113.7 10.0.0.2", "10.0.0.1"),
            ("203.0.113.256", "10.0.0.1"),
            ("0x7f.1", "10.0.0.1"),
            ("127.1", "10.0.0.1"),
            ("010.0.0.1", "10.0.0.1"),
            ("203.0.113.7:99999", "10.0.0.1"),
            ("[203.0.113.7", "10.0.0.1"),
            ("<script>", "10.0.0.1"),
            ("\"203.0.113.7\"", "10.0.0.1"),
            ("203.0.113.7\u{e9}", "10.0.0.1"),
        ] {
            let lines = [("x-forwarded-for", value)];
            let (source, local) = seen("10.0.0.1:5000", ForwardedHeader::XForwardedFor, &lines);
            assert_eq!((source.as_str(), local), (expected, false), "{value:?}");
        }
    }

    #[test]
    fn several_lines_are_one_list_and_the_chain_is_bounded() {
        let lines = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.7, 10.0.0.2")];
        let (source, _) = seen("10.0.0.1:1", ForwardedHeader::XForwardedFor, &lines);
        assert_eq!(source, "203.0.113.7 through 10.0.0.2, 10.0.0.1");
        let long = ["10.1.1.1"; 1000].join(",");
        let (source, _) = seen("10.0.0.1:1", ForwardedHeader::XForwardedFor, &[("x-forwarded-for", &long)]);
        assert_eq!(source.matches("10.1.1.1").count(), HOPS_MAX);
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (value, expected) in [
            ("for=203.0.113.7", "203.0.113.7 through 10.0.0.1"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17 through 10.0.0.1"),
            ("for=1.1.1.1, for=203.0.113.7;proto=https;by=10.0.0.1", "203.0.113.7 through 10.0.0.1"),
            ("for=203.0.113.7, for=10.0.0.2", "203.0.113.7 through 10.0.0.2, 10.0.0.1"),
            ("host=\"a,for=1.1.1.1;\\\",\";for=203.0.113.7", "203.0.113.7 through 10.0.0.1"),
            ("for=1.1.1.1;for=203.0.113.7", "10.0.0.1"),
            ("for=_hidden", "10.0.0.1"),
            ("for=unknown", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
            ("203.0.113.7", "10.0.0.1"),
            ("for=\"203.0.113.7", "10.0.0.1"),
            ("for=", "10.0.0.1"),
            ("=;,;=\"\\", "10.0.0.1"),
        ] {
            let (source, _) = seen("10.0.0.1:5000", ForwardedHeader::Forwarded, &[("forwarded", value)]);
            assert_eq!(source, expected, "{value:?}");
        }
    }

    #[test]
    fn only_the_configured_header_of_a_trusted_proxy_is_believed() {
        let both = [("x-forwarded-for", "203.0.113.7"), ("forwarded", "for=198.51.100.9")];
        assert_eq!(seen("10.0.0.1:1", ForwardedHeader::XForwardedFor, &both).0, "203.0.113.7 through 10.0.0.1");
        assert_eq!(seen("10.0.0.1:1", ForwardedHeader::Forwarded, &both).0, "198.51.100.9 through 10.0.0.1");
        assert_eq!(seen("192.0.2.1:1", ForwardedHeader::XForwardedFor, &both).0, "192.0.2.1");
        assert_eq!(seen("10.0.0.1:1", ForwardedHeader::XForwardedFor, &[("x-real-ip", "1.1.1.1")]).0, "10.0.0.1");
    }

    #[test]
    fn no_header_makes_a_client_local_and_no_proxy_does() {
        let x = ForwardedHeader::XForwardedFor;
        // 127.0.0.1 is a trusted proxy here, 127.0.0.2 is not.
        for lines in [&[][..], &[("x-forwarded-for", "127.0.0.1")], &[("x-forwarded-for", "127.0.0.2")]] {
            assert!(!seen("127.0.0.1:1", x, lines).1, "{lines:?}");
            assert!(!seen("10.0.0.1:1", x, lines).1, "{lines:?}");
            assert!(!seen("192.0.2.1:1", x, lines).1, "{lines:?}");
        }
        assert!(seen("127.0.0.2:1", x, &[]).1);
        assert!(seen("[::1]:1", x, &[]).1);
        assert!(seen("[::ffff:127.0.0.2]:1", x, &[]).1);
        // A proxy on this machine that nobody told us of.
        for name in ["x-forwarded-for", "forwarded", "x-real-ip"] {
            assert!(!seen("127.0.0.2:1", x, &[(name, "198.51.100.9")]).1, "{name}");
        }
    }

    #[test]
    fn the_scheme_is_the_last_proxys_word() {
        let x = ForwardedHeader::XForwardedFor;
        for (value, expected) in
            [("https", Some(true)), ("http", Some(false)), ("HTTP, wss", Some(true)), ("", None), ("https,", None)]
        {
            assert_eq!(is_https(&headers(&[("x-forwarded-proto", value)]), x), expected, "{value:?}");
        }
        let map = headers(&[("forwarded", "proto=http, for=1.1.1.1;proto=\"https\"")]);
        assert_eq!(is_https(&map, ForwardedHeader::Forwarded), Some(true));
        assert_eq!(is_https(&map, x), None);
    }
}
