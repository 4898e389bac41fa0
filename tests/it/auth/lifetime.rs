//! The end of a token and its renewal in a live session, relay mode.

use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use stomp_relay::server::Signal;
use stomp_relay::stomp::Command;
use tokio::net::TcpStream;

use super::issuer::{AUDIENCE, claims, issuer};
use super::key_server::{Answer, KeyServer};
use super::settings;
use crate::support::authority::{Authority, Signed};
use crate::support::process::get;
use crate::support::rabbit::Rabbit;
use crate::support::raw_http::within;
use crate::support::relay::Relay;
use crate::support::scratch::Scratch;
use crate::support::stomp::{Client, address};

async fn relay() -> (Relay, KeyServer) {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let settings = format!("{}leeway = \"0s\"\n", settings::relay(&server));
    (Relay::start_with(Rabbit::shared(), &settings), server)
}

/// Logged in as alice for this many seconds.
async fn alice(relay: &Relay, seconds: u64) -> Client {
    let token = issuer().rs256(&claims("alice", seconds));
    relay.client_with(&format!("accept-version:1.2\nhost:/\nAuthorization:Bearer {token}")).await
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let (relay, _server) = relay().await;
    let start = Instant::now();
    let mut client = alice(&relay, 2).await;
    client.subscribe("id:1\ndestination:/topic/auth.lifetime").await;
    let error = client.error("Token expired").await;
    assert_eq!(error.header("error-code"), Some("auth.token_expired"));
    assert_eq!(client.closed().await, (4001, "auth.token_expired: Token expired".to_owned()));
    // Seconds in a token are whole.
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
    let page = get(relay.admin, "/metrics").await.body;
    assert!(page.contains("sessions_closed_total{reason=\"token_expired\"} 1"), "{page}");
}

#[tokio::test]
async fn a_new_token_keeps_the_session() {
    let (relay, _server) = relay().await;
    let mut client = alice(&relay, 3).await;
    client.subscribe("id:1\ndestination:/topic/auth.refreshed").await;
    let token = issuer().rs256(&claims("alice", 60));
    client.send(&format!("SEND\ndestination:/auth/tokens\nreceipt:new\n\n{token}")).await;
    client.receipt("new").await;
    let old = Instant::now() + Duration::from_secs(4);
    while Instant::now() < old {
        client.send("SEND\ndestination:/topic/auth.refreshed\n\ngoes on").await;
        client.message("goes on").await;
    }
    let page = get(relay.admin, "/metrics").await.body;
    assert!(page.contains("token_refresh_total{result=\"ok\"} 1"), "{page}");
}

#[tokio::test]
async fn a_bad_new_token_leaves_the_session_with_the_old_one() {
    let (relay, _server) = relay().await;
    let mut client = alice(&relay, 4).await;
    let others = issuer().rs256(&claims("bob", 60));
    let expired = issuer().rs256(&serde_json::json!({ "exp": 1 }));
    for token in [others.as_str(), expired.as_str(), "eyJ.a.b", ""] {
        client.send(&format!("SEND\ndestination:/auth/tokens\nreceipt:r\n\n{token}")).await;
        let error = client.error("Token refused").await;
        assert_eq!(error.header("error-code"), Some("auth.refresh_refused"));
        assert_eq!(error.header("receipt-id"), Some("r"));
    }
    client.subscribe("id:1\ndestination:/topic/auth.not_refreshed").await;
    client.error("Token expired").await;
    assert_eq!(client.closed().await.0, 4001);
}

#[tokio::test]
async fn a_new_token_is_judged_by_what_a_reload_has_brought() {
    let (relay, server) = relay().await;
    let mut client = alice(&relay, 60).await;
    let token = issuer().rs256(&claims("alice", 60));
    let refresh = format!("SEND\ndestination:/auth/tokens\nreceipt:r\n\n{token}");
    client.send(&refresh).await;
    client.receipt("r").await;
    relay.rewrite(&format!("{}leeway = \"0s\"\n", settings::relay(&server).replace(AUDIENCE, "another")));
    relay.signal(Signal::Reload).await;
    within("the token is refused", async {
        loop {
            client.send(&refresh).await;
            let answer = client.frame().await;
            if answer.command == Command::Error {
                break assert_eq!(answer.header("error-code"), Some("auth.refresh_refused"));
            }
        }
    })
    .await;
    // The session goes on with the token that it has.
    client.subscribe("id:1\ndestination:/topic/auth.reloaded").await;
    client.disconnect().await;
}

/// A TLS connection to `wss` that shows this certificate.
async fn showing(relay: &Relay, own: &Signed) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&relay.ca).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let chain = CertificateDer::pem_slice_iter(own.cert.as_bytes()).map(Result::unwrap).collect();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap())
        .unwrap();
    let stream = TcpStream::connect(address(&relay.wss)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn a_session_ends_with_its_certificate_whatever_else_it_showed() {
    let (authority, folder) = (Authority::new("clients"), Scratch::new());
    let ca = folder.write("clients.pem", authority.pem());
    let settings = format!(
        "[[rules]]\nsend = [\"**\"]\nsubscribe = [\"**\"]\n[auth]\nsources = [\"certificate\", \"password\"]\n\
         service_login = \"guest\"\nservice_passcode = \"guest\"\n[tls]\nclient_auth = \"require\"\nclient_ca_file = {:?}\n",
        ca.display().to_string()
    );
    let relay = Relay::start_with(Rabbit::shared(), &settings);
    for shown in ["", "login:guest\npasscode:guest\n"] {
        let own = authority.client_until("device-7", 3);
        let start = Instant::now();
        let mut client = Client::over(&relay.wss, showing(&relay, &own).await).await;
        client.send(&format!("CONNECT\naccept-version:1.2\nhost:/\n{shown}\n")).await;
        client.expect("CONNECTED").await;
        client.subscribe("id:1\ndestination:/topic/auth.certificate").await;
        let error = client.error("Certificate expired").await;
        assert_eq!(error.header("error-code"), Some("auth.certificate_expired"));
        assert_eq!(client.closed().await.0, 4001);
        // Seconds in a certificate are whole, and the last one counts.
        assert!(start.elapsed() > Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_session_ends_when_its_certificate_is_withdrawn() {
    let (authority, other, folder) = (Authority::new("clients"), Authority::new("others"), Scratch::new());
    let both = folder.write("clients.pem", &(authority.pem().to_owned() + other.pem()));
    let lists = |of_authority: (&[u64], (i32, i32))| {
        authority.revocations(of_authority.0, of_authority.1) + &other.revocations(&[], (-1, 30))
    };
    let crl = folder.write("clients.crl.pem", &lists((&[], (-1, 30))));
    let settings = format!(
        "[[rules]]\nsend = [\"**\"]\nsubscribe = [\"**\"]\n[auth]\nsources = [\"certificate\"]\n\
         service_login = \"guest\"\nservice_passcode = \"guest\"\n[tls]\nclient_auth = \"require\"\n\
         client_ca_file = {:?}\nclient_crl_file = {:?}\n",
        both.display().to_string(),
        crl.display().to_string()
    );
    let relay = Relay::start_with(Rabbit::shared(), &settings);
    let mut clients = Vec::new();
    for own in [
        authority.client("device-2", 2, Vec::new()),
        authority.client("device-3", 3, Vec::new()),
        other.client("device-4", 4, Vec::new()),
    ] {
        let mut client = Client::over(&relay.wss, showing(&relay, &own).await).await;
        client.send("CONNECT\naccept-version:1.2\nhost:/\n\n").await;
        client.expect("CONNECTED").await;
        client.subscribe("id:1\ndestination:/topic/auth.withdrawn").await;
        clients.push(client);
    }
    let mut other_authoritys = clients.pop().unwrap();
    let mut good = clients.pop().unwrap();
    let mut revoked = clients.pop().unwrap();

    folder.write("clients.crl.pem", &lists((&[2], (-1, 30))));
    let error = revoked.error("Certificate withdrawn").await;
    assert_eq!(error.header("error-code"), Some("auth.certificate_withdrawn"));
    assert_eq!(revoked.closed().await.0, 4001);

    // A list that is out of date says nothing of a certificate; an authority that is gone does.
    folder.write("clients.crl.pem", &lists((&[2], (-10, -1))));
    folder.write("clients.pem", authority.pem());
    other_authoritys.error("Certificate withdrawn").await;
    assert_eq!(other_authoritys.closed().await.0, 4001);
    good.subscribe("id:2\ndestination:/topic/auth.withdrawn").await;
}
