//! Placeholders of patterns, and the values that a client gives them. The one place that judges whether a value is harmless.
//!
//! A value comes from outside: from a token, a certificate, a login. It stands for a piece of one part of a destination and
//! for nothing more, so a value that could be read as several parts, or as a wildcard, is no value at all.

use super::Client;
use crate::session::amqp::SHORT_TEXT_BYTES_MAX;

/// Combinations of claim values that are tried for one pattern; the rest do not match.
const COMBINATIONS_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `{cert.cn}`
    CertificateName,
    /// `{claim.NAME}`
    Claim(String),
    /// `{username}`
    Username,
    /// `{vhost}`
    VirtualHost,
}

impl Placeholder {
    /// # Errors
    /// For people: there is no such placeholder.
    pub(super) fn parse(name: &str) -> Result<Placeholder, String> {
        match name {
            "cert.cn" => Ok(Placeholder::CertificateName),
            "username" => Ok(Placeholder::Username),
            "vhost" => Ok(Placeholder::VirtualHost),
            _ => match name.strip_prefix("claim.") {
                Some(claim) if !claim.is_empty() && !claim.contains('{') => Ok(Placeholder::Claim(claim.to_owned())),
                _ => Err(format!(
                    "unknown placeholder {{{name}}}; there are {{username}}, {{vhost}}, {{claim.NAME}}, {{cert.cn}}"
                )),
            },
        }
    }

    /// What the client has for it, harmless or not.
    fn given<'a>(&self, client: &Client<'a>) -> Vec<&'a str> {
        match self {
            Placeholder::CertificateName => client.identity.certificate_name.as_deref().into_iter().collect(),
            Placeholder::Claim(name) => {
                client.identity.claims.get(name).into_iter().flatten().map(String::as_str).collect()
            }
            Placeholder::Username => vec![&client.identity.user],
            Placeholder::VirtualHost => vec![client.virtual_host],
        }
    }

    /// Whether the client has a value that may stand for it.
    pub(super) fn can_be_filled(&self, client: &Client<'_>) -> bool {
        self.given(client).into_iter().any(is_harmless)
    }
}

impl std::fmt::Display for Placeholder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Placeholder::CertificateName => f.write_str("{cert.cn}"),
            Placeholder::Claim(name) => write!(f, "{{claim.{name}}}"),
            Placeholder::Username => f.write_str("{username}"),
            Placeholder::VirtualHost => f.write_str("{vhost}"),
        }
    }
}

/// Whether a value can't be taken for more than a piece of one part: no separator of STOMP or AMQP, no wildcard, nothing that
/// could decode to one, nothing invisible.
fn is_harmless(value: &str) -> bool {
    let special = |c: char| matches!(c, '/' | '.' | '*' | '#' | '%' | '{' | '}') || c.is_control();
    !value.is_empty() && value.len() <= SHORT_TEXT_BYTES_MAX && !value.contains(special)
}

/// One value for each placeholder of a pattern.
pub(super) struct Values<'a>(Vec<(&'a Placeholder, &'a str)>);

impl<'a> Values<'a> {
    pub(super) const NONE: Values<'static> = Values(Vec::new());

    pub(super) fn get(&self, placeholder: &Placeholder) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == placeholder).map(|(_, value)| *value)
    }

    /// Whether `holds` for one choice of values. Values that do not occur in any of `texts` are left out: no part is matched
    /// by a value that is not in it.
    pub(super) fn any(
        placeholders: &'a [Placeholder],
        client: &Client<'a>,
        texts: [&str; 2],
        holds: impl Fn(&Values<'a>) -> bool,
    ) -> bool {
        if placeholders.is_empty() {
            return holds(&Values(Vec::new()));
        }
        let occurs = |value: &&str| is_harmless(value) && texts.iter().any(|text| text.contains(value));
        let choices: Vec<Vec<&str>> = placeholders
            .iter()
            .map(|placeholder| placeholder.given(client).into_iter().filter(occurs).collect())
            .collect();
        let combinations = choices.iter().try_fold(1usize, |product, choice| product.checked_mul(choice.len()));
        let combinations = combinations.unwrap_or(usize::MAX).min(COMBINATIONS_MAX);
        (0..combinations).any(|mut number| {
            let picked = placeholders.iter().zip(&choices).map(|(placeholder, choice)| {
                let value = choice[number % choice.len()];
                number /= choice.len();
                (placeholder, value)
            });
            holds(&Values(picked.collect()))
        })
    }
}
