//! Which certificate the server shows, which it takes from clients, and what it does with bytes that are no TLS.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use stomp_relay::listener::tls::{
    Acceptor, CertificateFiles, ClientAuth, Demand, MinVersion, NAME_BYTES_MAX, NameSource, Refresh, TlsConfig,
};
use stomp_relay::listener::{ClientCertificate, ListenerConfig};
use stomp_relay::metrics::{Metrics, TlsMetrics};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::server::{Server, config};
use crate::support::authority::{Authority, BOTH, NOW, Signed, handshake, shown};
use crate::support::condition::eventually;
use crate::support::raw_http::{RawClient, within};
use crate::support::scratch::Scratch;

/// A server whose certificates and client authorities are files in a folder of its own.
struct Front {
    acceptor: Arc<Acceptor>,
    address: String,
    authority: Authority,
    folder: Scratch,
    metrics: Metrics,
    server: Server,
}

struct Setup {
    auth: Option<(Demand, NameSource)>,
    min_version: MinVersion,
    names: &'static [&'static [&'static str]],
    revoked: Option<(&'static [u64], (i32, i32))>,
}

const PLAIN: Setup = Setup { auth: None, min_version: MinVersion::Tls12, names: &[&["localhost"]], revoked: None };

impl Front {
    fn start(setup: Setup) -> Front {
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
        let timeout = Duration::from_secs(2);
        let listener = ListenerConfig { tls: Some(acceptor.clone()), tls_handshake_timeout: timeout, ..config() };
        let server = Server::start(listener);
        Front { acceptor, address: server.address.to_string(), authority, folder, metrics, server }
    }

    fn with_clients(demand: Demand, name: NameSource) -> Front {
        Front::start(Setup { auth: Some((demand, name)), ..PLAIN })
    }

    async fn shown(&self, name: &str, trusts: &Authority) -> rustls::pki_types::CertificateDer<'static> {
        shown(&self.address, name, trusts.trusting(None, &BOTH)).await
    }

    /// Handshakes counted with this result and version.
    fn counted(&self, result: &str, version: &str) -> u64 {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = format!("tls_handshakes_total{{result=\"{result}\",version=\"{version}\"}} ");
        text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }

    /// Waits until so many are counted: the client is often done first.
    async fn count_is(&self, result: &str, version: &str, count: u64) {
        eventually(&format!("{count} handshakes with {result} and {version}"), async || {
            let found = self.counted(result, version);
            assert!(found <= count, "{result} {version}: {found}");
            found == count
        })
        .await;
    }

    /// What the server knows of a client that came with this certificate; the error is what the client was told.
    async fn opened(&mut self, own: Option<&Signed>) -> Result<Option<ClientCertificate>, String> {
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

#[tokio::test]
async fn handshakes_that_end_or_stand_still_are_counted() {
    let front = Front::start(PLAIN);
    // A load balancer that looks whether the port is open.
    drop(front.server.connect().await);
    front.count_is("lost", "none", 1).await;
    // Half a hello, and then nothing: the deadline ends it.
    let mut silent = front.server.raw().await;
    silent.send(&record(0x16, &[1, 0, 1, 0])[..7]).await;
    assert_eq!(silent.rest().await, b"");
    front.count_is("timeout", "none", 1).await;
    // A client that does not trust the authority says so.
    let error = handshake(&front.address, "localhost", Authority::new("other").trusting(None, &BOTH)).await;
    assert!(error.unwrap_err().to_string().contains("UnknownIssuer"));
    front.count_is("failed", "none", 1).await;
}

/// A TLS record with the length it really has.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, 3, 1], &length[..], body].concat()
}

#[tokio::test]
async fn malformed_bytes_end_their_connection_only() {
    let front = Front::start(PLAIN);
    let mut good =
        RawClient::new(handshake(&front.address, "localhost", front.authority.trusting(None, &BOTH)).await.unwrap());
    // The message length says more than 64 KiB.
    let hello_of_any_length = [&[1, 0xff, 0xff, 0xff][..], &[0; 100]].concat();
    let many_extensions = {
        let mut extensions = Vec::new();
        for kind in 0..3000_u16 {
            extensions.extend_from_slice(&[&kind.to_be_bytes()[..], &[0, 0]].concat());
        }
        let length = u16::try_from(extensions.len()).unwrap().to_be_bytes();
        let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &length, &extensions].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        record(0x16, &[&[1], &length[1..], &body].concat())
    };
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing but the first byte's promise", vec![0x16, 0xff, 0xff, 0xff, 0xff], "failed"),
        ("a record of an unknown version", vec![0x16, 9, 9, 0, 1, 1], "any"),
        ("an empty record", record(0x16, b""), "any"),
        ("a record that is too long", [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat(), "failed"),
        ("a handshake of an unknown kind", record(0x16, &[99, 0, 0, 0]), "failed"),
        ("a server's hello", record(0x16, &[2, 0, 0, 2, 3, 3]), "failed"),
        ("a hello without a body", record(0x16, &[1, 0, 0, 0]), "failed"),
        ("a hello that is cut", record(0x16, &[1, 0, 0, 10, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0]), "failed"),
        ("a hello with a length beyond all", record(0x16, &hello_of_any_length), "failed"),
        ("a hello with thousands of extensions", many_extensions, "failed"),
        ("random bytes, which say a length beyond all", record(0x16, &[0xa5; 1000]), "failed"),
        ("an alert first", record(0x15, &[2, 40]), "not_tls"),
        ("application data first", record(0x17, b"GET / HTTP/1.1"), "not_tls"),
        ("change cipher spec first", record(0x14, &[1]), "not_tls"),
        ("an SSL 2 hello", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10], "not_tls"),
        ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "not_tls"),
        ("a heartbeat request", vec![0x18, 3, 3, 0, 3, 1, 0x40, 0], "not_tls"),
        ("zeros", vec![0; 4096], "not_tls"),
    ];
    for (what, bytes, result) in table {
        let before = front.counted(result, "none");
        let mut client = front.server.raw().await;
        // The server may close before it has all.
        let _ = client.try_send(&bytes).await;
        let answer = client.rest().await;
        // rustls says nothing to a message length that it will not wait for.
        if result == "failed" && !what.ends_with("beyond all") {
            assert_eq!(answer.first(), Some(&0x15), "{what}: an alert, not {answer:?}");
        }
        if result != "any" {
            front.count_is(result, "none", before + 1).await;
        }
    }
    // A hello in records of one byte is slow, not wrong.
    let mut hello = Vec::new();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(front.authority.trusting(None, &BOTH), name).unwrap();
    connection.write_tls(&mut hello).unwrap();
    let mut client = front.server.raw().await;
    for byte in &hello[5..] {
        client.send([0x16, 3, 1, 0, 1, *byte]).await;
    }
    drop(client);
    assert_eq!(good.request("GET", "/", "").await.status, 404);
    shown(&front.address, "localhost", front.authority.trusting(None, &BOTH)).await;
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
