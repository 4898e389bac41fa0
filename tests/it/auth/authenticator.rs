//! The authenticator by itself: certificates, what a reload keeps, and that nothing prints a secret.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stomp_relay::auth::{
    Algorithm, AttemptLimits, AuthConfig, Authenticator, KeySourceConfig, Keys, Links, Origin, Rules, TokenConfig,
    Upstream,
};
use stomp_relay::metrics::Metrics;
use stomp_relay::session::command::Credentials;
use stomp_relay::session::identity::UserCase;
use stomp_relay::session::proof::{CertificateName, Evidence, Proof, ProofFailure, Source, Token};

use super::issuer::{AUDIENCE, ISSUER, claims, issuer};
use super::key_server::{Answer, KeyServer};

fn config(server: Option<&KeyServer>, service: bool, upstream: Upstream) -> AuthConfig {
    let tokens = server.map(|server| TokenConfig {
        keys: Keys::Source(KeySourceConfig {
            ca: None,
            origin: Origin::Url(server.url().parse().unwrap()),
            timeout: Duration::from_secs(5),
            refresh: Duration::from_secs(3600),
            refetch_min: Duration::from_secs(3600),
            stale_max: Duration::from_secs(3600),
        }),
        rules: Rules {
            algorithms: vec![Algorithm::RS256],
            audiences: vec![AUDIENCE.to_owned()],
            issuer: Some(ISSUER.to_owned()),
            leeway: Duration::from_secs(5),
            token_bytes_max: 8192,
            user_claims: vec!["sub".to_owned()],
        },
        upstream,
    });
    let attempts = AttemptLimits {
        delay: Duration::ZERO,
        failures_per_address_max: 2,
        failures_per_user_max: 2,
        judged_max: 10,
        tracked_max: 10,
        window: Duration::from_secs(3600),
    };
    let service = service.then(|| Credentials { login: "service".to_owned(), passcode: "hidden".to_owned() });
    AuthConfig { attempts, service, tokens, user_case: UserCase::default() }
}

fn authenticator(config: AuthConfig, before: Option<&Authenticator>) -> Authenticator {
    Authenticator::new(config, before, &Arc::new(Metrics::default())).unwrap()
}

fn token(user: &str) -> Evidence {
    let text = issuer().rs256(&claims(user, 60));
    Evidence { proof: Proof::Token(Token::new(text)), source: Source::JwtHeader }
}

#[tokio::test]
async fn a_certificate_works_as_the_service_account_or_not_at_all() {
    let proof = Proof::Certificate(CertificateName("device-7".to_owned()));
    let evidence = Evidence { proof, source: Source::Certificate };
    let with = authenticator(config(None, true, Upstream::Service), None);
    let admitted = with.admit(&evidence, "test").await.unwrap();
    assert_eq!((admitted.credentials.login.as_str(), admitted.links), ("service", Links::Shared));
    assert_eq!(admitted.identity.user, "device-7");
    let without = authenticator(config(None, false, Upstream::Service), None);
    assert_eq!(without.admit(&evidence, "test").await, Err(ProofFailure::Refused));
}

#[tokio::test]
async fn sessions_with_the_same_end_of_their_tokens_end_one_after_the_other() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let relay = authenticator(config(Some(&server), true, Upstream::Service), None);
    let (token, start) = (token("alice"), Instant::now());
    let mut ends = Vec::new();
    for _ in 0..100 {
        ends.push(relay.admit(&token, "test").await.unwrap().identity.expires_at.unwrap());
    }
    ends.sort();
    let (first, last) = (ends[0] - start, ends[99] - start);
    assert!(first >= Duration::from_secs(59) && last <= Duration::from_secs(66), "{first:?} to {last:?}");
    // Of 5 s, all within one would be no chance.
    assert!(last - first > Duration::from_secs(1), "{first:?} to {last:?}");
}

#[tokio::test]
async fn a_token_brings_its_claims_and_its_end() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let relay = authenticator(config(Some(&server), true, Upstream::Service), None);
    let admitted = relay.admit(&token("alice"), "test").await.unwrap();
    assert_eq!((admitted.credentials.login.as_str(), admitted.links), ("service", Links::Shared));
    assert_eq!(admitted.identity.claims["aud"], [AUDIENCE]);
    let left = admitted.identity.expires_at.unwrap() - Instant::now();
    // Seconds in a token are whole.
    assert!((Duration::from_secs(59)..=Duration::from_secs(65)).contains(&left), "exp and the leeway: {left:?}");
    let broker = authenticator(config(Some(&server), false, Upstream::Token), None);
    let Evidence { proof: Proof::Token(text), .. } = token("alice") else { unreachable!() };
    let admitted = broker.renew(&text, "alice", "test").await.unwrap();
    assert_eq!((admitted.credentials.passcode.as_str(), admitted.links), (text.expose(), Links::Own));
    assert_eq!(broker.renew(&text, "bob", "test").await, Err(ProofFailure::Refused), "another user's");
    let off = authenticator(config(None, true, Upstream::Service), None);
    assert_eq!(off.admit(&token("alice"), "test").await, Err(ProofFailure::Refused));
    for shown in [format!("{:?} {:?}", token("alice"), admitted), format!("{broker:?} {relay:?}")] {
        assert!(!shown.contains(text.expose()) && !shown.contains("eyJ") && !shown.contains("hidden"), "{shown}");
    }
}

#[tokio::test]
async fn a_reload_keeps_the_keys_and_who_has_failed() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let old = authenticator(config(Some(&server), true, Upstream::Service), None);
    old.admit(&token("alice"), "test").await.unwrap();
    let address = "192.0.2.1".parse().unwrap();
    for _ in 0..2 {
        old.attempts().begin(address, "alice").await.unwrap().failed();
    }
    let new = authenticator(config(Some(&server), true, Upstream::Token), Some(&old));
    assert!(new.attempts().begin(address, "alice").await.is_err());
    assert_eq!(new.admit(&token("alice"), "test").await.unwrap().links, Links::Own, "the new settings hold");
    assert_eq!(server.asked(), 1);
}
