//! Port 80 for people who type a host name: every request is sent to the same place over https, and the connection ends.
//!
//! No WebSocket is opened here and no file is served: a client that can speak without TLS by mistake would do so.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::host::{HostConfig, named_host};
use super::pages;
use crate::patience;

/// Header lines of a request; more are answered with 431.
const HEADERS_MAX: usize = 64;

/// Time for taking the answer, behind the time for the head.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const HTTPS_PORT: u16 = 443;

/// How requests are sent on.
#[derive(Clone, Copy, Debug)]
pub struct RedirectConfig<'a> {
    /// Names that requests are sent on to.
    pub hosts: &'a HostConfig,
    /// Where https is spoken, as seen by clients.
    pub port: u16,
    /// Time for a request's head.
    pub head_timeout: Duration,
    /// Largest request head in bytes; at least 8 KiB are allowed.
    pub head_bytes_max: usize,
}

/// Answers one request of one accepted socket. `stop` ends it at once.
pub async fn redirect_connection(
    socket: TcpStream,
    peer: SocketAddr,
    config: RedirectConfig<'_>,
    stop: CancellationToken,
) {
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &config))));
    let connection = http1::Builder::new()
        .timer(patience::HttpTimer)
        .header_read_timeout(config.head_timeout)
        .max_buf_size(config.head_bytes_max.max(super::http::HEAD_BYTES_MIN))
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        result = patience::timeout(config.head_timeout + ANSWER_TIMEOUT, connection) => {
            if let Ok(Err(error)) = result {
                debug!(%peer, %error, "request for a redirect failed");
            }
        }
        () = stop.cancelled() => {}
    }
}

/// 308 keeps the method, and browsers keep the answer.
fn answer<B>(request: &Request<B>, config: &RedirectConfig<'_>) -> Response<Full<Bytes>> {
    let named = named_host(request.headers(), request.uri(), request.version()).unwrap_or_default();
    if !named.is_empty() && !config.hosts.knows(named) {
        return page(StatusCode::MISDIRECTED_REQUEST, "This server is not known by this name (http.hosts).\n");
    }
    let host = host_name(named);
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let place = host.filter(|_| target.starts_with('/')).map(|host| match config.port {
        HTTPS_PORT => format!("https://{host}{target}"),
        port => format!("https://{host}:{port}{target}"),
    });
    match place.and_then(|place| HeaderValue::from_str(&place).ok()) {
        Some(place) => {
            let mut response = page(StatusCode::PERMANENT_REDIRECT, "This place is served over https:// and wss://.\n");
            response.headers_mut().insert(LOCATION, place);
            response
        }
        None => page(StatusCode::BAD_REQUEST, "The request names no host to redirect to.\n"),
    }
}

/// The host without its port, if it is one that can stand in a URL.
fn host_name(header: &str) -> Option<&str> {
    let name = match header.strip_prefix('[') {
        Some(rest) => header.get(..rest.find(']')? + 2)?,
        None => header.split(':').next()?,
    };
    pages::is_plain_host(name).then_some(name)
}

fn page(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if status != StatusCode::PERMANENT_REDIRECT {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(port: u16) -> RedirectConfig<'static> {
        let hosts = Box::leak(Box::new(HostConfig::any()));
        RedirectConfig { hosts, port, head_timeout: Duration::from_secs(1), head_bytes_max: 8192 }
    }

    fn location(host: &str, target: &str, port: u16) -> Option<String> {
        let request = Request::builder().uri(target).header("host", host).body(()).unwrap();
        let config = config(port);
        let answer = answer(&request, &config);
        let location = answer.headers().get(LOCATION)?;
        Some(location.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_place_is_the_same_over_https() {
        for (host, target, port, expected) in [
            ("chat.example", "/", 443, "https://chat.example/"),
            ("chat.example:80", "/a?b=c", 443, "https://chat.example/a?b=c"),
            ("chat.example:8080", "/ws", 8443, "https://chat.example:8443/ws"),
            ("[::1]", "/", 443, "https://[::1]/"),
            ("[::1]:80", "/", 8443, "https://[::1]:8443/"),
            ("chat.example", "//evil.example/x", 443, "https://chat.example//evil.example/x"),
            ("chat.example", "http://chat.example/x", 443, "https://chat.example/x"),
        ] {
            assert_eq!(location(host, target, port).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_host_that_cannot_stand_in_a_url_is_refused() {
        for host in ["", ":80", "a b", "user@evil.example", "a/b", "[::1", "a\\b", "a?b", "a#b"] {
            assert_eq!(location(host, "/", 443), None, "{host}");
        }
        assert_eq!(
            answer(&Request::builder().uri("/").body(()).unwrap(), &config(443)).status(),
            StatusCode::BAD_REQUEST
        );
        // The forms of CONNECT and OPTIONS.
        assert_eq!(location("chat.example", "*", 443), None);
        assert_eq!(location("chat.example", "chat.example:80", 443), None);
        assert_eq!(location("chat.example:80", "chat.example:80", 443), Some("https://chat.example/".to_owned()));
    }
}
