//! The verification of one JSON web token (RFC 7519, RFC 8725): pure, `now` is a parameter.
//!
//! Order: size and form, algorithm, key, signature, claims. Nothing of the claims is looked at before the signature is good.
//! `jku`, `x5u`, `jwk` and `x5c` of a token's header are never followed.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::claims;
use super::key::KeySet;

/// Bytes of a `kid`.
const KEY_ID_BYTES_MAX: usize = 256;
/// Bytes of a user's name: it becomes an AMQP short string.
const USER_BYTES_MAX: usize = 255;
/// What a token says of its end beyond this is cut, in seconds: clocks and timers need not know farther.
const LIFETIME_MAX: u64 = 10 * 366 * 24 * 3600;

/// What a token must be to be accepted.
#[derive(Clone, Debug)]
pub struct Rules {
    /// No other is verified, whatever the keys can do.
    pub algorithms: Vec<Algorithm>,
    /// The token is for one of these.
    pub audiences: Vec<String>,
    /// None: any.
    pub issuer: Option<String>,
    /// How far the clock of who signed may be from ours.
    pub leeway: Duration,
    pub token_bytes_max: usize,
    /// The first of these claims that the token has is the user's name.
    pub user_claims: Vec<String>,
}

/// A token that was accepted, without the token.
#[derive(Clone, PartialEq, Eq)]
pub struct Verified {
    pub claims: BTreeMap<String, Vec<String>>,
    /// `exp`, in seconds since 1970.
    pub expires: u64,
    pub user: String,
}

/// Without the claims: they are about a person.
impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verified").field("user", &self.user).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Why a token was not accepted; for the log. Texts that come from the token are quoted and cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token has {bytes} bytes, more than auth.token_bytes_max")]
    TooLong { bytes: usize },
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the algorithm {0} is not in auth.algorithms")]
    Algorithm(String),
    /// Another key set may have it.
    #[error("no trusted key has the id {0}")]
    UnknownKey(String),
    #[error("the signature is not by a trusted key")]
    Signature,
    #[error("the claim {0} is missing")]
    Missing(&'static str),
    #[error("the claim {0} has the wrong type")]
    Type(&'static str),
    #[error("expired {seconds} s ago")]
    Expired { seconds: u64 },
    #[error("{claim} is {seconds} s in the future")]
    Future { claim: &'static str, seconds: u64 },
    #[error("the issuer is {0}, not auth.issuer")]
    Issuer(String),
    #[error("the audience is {0}, none of auth.audience")]
    Audience(String),
    #[error("none of auth.user_claims is a text of 1 to 255 bytes without control characters")]
    User,
}

/// What a token's header says that matters.
struct Header {
    algorithm: Algorithm,
    key_id: Option<String>,
}

/// `now` in seconds since 1970.
///
/// # Errors
/// See [`TokenError`]. Only [`TokenError::UnknownKey`] is worth another look at newer keys.
pub fn verify(token: &str, keys: &KeySet, rules: &Rules, now: u64) -> Result<Verified, TokenError> {
    if token.len() > rules.token_bytes_max {
        return Err(TokenError::TooLong { bytes: token.len() });
    }
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed("not three parts with dots between: no signed token"));
    };
    let Header { algorithm, key_id } = read_header(header, rules)?;
    let mut candidates = keys.candidates(key_id.as_deref()).peekable();
    if candidates.peek().is_none() {
        return Err(TokenError::UnknownKey(key_id.as_deref().map_or_else(|| "(none)".to_owned(), quote)));
    }
    let message = &token.as_bytes()[..header.len() + 1 + payload.len()];
    if !candidates.any(|key| key.verifies(algorithm, message, signature)) {
        return Err(TokenError::Signature);
    }
    read_claims(&object(payload)?, rules, now)
}

fn read_header(part: &str, rules: &Rules) -> Result<Header, TokenError> {
    let header = object(part)?;
    // Extensions that must be understood (RFC 7515, 4.1.11): none is.
    if header.contains_key("crit") {
        return Err(TokenError::Malformed("the header has crit"));
    }
    let name = header.get("alg").and_then(Value::as_str).ok_or(TokenError::Malformed("the header has no alg"))?;
    let algorithm: Algorithm = name.parse().map_err(|_| TokenError::Algorithm(quote(name)))?;
    if !rules.algorithms.contains(&algorithm) {
        return Err(TokenError::Algorithm(quote(name)));
    }
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) if id.len() <= KEY_ID_BYTES_MAX => Some(id.clone()),
        Some(_) => return Err(TokenError::Malformed("kid is no text, or too long")),
    };
    Ok(Header { algorithm, key_id })
}

fn object(part: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("a part is not base64url"))?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed("a part is no JSON object"))
}

fn read_claims(claims: &Map<String, Value>, rules: &Rules, now: u64) -> Result<Verified, TokenError> {
    let leeway = rules.leeway.as_secs();
    let expires = time(claims, "exp")?.ok_or(TokenError::Missing("exp"))?;
    if expires.saturating_add(leeway) <= now {
        return Err(TokenError::Expired { seconds: now - expires });
    }
    for claim in ["nbf", "iat"] {
        let from = time(claims, claim)?.unwrap_or(0);
        if from > now.saturating_add(leeway) {
            return Err(TokenError::Future { claim, seconds: from - now });
        }
    }
    check_issuer(claims, rules)?;
    check_audience(claims, rules)?;
    let claims = claims::texts(claims);
    let user = user(&claims, rules).ok_or(TokenError::User)?;
    Ok(Verified { claims, expires: expires.min(now + LIFETIME_MAX), user })
}

/// A NumericDate (RFC 7519, 2), which may have a fraction.
fn time(claims: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, TokenError> {
    match claims.get(name) {
        None => Ok(None),
        // A cast saturates: what is before 1970 is 0.
        Some(Value::Number(number)) => {
            number.as_f64().map(|seconds| Some(seconds as u64)).ok_or(TokenError::Type(name))
        }
        Some(_) => Err(TokenError::Type(name)),
    }
}

fn check_issuer(claims: &Map<String, Value>, rules: &Rules) -> Result<(), TokenError> {
    let Some(wanted) = &rules.issuer else { return Ok(()) };
    match claims.get("iss") {
        None => Err(TokenError::Missing("iss")),
        Some(Value::String(issuer)) if issuer == wanted => Ok(()),
        Some(Value::String(issuer)) => Err(TokenError::Issuer(quote(issuer))),
        Some(_) => Err(TokenError::Type("iss")),
    }
}

fn check_audience(claims: &Map<String, Value>, rules: &Rules) -> Result<(), TokenError> {
    let is_ours =
        |audience: &Value| audience.as_str().is_some_and(|text| rules.audiences.iter().any(|ours| ours == text));
    let audience = claims.get("aud").ok_or(TokenError::Missing("aud"))?;
    let ours = match audience {
        Value::String(_) => is_ours(audience),
        Value::Array(audiences) => audiences.iter().any(is_ours),
        _ => return Err(TokenError::Type("aud")),
    };
    if ours { Ok(()) } else { Err(TokenError::Audience(quote(&audience.to_string()))) }
}

fn user(claims: &BTreeMap<String, Vec<String>>, rules: &Rules) -> Option<String> {
    let [user] = rules.user_claims.iter().find_map(|name| claims.get(name))?.as_slice() else { return None };
    let fits = (1..=USER_BYTES_MAX).contains(&user.len()) && !user.chars().any(char::is_control);
    fits.then(|| user.clone())
}

/// For a log line that can't be forged.
fn quote(text: &str) -> String {
    let cut: String = text.chars().take(64).collect();
    format!("{cut:?}")
}
