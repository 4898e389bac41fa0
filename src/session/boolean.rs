//! Headers that say yes or no. All of them are read here, so that a spelling means the same in each.

use super::refusal::Refusal;
use crate::stomp::Headers;

/// `true` or `false`, as the plugin spells them: in lower case, or with a capital. Anything else is an error, because what it
/// would be taken for is a guess: the plugin itself shows `persistent:1` for messages that are not persistent.
///
/// # Errors
/// Another spelling.
pub(super) fn boolean(name: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "true" | "True" => Ok(true),
        "false" | "False" => Ok(false),
        _ => Err(Refusal::bad_header(name, "expected true or false")),
    }
}

/// None: the frame has no such header.
///
/// # Errors
/// It has one that is spelt otherwise.
pub(super) fn flag(headers: &Headers, name: &str) -> Result<Option<bool>, Refusal> {
    headers.get(name).map(|value| boolean(name, value)).transpose()
}
