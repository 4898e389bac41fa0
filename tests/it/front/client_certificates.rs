//! Mutual TLS: which certificates are taken from clients, and the name that each gives.

use std::sync::Arc;

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use stomp_relay::listener::ListenerConfig;
use stomp_relay::listener::tls::{
    CertificateFiles, ClientAuth, Demand, MinVersion, NAME_BYTES_MAX, NameSource, Refresh, TlsConfig,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::server::{Server, config};
use super::tls_server::{Front, PLAIN, Setup};
use crate::support::authority::{Authority, BOTH, NOW, handshake};
use crate::support::raw_http::{RawClient, within};

#[tokio::test]
async fn a_client_is_known_by_its_certificate() {
    let text = |text: &str| text.try_into().unwrap();
    let alternatives =
        vec![SanType::DnsName(text("a.example")), SanType::Rfc822Name(text("a@example")), SanType::URI(text("urn:a"))];
    for (source, expected) in [
        (NameSource::CommonName, "alice"),
        (NameSource::DistinguishedName, "CN=alice,O=Example"),
        (NameSource::SanDns, "a.example"),
        (NameSource::SanEmail, "a@example"),
        (NameSource::SanUri, "urn:a"),
    ] {
        let mut front = Front::with_clients(Demand::Require, source);
        let alice = front.authority.client("alice", 2, alternatives.clone());
        let certificate = front.opened(Some(&alice)).await.unwrap().unwrap();
        assert_eq!((certificate.name.as_str(), certificate.common_name.as_deref()), (expected, Some("alice")));
        front.count_is("full", "1.3", 1).await;
    }
    // Not asked for, it is not taken either.
    let mut front = Front::start(PLAIN);
    let alice = front.authority.client("alice", 2, Vec::new());
    assert_eq!(front.opened(Some(&alice)).await, Ok(None));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_only_where_one_is_required() {
    let mut front = Front::with_clients(Demand::Request, NameSource::CommonName);
    assert_eq!(front.opened(None).await, Ok(None));
    let mut front = Front::with_clients(Demand::Require, NameSource::CommonName);
    let alert = front.opened(None).await.unwrap_err();
    assert!(alert.contains("CertificateRequired"), "{alert}");
    front.count_is("no_client_certificate", "none", 1).await;
    let old = handshake(&front.address, "localhost", front.authority.trusting(None, &BOTH[1..])).await;
    assert!(old.unwrap_err().to_string().contains("alert"));
}

#[tokio::test]
async fn a_bad_client_certificate_is_refused_with_an_alert() {
    let clients = ExtendedKeyUsagePurpose::ClientAuth;
    for demand in [Demand::Request, Demand::Require] {
        let setup = Setup { auth: Some((demand, NameSource::CommonName)), revoked: Some((&[7], (-1, 30))), ..PLAIN };
        let mut front = Front::start(setup);
        let authority = &front.authority;
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let cases = [
            (Authority::new("other").client("alice", 2, Vec::new()), "UnknownCA"),
            // An authority that only has the name of ours.
            (Authority::new("front").client("alice", 2, Vec::new()), "DecryptError"),
            (authority.client("alice", 7, Vec::new()), "CertificateRevoked"),
            (authority.client_for("alice", 2, Vec::new(), (-10, -1), clients.clone()), "CertificateExpired"),
            (authority.client_for("alice", 2, Vec::new(), (1, 10), clients.clone()), "CertificateExpired"),
            (
                authority.client_for("a", 2, Vec::new(), NOW, ExtendedKeyUsagePurpose::ServerAuth),
                "UnsupportedCertificate",
            ),
            (authority.client("a\nb", 2, Vec::new()), "CertificateUnknown"),
            (authority.client(&long, 2, Vec::new()), "CertificateUnknown"),
        ];
        let good = authority.client("bob", 8, Vec::new());
        let count = cases.len() as u64;
        for (bad, expected) in cases {
            let alert = front.opened(Some(&bad)).await.unwrap_err();
            assert!(alert.contains("alert"), "{expected}: {alert}");
            assert!(alert.contains(expected), "{alert} instead of {expected}");
        }
        front.count_is("bad_client_certificate", "none", count).await;
        assert_eq!(front.opened(Some(&good)).await.unwrap().unwrap().name, "bob");
    }
}

#[tokio::test]
async fn a_certificate_is_judged_again_at_every_connection() {
    let setup =
        Setup { auth: Some((Demand::Require, NameSource::CommonName)), revoked: Some((&[], (-1, 30))), ..PLAIN };
    let mut front = Front::start(setup);
    let alice = front.authority.client("alice", 2, Vec::new());
    let client = front.authority.trusting(Some(&alice), &BOTH);
    for _ in 0..2 {
        let stream = handshake(&front.address, "localhost", client.clone()).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(RawClient::new(stream).request("GET", "/", "").await.status, 404);
    }
    // The list is renewed like a certificate; one that is out of date refuses everybody.
    front.folder.write("crl.pem", &front.authority.revocations(&[2], (-1, 30)));
    assert!(matches!(front.acceptor.refresh(), Refresh::Replaced));
    assert!(front.opened(Some(&alice)).await.unwrap_err().contains("CertificateRevoked"));
    front.folder.write("crl.pem", &front.authority.revocations(&[], (-10, -1)));
    assert!(matches!(front.acceptor.refresh(), Refresh::Replaced));
    front.opened(Some(&alice)).await.unwrap_err();
    // So does one of another authority: nothing is known of ours then.
    front.folder.write("crl.pem", &Authority::new("other").revocations(&[], (-1, 30)));
    assert!(matches!(front.acceptor.refresh(), Refresh::Replaced));
    front.opened(Some(&alice)).await.unwrap_err();
    front.folder.write("crl.pem", &front.authority.revocations(&[], (-1, 30)));
    assert!(matches!(front.acceptor.refresh(), Refresh::Replaced));
    assert!(front.opened(Some(&alice)).await.unwrap().is_some());
}

/// As a reload does it: the successor takes over the keys of the tickets.
#[tokio::test]
async fn a_ticket_does_not_stand_for_a_certificate() {
    for version in BOTH {
        let front = Front::start(PLAIN);
        let client = front.authority.trusting(None, &[version]);
        let stream = handshake(&front.address, "localhost", client.clone()).await.unwrap();
        assert_eq!(RawClient::new(stream).request("GET", "/", "").await.status, 404);

        let files = |name: &str| front.folder.path(name);
        let certificates = vec![CertificateFiles { cert: files("0.pem"), key: files("0-key.pem") }];
        let plain = TlsConfig { certificates, min_version: MinVersion::Tls12, client_auth: None };
        let ca = front.folder.write("ca.pem", front.authority.pem());
        let auth = ClientAuth { demand: Demand::Require, ca, crl: None, name: NameSource::CommonName };
        let strict = TlsConfig { client_auth: Some(auth), ..plain.clone() };

        // Without the demand the ticket is good for a shorter handshake ...
        let next = Arc::new(front.acceptor.successor(plain).unwrap());
        let server = Server::start(ListenerConfig { tls: Some(next), ..config() });
        let stream = handshake(&server.address.to_string(), "localhost", client.clone()).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed), "{version:?}");
        assert_eq!(RawClient::new(stream).request("GET", "/", "").await.status, 404);

        // ... with it for nothing.
        let next = Arc::new(front.acceptor.successor(strict).unwrap());
        let server = Server::start(ListenerConfig { tls: Some(next), ..config() });
        let refused = async {
            let mut stream = handshake(&server.address.to_string(), "localhost", client).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            stream.read_exact(&mut [0]).await
        };
        let error = within("a refusal", refused).await.unwrap_err().to_string();
        assert!(error.contains("alert"), "{version:?}: {error}");
        front.count_is("no_client_certificate", "none", 1).await;
    }
}
