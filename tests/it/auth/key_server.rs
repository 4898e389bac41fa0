//! A small identity provider on loopback, over HTTP or HTTPS: serves what a test puts there, and counts who asks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::issuer::rsa_jwk;

/// How it answers at `/keys`.
#[derive(Clone)]
pub enum Answer {
    Body(Bytes),
    Status(u16, &'static str),
    /// Never, but the connection stays.
    Silence,
}

impl Answer {
    pub fn json(value: &Value) -> Answer {
        Answer::Body(Bytes::from(value.to_string()))
    }

    /// A key set of one RSA key.
    pub fn rsa(key: &aws_lc_rs::signature::RsaKeyPair, key_id: &str) -> Answer {
        Answer::json(&json!({ "keys": [rsa_jwk(key, key_id)] }))
    }
}

pub struct KeyServer {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
    scheme: &'static str,
    task: JoinHandle<()>,
}

impl KeyServer {
    pub async fn start(answer: Answer) -> KeyServer {
        KeyServer::serve(answer, None).await
    }

    /// Over TLS.
    pub async fn start_tls(answer: Answer, config: Arc<rustls::ServerConfig>) -> KeyServer {
        KeyServer::serve(answer, Some(config)).await
    }

    async fn serve(answer: Answer, tls: Option<Arc<rustls::ServerConfig>>) -> KeyServer {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        let (answers, count) = (answer.clone(), asked.clone());
        let issuer = format!("{scheme}://localhost:{}", address.port());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                let (answers, count, issuer, tls) = (answers.clone(), count.clone(), issuer.clone(), tls.clone());
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (answers, count, issuer) = (answers.clone(), count.clone(), issuer.clone());
                    async move { Ok::<_, Infallible>(respond(request.uri().path(), &answers, &count, &issuer).await) }
                });
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else { return };
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        KeyServer { address, answer, asked, scheme, task }
    }

    /// The issuer whose discovery document it serves.
    pub fn issuer(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.address.port())
    }

    pub fn url(&self) -> String {
        format!("{}/keys", self.issuer())
    }

    pub fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// How often the key set was asked for.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn respond(path: &str, answers: &Mutex<Answer>, count: &AtomicUsize, issuer: &str) -> Response<Full<Bytes>> {
    let page = |text: String| Response::new(Full::new(Bytes::from(text)));
    match path {
        "/.well-known/openid-configuration" => {
            page(json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") }).to_string())
        }
        "/other/.well-known/openid-configuration" => {
            page(json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") }).to_string())
        }
        _ => {
            count.fetch_add(1, Ordering::Relaxed);
            let answer = answers.lock().unwrap().clone();
            match answer {
                Answer::Body(body) => Response::new(Full::new(body)),
                Answer::Status(status, location) => {
                    let response = Response::builder().status(status).header("location", location);
                    response.body(Full::default()).unwrap()
                }
                Answer::Silence => {
                    tokio::time::sleep(Duration::from_secs(600)).await;
                    page(String::new())
                }
            }
        }
    }
}
