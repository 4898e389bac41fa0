//! HTTP/1.1 in front of the WebSocket: which request gets which answer, and driving one connection until it is
//! upgraded or over.
//!
//! Owns routes and headers; the handshake's rules are in `handshake`, the texts in `pages`.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, STRICT_TRANSPORT_SECURITY, UPGRADE, USER_AGENT, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::files::Unopened;
use super::gate::{Admission, Gate, Route, Upgrade};
use super::handshake::{self, Handshake, HandshakeError, Subprotocol, VERSION};
use super::host;
use super::origin::{self, Target};
use super::pages::{self, Endpoint, Format};
use super::presented::Presented;
use super::source::Source;
use super::stream::Stream;
use super::{ListenerConfig, Security, StaticRoot, forwarded, refusals, stopped};
use crate::patience;

/// Header lines of one request; more are answered with 431.
const HEADERS_MAX: usize = 64;

/// An answer that is under way at the connection's deadline is finished if that takes no longer.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// hyper refuses a smaller head buffer.
pub(super) const HEAD_BYTES_MIN: usize = 8 * 1024;

/// What a page may do if the configured policy is no header value.
const STRICTEST_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'");

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const GET_AND_HEAD: HeaderValue = HeaderValue::from_static("GET, HEAD");

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A stream that now speaks WebSocket.
pub(super) struct Upgraded {
    pub(super) stream: Stream,
    /// Bytes that the client sent behind its request head.
    pub(super) read_ahead: Bytes,
    pub(super) details: Details,
}

/// What the opening request said.
#[derive(Debug)]
pub(super) struct Details {
    pub(super) subprotocol: Option<Subprotocol>,
    pub(super) origin: Option<String>,
    pub(super) presented: Option<Presented>,
    pub(super) source: Source,
    pub(super) user_agent: Option<String>,
}

/// Serves requests until one is upgraded, which is returned, or the connection ends. On `stop` it ends after the
/// request in progress.
pub(super) async fn serve<G: Gate>(
    stream: Stream,
    config: &Arc<ListenerConfig>,
    stop: &CancellationToken,
    source: Source,
    gate: &Arc<G>,
) -> Option<Upgraded> {
    let visit = Arc::new(Visit { accepted: Mutex::default(), config: config.clone(), gate: gate.clone(), source });
    if let Err(error) = serve_requests(stream, &visit, stop).await {
        // hyper's "unexpected message" and the like: the peer sent no HTTP, was too slow or left.
        debug!(%error, "HTTP connection failed");
        return None;
    }
    let (upgrade, details) = visit.accepted.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    // Resolved already: the connection has been driven to its end.
    let parts = upgrade.await.ok()?.downcast::<TokioIo<Stream>>().ok()?;
    Some(Upgraded { stream: parts.io.into_inner(), read_ahead: parts.read_buf, details })
}

/// What the requests of one connection have in common.
struct Visit<G> {
    accepted: Mutex<Option<(OnUpgrade, Details)>>,
    config: Arc<ListenerConfig>,
    gate: Arc<G>,
    source: Source,
}

async fn serve_requests<G: Gate>(
    stream: Stream,
    visit: &Arc<Visit<G>>,
    stop: &CancellationToken,
) -> Result<(), hyper::Error> {
    let config = &visit.config;
    let service = service_fn(|request| {
        let visit = visit.clone();
        async move { Ok::<_, Infallible>(answer(request, &visit).await) }
    });
    let connection = http1::Builder::new()
        .timer(patience::HttpTimer)
        .header_read_timeout(config.head_timeout)
        .max_buf_size(config.head_bytes_max.max(HEAD_BYTES_MIN))
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let deadline = tokio::time::Instant::from(visit.gate.deadline());
    let life = async {
        tokio::select! {
            result = connection.as_mut() => return result,
            () = stopped(stop) => {}
            () = patience::Timer::until(deadline) => {}
        }
        // Between two requests it ends here.
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    patience::timeout_at(deadline + ANSWER_GRACE, life).await.unwrap_or(Ok(()))
}

async fn answer<G: Gate>(request: Request<Incoming>, visit: &Visit<G>) -> Response<Body> {
    let Visit { config, gate, .. } = visit;
    let (route, response) = if is_websocket_path(request.uri().path(), &config.path) {
        let (mut response, upgrade) = websocket_path(request, visit).await;
        if upgrade != Upgrade::Accepted {
            readable_by_pages(&mut response);
        }
        gate.upgraded(upgrade);
        (Route::WebSocket, response)
    } else if let Some(root) = &config.root {
        let response = match refused_host(&request, visit) {
            Some((response, _)) => response,
            None => file(request, root, config).await,
        };
        (Route::File, response)
    } else {
        let refused = refused_host(&request, visit).map(|(response, _)| response);
        (Route::None, refused.unwrap_or_else(|| not_found(&request, config)))
    };
    gate.answered(route, response.status().as_u16());
    response
}

async fn file(request: Request<Incoming>, root: &StaticRoot, config: &ListenerConfig) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return method_not_allowed(config);
    }
    let file = match root.open(request.uri().path()).await {
        Ok(file) => file,
        Err(Unopened::NoDescriptor) => return unavailable(config),
        Err(Unopened::NotFound) => return not_found(&request, config),
    };
    let mut response = Response::new(Body::default());
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, file.length.into());
    headers.insert(CONTENT_TYPE, file.content_type.clone());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    *response.body_mut() = file.into_body();
    finish(response, config)
}

async fn websocket_path<G: Gate>(mut request: Request<Incoming>, visit: &Visit<G>) -> (Response<Body>, Upgrade) {
    let Visit { accepted, config, gate, source } = visit;
    // First of all: no other answer is for a page that may not connect.
    if let Some(origin) = refused_origin(&request, visit) {
        refusals::origin(&origin, source, host(&request));
        gate.refused(Upgrade::Origin, source, &origin, host(&request));
        return (text(StatusCode::FORBIDDEN, pages::forbidden_origin(&origin), config), Upgrade::Origin);
    }
    if let Some(refused) = refused_host(&request, visit) {
        return refused;
    }
    let handshake = match read_handshake(&request, config) {
        Ok(handshake) => handshake,
        Err(response) => return (response, Upgrade::BadHandshake),
    };
    let source = forwarded::client_of(source.clone(), request.headers(), &config.proxy);
    if config.proxy.trusts(visit.source.client()) && gate.admit(&source).await == Admission::Close {
        return (unavailable(config), Upgrade::NotAdmitted);
    }
    let details = Details {
        subprotocol: handshake.subprotocol,
        origin: header_text(request.headers(), ORIGIN),
        presented: config.presented.read(request.headers(), handshake::subprotocols(request.headers())),
        source,
        user_agent: header_text(request.headers(), USER_AGENT),
    };
    *accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some((hyper::upgrade::on(&mut request), details));
    (switching_protocols(&handshake), Upgrade::Accepted)
}

/// A browser hides from a page why its WebSocket was refused, but not what it then fetches from the same address. Pages of all
/// origins may read that, for those of wrong ones have to; without credentials, which no answer here depends on.
fn readable_by_pages(response: &mut Response<Body>) {
    response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    // A page of another origin may get another answer.
    response.headers_mut().insert(VARY, HeaderValue::from_static("Origin"));
}

/// The handshake, or the answer to what is none.
fn read_handshake(request: &Request<Incoming>, config: &ListenerConfig) -> Result<Handshake, Response<Body>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(method_not_allowed(config));
    }
    let handshake = match Handshake::read(request.headers()) {
        _ if request.method() == Method::HEAD => return Err(upgrade_required(request, config)),
        Ok(handshake) => handshake,
        Err(HandshakeError::NotAsked) => return Err(upgrade_required(request, config)),
        Err(error @ HandshakeError::OtherVersion) => {
            let mut response = text(StatusCode::UPGRADE_REQUIRED, format!("{error}.\n"), config);
            ask_for_upgrade(&mut response);
            response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
            return Err(response);
        }
        Err(error) => {
            return Err(text(StatusCode::BAD_REQUEST, format!("Bad WebSocket handshake: {error}.\n"), config));
        }
    };
    if request.version() != Version::HTTP_11 || !request.body().is_end_stream() {
        let reason = "Bad WebSocket handshake: it must be an HTTP/1.1 request without a body.\n";
        return Err(text(StatusCode::BAD_REQUEST, reason.into(), config));
    }
    Ok(handshake)
}

/// The origin of the page, if it may not connect. Of several all must be allowed.
fn refused_origin<G>(request: &Request<Incoming>, visit: &Visit<G>) -> Option<String> {
    let Visit { config, source, .. } = visit;
    let headers = request.headers();
    let told = match config.proxy.trusts(source.client()) {
        true => forwarded::is_https(headers, config.proxy.header),
        false => None,
    };
    let https = told.unwrap_or(Security::of(config) == Security::Tls);
    let target = Target { https, host: host(request) };
    let is_refused = |value: &&HeaderValue| {
        let allowed = |origin| origin::is_allowed(origin, &config.origins, target);
        !value.to_str().is_ok_and(allowed)
    };
    let refused = headers.get_all(ORIGIN).iter().find(is_refused)?;
    Some(String::from_utf8_lossy(refused.as_bytes()).into_owned())
}

/// The answer to a request that calls the relay by no name, by several, or by another's.
fn refused_host<G: Gate>(request: &Request<Incoming>, visit: &Visit<G>) -> Option<(Response<Body>, Upgrade)> {
    let Visit { config, gate, source, .. } = visit;
    let headers = request.headers();
    let host = match host::named_host(headers, request.uri(), request.version()) {
        Ok(host) => host,
        Err(error) => {
            let reason = format!("Bad request: {error}.\n");
            return Some((text(StatusCode::BAD_REQUEST, reason, config), Upgrade::BadHandshake));
        }
    };
    // Unless the operator lists the names, a program's WebSocket may call it by any: it is nobody's page. Nor does it matter for
    // a page of the list. HTTP/1.0 without a name is spoken by probes.
    let by_origin = !config.origins.is_empty() || !headers.contains_key(ORIGIN);
    let is_websocket = is_websocket_path(request.uri().path(), &config.path);
    let unjudged = !config.hosts.is_listed() && (is_websocket && by_origin || host.is_empty());
    if unjudged || config.hosts.knows(host) {
        return None;
    }
    let origin = header_text(headers, ORIGIN).unwrap_or_default();
    refusals::host(host, source, &origin);
    gate.refused(Upgrade::Host, source, &origin, host);
    // RFC 9110 section 15.5.20.
    Some((text(StatusCode::MISDIRECTED_REQUEST, pages::unknown_host(host), config), Upgrade::Host))
}

/// Exactly the configured path, or with one slash behind it; the query string is not part of a path.
fn is_websocket_path(path: &str, websocket_path: &str) -> bool {
    path == websocket_path || path.strip_suffix('/') == Some(websocket_path)
}

fn switching_protocols(handshake: &Handshake) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    ask_for_upgrade(&mut response);
    let headers = response.headers_mut();
    if let Ok(accept) = HeaderValue::from_str(&handshake.accept) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(subprotocol) = handshake.subprotocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol.as_str()));
    }
    response
}

fn upgrade_required(request: &Request<Incoming>, config: &ListenerConfig) -> Response<Body> {
    let format = format(request.headers());
    let page = pages::upgrade_required(endpoint(request, config), format);
    let mut response = page_of(StatusCode::UPGRADE_REQUIRED, page, format, config);
    ask_for_upgrade(&mut response);
    response
}

fn not_found(request: &Request<Incoming>, config: &ListenerConfig) -> Response<Body> {
    text(StatusCode::NOT_FOUND, pages::not_found(endpoint(request, config)), config)
}

fn method_not_allowed(config: &ListenerConfig) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD are answered here.\n".into(), config);
    response.headers_mut().insert(ALLOW, GET_AND_HEAD);
    response
}

fn unavailable(config: &ListenerConfig) -> Response<Body> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, pages::UNAVAILABLE.into(), config);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

fn ask_for_upgrade(response: &mut Response<Body>) {
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
}

fn text(status: StatusCode, text: String, config: &ListenerConfig) -> Response<Body> {
    page_of(status, text, Format::Text, config)
}

fn page_of(status: StatusCode, page: String, format: Format, config: &ListenerConfig) -> Response<Body> {
    let length = page.len();
    let mut response = Response::new(Full::from(page).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    // Said here rather than by hyper, so that an answer to HEAD says it too.
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        CONTENT_TYPE,
        match format {
            Format::Html => HTML,
            Format::Text => TEXT,
        },
    );
    finish(response, config)
}

/// Headers that all answers share.
fn finish(mut response: Response<Body>, config: &ListenerConfig) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // Over TLS only (RFC 6797 section 7.2).
    if let (Some(policy), Security::Tls) = (&config.strict_transport_security, Security::of(config))
        && let Ok(policy) = HeaderValue::from_str(policy)
    {
        headers.insert(STRICT_TRANSPORT_SECURITY, policy);
    }
    if headers.get(CONTENT_TYPE) == Some(&HTML) {
        let policy = HeaderValue::from_str(&config.content_security_policy).unwrap_or(STRICTEST_POLICY);
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

fn endpoint<'a>(request: &'a Request<Incoming>, config: &'a ListenerConfig) -> Endpoint<'a> {
    let scheme = match Security::of(config) {
        Security::Tls => "wss",
        Security::Plain => "ws",
    };
    Endpoint { scheme, host: pages::printable_host(host(request)), path: &config.path }
}

/// Where the client believes to be; empty if it does not say.
fn host(request: &Request<Incoming>) -> &str {
    host::named_host(request.headers(), request.uri(), request.version()).unwrap_or_default()
}

fn format(headers: &HeaderMap) -> Format {
    let accepts = |list: &HeaderValue| list.to_str().is_ok_and(|list| list.to_ascii_lowercase().contains("text/html"));
    if headers.get_all(ACCEPT).iter().any(accepts) { Format::Html } else { Format::Text }
}

fn header_text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_matches_exactly_or_with_one_slash() {
        assert!(is_websocket_path("/ws", "/ws") && is_websocket_path("/ws/", "/ws"));
        assert!(is_websocket_path("/", "/"));
        for other in ["/", "/WS", "/ws//", "/ws/x", "/wsx", "ws", ""] {
            assert!(!is_websocket_path(other, "/ws"), "{other}");
        }
    }
}
