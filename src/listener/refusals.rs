//! The log lines about refused pages: enough of them to find the cause, never so many that they fill a disk.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use tracing::{debug, warn};

use super::host;
use super::origin;
use super::source::Source;
use crate::rate::{Bucket, Rate};

/// Warnings of this kind; those beyond are for the level `debug` alone.
const WARNINGS: Rate = Rate { per_second: 1, burst: 10 };

/// Longest part of an origin or host that is logged.
const SHOWN_MAX: usize = 200;

static BUCKET: Mutex<Bucket> = Mutex::new(Bucket::new());

/// Names the line of the configuration that would allow the origin, where there is one.
pub(super) fn origin(origin: &str, source: &Source, host: &str) {
    // An empty list means the same origin only; one that is there goes on behind this entry.
    let allow = origin::entry_for(origin).map(|entry| format!("[http] origins = [\"{entry}\"]"));
    let (origin, host) = (printable(origin), printable(host));
    if !is_due() {
        debug!(origin, host, client = %source, "WebSocket refused: pages of this origin may not connect");
        return;
    }
    match allow {
        Some(allow) => warn!(
            origin,
            host,
            client = %source,
            allow,
            "WebSocket refused: pages of this origin may not connect; if they should, add it to http.origins"
        ),
        None => warn!(
            origin,
            host,
            client = %source,
            "WebSocket refused: what its Origin header says is the origin of no page or application, and can't be allowed"
        ),
    }
}

/// Names the line of the configuration that would allow the name, where there is one.
pub(super) fn host(host: &str, source: &Source, origin: &str) {
    // An empty list means the names that are known anyway; one that is there goes on behind this entry.
    let allow = host::host_entry_for(host).map(|entry| format!("[http] hosts = [\"{entry}\"]"));
    let (origin, host) = (printable(origin), printable(host));
    if !is_due() {
        debug!(origin, host, client = %source, "request refused: the relay is not known by this name");
        return;
    }
    warn!(
        origin,
        host,
        client = %source,
        allow = allow.unwrap_or_default(),
        "request refused: the relay is not known by this name; if it should be, add it to http.hosts"
    );
}

/// A connection that begins as those of a TCP proxy do, from an address that is not one of `proxy.protocol_from`.
pub(super) fn proxy_header(peer: SocketAddr) {
    let remedy = format!("[proxy] protocol_from = [\"{}\"]", peer.ip().to_canonical());
    if is_due() {
        warn!(
            %peer,
            remedy,
            "connection refused: it begins with a PROXY protocol header, and its address is not in proxy.protocol_from; add it \
             if it is a proxy of yours"
        );
    }
}

fn is_due() -> bool {
    let now = Instant::now();
    let mut bucket = BUCKET.lock().unwrap_or_else(PoisonError::into_inner);
    let due = bucket.wait(WARNINGS, now).is_zero();
    if due {
        bucket.take(WARNINGS, now);
    }
    due
}

/// Nothing that could end a line or a quoted text.
fn printable(text: &str) -> String {
    let plain = |character: char| match character {
        '"' | '\\' => '?',
        _ if character.is_ascii_graphic() || character == ' ' => character,
        _ => '?',
    };
    text.chars().take(SHOWN_MAX).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_header_forges_a_line() {
        let hostile = "https://a\"]\nERROR forged\u{1b}[31m\\\u{202e}";
        assert_eq!(printable(hostile), "https://a?]?ERROR forged?[31m??");
        assert_eq!(printable(&"x".repeat(1000)).len(), SHOWN_MAX);
    }
}
