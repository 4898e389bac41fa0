//! What an upgrade request shows of who the client is: `Authorization`, a subprotocol, or a cookie. Only read here, judged
//! elsewhere.
//!
//! A browser sends a cookie with whatever page asks, so a cookie counts only from pages of origins that are named. HTTP Basic
//! is off unless asked for: browsers repeat it unasked as well.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, ORIGIN};
use std::fmt;

/// What stands before a token in a subprotocol; Kubernetes' API server reads the same.
pub(super) const SUBPROTOCOL_PREFIX: &str = "base64url.bearer.authorization.";

/// Which of them count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresentedConfig {
    /// `Authorization: Basic`.
    pub basic: bool,
    /// `Authorization: Bearer`.
    pub bearer: bool,
    pub cookie: Option<CookieConfig>,
    pub subprotocol: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieConfig {
    pub name: String,
    /// Exactly as browsers send them, such as `https://app.example.com`.
    pub origins: Vec<String>,
}

/// Nothing of it is verified.
#[derive(Clone, PartialEq, Eq)]
pub enum Presented {
    Basic { login: String, passcode: String },
    BearerToken(String),
    CookieToken(String),
    SubprotocolToken(String),
}

/// Without the secrets.
impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Presented::Basic { .. } => "Basic",
            Presented::BearerToken(_) => "BearerToken",
            Presented::CookieToken(_) => "CookieToken",
            Presented::SubprotocolToken(_) => "SubprotocolToken",
        })
    }
}

impl PresentedConfig {
    /// What was said on purpose goes before what a browser adds by itself. What is repeated is ambiguous and does not count.
    pub(super) fn read<'a>(
        &self,
        headers: &HeaderMap,
        mut subprotocols: impl Iterator<Item = &'a str>,
    ) -> Option<Presented> {
        let mut subprotocol = || {
            let encoded = subprotocols.find_map(|name| name.strip_prefix(SUBPROTOCOL_PREFIX))?;
            Some(Presented::SubprotocolToken(text_of(URL_SAFE_NO_PAD.decode(encoded).ok()?)?))
        };
        self.authorization(headers)
            .or_else(|| if self.subprotocol { subprotocol() } else { None })
            .or_else(|| self.cookie(headers))
    }

    fn authorization(&self, headers: &HeaderMap) -> Option<Presented> {
        let (scheme, value) = only(headers, AUTHORIZATION)?.split_once(' ')?;
        let value = value.trim();
        if self.bearer && scheme.eq_ignore_ascii_case("bearer") {
            return Some(Presented::BearerToken(value.to_owned()));
        }
        if !self.basic || !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = text_of(STANDARD.decode(value).ok()?)?;
        let (login, passcode) = decoded.split_once(':')?;
        Some(Presented::Basic { login: login.to_owned(), passcode: passcode.to_owned() })
    }

    fn cookie(&self, headers: &HeaderMap) -> Option<Presented> {
        let config = self.cookie.as_ref()?;
        let origin = only(headers, ORIGIN)?;
        if !config.origins.iter().any(|known| known == origin) {
            return None;
        }
        let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut values = pairs.filter(|(name, _)| *name == config.name).map(|(_, value)| value.trim_matches('"'));
        match (values.next(), values.next()) {
            (Some(value), None) => Some(Presented::CookieToken(value.to_owned())),
            _ => None,
        }
    }
}

/// The value of a header that stands there once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn text_of(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    const ALL: fn() -> PresentedConfig = || PresentedConfig {
        basic: true,
        bearer: true,
        cookie: Some(CookieConfig { name: "token".into(), origins: vec!["https://app.example.com".into()] }),
        subprotocol: true,
    };

    fn read(config: &PresentedConfig, lines: &[(&'static str, &'static str)], protocols: &[&str]) -> Option<Presented> {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        config.read(&map, protocols.iter().copied())
    }

    #[test]
    fn each_is_read() {
        let basic = read(&ALL(), &[("authorization", "basic YWxpY2U6c2U6Y3JldA==")], &[]);
        assert_eq!(basic, Some(Presented::Basic { login: "alice".into(), passcode: "se:cret".into() }));
        let bearer = read(&ALL(), &[("authorization", "Bearer  a.b.c")], &[]);
        assert_eq!(bearer, Some(Presented::BearerToken("a.b.c".into())));
        let subprotocol = read(&ALL(), &[], &["v12.stomp", "base64url.bearer.authorization.YS5iLmM"]);
        assert_eq!(subprotocol, Some(Presented::SubprotocolToken("a.b.c".into())));
        let cookie = [("origin", "https://app.example.com"), ("cookie", "x=1; token=a.b.c; y=2")];
        assert_eq!(read(&ALL(), &cookie, &[]), Some(Presented::CookieToken("a.b.c".into())));
        assert_eq!(format!("{:?}", read(&ALL(), &cookie, &[])), "Some(CookieToken)");
    }

    #[test]
    fn a_cookie_counts_from_named_origins_only() {
        for origin in [
            "https://evil.example",
            "https://app.example.com.evil.example",
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com/",
            "null",
        ] {
            assert_eq!(read(&ALL(), &[("origin", origin), ("cookie", "token=a.b.c")], &[]), None, "{origin}");
        }
        assert_eq!(read(&ALL(), &[("cookie", "token=a.b.c")], &[]), None, "no origin");
    }

    #[test]
    fn what_is_off_repeated_or_broken_does_not_count() {
        let off = PresentedConfig::default();
        let cookie = [("origin", "https://app.example.com"), ("cookie", "token=a.b.c")];
        assert_eq!(read(&off, &[("authorization", "Bearer a.b.c")], &["base64url.bearer.authorization.YS5iLmM"]), None);
        assert_eq!(read(&off, &cookie, &[]), None);
        for lines in [
            &[("authorization", "Bearer a.b.c"), ("authorization", "Bearer d.e.f")][..],
            &[("authorization", "Basic ***")],
            &[("authorization", "Basic YWxpY2U=")],
            &[("authorization", "Bearer")],
            &[("authorization", "Digest x")],
            &[("origin", "https://app.example.com"), ("cookie", "token=a"), ("cookie", "token=b")],
            &[("origin", "https://app.example.com"), ("cookie", "TOKEN=a; xtoken=b")],
        ] {
            assert_eq!(read(&ALL(), lines, &[]), None, "{lines:?}");
        }
        assert_eq!(read(&ALL(), &[], &["base64url.bearer.authorization.Y*"]), None);
    }
}
