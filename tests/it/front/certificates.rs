//! Which certificate the server shows, and how it is renewed.

use std::time::Duration;

use stomp_relay::listener::tls::{Acceptor, CertificateFiles, MinVersion, Refresh, TlsConfig};
use stomp_relay::metrics::TlsMetrics;

use super::tls_server::{Front, PLAIN, Setup};
use crate::support::authority::{Authority, BOTH, NOW, Signed, handshake};
use crate::support::raw_http::{RawClient, within};
use crate::support::scratch::Scratch;

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_name_it_asks_for() {
    let names: &[&[&str]] = &[
        &["localhost", "default.example"],
        &["chat.example", "www.chat.example"],
        &["*.wild.example"],
        &["one.wild.example"],
    ];
    let front = Front::start(Setup { names, ..PLAIN });
    let served: Vec<_> = front.acceptor.leaves();
    assert!(served.iter().map(|leaf| &leaf.names[..]).eq(names.iter().copied()), "{served:?}");
    for (name, index) in [
        ("localhost", 0),
        ("chat.example", 1),
        ("WWW.Chat.Example", 1),
        ("two.wild.example", 2),
        ("one.wild.example", 3),
    ] {
        let expected = std::fs::read_to_string(front.folder.path(&format!("{index}.pem"))).unwrap();
        let expected = Signed { cert: expected, key: String::new() }.der();
        assert_eq!(front.shown(name, &front.authority).await, expected, "{name}");
    }
    // A name that no certificate is for gets the default, which the client then refuses: a wildcard is one label, not two.
    for name in ["other.example", "a.b.wild.example", "wild.example", "127.0.0.1"] {
        let error = handshake(&front.address, name, front.authority.trusting(None, &BOTH)).await.unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{name}: {error}");
    }
}

#[tokio::test]
async fn the_oldest_version_is_configured() {
    let front = Front::start(Setup { min_version: MinVersion::Tls13, ..PLAIN });
    let old = handshake(&front.address, "localhost", front.authority.trusting(None, &BOTH[1..])).await;
    assert!(old.unwrap_err().to_string().contains("ProtocolVersion"));
    handshake(&front.address, "localhost", front.authority.trusting(None, &BOTH)).await.unwrap();
    front.count_is("full", "1.3", 1).await;
    front.count_is("failed", "none", 1).await;

    let front = Front::start(PLAIN);
    handshake(&front.address, "localhost", front.authority.trusting(None, &BOTH[1..])).await.unwrap();
    front.count_is("full", "1.2", 1).await;
    front.count_is("failed", "none", 0).await;
}

#[tokio::test]
async fn changed_files_are_served_and_broken_ones_are_not() {
    let front = Front::start(PLAIN);
    let before = front.shown("localhost", &front.authority).await;
    assert!(matches!(front.acceptor.refresh(), Refresh::Same));

    // The certificate comes first: for a moment the two do not fit, which is no news yet.
    let renewed = front.authority.server(&["localhost"], NOW);
    front.folder.write("0.pem", &renewed.cert);
    assert!(matches!(front.acceptor.refresh(), Refresh::Waiting));
    assert_eq!(front.shown("localhost", &front.authority).await, before);
    front.folder.write("0-key.pem", &renewed.key);
    assert!(matches!(front.acceptor.refresh(), Refresh::Replaced));
    assert_eq!(front.shown("localhost", &front.authority).await, renewed.der());
    assert!(matches!(front.acceptor.refresh(), Refresh::Same));

    // What stays broken is reported once, and what was served stays.
    let expired = front.authority.server(&["localhost"], (-10, -1));
    let other = front.authority.server(&["localhost"], NOW);
    let cases = [
        (renewed.cert.as_str(), other.key.as_str(), "does not belong"),
        ("no PEM", renewed.key.as_str(), "holds no certificate"),
        (renewed.cert.as_str(), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "not usable"),
        (expired.cert.as_str(), expired.key.as_str(), "expired on"),
    ];
    for (cert, key, expected) in cases {
        front.folder.write("0.pem", cert);
        front.folder.write("0-key.pem", key);
        assert!(matches!(front.acceptor.refresh(), Refresh::Waiting));
        let Refresh::Broken(error) = front.acceptor.refresh() else { panic!("{expected} is not reported") };
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!format!("{error} {error:?}").contains("c2VjcmV0"), "{error:?}");
        assert!(matches!(front.acceptor.refresh(), Refresh::Waiting), "{expected} is reported again");
        assert_eq!(front.shown("localhost", &front.authority).await, renewed.der(), "{expected}");
    }
    std::fs::remove_file(front.folder.path("0.pem")).unwrap();
    assert!(matches!(front.acceptor.refresh(), Refresh::Waiting));
    assert!(matches!(front.acceptor.refresh(), Refresh::Broken(_)));
    front.folder.write("0.pem", &renewed.cert);
    front.folder.write("0-key.pem", &renewed.key);
    assert!(matches!(front.acceptor.refresh(), Refresh::Same));
}

#[tokio::test]
async fn sessions_resume_over_a_change_of_certificates() {
    for version in BOTH {
        let front = Front::start(PLAIN);
        let client = front.authority.trusting(None, &[version]);
        let kind = async || {
            let stream = handshake(&front.address, "localhost", client.clone()).await.unwrap();
            let kind = stream.get_ref().1.handshake_kind().unwrap();
            // The ticket comes behind the handshake: when an answer was read, so was the ticket.
            assert_eq!(RawClient::new(stream).request("GET", "/", "").await.status, 404);
            kind
        };
        assert_eq!(kind().await, rustls::HandshakeKind::Full);
        front.authority.server(&["localhost"], NOW).write(&front.folder, "0");
        assert!(matches!(front.acceptor.refresh(), Refresh::Replaced));
        assert_eq!(kind().await, rustls::HandshakeKind::Resumed, "{version:?}");
        let version = if version == &rustls::version::TLS13 { "1.3" } else { "1.2" };
        front.count_is("resumed", version, 1).await;
        front.count_is("full", version, 1).await;
    }
}

/// The two files are written one after the other, over the old ones, while clients come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handshake_fails_while_certificates_change() {
    let front = Front::start(PLAIN);
    let stop = tokio_util::sync::CancellationToken::new();
    let clients = {
        let (address, stop) = (front.address.clone(), stop.clone());
        let client = front.authority.trusting(None, &BOTH);
        tokio::spawn(async move {
            let mut done = 0;
            while !stop.is_cancelled() {
                handshake(&address, "localhost", client.clone()).await.unwrap();
                done += 1;
            }
            done
        })
    };
    for _ in 0..20 {
        let renewed = front.authority.server(&["localhost"], NOW);
        for (name, text) in [("0-key.pem", &renewed.key), ("0.pem", &renewed.cert)] {
            front.folder.write(name, text);
            assert!(!matches!(front.acceptor.refresh(), Refresh::Broken(_)));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(front.shown("localhost", &front.authority).await, renewed.der());
    }
    stop.cancel();
    let done = within("the last handshake", clients).await.unwrap();
    assert!(done > 0);
}

#[test]
fn a_bad_pair_is_refused_at_the_start() {
    let (authority, folder) = (Authority::new("start"), Scratch::new());
    let (one, two) = (authority.server(&["one.example"], NOW), authority.server(&["two.example"], NOW));
    let (cert, key) = one.write(&folder, "one");
    let (other, other_key) = two.write(&folder, "two");
    let missing = folder.path("missing.pem");
    let secret = folder.write("broken.pem", "-----BEGIN PRIVATE KEY-----\nsecret!\n-----END PRIVATE KEY-----\n");
    for (cert, key, expected) in [
        (&cert, &other_key, "does not belong to the certificate"),
        (&other, &key, "does not belong to the certificate"),
        (&key, &key, "holds no certificate"),
        (&cert, &cert, "holds no private key"),
        (&missing, &key, "No such file"),
        (&cert, &secret, "not valid PEM"),
    ] {
        let good = CertificateFiles { cert: folder.path("one.pem"), key: folder.path("one-key.pem") };
        let pair = CertificateFiles { cert: cert.clone(), key: key.clone() };
        for certificates in [vec![pair.clone()], vec![good.clone(), pair.clone()]] {
            let tls = TlsConfig { certificates, min_version: MinVersion::Tls12, client_auth: None };
            let error = Acceptor::new(tls, TlsMetrics::default()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }
}
