//! Rules between the keys about who may come in.

use super::reader::Reader;
use super::rules::loaded;
use super::{Config, Jwt, files};
use crate::auth::{KeySet, Symmetric, discovery_url};
use crate::session::proof::Source;

pub(super) fn check(config: &Config, reader: &mut Reader) {
    service(config, reader);
    cookie(config, reader);
    if config.auth.jwt != Jwt::Off {
        keys(config, reader);
        audience(config, reader);
    }
}

fn service(config: &Config, reader: &mut Reader) {
    let auth = &config.auth;
    let keys = ["auth.service_login", "auth.service_passcode", "auth.service_passcode_file"];
    if !reader.sound(&keys) || !reader.sound(&["auth.jwt", "auth.sources"]) {
        return;
    }
    if auth.service_login.is_some() != auth.service_passcode.is_some() {
        reader.blame(&keys, "auth.service_login and auth.service_passcode: set both or none".to_owned());
    } else if auth.service_login.is_none() && auth.jwt == Jwt::Relay {
        reader
            .blame(&["auth.jwt"], "auth.jwt = \"relay\" needs auth.service_login and auth.service_passcode".to_owned());
    } else if auth.service_login.is_none() && auth.sources.contains(&Source::Certificate) {
        let text = "auth.sources: certificate needs auth.service_login and auth.service_passcode";
        reader.blame(&["auth.sources"], text.to_owned());
    }
}

/// Without origins no cookie would ever count, and `*` would let every page in as its visitor.
fn cookie(config: &Config, reader: &mut Reader) {
    let auth = &config.auth;
    let keys = ["auth.cookie_origins", "auth.sources"];
    if !auth.sources.contains(&Source::JwtCookie) || !reader.sound(&keys) {
        return;
    }
    if auth.cookie_origins.is_empty() {
        reader.blame(&["auth.sources"], "auth.sources: jwt_cookie needs auth.cookie_origins".to_owned());
    }
    for origin in auth.cookie_origins.iter().filter(|origin| !is_origin(origin)) {
        let text =
            format!("auth.cookie_origins: {origin:?} is no origin; write https://app.example.com, without a path");
        reader.blame(&keys, text);
    }
}

/// As browsers serialize one (RFC 6454, 6.2).
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    !host.is_empty()
        && host.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b':' | b'[' | b']'))
}

fn keys(config: &Config, reader: &mut Reader) {
    let auth = &config.auth;
    let paths = ["auth.keys_file", "auth.jwks_url", "auth.hmac_secret", "auth.hmac_secret_file", "auth.issuer"];
    if !reader.sound(&paths) {
        return;
    }
    let given = [auth.keys_file.is_some(), auth.jwks_url.is_some(), auth.hmac_secret.is_some()];
    match (given.iter().filter(|given| **given).count(), &auth.issuer) {
        (0, None) => {
            let text = "auth.jwt needs keys: set auth.keys_file, auth.jwks_url, auth.hmac_secret, or auth.issuer for discovery";
            reader.blame(&["auth.jwt"], text.to_owned());
        }
        (0, Some(issuer)) => {
            if let Err(reason) = discovery_url(issuer) {
                let text = format!("auth.issuer: {reason}; without it there is no discovery, set auth.jwks_url");
                reader.blame(&["auth.issuer"], text);
            }
        }
        (1, _) => {}
        _ => {
            let text = "auth.keys_file, auth.jwks_url and auth.hmac_secret: set one";
            reader.blame(&paths, text.to_owned());
        }
    }
    if let Some(path) = &auth.keys_file {
        loaded(reader, "auth.keys_file", path, |path| KeySet::parse(&files::read(path)?, Symmetric::Allowed));
    }
    if let Some(path) = &auth.jwks_ca_file {
        loaded(reader, "auth.jwks_ca_file", path, files::read_certificates);
    }
    if let Some(Err(reason)) = auth.hmac_secret.as_ref().map(|secret| KeySet::of_secret(secret.expose())) {
        reader.blame(&["auth.hmac_secret", "auth.hmac_secret_file"], format!("auth.hmac_secret: {reason}"));
    }
}

/// A token that was made for another service is a token of an honest user in the hands of that service.
fn audience(config: &Config, reader: &mut Reader) {
    if config.auth.audience.is_empty() && reader.sound(&["auth.audience", "auth.jwt"]) {
        reader
            .blame(&["auth.jwt"], "auth.jwt needs auth.audience: else tokens for any service are accepted".to_owned());
    }
}
