//! The operators' listener: `/livez` (never asks the broker), `/readyz` (listeners, broker, drain), `/metrics` (Prometheus).
//! Plain HTTP for an internal network; it changes nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::broker::{Broker, BrokerStatus, Role};
use crate::budget::Budget;
use crate::clients::Clients;
use crate::listener::{HostConfig, named_host};
use crate::metrics::Metrics;
use crate::patience;
use crate::readiness::Readiness;
use crate::{audit, lost_lines};

/// For a request's head, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection's whole life: a scraper opens another one.
const LIFE_MAX: Duration = Duration::from_secs(300);

/// Connections at the same time. Beyond it the oldest one ends: a probe must always be answered.
const CONNECTIONS_MAX: usize = 64;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What may be looked at.
#[derive(Clone)]
pub struct View {
    broker: Broker,
    budget: Budget,
    clients: Clients,
    hosts: Arc<HostConfig>,
    readiness: Readiness,
    registry: Arc<Registry>,
}

impl View {
    pub fn new(
        broker: Broker,
        budget: Budget,
        clients: Clients,
        hosts: HostConfig,
        metrics: &Metrics,
        readiness: Readiness,
    ) -> View {
        let mut registry = Registry::with_prefix("stomp_relay");
        metrics.register(&mut registry);
        View { broker, budget, clients, hosts: Arc::new(hosts), readiness, registry: Arc::new(registry) }
    }

    /// Prometheus' text format: the counters, then the gauges that are read now.
    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        gauge(&mut text, "connections", "Client connections that are open", &[("", self.clients.count())])?;
        gauge(&mut text, "strangers", "Client connections that have not logged in", &[("", self.clients.strangers())])?;
        gauge(
            &mut text,
            "ready",
            "Whether new clients should come here",
            &[("", usize::from(self.readiness.report().0))],
        )?;
        gauge(
            &mut text,
            "draining",
            "Whether the relay is being stopped",
            &[("", usize::from(self.readiness.is_draining()))],
        )?;
        counter(&mut text, "audit_events_lost", "Events that the audit log could not take", audit::losses().0)?;
        counter(&mut text, "log_lines_lost", "Lines of the log that standard error did not take", lost_lines::count())?;
        let left_out = self.clients.left_out();
        counter(&mut text, "stranger_events_left_out", "Events about strangers that no log tells", left_out)?;
        let help = "Clients that had not logged in and gave their places to others";
        counter(&mut text, "strangers_evicted", help, self.clients.evicted())?;
        counter(&mut text, "connections_accepted", "Client connections accepted", self.clients.total())?;
        let BrokerStatus {
            links,
            repaired_frames,
            shared_queues,
            shared_subscribers,
            connects,
            links_lost,
            publishes_retried,
            blocked,
        } = self.broker.status();
        let of = |role: Role, blocked| links.iter().filter(|link| link.role == role && link.blocked == blocked).count();
        gauge(
            &mut text,
            "amqp_connections",
            "AMQP connections by role and state",
            &[
                ("role=\"consume\",state=\"open\"", of(Role::Consume, false)),
                ("role=\"declare\",state=\"open\"", of(Role::Declare, false)),
                ("role=\"publish\",state=\"open\"", of(Role::Publish, false)),
                ("role=\"publish\",state=\"blocked\"", of(Role::Publish, true)),
            ],
        )?;
        let channels = links.iter().map(|link| link.channels).sum();
        gauge(&mut text, "amqp_channels", "AMQP channels that sessions hold", &[("", channels)])?;
        gauge(&mut text, "shared_queues", "Broker queues that serve shared subscriptions", &[("", shared_queues)])?;
        gauge(&mut text, "shared_subscribers", "Subscriptions served from them", &[("", shared_subscribers)])?;
        counter(&mut text, "amqp_frames_repaired", "Frames from RabbitMQ that had to be repaired", repaired_frames)?;
        counter(&mut text, "amqp_connections_lost", "AMQP connections that ended unasked", links_lost)?;
        let help = "SENDs that RabbitMQ refused after an outage and that were tried again";
        counter(&mut text, "publish_retried", help, publishes_retried)?;
        let samples = [
            ("result=\"ok\"", connects.ok),
            ("result=\"refused\"", connects.refused),
            ("result=\"unavailable\"", connects.unavailable),
            ("result=\"virtual_host\"", connects.virtual_host),
        ];
        counters(&mut text, "amqp_connects", "AMQP connections that were tried", &samples)?;
        let help = "Bytes that are counted towards the memory limit";
        gauge(&mut text, "memory_counted_bytes", help, &[("", self.budget.used())])?;
        gauge(&mut text, "memory_max_bytes", "The memory limit", &[("", self.budget.limits().process)])?;
        let help = "Time in which RabbitMQ blocked publishing on some connection";
        counters(&mut text, "amqp_blocked_seconds", help, &[("", blocked.as_secs_f64())])?;
        process(&mut text)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

fn gauge(text: &mut String, name: &str, help: &str, samples: &[(&str, usize)]) -> std::fmt::Result {
    writeln!(text, "# HELP stomp_relay_{name} {help}.\n# TYPE stomp_relay_{name} gauge")?;
    values(text, name, samples)
}

fn counter(text: &mut String, name: &str, help: &str, value: u64) -> std::fmt::Result {
    counters(text, name, help, &[("", value)])
}

fn counters(text: &mut String, name: &str, help: &str, samples: &[(&str, impl Display)]) -> std::fmt::Result {
    writeln!(text, "# HELP stomp_relay_{name} {help}.\n# TYPE stomp_relay_{name} counter")?;
    values(text, &format!("{name}_total"), samples)
}

fn values(text: &mut String, name: &str, samples: &[(&str, impl Display)]) -> std::fmt::Result {
    samples.iter().try_for_each(|(labels, value)| match labels.is_empty() {
        true => writeln!(text, "stomp_relay_{name} {value}"),
        false => writeln!(text, "stomp_relay_{name}{{{labels}}} {value}"),
    })
}

/// Memory and file descriptors, where Linux tells them.
fn process(text: &mut String) -> std::fmt::Result {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kilobytes) = resident {
        writeln!(
            text,
            "# HELP process_resident_memory_bytes Resident memory.\n# TYPE process_resident_memory_bytes gauge"
        )?;
        writeln!(text, "process_resident_memory_bytes {}", kilobytes * 1024)?;
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        writeln!(text, "# HELP process_open_fds Open file descriptors.\n# TYPE process_open_fds gauge")?;
        writeln!(text, "process_open_fds {}", files.count())?;
    }
    Ok(())
}

/// Serves until `stopped`. There are descriptors for so many connections, whatever clients hold.
pub async fn serve(socket: TcpListener, view: View, affordable: usize, stopped: CancellationToken) {
    let connections_max = CONNECTIONS_MAX.min(affordable).max(1);
    // The oldest first.
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stopped.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            // Perhaps there is no descriptor left: one that is idle can be done without.
            if let Some(oldest) = connections.pop_front() {
                oldest.abort();
            }
            tokio::time::sleep(crate::listener::tcp::ACCEPT_PAUSE).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        while connections.len() >= connections_max
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        connections.push_back(tokio::spawn(attend(stream, view.clone())).abort_handle());
    }
}

async fn attend(stream: TcpStream, view: View) {
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &view))));
    let connection = http1::Builder::new()
        .timer(patience::HttpTimer)
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = patience::timeout(LIFE_MAX, connection).await {
        debug!(%error, "admin connection ended");
    }
}

fn answer(request: &Request<Incoming>, view: &View) -> Response<Full<Bytes>> {
    // A page whose name was made to point here may read nothing.
    match named_host(request.headers(), request.uri(), request.version()) {
        Err(error) => return page(StatusCode::BAD_REQUEST, TEXT, format!("Bad request: {error}.\n")),
        Ok(host) if !host.is_empty() && !view.hosts.knows(host) => {
            debug!(host, "admin request refused: not known by this name");
            let text = "not known by this name; the setting admin.hosts says which there are\n";
            return page(StatusCode::MISDIRECTED_REQUEST, TEXT, text.to_owned());
        }
        Ok(_) => {}
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD only\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/livez" => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/metrics" => match view.metrics() {
            Ok(text) => page(StatusCode::OK, METRICS, text),
            Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        },
        "/readyz" => {
            let (ready, report) = view.readiness.report();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let verbose = !ready || request.uri().query().is_some_and(|query| query.contains("verbose"));
            page(status, TEXT, if verbose { report } else { "ok\n".to_owned() })
        }
        _ => page(StatusCode::NOT_FOUND, TEXT, "there are /livez, /readyz, /readyz?verbose and /metrics\n".to_owned()),
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
