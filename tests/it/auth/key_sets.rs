//! Key sets from a real server: cached, rotated, unknown keys, storms, and a server that fails in every way.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use stomp_relay::auth::{KEY_SET_BYTES_MAX, KeySource, KeySourceConfig, Origin};
use stomp_relay::metrics::Metrics;

use super::issuer::issuer;
use super::key_server::{Answer, KeyServer};
use crate::support::condition::eventually;
use crate::support::scratch::Scratch;

const NEVER: Duration = Duration::from_secs(3600);

fn config(origin: Origin) -> KeySourceConfig {
    KeySourceConfig {
        ca: None,
        origin,
        timeout: Duration::from_secs(10),
        refresh: NEVER,
        refetch_min: NEVER,
        stale_max: NEVER,
    }
}

fn of_url(server: &KeyServer) -> KeySourceConfig {
    config(Origin::Url(server.url().parse().unwrap()))
}

fn source(config: KeySourceConfig) -> KeySource {
    KeySource::new(config, Arc::new(Metrics::default())).unwrap()
}

#[tokio::test]
async fn many_logins_share_one_fetch() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let source = source(of_url(&server));
    let found = join_all((0..100).map(|_| source.current())).await;
    assert!(found.iter().all(|keys| keys.as_ref().is_some_and(|keys| keys.len() == 4)));
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_storm_of_unknown_keys_fetches_once() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let source = source(KeySourceConfig { refetch_min: Duration::from_secs(60), ..of_url(&server) });
    let keys = source.current().await.unwrap();
    for _ in 0..100 {
        join_all((0..100).map(|_| source.newer(&keys))).await;
    }
    assert_eq!(server.asked(), 1, "the first fetch is less than refetch_min ago");
}

#[tokio::test]
async fn a_rotated_key_is_found_by_one_fetch() {
    let server = KeyServer::start(Answer::rsa(&issuer().rsa, "old")).await;
    let source = source(KeySourceConfig { refetch_min: Duration::ZERO, ..of_url(&server) });
    let keys = source.current().await.unwrap();
    server.answer(Answer::rsa(&issuer().other_rsa, "new"));
    assert!(source.newer(&keys).await.is_some());
    assert_eq!(server.asked(), 2);
    assert!(source.newer(&keys).await.is_some(), "who has old keys gets the known newer ones");
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn a_fetch_survives_the_login_that_asked_for_it() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let source = source(of_url(&server));
    drop(tokio::time::timeout(Duration::ZERO, source.current()).await);
    assert!(source.current().await.is_some());
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn old_keys_are_refreshed_aside_and_used_while_the_server_fails() {
    let server = KeyServer::start(Answer::rsa(&issuer().rsa, "old")).await;
    let refresh = Duration::from_millis(300);
    let source = source(KeySourceConfig {
        refresh,
        refetch_min: Duration::from_millis(1),
        timeout: Duration::from_millis(200),
        ..of_url(&server)
    });
    let old = source.current().await.unwrap();
    for answer in [
        Answer::Status(500, ""),
        Answer::Status(302, "https://evil.example/keys"),
        Answer::Body(Bytes::from_static(b"garbage")),
        Answer::Body(Bytes::from(vec![b' '; KEY_SET_BYTES_MAX + 1])),
        Answer::Silence,
    ] {
        server.answer(answer);
        let asked = server.asked();
        eventually("another fetch", || async {
            let keys = source.current().await.expect("known keys are used on");
            assert!(Arc::ptr_eq(&keys, &old));
            server.asked() > asked
        })
        .await;
    }
    server.answer(Answer::rsa(&issuer().other_rsa, "new"));
    eventually("the new keys", || async { !Arc::ptr_eq(&source.current().await.unwrap(), &old) }).await;
}

#[tokio::test]
async fn keys_that_are_too_old_are_not_used() {
    let server = KeyServer::start(Answer::rsa(&issuer().rsa, "old")).await;
    let short = Duration::from_millis(20);
    let source = source(KeySourceConfig { refresh: short, refetch_min: short, stale_max: short, ..of_url(&server) });
    assert!(source.current().await.is_some());
    server.answer(Answer::Status(503, ""));
    eventually("no keys", || async { source.current().await.is_none() }).await;
}

#[tokio::test]
async fn without_keys_a_dead_server_is_told_at_once_and_tried_again() {
    let server = KeyServer::start(Answer::Status(503, "")).await;
    let source = source(of_url(&server));
    let start = Instant::now();
    join_all((0..50).map(|_| source.current())).await;
    assert!(source.current().await.is_none() && start.elapsed() < Duration::from_secs(5));
    assert!(server.asked() <= 2 + start.elapsed().as_secs() as usize);
    server.answer(Answer::json(&issuer().key_set()));
    eventually("the server is tried again", || async { source.current().await.is_some() }).await;
}

#[tokio::test]
async fn discovery_finds_the_key_set_of_its_issuer_only() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    assert_eq!(source(config(Origin::Issuer(server.issuer()))).current().await.unwrap().len(), 4);
    let other = format!("{}/other", server.issuer());
    assert!(source(config(Origin::Issuer(other))).current().await.is_none(), "the page is about another issuer");
}

#[tokio::test]
async fn https_is_checked_against_the_authority() {
    let folder = Scratch::new();
    let certificate = stomp_relay::dev_cert::write(folder.folder(), stomp_relay::dev_cert::Existing::Keep).unwrap();
    let chain = CertificateDer::pem_file_iter(&certificate.cert).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(&certificate.key).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .unwrap();
    let server = KeyServer::start_tls(Answer::json(&issuer().key_set()), Arc::new(tls)).await;
    let trusted = KeySourceConfig { ca: Some(certificate.ca), ..of_url(&server) };
    assert_eq!(source(trusted).current().await.unwrap().len(), 4);
    assert!(source(of_url(&server)).current().await.is_none(), "the system knows no such authority");
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_changed_file_is_read_again_for_an_unknown_key() {
    let folder = Scratch::new();
    let file = folder.write("keys.pem", &issuer().pem());
    let source = source(KeySourceConfig { refetch_min: Duration::from_millis(1), ..config(Origin::File(file)) });
    let keys = source.current().await.unwrap();
    assert_eq!(keys.len(), 3);
    folder.write("keys.pem", &issuer().key_set().to_string());
    eventually("the file's new keys", || async { source.newer(&keys).await.is_some_and(|keys| keys.len() == 4) }).await;
    folder.write("keys.pem", "");
    assert_eq!(source.current().await.unwrap().len(), 4, "a broken file changes nothing");
}
