//! What can be counted from outside: every metric, its name and its labels. Process-level counters that never fall; no label
//! holds a user, a session or a destination, so their number is bounded by the source.
//!
//! The parts hold this and count; nothing here asks anybody anything. Gauges of things that know their own number (links,
//! connections) are read when somebody looks, by `admin`.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::session::Stats;
use crate::session::proof::{Denial, ProofFailure};
use crate::session::refusal::{Close, CloseCode};
use crate::stomp::Command;

/// Seconds: from a second to a day, with the idle limits of common proxies between.
const SESSION_SECONDS: [f64; 11] = [1.0, 10.0, 60.0, 100.0, 240.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0, 86_400.0];
/// Seconds: a broker answers within milliseconds; a failover takes many seconds.
const LOGIN_SECONDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
const OUTAGE_SECONDS: [f64; 8] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From clients.
    In,
    /// To clients.
    Out,
}

/// By hand: a derived one would show what the variants are called.
impl EncodeLabelValue for Direction {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Direction::In => "in",
            Direction::Out => "out",
        }
        .encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FrameLabels {
    command: &'static str,
    dir: Direction,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabel {
    dir: Direction,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabel {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CommandLabel {
    command: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ActionLabel {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SideLabel {
    side: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    route: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabels {
    result: &'static str,
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AttemptLabels {
    method: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// All counters. Cheap to update from many tasks at once.
#[derive(Debug, Default)]
pub struct Metrics {
    auth_attempts: Family<AttemptLabels, Counter>,
    authz_denied: Family<CommandLabel, Counter>,
    connections_rejected: Family<ReasonLabel, Counter>,
    memory_ended: Family<LimitLabel, Counter>,
    errors: Family<CodeLabel, Counter>,
    failovers: Counter,
    frames: Family<FrameLabels, Counter>,
    heartbeat_timeouts: Family<SideLabel, Counter>,
    http_requests: Family<RequestLabels, Counter>,
    jwks_refreshes: Family<ResultLabel, Counter>,
    late_acks: Counter,
    messages: Family<DirectionLabel, Counter>,
    messages_confirmed: Counter,
    messages_dropped: Counter,
    messages_rejected: Counter,
    messages_repeated: Counter,
    /// Sessions that wait for a broker.
    pub suspended: Gauge,
    /// Sessions that are logged in.
    pub sessions: Gauge,
    sends_throttled: Counter,
    sessions_closed: Family<ReasonLabel, Counter>,
    /// Bytes that wait for clients' sockets.
    pub send_queue_bytes: Gauge,
    slow_consumers: Family<ActionLabel, Counter>,
    /// Subscriptions of all sessions.
    pub subscriptions: Gauge,
    timings: Timings,
    upgrades: Family<ResultLabel, Counter>,
    /// TLS towards clients.
    pub tls: TlsMetrics,
    token_refreshes: Family<ResultLabel, Counter>,
    /// Deliveries that clients have not settled.
    pub unacked: Gauge,
}

/// Counters of TLS; cheap to clone, all clones count together.
#[derive(Clone, Debug)]
pub struct TlsMetrics {
    handshakes: Family<HandshakeLabels, Counter>,
    duration: Histogram,
    not_after: Family<NameLabel, Gauge>,
}

impl Default for TlsMetrics {
    fn default() -> TlsMetrics {
        TlsMetrics {
            handshakes: Family::default(),
            duration: Histogram::new(LOGIN_SECONDS),
            not_after: Family::default(),
        }
    }
}

impl TlsMetrics {
    pub fn handshake(&self, result: &'static str, version: &'static str) {
        self.handshakes.get_or_create(&HandshakeLabels { result, version }).inc();
    }

    pub fn handshake_duration(&self, time: Duration) {
        self.duration.observe(time.as_secs_f64());
    }

    /// The certificates in use: a name, and the end of validity in seconds since the Unix epoch. Of several with one name
    /// the first to expire counts.
    pub fn certificates<'a>(&self, all: impl Iterator<Item = (&'a str, i64)>) {
        let mut earliest: BTreeMap<&str, i64> = BTreeMap::new();
        for (name, end) in all {
            earliest.entry(name).and_modify(|known| *known = end.min(*known)).or_insert(end);
        }
        self.not_after.clear();
        for (name, end) in earliest {
            self.not_after.get_or_create(&NameLabel { name: name.to_owned() }).set(end);
        }
    }
}

#[derive(Clone, Debug)]
struct Timings {
    confirm: Histogram,
    login: Histogram,
    ping: Histogram,
    outage: Histogram,
    session: Histogram,
}

impl Default for Timings {
    fn default() -> Timings {
        Timings {
            confirm: Histogram::new(LOGIN_SECONDS),
            login: Histogram::new(LOGIN_SECONDS),
            ping: Histogram::new(LOGIN_SECONDS),
            outage: Histogram::new(OUTAGE_SECONDS),
            session: Histogram::new(SESSION_SECONDS),
        }
    }
}

impl Metrics {
    /// Registers everything under the prefix `stomp_relay`.
    pub fn register(&self, registry: &mut Registry) {
        let build: Family<BuildLabels, Gauge> = Family::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build", "What runs here", build);
        registry.register("auth_attempts", "Logins by method and result", self.auth_attempts.clone());
        registry.register("authz_denied", "Frames that a rule denied, by command", self.authz_denied.clone());
        registry.register("connections_rejected", "Connections refused by reason", self.connections_rejected.clone());
        let help = "Sessions ended for the memory they held, by limit";
        registry.register("memory_sessions_ended", help, self.memory_ended.clone());
        registry.register("stomp_errors", "ERROR frames by error-code", self.errors.clone());
        registry.register("failovers", "Times a session lost its lease on the broker", self.failovers.clone());
        registry.register("stomp_frames", "STOMP frames by command and direction", self.frames.clone());
        registry.register("jwks_refresh", "Readings of the keys for tokens by result", self.jwks_refreshes.clone());
        registry.register("late_acks", "ACKs of deliveries that were lost with their lease", self.late_acks.clone());
        registry.register("messages", "Messages: in from clients, out to clients", self.messages.clone());
        registry.register("publish_confirmed", "Messages that RabbitMQ confirmed", self.messages_confirmed.clone());
        registry.register(
            "messages_dropped",
            "Messages a slow client lost by drop_oldest",
            self.messages_dropped.clone(),
        );
        registry.register(
            "publish_rejected",
            "Messages that RabbitMQ refused or returned",
            self.messages_rejected.clone(),
        );
        registry.register(
            "publish_repeated",
            "Messages published again after a failover",
            self.messages_repeated.clone(),
        );
        registry.register("sessions", "Sessions that are logged in", self.sessions.clone());
        registry.register("sessions_suspended", "Sessions that wait for a broker", self.suspended.clone());
        registry.register(
            "sends_throttled",
            "Times a client sent too fast and was not read",
            self.sends_throttled.clone(),
        );
        registry.register("sessions_closed", "Ended sessions by reason", self.sessions_closed.clone());
        registry.register("send_queue_bytes", "Bytes that wait for clients' sockets", self.send_queue_bytes.clone());
        registry.register("slow_consumers", "Slow clients by what was done", self.slow_consumers.clone());
        registry.register("heartbeat_timeouts", "Silent peers", self.heartbeat_timeouts.clone());
        registry.register("http_requests", "Requests by route and status", self.http_requests.clone());
        registry.register("ws_upgrades", "Requests to the WebSocket's path by result", self.upgrades.clone());
        registry.register("subscriptions", "Subscriptions", self.subscriptions.clone());
        registry.register("token_refresh", "New tokens of live sessions by result", self.token_refreshes.clone());
        registry.register("unacked_messages", "Deliveries that clients have not settled", self.unacked.clone());
        let TlsMetrics { handshakes, duration, not_after } = self.tls.clone();
        registry.register("tls_handshakes", "TLS handshakes by result and version", handshakes);
        registry.register_with_unit("tls_handshake_duration", "Time of a TLS handshake", Unit::Seconds, duration);
        registry.register_with_unit(
            "tls_certificate_not_after_timestamp",
            "End of a certificate's validity",
            Unit::Seconds,
            not_after,
        );
        let Timings { confirm, login, ping, outage, session } = self.timings.clone();
        registry.register_with_unit("publish_confirm_duration", "From SEND to confirm", Unit::Seconds, confirm);
        registry.register_with_unit("auth_duration", "Time of a login at RabbitMQ", Unit::Seconds, login);
        registry.register_with_unit("ws_ping_rtt", "From a ping to the client's pong", Unit::Seconds, ping);
        registry.register_with_unit("failover_duration", "Time without a lease", Unit::Seconds, outage);
        registry.register_with_unit("session_duration", "Age of ended sessions", Unit::Seconds, session);
    }

    pub fn frame(&self, command: &Command, dir: Direction) {
        let command = command.name().unwrap_or("unknown");
        self.frames.get_or_create(&FrameLabels { command, dir }).inc();
    }

    /// A frame that a rule denied. The rule is no label: operators may have thousands.
    pub fn denied(&self, command: &'static str) {
        self.authz_denied.get_or_create(&CommandLabel { command }).inc();
    }

    /// `code` is one of those in docs/errors.md.
    pub fn error(&self, code: &str) {
        self.errors.get_or_create(&CodeLabel { code: code.to_owned() }).inc();
    }

    /// `method` is a source's name.
    pub fn login(&self, method: &'static str, result: Result<(), &Denial>, seconds: f64) {
        let result = result.map_or_else(Denial::label, |()| "ok");
        self.auth_attempts.get_or_create(&AttemptLabels { method, result }).inc();
        self.timings.login.observe(seconds);
    }

    pub fn token_refreshed(&self, result: Result<(), &ProofFailure>) {
        let result = result.map_or_else(ProofFailure::label, |()| "ok");
        self.token_refreshes.get_or_create(&ResultLabel { result }).inc();
    }

    pub fn jwks_refreshed(&self, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.jwks_refreshes.get_or_create(&ResultLabel { result }).inc();
    }

    /// `limit`: of the process, the session or the user.
    pub fn ended_for_memory(&self, limit: &'static str) {
        self.memory_ended.get_or_create(&LimitLabel { limit }).inc();
    }

    pub fn rejected(&self, reason: &'static str) {
        self.connections_rejected.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// `code` is one of the statuses of docs/errors.md.
    pub fn request(&self, route: &'static str, code: u16) {
        self.http_requests.get_or_create(&RequestLabels { route, code }).inc();
    }

    pub fn upgrade(&self, result: &'static str) {
        self.upgrades.get_or_create(&ResultLabel { result }).inc();
    }

    pub fn outage_ended(&self, seconds: f64) {
        self.timings.outage.observe(seconds);
    }

    pub fn confirmed(&self, time: Duration) {
        self.timings.confirm.observe(time.as_secs_f64());
    }

    pub fn ponged(&self, time: Duration) {
        self.timings.ping.observe(time.as_secs_f64());
    }

    pub fn session_closed(&self, reason: &'static str, seconds: f64) {
        match reason {
            "heartbeat" => self.heartbeat_timeouts.get_or_create(&SideLabel { side: "client" }).inc(),
            "slow_consumer" => self.slow_consumers.get_or_create(&ActionLabel { action: "disconnect" }).inc(),
            _ => 0,
        };
        self.sessions_closed.get_or_create(&ReasonLabel { reason }).inc();
        self.timings.session.observe(seconds);
    }

    /// What a session has done since it was last counted.
    pub fn count(&self, now: &Stats, before: &Stats) {
        let message = |dir, count| {
            if count > 0 {
                self.messages.get_or_create(&DirectionLabel { dir }).inc_by(count);
            }
        };
        message(Direction::In, now.messages_published - before.messages_published);
        message(Direction::Out, now.messages_delivered - before.messages_delivered);
        self.failovers.inc_by(now.suspensions - before.suspensions);
        self.late_acks.inc_by(now.late_acks - before.late_acks);
        self.messages_confirmed.inc_by(now.messages_confirmed - before.messages_confirmed);
        let dropped = now.messages_dropped - before.messages_dropped;
        if dropped > 0 {
            self.messages_dropped.inc_by(dropped);
            self.slow_consumers.get_or_create(&ActionLabel { action: "drop_oldest" }).inc();
        }
        self.sends_throttled.inc_by(now.throttles - before.throttles);
        self.messages_rejected.inc_by(now.messages_rejected - before.messages_rejected);
        self.messages_repeated.inc_by(now.messages_repeated - before.messages_repeated);
    }
}

/// Why a session ended, for the log and the metrics.
pub fn close_reason(close: &Close, peer: Peer) -> &'static str {
    match (close.code, peer) {
        (CloseCode::Normal, Peer::Gone) => "network",
        (CloseCode::Normal, Peer::There) => "client",
        (CloseCode::ProtocolError | CloseCode::InvalidFrame | CloseCode::TooBig, _) => "protocol",
        (CloseCode::PolicyViolation, _) if close.error == Some("limit.session_memory") => "limit",
        (CloseCode::PolicyViolation, _) => "policy",
        (CloseCode::InternalError, _) => "broker",
        (CloseCode::TryAgainLater, _) => match close.error {
            Some("auth.too_many_failures") => "limit",
            Some("auth.unavailable") => "auth_unavailable",
            Some(code) if code.starts_with("limit.") => "limit",
            _ => "broker",
        },
        (CloseCode::ServiceRestart, _) => "drain",
        (CloseCode::TokenExpired, _) => "token_expired",
        (CloseCode::SlowConsumer, _) => "slow_consumer",
        (CloseCode::HeartbeatMissed, _) => "heartbeat",
    }
}

/// Whether the client's socket was still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Gone,
    There,
}
