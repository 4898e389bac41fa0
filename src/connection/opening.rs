//! The first moment of a client: what is known of it becomes a connection with a fresh session.
//!
//! Decides nothing: that begins with the first turn.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BytesMut;
use tokio::sync::watch;
use tracing::info;

use super::draining::Draining;
use super::gauges::Gauges;
use super::quota::Quota;
use super::stall::Stall;
use super::{Connection, ConnectionConfig};
use crate::audit;
use crate::broker::{Broker, ClientLabel};
use crate::clients::Place;
use crate::listener::{Opened, WebSocket};
use crate::login::{self, Logins};
use crate::metrics::Metrics;
use crate::session::proof::CertificateName;
use crate::session::{Locality, Session, SessionSeed, Stats};
use crate::stomp::Decoder;

/// Longer than a session lives.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Connection {
    pub(super) fn new(
        socket: WebSocket,
        mut opened: Opened,
        broker: Broker,
        mut settings: watch::Receiver<Arc<ConnectionConfig>>,
        metrics: Arc<Metrics>,
        place: Arc<Place>,
    ) -> Connection {
        let started = Instant::now();
        let config = settings.borrow_and_update().clone();
        let locality = if opened.source.is_local() { Locality::Local } else { Locality::Remote };
        let certificate = opened.certificate.take();
        let certificate_ends_at = certificate.as_ref().map(|certificate| end_of(certificate.not_after, started));
        let certificate_judged = certificate.as_ref().map(|certificate| certificate.judged);
        let (certificate, common_name) = certificate
            .map_or((None, None), |certificate| (Some(CertificateName(certificate.name)), certificate.common_name));
        let evidence = login::evidence(opened.presented.take(), certificate);
        let session = Session::new(config.session.clone(), seed(), locality, started)
            .with_presented(evidence)
            .with_login_deadline(place.deadline());
        let label = ClientLabel(label(&opened));
        let auth = config.auth.clone();
        let mut connection = Connection {
            asked: started,
            buffer: BytesMut::new(),
            certificate_ends_at,
            certificate_judged,
            client: opened.source.to_string(),
            common_name,
            counted: Stats::default(),
            decoded: 0,
            decoder: Decoder::new(config.login_limits, config.escapes),
            draining: Draining::No,
            gauges: Gauges::new(metrics.clone()),
            heard: 0,
            lease: None,
            login: None,
            logins: Logins {
                address: opened.source.client(),
                auth,
                broker,
                clients: place.clients().clone(),
                label,
                metrics: metrics.clone(),
                unannounced: opened.source.is_unannounced(),
            },
            more: false,
            origin: opened.origin.unwrap_or_default(),
            peer_gone: false,
            pinged: None,
            quota: Quota::default(),
            refresh: None,
            second_look: None,
            session,
            socket,
            socket_failed: false,
            stall: Stall::new(),
            started,
            untold: None,
            config,
            metrics,
            place,
            settings,
        };
        let user_agent = opened.user_agent.take().unwrap_or_default();
        match connection.may_tell(started) {
            true => connection.introduce(&user_agent),
            false => connection.untold = Some(user_agent.into()),
        }
        connection
    }

    /// Whether log and audit log may tell of one more thing that this client has done before its login.
    pub(super) fn may_tell(&self, now: Instant) -> bool {
        self.logins.clients.may_tell(self.logins.address, now)
    }

    /// Tells log and audit log that it is there.
    pub(super) fn introduce(&self, user_agent: &str) {
        let Connection { client, session, .. } = self;
        let (peer, origin) = (&self.logins.label.0, audit::cut(&self.origin));
        info!(session = session.id(), peer, client, origin, "session opened");
        audit::opened(self.subject(), user_agent);
    }
}

/// When a second since 1970 is over. One that is too far away for this clock never comes.
fn end_of(second: i64, now: Instant) -> Instant {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let end = Duration::from_secs(u64::try_from(second).unwrap_or(0).saturating_add(1));
    now.checked_add(end.saturating_sub(since_1970)).unwrap_or(now + FAR)
}

/// How the broker's log names the client: with its port where it is directly connected.
fn label(opened: &Opened) -> String {
    match opened.source.through() {
        [] => opened.peer.to_string(),
        _ => opened.source.client().to_string(),
    }
}

/// A session's id and the seed of its queue names, drawn from the system's secure random source.
fn seed() -> SessionSeed {
    SessionSeed { id: format!("session-{}", URL_SAFE_NO_PAD.encode(random())), queue_names: random() }
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // Fails only if the system has no random source at all; then nothing here may go on.
    rand::fill(&mut bytes).expect("the system's random source works");
    bytes
}
