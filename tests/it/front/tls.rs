//! TLS: both versions, deadlines, and clients that come to the wrong port.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use stomp_relay::listener::tls::{Acceptor, CertificateFiles, MinVersion, TlsConfig};
use stomp_relay::listener::{ListenerConfig, Security};
use stomp_relay::metrics::TlsMetrics;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

use super::server::{Folder, Server, config, echo};
use crate::support::raw_http::{RawClient, within};

/// A server with a fresh certificate for localhost, and a client's trust in it.
fn tls_server(config: ListenerConfig) -> (Server, RootCertStore) {
    let folder = Folder::new();
    let made = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    let cert = folder.write("cert.pem", made.cert.pem());
    let key = folder.write("key.pem", made.signing_key.serialize_pem());
    let tls = TlsConfig {
        certificates: vec![CertificateFiles { cert: cert.clone(), key }],
        min_version: MinVersion::Tls12,
        client_auth: None,
    };
    let tls = Acceptor::new(tls, TlsMetrics::default()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&cert).unwrap()).unwrap();
    (Server::start(ListenerConfig { tls: Some(Arc::new(tls)), ..config }), roots)
}

fn client_config(roots: &RootCertStore, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

async fn connect(server: &Server, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let name = ServerName::try_from("localhost").unwrap();
    within("TLS handshake", TlsConnector::from(config).connect(name, server.connect().await)).await.unwrap()
}

#[tokio::test]
async fn wss_works_with_tls_1_2_and_1_3() {
    let (mut server, roots) = tls_server(config());
    for (version, expected) in
        [(&rustls::version::TLS12, ProtocolVersion::TLSv1_2), (&rustls::version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let stream = connect(&server, client_config(&roots, version)).await;
        assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let (mut client, _) =
            within("upgrade", tokio_tungstenite::client_async("wss://localhost/ws", stream)).await.unwrap();
        let (websocket, opened) = server.opened().await;
        assert_eq!(opened.security, Security::Tls);
        let echo = tokio::spawn(echo(websocket));
        for message in [Message::text("hello"), Message::binary(vec![0xff; 1000])] {
            within("send", client.send(message.clone())).await.unwrap();
            let answer = within("echo", client.next()).await.unwrap().unwrap();
            assert_eq!(answer, message);
        }
        within("close", client.close(None)).await.unwrap();
        while let Some(Ok(_)) = within("the server's close", client.next()).await {}
        within("the session's end", echo).await.unwrap();
    }
}

#[tokio::test]
async fn flushed_means_that_tls_keeps_nothing_back() {
    let (mut server, roots) = tls_server(config());
    let stream = connect(&server, client_config(&roots, &rustls::version::TLS13)).await;
    let mut client = RawClient::new(stream).upgraded().await;
    let (mut websocket, _) = server.opened().await;
    // The client starts to read only when the socket takes no more.
    let mut messages = 0;
    loop {
        websocket.queue(vec![b'x'; 1000].into());
        messages += 1;
        if tokio::time::timeout(Duration::from_millis(100), websocket.flush()).await.is_err() {
            break;
        }
    }
    assert_eq!(websocket.queued_bytes(), 0, "the last message is no longer ours, but is it the socket's?");
    let flushing = tokio::spawn(async move {
        within("flush", websocket.flush()).await.unwrap();
        websocket
    });
    for _ in 0..messages {
        assert_eq!(client.frame().await.payload.len(), 1000);
    }
    // Held until here, so that dropping it does not end the stream, and not driven any more.
    drop(within("flush", flushing).await.unwrap());
}

#[tokio::test]
async fn sessions_resume() {
    let (server, roots) = tls_server(config());
    let config = client_config(&roots, &rustls::version::TLS13);
    for expected in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let stream = connect(&server, config.clone()).await;
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.handshake_kind(), Some(expected));
        // The ticket comes behind the handshake: when an answer was read, so was the ticket.
        let mut client = RawClient::new(stream);
        assert_eq!(client.request("GET", "/", "").await.status, 404);
    }
}

#[tokio::test]
async fn pages_over_tls_name_wss() {
    let (server, roots) = tls_server(config());
    let mut client = RawClient::new(connect(&server, client_config(&roots, &rustls::version::TLS13)).await);
    let page = client.request("GET", "/ws", "").await;
    assert!(page.body.contains("wss://example.com/ws"), "{}", page.body);
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_told_so() {
    let (mut server, _) = tls_server(config());
    let mut client = server.raw().await;
    let answer = client.request("GET", "/ws", "").await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("wss://"), "{}", answer.body);
    assert_eq!(client.rest().await, b"");
    drop(client);
    server.one_served().await;
    // Other bytes are closed without a word.
    let mut client = server.raw().await;
    client.send([0; 16]).await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn tls_on_the_plain_port_is_closed() {
    let (_, roots) = tls_server(config());
    let mut plain = Server::start(config());
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(client_config(&roots, &rustls::version::TLS13));
    assert!(within("refusal", connector.connect(name, plain.connect().await)).await.is_err());
    plain.one_served().await;
    // Without a word: HTTP would only confuse it.
    let mut client = plain.raw().await;
    client.send(b"\x16\x03\x01\x00\x02\x01\x00\r\n\r\n").await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn unfinished_handshakes_are_closed() {
    let (mut server, _) = tls_server(ListenerConfig { tls_handshake_timeout: Duration::from_millis(300), ..config() });
    for sent in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut client = server.raw().await;
        client.send(sent).await;
        client.rest().await;
        server.one_served().await;
    }
}

#[tokio::test]
async fn a_silent_tls_client_is_closed_too() {
    let (mut server, roots) = tls_server(ListenerConfig { head_timeout: Duration::from_millis(300), ..config() });
    let mut client = RawClient::new(connect(&server, client_config(&roots, &rustls::version::TLS13)).await);
    assert_eq!(client.rest().await, b"");
    server.one_served().await;
}
