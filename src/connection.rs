//! One client: the place where WebSocket, decoder, session and the broker lease meet, owned by one task, by value.
//!
//! Each turn: hand frames to the session while it wants them, carry out what it says, then wait for exactly one thing. No
//! decision about STOMP is made here; this file knows only when to ask.
//!
//! Back-pressure needs no code of its own: when the session wants no frames, the socket is read up to a small bound and then
//! left alone; when the socket does not take what is queued, deliveries stay at the broker.

mod charge;
mod deadline;
mod draining;
mod gauges;
mod opening;
mod quota;
mod stall;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use self::draining::Draining;
use self::gauges::{Gauged, Gauges, Presence};
use self::quota::Quota;
use self::stall::Stall;
use crate::audit::{self, Subject};
use crate::auth::Authenticator;
use crate::broker::{Broker, Channel, Take};
use crate::budget::{Excess, SESSION_BYTES};
use crate::clients::Place;
use crate::listener::tls::{Acceptor, Judged};
use crate::listener::{DriveError, Event, Incoming, Opened, Read, ReceiveError, WebSocket, Write};
use crate::login::{Applicant, Application, Logins, TokenRenewal};
use crate::metrics::{Direction, Metrics, Peer, close_reason};
use crate::patience;
use crate::session::admission::Limit;
use crate::session::config::SessionConfig;
use crate::session::event::BrokerEvent;
use crate::session::identity::Identity;
use crate::session::io::{Input, LoggedIn, Output};
use crate::session::proof::{Denial, ProofFailure};
use crate::session::refusal::{Close, CloseCode};
use crate::session::{Session, Stats};
use crate::stomp::{Command, Decoder, Escapes, Frame, Item, Limits, encode};

/// Bytes read ahead while the session wants no frames, so that pings are answered and a closed socket is noticed.
const READ_AHEAD_MAX: usize = 64 * 1024;

/// Who is ended to make room takes the reason within this time or not at all: what it has not read is kept until then.
const PARTING_MAX: Duration = Duration::from_secs(2);

/// Frames handled before the socket is written and everything else is looked at again.
const FRAMES_PER_TURN: usize = 64;

/// Events of the broker handled before the socket is written, so that what they bring shares a write.
const EVENTS_PER_TURN: usize = 64;

/// Bytes decoded before others of this thread have their turn: about a millisecond of the most laborious ones.
const DECODED_PER_TURN: usize = 64 * 1024;

/// The `error-code` of what RabbitMQ denies.
const ACCESS_REFUSED: &str = "broker.access_refused";

/// What all clients share that came under the same settings.
#[derive(Debug)]
pub struct ConnectionConfig {
    pub auth: Arc<Authenticator>,
    /// For the closing handshake and for giving back the lease.
    pub close_timeout: Duration,
    pub escapes: Escapes,
    pub limits: Limits,
    /// Until CONNECTED.
    pub login_limits: Limits,
    pub session: Arc<SessionConfig>,
    /// Who judges clients' certificates.
    pub tls: Option<Arc<Acceptor>>,
    /// Bytes waiting for a client's socket above which nothing more is taken from the broker or the client.
    pub write_buffer_bytes_max: usize,
    /// Time without a byte taken by a client's socket, while some wait, after which it counts as stalled.
    pub write_timeout: Duration,
}

type Refresh = Pin<Box<dyn Future<Output = Result<Identity, ProofFailure>> + Send>>;
type Login = Result<(Channel, LoggedIn), Denial>;

struct Connection {
    /// When the lease was asked for that is being waited for.
    asked: Instant,
    buffer: BytesMut,
    config: Arc<ConnectionConfig>,
    /// Its address and the proxies between, for the audit log.
    client: String,
    /// When the client's certificate is no longer valid.
    certificate_ends_at: Option<Instant>,
    /// By which files the client's certificate was judged last; None if it has shown none.
    certificate_judged: Option<Judged>,
    /// Of the client's certificate.
    common_name: Option<String>,
    /// What of the session's totals is in the metrics already.
    counted: Stats,
    /// Bytes decoded since others had their turn.
    decoded: usize,
    gauges: Gauges,
    /// Bytes of the client's that the session knows of.
    heard: u64,
    logins: Logins,
    decoder: Decoder,
    draining: Draining,
    lease: Option<Channel>,
    login: Option<Pin<Box<dyn Future<Output = Login> + Send>>>,
    metrics: Arc<Metrics>,
    /// The buffer may hold another complete frame.
    more: bool,
    /// Of the page, for the audit log; empty for programs.
    origin: String,
    /// The client sends nothing more; what it sent before is still handled.
    peer_gone: bool,
    place: Arc<Place>,
    /// When the ping was queued that has no answer yet.
    pinged: Option<Instant>,
    /// Of the audit log.
    quota: Quota,
    refresh: Option<Refresh>,
    /// No deadline is judged before: the relay woke up late.
    second_look: Option<Instant>,
    session: Session,
    /// What clients are served with that come now. A client that is in gets the rules of that, and has new tokens judged by it.
    settings: watch::Receiver<Arc<ConnectionConfig>>,
    socket: WebSocket,
    /// Reading or writing failed: it would fail again at once.
    socket_failed: bool,
    stall: Stall,
    started: Instant,
    /// Its user agent, while neither log nor audit log has told of it, because strangers caused too many lines.
    untold: Option<Box<str>>,
}

/// What a turn waited for.
#[expect(clippy::large_enum_variant, reason = "made and matched once per turn, never kept")]
enum Turn {
    Again,
    Broker(BrokerEvent),
    Deadline,
    Drain,
    Excess(Excess),
    /// What waits to be taken from the broker.
    Grown,
    Login(Login),
    Reconfigured,
    Refreshed(Result<Identity, ProofFailure>),
    Socket(Result<Event, DriveError>),
}

/// Serves one client to its end. Not an async function: its arguments would take their room in the task as long as it lives.
pub fn run(
    socket: WebSocket,
    opened: Opened,
    broker: Broker,
    settings: watch::Receiver<Arc<ConnectionConfig>>,
    metrics: Arc<Metrics>,
    place: Arc<Place>,
) -> impl Future<Output = ()> + Send {
    Box::new(Connection::new(socket, opened, broker, settings, metrics, place)).run()
}

impl Connection {
    async fn run(mut self: Box<Self>) {
        self.place.opened();
        let refused = self.place.refused().or_else(|| {
            let unrecorded = audit::keeps_out().then_some(Limit::AuditLog);
            unrecorded.inspect(|limit| self.metrics.rejected(limit.label()))
        });
        let refused = refused.and_then(|limit| self.input(self.started, Input::NotAdmitted(limit)));
        let close = match refused {
            Some(close) => close,
            None => self.serve().await,
        };
        self.report(&close);
        // Apart, because it is large and most of a client's life is before it.
        Box::pin(self.close(close)).await;
    }

    fn report(&mut self, close: &Close) {
        self.count();
        let stats = self.session.stats();
        let peer = if self.peer_gone { Peer::Gone } else { Peer::There };
        let reason = close_reason(close, peer);
        let time = self.started.elapsed();
        self.gauges.show(Presence::Unknown);
        self.gauges.gauge(Gauged::default());
        self.metrics.session_closed(reason, time.as_secs_f64());
        if self.untold.is_some() {
            debug!(
                session = self.session.id(),
                client = self.client,
                code = close.code as u16,
                reason,
                "session closed"
            );
            return;
        }
        info!(
            session = self.session.id(),
            client = self.client,
            user = self.session.login(),
            vhost = self.session.virtual_host(),
            version = self.session.version().map_or("", |version| version.as_str()),
            code = close.code as u16,
            reason,
            text = %close.reason,
            seconds = time.as_secs(),
            frames_received = stats.frames_received,
            frames_sent = stats.frames_sent,
            messages_published = stats.messages_published,
            messages_delivered = stats.messages_delivered,
            failovers = stats.suspensions,
            "session closed"
        );
        audit::closed(self.subject(), close.code as u16, reason, time.as_secs(), self.quota.left_out());
    }

    /// Turns until the session has ended; how it ended is the answer.
    async fn serve(&mut self) -> Close {
        let drain = self.place.drain.clone();
        let mut drained = false;
        let sleep = tokio::time::sleep_until(tokio::time::Instant::now());
        tokio::pin!(sleep);
        // The files may have changed since the handshake.
        let config = self.config.clone();
        if let Some(close) = self.judge_certificate(&config) {
            return close;
        }
        loop {
            // First, so that no frame is judged by rules that are no longer the relay's.
            if self.settings.has_changed().unwrap_or(false)
                && let Some(close) = self.reconfigure()
            {
                return close;
            }
            if let Some(close) = self.handle_frames() {
                return close;
            }
            if self.more || self.decoded >= DECODED_PER_TURN {
                // What has arrived can keep this task going for as long as it likes, whatever the sockets' own budget says.
                self.decoded = 0;
                tokio::task::yield_now().await;
            }
            let now = Instant::now();
            self.gauges.gauge(self.numbers());
            self.charge();
            self.count();
            self.observe_socket(now);
            let turn = self.wait(&mut sleep, &drain, drained).await;
            drained |= matches!(turn, Turn::Drain);
            if let Some(close) = self.handle_turn(turn) {
                return close;
            }
        }
    }

    fn observe_socket(&mut self, now: Instant) {
        if !self.socket_failed {
            self.stall.observe(now, self.socket.queued_bytes(), self.socket.written_bytes());
        }
    }

    /// A wait ends when all that is queued is written, not at each part of it: what was written meanwhile is seen here.
    fn is_stalled(&mut self, now: Instant) -> bool {
        self.observe_socket(now);
        self.stall.is_over(now, self.config.write_timeout)
    }

    /// Waits for exactly one thing. Every branch is cancel-safe: what it did so far lives in the struct it borrows.
    async fn wait(&mut self, sleep: &mut Pin<&mut Sleep>, drain: &CancellationToken, drained: bool) -> Turn {
        if let Some(deadline) = self.deadline() {
            let deadline = tokio::time::Instant::from_std(deadline);
            if sleep.deadline() != deadline {
                sleep.as_mut().reset(deadline);
            }
        }
        let room = self.has_room();
        let read = self.read_now(room);
        tokio::select! {
            () = drain.cancelled(), if !drained => Turn::Drain,
            excess = std::future::poll_fn(|cx| self.place.account.poll_chosen(cx)) => Turn::Excess(excess),
            () = sleep.as_mut() => Turn::Deadline,
            Ok(()) = self.settings.changed() => Turn::Reconfigured,
            result = async { self.login.as_mut().expect("checked by the branch's condition").await },
                if self.login.is_some() => Turn::Login(result),
            result = async { self.refresh.as_mut().expect("checked by the branch's condition").await },
                if self.refresh.is_some() => Turn::Refreshed(result),
            event = self.socket.drive(read, Write::Yes), if !self.socket_failed => Turn::Socket(event),
            event = async {
                let lease = self.lease.as_mut().expect("checked by the branch's condition");
                // Without room nothing is taken, but a client that is too slow for its subscriptions is told so.
                lease.next_event_or_growth(if room { Take::Everything } else { Take::Overflows }).await
            }, if self.lease.is_some() => event.map_or(Turn::Grown, Turn::Broker),
            () = std::future::ready(()), if self.more && room => Turn::Again,
        }
    }

    /// A frame that is not complete is always read on, whatever its size: its limit is the decoder's.
    fn read_now(&self, room: bool) -> Read {
        let wanted = (self.session.wants_frames() && !self.more) || self.buffer.len() < READ_AHEAD_MAX;
        if room && wanted && !self.peer_gone && self.draining == Draining::No { Read::Yes } else { Read::No }
    }

    fn handle_turn(&mut self, turn: Turn) -> Option<Close> {
        let now = Instant::now();
        match turn {
            // It is charged before the next wait.
            Turn::Again | Turn::Grown => None,
            Turn::Broker(event) => self.handle_broker(now, event),
            Turn::Deadline => self.handle_deadline(now),
            Turn::Drain if self.place.is_evicted() => {
                self.metrics.rejected(Limit::Strangers.label());
                self.input(now, Input::NotAdmitted(Limit::Strangers))
            }
            Turn::Drain => self.begin_drain(now),
            Turn::Excess(excess) => self.give_way(now, excess),
            Turn::Login(result) => self.handle_login(now, result),
            Turn::Reconfigured => self.reconfigure(),
            Turn::Refreshed(result) => {
                self.refresh = None;
                self.metrics.token_refreshed(result.as_ref().map(|_| ()));
                if self.quota.admits(now) {
                    audit::refreshed(self.subject(), result.as_ref().map_or_else(ProofFailure::label, |_| "ok"));
                    if result.is_ok() {
                        info!(session = self.session.id(), user = self.session.login(), "token refreshed");
                    }
                }
                let result = result.map(|identity| self.certified(identity));
                self.input(now, Input::Refreshed(result))
            }
            Turn::Socket(event) => self.handle_socket(now, event),
        }
    }

    /// And what else is there already. The next wait asks the lease again, with a waker that wakes.
    fn handle_broker(&mut self, now: Instant, event: BrokerEvent) -> Option<Close> {
        let mut next = Some(event);
        let mut handled = 0;
        while let Some(event) = next {
            if let Some(close) = self.input(now, Input::Broker(event)) {
                return Some(close);
            }
            handled += 1;
            let more = handled < EVENTS_PER_TURN && self.has_room();
            next = self.lease.as_mut().filter(|_| more).and_then(|lease| lease.next_event().now_or_never());
        }
        self.note_outage(now);
        None
    }

    fn handle_login(&mut self, now: Instant, result: Login) -> Option<Close> {
        self.login = None;
        let result = result.map(|(lease, LoggedIn { broker, identity })| {
            self.lease = Some(lease);
            self.gauges.show(Presence::LoggedIn);
            LoggedIn { broker, identity: self.certified(identity) }
        });
        if let Ok(LoggedIn { identity, .. }) = &result
            && let Err(limit) = self.place.take_user(&self.config.session.user_case.counted(&identity.user))
        {
            self.metrics.rejected(limit.label());
            return self.input(now, Input::NotAdmitted(limit));
        }
        match &result {
            Ok(_) => {
                if let Some(user_agent) = self.untold.take() {
                    self.introduce(&user_agent);
                }
            }
            Err(_) => self.place.was_answered(),
        }
        self.input(now, Input::Login(result))
    }

    fn reconfigure(&mut self) -> Option<Close> {
        let config = self.settings.borrow_and_update().clone();
        if let Some(close) = self.judge_certificate(&config) {
            return Some(close);
        }
        self.input(Instant::now(), Input::RulesReplaced(config.session.rules.clone()))
    }

    /// Whoever has left an authority, or is revoked, does not stay because it came before.
    fn judge_certificate(&mut self, config: &ConnectionConfig) -> Option<Close> {
        let judged = self.certificate_judged.as_mut()?;
        let chain = self.socket.client_certificates();
        let withdrawn = config.tls.as_ref().is_none_or(|tls| tls.withdraws(chain, judged));
        withdrawn.then(|| self.input(Instant::now(), Input::CertificateWithdrawn)).flatten()
    }

    /// A certificate says who the client is whatever else it showed.
    fn certified(&self, identity: Identity) -> Identity {
        let (name, end) = (self.common_name.clone(), self.certificate_ends_at);
        Identity { certificate_name: name, certificate_ends_at: end, ..identity }
    }

    /// For the metrics: from the loss of a side of the lease until it has shown that it works again.
    fn note_outage(&mut self, now: Instant) {
        match (self.gauges.presence(), self.session.is_in_outage()) {
            (Presence::LoggedIn, true) => {
                self.asked = now;
                self.gauges.show(Presence::Suspended);
            }
            (Presence::Suspended, false) => {
                self.metrics.outage_ended((now - self.asked).as_secs_f64());
                self.gauges.show(Presence::LoggedIn);
            }
            _ => {}
        }
    }

    /// And what else has come already, so that the frames of many messages are handled together. The next wait asks the
    /// socket again, with a waker that wakes.
    fn handle_socket(&mut self, now: Instant, event: Result<Event, DriveError>) -> Option<Close> {
        let mut next = Some(event);
        let mut handled = 0;
        while let Some(event) = next {
            let close = match event {
                Ok(Event::Flushed) => self.input(now, Input::Flushed),
                Ok(Event::Incoming(incoming)) => self.handle_incoming(now, incoming),
                Err(error) => self.handle_socket_error(now, error),
            };
            if close.is_some() {
                return close;
            }
            handled += 1;
            let full = handled >= FRAMES_PER_TURN || self.buffer.len() >= READ_AHEAD_MAX || self.socket_failed;
            next = match self.read_now(self.has_room()) {
                Read::Yes if !full => self.socket.drive(Read::Yes, Write::No).now_or_never(),
                _ => None,
            };
        }
        None
    }

    fn handle_incoming(&mut self, now: Instant, incoming: Incoming) -> Option<Close> {
        self.heard = self.socket.read_bytes();
        match incoming {
            Incoming::Activity => self.input(now, Input::Received),
            Incoming::Pong => {
                if let Some(pinged) = self.pinged.take() {
                    self.metrics.ponged(now - pinged);
                }
                self.input(now, Input::Received)
            }
            Incoming::Closed { .. } => {
                self.peer_gone = true;
                None
            }
            Incoming::Data(bytes) => {
                self.keep(bytes);
                self.input(now, Input::Received)
            }
        }
    }

    fn handle_socket_error(&mut self, now: Instant, error: DriveError) -> Option<Close> {
        let close = match &error {
            DriveError::Receive(ReceiveError::NotUtf8) => CloseCode::InvalidFrame,
            DriveError::Receive(ReceiveError::Protocol(_)) => CloseCode::ProtocolError,
            DriveError::Receive(ReceiveError::TooBig { .. }) => CloseCode::TooBig,
            DriveError::Receive(ReceiveError::Io(_)) | DriveError::Send(_) => {
                self.peer_gone = true;
                self.socket_failed = true;
                self.stall = Stall::new();
                debug!(session = self.session.id(), %error, "connection lost");
                return None;
            }
        };
        self.input(now, Input::Unreadable { close, reason: error.to_string() })
    }

    fn keep(&mut self, bytes: BytesMut) {
        if self.buffer.is_empty() {
            self.buffer = bytes;
        } else {
            self.buffer.extend_from_slice(&bytes);
        }
    }

    /// Hands over what can be decoded, as long as the session wants it and the client reads its answers.
    fn handle_frames(&mut self) -> Option<Close> {
        let before = self.buffer.len();
        let close = self.decode_frames();
        self.decoded += before - self.buffer.len();
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        } else if self.buffer.len() <= before / 2 {
            // What is left, mostly the beginning of a line, would keep the room of all that came before it.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        close
    }

    fn decode_frames(&mut self) -> Option<Close> {
        let before = self.buffer.len();
        let now = Instant::now();
        let mut handled = 0;
        self.more = false;
        while self.session.wants_frames() && self.has_room() {
            match self.decoder.decode(&mut self.buffer) {
                Ok(None) if self.peer_gone => return self.input(now, Input::TransportClosed),
                Ok(None) => return self.note_unfinished(now).or_else(|| self.tell_drain(now)),
                Ok(Some(Item::Heartbeat)) => {}
                Ok(Some(Item::Frame(frame))) => {
                    handled += 1;
                    self.metrics.frame(&frame.command, Direction::In);
                    if let Some(close) = self.input(now, Input::Frame(frame)) {
                        return Some(close);
                    }
                }
                Err(error) => return self.input(now, Input::Malformed(error)),
            }
            if handled >= FRAMES_PER_TURN || before - self.buffer.len() >= DECODED_PER_TURN {
                self.more = true;
                break;
            }
        }
        // A login under way has nobody left to log in.
        // And nobody takes what a session wants written before it leaves.
        let unheard = self.session.is_flushing() || self.login.is_some();
        if self.peer_gone && unheard { self.input(now, Input::TransportClosed) } else { None }
    }

    /// Everything that has come has been decoded.
    fn note_unfinished(&mut self, now: Instant) -> Option<Close> {
        let frame = self.decoder.unfinished(&self.buffer);
        if frame.is_none() && !self.session.is_in_frame() {
            return None;
        }
        self.input(now, Input::Unfinished(frame))
    }

    /// Nothing that is still said to a client that is gone takes room.
    fn has_room(&self) -> bool {
        self.socket_failed || self.socket.retained_bytes() < self.config.write_buffer_bytes_max
    }

    fn input(&mut self, now: Instant, input: Input) -> Option<Close> {
        self.session.handle_input(now, input);
        if let Some(time) = self.session.take_confirm_time() {
            self.metrics.confirmed(time);
        }
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Close(close) => return Some(close),
                Output::Command(command) => {
                    if let Some(lease) = &mut self.lease {
                        lease.execute(command);
                    }
                }
                Output::Denied(denied) => {
                    self.metrics.denied(denied.command);
                    if self.quota.admits(now) {
                        let rule = denied.rule.as_ref().map(|(number, name)| (*number, name.as_deref()));
                        audit::denied(self.subject(), &denied.what, rule);
                    }
                }
                Output::Frame(frame) => self.send(&frame),
                Output::Heartbeat => self.socket.queue(Bytes::from_static(b"\n")),
                Output::LoggedIn => {
                    self.decoder.set_limits(self.config.limits);
                    self.socket.set_message_bytes_max(self.config.limits.frame_bytes_max);
                }
                Output::Login { evidence, virtual_host } => {
                    self.asked = now;
                    let turn = if audit::keeps_out() { Err(Limit::AuditLog) } else { self.place.take_connect(now) };
                    match turn {
                        Ok(turn) => {
                            let logins = self.logins.clone();
                            let (asked, who) = (now.into(), self.applicant());
                            let application = Application { asked, evidence, virtual_host, who };
                            self.login = Some(Box::pin(async move {
                                patience::turn(turn).await;
                                logins.log_in(application).await
                            }));
                        }
                        Err(limit) => self.not_admitted(now, limit),
                    }
                }
                Output::NotAuthenticated { claimed, source } => {
                    if self.may_tell(now) {
                        let reason = "the user is one of auth.loopback_users and the client is on another machine";
                        info!(user = audit::cut(&claimed), client = self.client, reason, "login refused");
                        audit::not_authenticated(self.subject(), &claimed, source.name(), "loopback_only");
                    }
                }
                Output::Ping => {
                    self.pinged.get_or_insert(now);
                    self.socket.queue_ping();
                }
                Output::Refresh { token, user } => {
                    let secret = self.lease.as_ref().map(Channel::secret);
                    // As new clients are judged. A login is not: whose account it brings must fit the session's stance.
                    let auth = self.settings.borrow().auth.clone();
                    let logins = Logins { auth, ..self.logins.clone() };
                    let (virtual_host, who) = (self.session.virtual_host().to_owned(), self.applicant());
                    let renewal = TokenRenewal { secret, token, user, virtual_host, who };
                    self.refresh = Some(Box::pin(logins.refresh(renewal)));
                }
            }
        }
        None
    }

    /// For the audit log.
    fn subject(&self) -> Subject<'_> {
        let (session, user, vhost) = (self.session.id(), self.session.login(), self.session.virtual_host());
        Subject { client: &self.client, origin: &self.origin, session, user, vhost }
    }

    /// The same for what is judged beside this task, and longer perhaps.
    fn applicant(&self) -> Applicant {
        let Subject { client, origin, session, .. } = self.subject();
        Applicant { client: client.to_owned(), origin: origin.to_owned(), session: session.to_owned() }
    }

    fn not_admitted(&mut self, now: Instant, limit: Limit) {
        self.metrics.rejected(limit.label());
        self.session.handle_input(now, Input::NotAdmitted(limit));
    }

    fn send(&mut self, frame: &Frame) {
        self.metrics.frame(&frame.command, Direction::Out);
        if let (Command::Error, Some(code)) = (&frame.command, frame.header("error-code")) {
            self.metrics.error(code);
            if code == ACCESS_REFUSED && self.quota.admits(Instant::now()) {
                let told = String::from_utf8_lossy(&frame.body);
                audit::denied_by_rabbitmq(self.subject(), told.lines().next().unwrap_or_default());
            }
        }
        if self.socket_failed {
            return;
        }
        let mut bytes = BytesMut::new();
        encode(frame, &mut bytes);
        self.socket.queue(bytes.freeze());
    }

    /// The client learns why, and at the same time the broker gets back what was not settled.
    async fn close(self: Box<Self>, close: Close) {
        let Connection { buffer, config, decoder, lease, place, session, socket, .. } = *self;
        drop((buffer, decoder, session));
        let unsaid = SESSION_BYTES + socket.retained_bytes();
        // Until RabbitMQ has them back, the deliveries are kept.
        place.account.set(unsaid + lease.as_ref().map_or(0, Channel::retained_bytes), 0);
        if place.leaves_at_once() {
            return;
        }
        let patience =
            if place.account.makes_room() { PARTING_MAX.min(config.close_timeout) } else { config.close_timeout };
        let farewell = socket.close(close.code as u16, &close.reason, patience);
        let give_back = async {
            if let Some(lease) = lease {
                lease.close().await;
                place.account.set(unsaid, 0);
            }
        };
        tokio::join!(farewell, give_back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The allocator's next size is 5 KiB, and each client has one.
    #[test]
    fn a_connection_takes_4_kib_at_most() {
        assert!(size_of::<Connection>() <= 4096, "{}", size_of::<Connection>());
    }
}
