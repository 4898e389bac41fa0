//! The operators' listener: `/livez` (never asks the broker), `/readyz` (listeners, broker, drain), `/metrics` (Prometheus).
//! Plain HTTP for an internal network; it changes nothing.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::clients::Clients;
use crate::readiness::Readiness;

/// For a request's head, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests served at the same time; more wait in the backlog.
const CONNECTIONS_MAX: usize = 64;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves until `stopped`.
pub async fn serve(socket: TcpListener, readiness: Readiness, clients: Clients, stopped: CancellationToken) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stopped.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(crate::listener::tcp::ACCEPT_PAUSE).await;
            continue;
        };
        let (readiness, clients) = (readiness.clone(), clients.clone());
        tokio::spawn(async move {
            let service =
                service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &readiness, &clients))));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                debug!(%error, "admin connection ended");
            }
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, readiness: &Readiness, clients: &Clients) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD only\n".to_owned());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/livez" => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/metrics" => page(StatusCode::OK, METRICS, metrics(readiness, clients)),
        "/readyz" => {
            let (ready, report) = readiness.report();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let verbose = !ready || request.uri().query().is_some_and(|query| query.contains("verbose"));
            page(status, TEXT, if verbose { report } else { "ok\n".to_owned() })
        }
        _ => page(StatusCode::NOT_FOUND, TEXT, "there are /livez, /readyz, /readyz?verbose and /metrics\n".to_owned()),
    }
}

/// Prometheus' text format.
fn metrics(readiness: &Readiness, clients: &Clients) -> String {
    let ready = u8::from(readiness.report().0);
    let (open, total) = (clients.count(), clients.total());
    format!(
        "# HELP stomp_relay_ready Whether new clients should come here.\n# TYPE stomp_relay_ready gauge\n\
         stomp_relay_ready {ready}\n\
         # HELP stomp_relay_connections Client connections that are open.\n# TYPE stomp_relay_connections gauge\n\
         stomp_relay_connections {open}\n\
         # HELP stomp_relay_connections_accepted_total Client connections accepted since the start.\n\
         # TYPE stomp_relay_connections_accepted_total counter\nstomp_relay_connections_accepted_total {total}\n"
    )
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}
