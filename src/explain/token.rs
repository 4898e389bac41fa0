//! What a JWT says of its owner, read without checking that any of it is true. For `explain` alone: nobody is let in by this.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use thiserror::Error;

use crate::session::identity::Identity;

/// Objects within objects that are looked into.
const DEPTH_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    #[error("is no JWT: three parts of base64url with dots between are expected")]
    Form,
    #[error("is no JWT: its second part is no JSON object")]
    Payload,
}

/// The user is `preferred_username`, else `sub`, else empty.
///
/// # Errors
/// The text is no JWT.
pub fn identity_of_token(text: &str) -> Result<Identity, TokenError> {
    let [_, payload, _] = text.trim().split('.').collect::<Vec<_>>()[..] else { return Err(TokenError::Form) };
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).map_err(|_| TokenError::Form)?;
    let payload: Value = serde_json::from_slice(&payload).map_err(|_| TokenError::Payload)?;
    let mut claims = BTreeMap::new();
    let Value::Object(_) = payload else { return Err(TokenError::Payload) };
    collect(&payload, "", 0, &mut claims);
    let first = |name: &str| claims.get(name).and_then(|values: &Vec<String>| values.first().cloned());
    let user = first("preferred_username").or_else(|| first("sub")).unwrap_or_default();
    Ok(Identity { user, claims, ..Identity::default() })
}

/// Texts and lists of texts; `a.b` is `b` in the object `a`.
fn collect(value: &Value, path: &str, depth: usize, claims: &mut BTreeMap<String, Vec<String>>) {
    match value {
        Value::String(text) => drop(claims.insert(path.to_owned(), vec![text.clone()])),
        Value::Array(values) => {
            let texts: Option<Vec<String>> = values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
            claims.extend(texts.map(|texts| (path.to_owned(), texts)));
        }
        Value::Object(fields) if depth < DEPTH_MAX => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect(value, &path, depth + 1, claims);
            }
        }
        _ => {}
    }
}
