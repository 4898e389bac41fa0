//! The audit log: who came, who was let in, what was denied, what was changed. Events of a target of their own, so that they can
//! go to a file of their own, as JSON lines: what a client writes can't forge one.
//!
//! No passcode, token or body is ever given to anything here. Where the lines go is `telemetry`'s business.

use tracing::info;

/// The target of all events here.
pub const TARGET: &str = "audit";

/// Characters of a text that a client wrote which are kept: strangers cause these lines.
pub const TEXT_CHARS_MAX: usize = 256;

fn cut(text: &str) -> &str {
    text.char_indices().nth(TEXT_CHARS_MAX).map_or(text, |(end, _)| &text[..end])
}

/// Whom an event is about, as far as that is known.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The address, and the proxies between.
    pub client: &'a str,
    pub session: &'a str,
    /// Empty before the login.
    pub user: &'a str,
    pub vhost: &'a str,
}

/// `origin` and `user_agent` are as the client says.
pub fn opened(who: Subject<'_>, origin: &str, user_agent: &str) {
    let (origin, user_agent) = (cut(origin), cut(user_agent));
    info!(target: TARGET, event = "connection.opened", session = who.session, client = who.client, origin, user_agent);
}

pub fn closed(who: Subject<'_>, code: u16, reason: &str, seconds: u64) {
    let Subject { client, session, user, vhost } = who;
    info!(target: TARGET, event = "connection.closed", session, client, user, vhost, code, reason, seconds);
}

/// `method` is a value of `auth.sources`.
pub fn authenticated(who: Subject<'_>, method: &str) {
    let Subject { client, session, user, vhost } = who;
    info!(target: TARGET, event = "authentication.ok", session, client, user, vhost, method);
}

/// `claimed` is who the client says it is.
pub fn not_authenticated(who: Subject<'_>, claimed: &str, method: &str, result: &str) {
    let (Subject { client, session, .. }, claimed) = (who, cut(claimed));
    info!(target: TARGET, event = "authentication.failed", session, client, claimed, method, result);
}

pub fn refreshed(who: Subject<'_>, result: &str) {
    let Subject { client, session, user, vhost } = who;
    info!(target: TARGET, event = "authentication.refreshed", session, client, user, vhost, result);
}

/// `what` names the operation, the destination and what is missing, as the client is told.
pub fn denied(who: Subject<'_>, what: &str) {
    let (Subject { client, session, user, vhost }, what) = (who, cut(what));
    info!(target: TARGET, event = "authorization.denied", session, client, user, vhost, what);
}

/// The keys that were set differently.
pub fn reloaded(applied: &[String], need_restart: &[String]) {
    info!(target: TARGET, event = "config.reloaded", applied = applied.join(" "), need_restart = need_restart.join(" "));
}

pub fn not_reloaded(reason: &str) {
    info!(target: TARGET, event = "config.refused", reason);
}
