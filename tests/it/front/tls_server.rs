//! A server with certificates of a throw-away authority, and what it counts.

use std::sync::Arc;
use std::time::Duration;

use stomp_relay::listener::tls::{Acceptor, CertificateFiles, ClientAuth, Demand, MinVersion, NameSource, TlsConfig};
use stomp_relay::listener::{ClientCertificate, ListenerConfig};
use stomp_relay::metrics::Metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::server::{Server, config};
use crate::support::authority::{Authority, BOTH, NOW, Signed, handshake, shown};
use crate::support::condition::eventually;
use crate::support::raw_http::{PATIENCE, RawClient, within};
use crate::support::scratch::Scratch;

/// A server whose certificates and client authorities are files in a folder of its own.
pub struct Front {
    pub acceptor: Arc<Acceptor>,
    pub address: String,
    pub authority: Authority,
    pub folder: Scratch,
    pub metrics: Metrics,
    pub server: Server,
}

pub struct Setup {
    pub auth: Option<(Demand, NameSource)>,
    pub handshake_timeout: Duration,
    pub min_version: MinVersion,
    pub names: &'static [&'static [&'static str]],
    pub revoked: Option<(&'static [u64], (i32, i32))>,
}

pub const PLAIN: Setup = Setup {
    auth: None,
    handshake_timeout: PATIENCE,
    min_version: MinVersion::Tls12,
    names: &[&["localhost"]],
    revoked: None,
};

impl Front {
    pub fn start(setup: Setup) -> Front {
        let (authority, folder, metrics) = (Authority::new("front"), Scratch::new(), Metrics::default());
        let certificates = setup.names.iter().enumerate().map(|(index, names)| {
            let (cert, key) = authority.server(names, NOW).write(&folder, &index.to_string());
            CertificateFiles { cert, key }
        });
        let client_auth = setup.auth.map(|(demand, name)| ClientAuth {
            demand,
            ca: folder.write("ca.pem", authority.pem()),
            crl: setup.revoked.map(|(serials, valid)| folder.write("crl.pem", &authority.revocations(serials, valid))),
            name,
        });
        let tls = TlsConfig { certificates: certificates.collect(), min_version: setup.min_version, client_auth };
        let acceptor = Arc::new(Acceptor::new(tls, metrics.tls.clone()).unwrap());
        let timeout = setup.handshake_timeout;
        let listener = ListenerConfig { tls: Some(acceptor.clone()), tls_handshake_timeout: timeout, ..config() };
        let server = Server::start(listener);
        Front { acceptor, address: server.address.to_string(), authority, folder, metrics, server }
    }

    pub fn with_clients(demand: Demand, name: NameSource) -> Front {
        Front::start(Setup { auth: Some((demand, name)), ..PLAIN })
    }

    pub async fn shown(&self, name: &str, trusts: &Authority) -> rustls::pki_types::CertificateDer<'static> {
        shown(&self.address, name, trusts.trusting(None, &BOTH)).await
    }

    /// Handshakes counted with this result and version.
    pub fn counted(&self, result: &str, version: &str) -> u64 {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = format!("tls_handshakes_total{{result=\"{result}\",version=\"{version}\"}} ");
        text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }

    /// Waits until so many are counted: the client is often done first.
    pub async fn count_is(&self, result: &str, version: &str, count: u64) {
        eventually(&format!("{count} handshakes with {result} and {version}"), async || {
            let found = self.counted(result, version);
            assert!(found <= count, "{result} {version}: {found}");
            found == count
        })
        .await;
    }

    /// What the server knows of a client that came with this certificate; the error is what the client was told.
    pub async fn opened(&mut self, own: Option<&Signed>) -> Result<Option<ClientCertificate>, String> {
        for versions in [&BOTH[..1], &BOTH[1..]] {
            let client = self.authority.trusting(own, versions);
            let mut stream = handshake(&self.address, "localhost", client).await.map_err(|error| error.to_string())?;
            // With TLS 1.3 the client is done before the server has judged its certificate.
            if versions == &BOTH[..1] {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.map_err(|error| error.to_string())?;
                let mut first = [0];
                within("an answer", stream.read(&mut first)).await.map_err(|error| error.to_string())?;
                continue;
            }
            let _open = RawClient::new(stream).upgraded().await;
            return Ok(self.server.opened().await.1.certificate);
        }
        unreachable!("there are two versions");
    }
}
