//! The audit log: who came, who was let in, what was denied, what was changed. Events of a target of their own, so that they can
//! go to a file of their own, as JSON lines: what a client writes can't forge one.
//!
//! No passcode, token or body is ever given to anything here. Where the lines go is `telemetry`'s business.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::info;

/// The target of all events here.
pub const TARGET: &str = "audit";

/// Characters of a text that a client wrote which are kept: strangers cause these lines.
pub const TEXT_CHARS_MAX: usize = 256;

/// Of the one log of this process.
static LOST: AtomicU64 = AtomicU64::new(0);
static FAILING: AtomicBool = AtomicBool::new(false);
static REQUIRED: AtomicBool = AtomicBool::new(false);
static REASON: Mutex<String> = Mutex::new(String::new());

/// Told by who writes the log: an event was written, and so are others again.
pub fn written() {
    if FAILING.load(Ordering::Relaxed) {
        FAILING.store(false, Ordering::Relaxed);
    }
}

/// Told by who writes the log: an event could not be written.
pub fn lost(reason: &str) {
    LOST.fetch_add(1, Ordering::Relaxed);
    reason.clone_into(&mut REASON.lock().unwrap_or_else(PoisonError::into_inner));
    FAILING.store(true, Ordering::Relaxed);
}

/// Events that could not be written since the start, and why the last one could not.
pub fn losses() -> (u64, String) {
    let reason = REASON.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (LOST.load(Ordering::Relaxed), reason)
}

/// Whether the last event could not be written.
pub fn is_failing() -> bool {
    FAILING.load(Ordering::Relaxed)
}

/// Whether nobody may come in whose coming can't be put on record.
pub fn set_required(required: bool) {
    REQUIRED.store(required, Ordering::Relaxed);
}

/// Whether newcomers have to be turned away: the record is required and can't be written.
pub fn keeps_out() -> bool {
    REQUIRED.load(Ordering::Relaxed) && is_failing()
}

/// Its beginning.
pub fn cut(text: &str) -> &str {
    text.char_indices().nth(TEXT_CHARS_MAX).map_or(text, |(end, _)| &text[..end])
}

/// Whom an event is about, as far as that is known.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The address, and the proxies between.
    pub client: &'a str,
    /// Of the page, as the client says; empty for programs.
    pub origin: &'a str,
    pub session: &'a str,
    /// Empty before the login.
    pub user: &'a str,
    pub vhost: &'a str,
}

/// An event with what is known about its subject, and these fields besides.
macro_rules! tell {
    ($event:literal, $who:expr, $($field:tt)*) => {{
        let Subject { client, origin, session, user, vhost } = $who;
        let origin = cut(origin);
        info!(target: TARGET, event = $event, session, client, origin, user, vhost, $($field)*);
    }};
}

/// `user_agent` is as the client says.
pub fn opened(who: Subject<'_>, user_agent: &str) {
    tell!("connection.opened", who, user_agent = cut(user_agent));
}

/// `left_out`: further events of this client that were not told.
pub fn closed(who: Subject<'_>, code: u16, reason: &str, seconds: u64, left_out: Option<u64>) {
    tell!("connection.closed", who, code, reason, seconds, left_out);
}

/// `method` is a value of `auth.sources`.
pub fn authenticated(who: Subject<'_>, method: &str) {
    tell!("authentication.ok", who, method);
}

/// `what` is RabbitMQ's word for what the user lacks.
pub fn denied_by_rabbitmq(who: Subject<'_>, what: &str) {
    tell!("authorization.denied", who, what = cut(what), rule = "rabbitmq");
}

/// `claimed` is who the client says it is.
pub fn not_authenticated(who: Subject<'_>, claimed: &str, method: &str, result: &str) {
    tell!("authentication.failed", who, claimed = cut(claimed), method, result);
}

pub fn refreshed(who: Subject<'_>, result: &str) {
    tell!("authentication.refreshed", who, result);
}

/// `what` names the operation, the destination and what is missing, as the client is told; `rule` the one that decided, by
/// its number from 1 and its name.
pub fn denied(who: Subject<'_>, what: &str, rule: Option<(usize, Option<&str>)>) {
    let number = rule.map_or_else(|| "none".to_owned(), |(number, _)| number.to_string());
    tell!("authorization.denied", who, what = cut(what), rule = number, rule_name = rule.and_then(|(_, name)| name));
}

/// What a stranger was refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Host,
    Origin,
}

/// A request that was turned away before it became a connection of anybody.
pub fn refused(client: &str, why: Refused, origin: &str, host: &str) {
    let reason = match why {
        Refused::Host => "host",
        Refused::Origin => "origin",
    };
    let (origin, host) = (cut(origin), cut(host));
    info!(target: TARGET, event = "connection.refused", client, reason, origin, host);
}

/// Events about strangers that were not told, since there were too many.
pub fn left_out(count: u64) {
    info!(target: TARGET, event = "strangers.left_out", count);
}

/// The keys that were set differently.
pub fn reloaded(applied: &[String], need_restart: &[String]) {
    info!(target: TARGET, event = "config.reloaded", applied = applied.join(" "), need_restart = need_restart.join(" "));
}

pub fn not_reloaded(reason: &str) {
    info!(target: TARGET, event = "config.refused", reason);
}
