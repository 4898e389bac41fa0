//! Tokens that are accepted and tokens that are not: a table, and the key sets behind it.

use std::time::Duration;

use aws_lc_rs::hmac::HMAC_SHA256;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use aws_lc_rs::signature::RsaKeyPair;
use serde_json::{Value, json};
use stomp_relay::auth::{Algorithm, KEY_SET_BYTES_MAX, KEYS_MAX, KeySet, Rules, Symmetric, TokenError, verify};

use super::issuer::{AUDIENCE, ISSUER, SECRET, base64url, hmac_of, issuer, pem, rsa_jwk, rsa_of, token_of};

const NOW: u64 = 1_800_000_000;

fn rules() -> Rules {
    Rules {
        algorithms: vec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
            Algorithm::ES256,
            Algorithm::ES384,
            Algorithm::EdDSA,
        ],
        audiences: vec![AUDIENCE.to_owned(), "other-service".to_owned()],
        issuer: Some(ISSUER.to_owned()),
        leeway: Duration::from_secs(5),
        token_bytes_max: 8192,
        user_claims: vec!["preferred_username".to_owned(), "sub".to_owned()],
    }
}

fn good() -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 60, "nbf": NOW - 60, "iat": NOW - 60 })
}

/// Good claims with one of them changed; null takes it away.
fn with(name: &str, value: Value) -> Value {
    let mut claims = good();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

fn published() -> KeySet {
    KeySet::parse(issuer().key_set().to_string().as_bytes(), Symmetric::Refused).unwrap()
}

fn judge(token: &str) -> Result<String, TokenError> {
    verify(token, &published(), &rules(), NOW).map(|verified| verified.user)
}

/// RS256 with a good signature over any claims.
fn rs256(claims: &Value) -> String {
    issuer().rs256(claims)
}

/// RS256 with a good signature under any header.
fn headed(header: Value) -> String {
    token_of(&header, &good().to_string(), |message| issuer().sign("RS256", message))
}

#[test]
fn good_tokens_are_accepted() {
    let token = |algorithm: &str, key: &str| issuer().token(algorithm, key, &good());
    let table = [
        ("RS256", token("RS256", "rsa")),
        ("RS384", token("RS384", "rsa")),
        ("RS512", token("RS512", "rsa")),
        ("PS256", token("PS256", "rsa")),
        ("PS384", token("PS384", "rsa")),
        ("PS512", token("PS512", "rsa")),
        ("ES256", token("ES256", "p256")),
        ("ES384", token("ES384", "p384")),
        ("EdDSA", token("EdDSA", "ed")),
        ("no kid", headed(json!({ "alg": "RS256" }))),
        ("aud in a list", rs256(&with("aud", json!(["account", AUDIENCE])))),
        ("second aud", rs256(&with("aud", json!("other-service")))),
        ("exp with a fraction", rs256(&with("exp", json!(NOW as f64 + 10.5)))),
        ("just within the leeway", rs256(&with("exp", json!(NOW - 4)))),
        ("nbf within the leeway", rs256(&with("nbf", json!(NOW + 5)))),
        ("no nbf", rs256(&with("nbf", Value::Null))),
        ("exp far away", rs256(&with("exp", json!(1e300)))),
        ("jku is not followed", headed(json!({ "alg": "RS256", "kid": "rsa", "jku": "http://127.0.0.1:1/keys" }))),
    ];
    for (what, token) in table {
        assert_eq!(judge(&token).as_deref(), Ok("alice"), "{what}");
    }
    let named = rs256(&with("preferred_username", json!("Alice")));
    assert_eq!(judge(&named).as_deref(), Ok("Alice"), "the first of user_claims wins");
}

#[test]
fn bad_tokens_are_refused() {
    let malformed = |token: &str| matches!(judge(token), Err(TokenError::Malformed(_)));
    let rs256_good = rs256(&good());
    let parts: Vec<&str> = rs256_good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!() };
    for (what, token) in [
        ("empty", String::new()),
        ("dots", "..".to_owned()),
        ("one part", header.to_owned()),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{rs256_good}.x")),
        ("encrypted", format!("{rs256_good}.x.y")),
        ("padded", format!("{header}=.{payload}.{signature}")),
        ("plain base64", format!("{}.{payload}.{signature}", header.replace('J', "+"))),
        ("header no JSON", format!("{}.{payload}.{signature}", base64url("x"))),
        ("header no object", format!("{}.{payload}.{signature}", base64url("[1]"))),
        ("deep header", format!("{}.{payload}.{signature}", base64url("[".repeat(3000)))),
        ("no alg", headed(json!({ "kid": "rsa" }))),
        ("alg a number", headed(json!({ "alg": 256, "kid": "rsa" }))),
        ("crit", headed(json!({ "alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": false }))),
        ("kid a number", headed(json!({ "alg": "RS256", "kid": 1 }))),
        ("kid an object", headed(json!({ "alg": "RS256", "kid": { "$ne": "" } }))),
        ("kid too long", headed(json!({ "alg": "RS256", "kid": "k".repeat(257) }))),
        ("NUL", "\0.\0.\0".to_owned()),
    ] {
        assert!(malformed(&token), "{what}: {:?}", judge(&token));
    }

    let unsigned = |algorithm: &str| token_of(&json!({ "alg": algorithm }), &good().to_string(), |_| Vec::new());
    let hmac = |secret: &[u8]| {
        let header = json!({ "alg": "HS256", "kid": "rsa" });
        token_of(&header, &good().to_string(), |message| hmac_of(HMAC_SHA256, secret, message))
    };
    for (what, token) in [
        ("none", unsigned("none")),
        ("None", unsigned("None")),
        ("NONE", unsigned("NONE")),
        ("empty alg", unsigned("")),
        ("unknown alg", unsigned("ES512")),
        ("alg in lower case", headed(json!({ "alg": "rs256", "kid": "rsa" }))),
        ("the public key's PEM as secret", hmac(pem("PUBLIC KEY", &issuer().rsa_der()).as_bytes())),
        ("the public key's DER as secret", hmac(&issuer().rsa_der())),
        ("an HMAC algorithm that is off", issuer().token("HS256", "rsa", &good())),
    ] {
        assert!(matches!(judge(&token), Err(TokenError::Algorithm(_))), "{what}: {:?}", judge(&token));
    }

    let under = |header: Value, algorithm: &'static str| {
        token_of(&header, &good().to_string(), |message| issuer().sign(algorithm, message))
    };
    let flipped = |at: usize| {
        let mut bytes = base64_decode(signature);
        bytes[at] ^= 1;
        format!("{header}.{payload}.{}", base64url(bytes))
    };
    let stranger = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    for (what, token) in [
        ("first bit flipped", flipped(0)),
        ("last bit flipped", flipped(255)),
        ("no signature", format!("{header}.{payload}.")),
        ("signature no base64", format!("{header}.{payload}.***")),
        ("other claims", format!("{header}.{}.{signature}", base64url(with("sub", json!("root")).to_string()))),
        ("alg of another family", under(json!({ "alg": "ES256", "kid": "rsa" }), "RS256")),
        ("kid of another key", under(json!({ "alg": "RS256", "kid": "p256" }), "RS256")),
        ("PS256 signed as RS256", under(json!({ "alg": "PS256", "kid": "rsa" }), "RS256")),
        ("key in the header", {
            let header = json!({ "alg": "RS256", "kid": "rsa", "jwk": rsa_jwk(&stranger, "rsa") });
            token_of(&header, &good().to_string(), |message| rsa_of(&stranger, &RSA_PKCS1_SHA256, message))
        }),
    ] {
        assert_eq!(judge(&token), Err(TokenError::Signature), "{what}");
    }

    for kid in ["unknown", "../../../etc/passwd", "/dev/null", "rsa' OR '1'='1", "https://evil.example/jwks", "RSA", ""]
    {
        let token = headed(json!({ "alg": "RS256", "kid": kid }));
        assert!(matches!(judge(&token), Err(TokenError::UnknownKey(_))), "kid {kid}");
    }
}

fn base64_decode(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap()
}

#[test]
fn claims_are_checked_after_the_signature() {
    let audience = |text: &str| TokenError::Audience(format!("{text:?}"));
    let table = [
        ("exp", Value::Null, TokenError::Missing("exp")),
        ("exp", json!("never"), TokenError::Type("exp")),
        ("exp", json!(NOW - 5), TokenError::Expired { seconds: 5 }),
        ("exp", json!(NOW - 412), TokenError::Expired { seconds: 412 }),
        ("exp", json!(0), TokenError::Expired { seconds: NOW }),
        ("exp", json!(-1), TokenError::Expired { seconds: NOW }),
        ("nbf", json!(NOW + 6), TokenError::Future { claim: "nbf", seconds: 6 }),
        ("nbf", json!([NOW]), TokenError::Type("nbf")),
        ("iat", json!(NOW + 100), TokenError::Future { claim: "iat", seconds: 100 }),
        ("iss", Value::Null, TokenError::Missing("iss")),
        ("iss", json!("https://id.example.com/"), TokenError::Issuer("\"https://id.example.com/\"".into())),
        ("iss", json!("https://evil.example"), TokenError::Issuer("\"https://evil.example\"".into())),
        ("iss", json!([ISSUER]), TokenError::Type("iss")),
        ("aud", Value::Null, TokenError::Missing("aud")),
        ("aud", json!("account"), audience("\"account\"")),
        ("aud", json!("stomp-relay other-service"), audience("\"stomp-relay other-service\"")),
        ("aud", json!("Stomp-Relay"), audience("\"Stomp-Relay\"")),
        ("aud", json!([]), audience("[]")),
        ("aud", json!(["stomp-relay-2"]), audience("[\"stomp-relay-2\"]")),
        ("aud", json!({ "stomp-relay": 1 }), TokenError::Type("aud")),
        ("sub", Value::Null, TokenError::User),
        ("sub", json!(""), TokenError::User),
        ("sub", json!(7), TokenError::User),
        ("sub", json!(["a", "b"]), TokenError::User),
        ("sub", json!("a\nb"), TokenError::User),
        ("sub", json!("a\u{0}b"), TokenError::User),
        ("sub", json!("u".repeat(256)), TokenError::User),
    ];
    for (claim, value, expected) in table {
        let token = rs256(&with(claim, value.clone()));
        assert_eq!(judge(&token), Err(expected), "{claim} {value}");
    }
    for (what, payload) in [("a list", "[]"), ("no JSON", "{"), ("a text", "\"x\"")] {
        let token = token_of(&json!({ "alg": "RS256" }), payload, |message| issuer().sign("RS256", message));
        assert!(matches!(judge(&token), Err(TokenError::Malformed(_))), "claims that are {what}");
    }
}

#[test]
fn a_token_at_the_limit_passes_and_one_byte_more_does_not() {
    let token = rs256(&good());
    let limited = |bytes| verify(&token, &published(), &Rules { token_bytes_max: bytes, ..rules() }, NOW);
    assert!(limited(token.len()).is_ok());
    assert_eq!(limited(token.len() - 1).unwrap_err(), TokenError::TooLong { bytes: token.len() });
}

#[test]
fn an_error_quotes_and_cuts_what_the_token_says() {
    let token = rs256(&with("iss", json!(format!("x\nforged line \u{1b}[31m{}", "y".repeat(500)))));
    let text = judge(&token).unwrap_err().to_string();
    assert!(text.len() < 200 && !text.contains('\n') && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn a_shared_secret_verifies_hmac_and_nothing_else() {
    let keys = KeySet::of_secret(SECRET).unwrap();
    let rules = Rules { algorithms: vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512], ..rules() };
    for algorithm in ["HS256", "HS384", "HS512"] {
        let token = issuer().token(algorithm, "any", &good());
        assert_eq!(verify(&token, &keys, &rules, NOW).unwrap().user, "alice", "{algorithm}");
    }
    let header = json!({ "alg": "HS256" });
    let wrong = token_of(&header, &good().to_string(), |message| hmac_of(HMAC_SHA256, b"another secret", message));
    assert_eq!(verify(&wrong, &keys, &rules, NOW), Err(TokenError::Signature));
    assert!(KeySet::of_secret("short").is_err());
    // With every algorithm on, a public key is still no secret.
    let header = json!({ "alg": "HS256", "kid": "rsa" });
    let der = issuer().rsa_der();
    let confused = token_of(&header, &good().to_string(), |message| hmac_of(HMAC_SHA256, &der, message));
    assert_eq!(verify(&confused, &published(), &rules, NOW), Err(TokenError::Signature));
}

#[test]
fn pem_keys_verify_by_their_own_kind() {
    let keys = KeySet::parse(issuer().pem().as_bytes(), Symmetric::Refused).unwrap();
    assert_eq!(keys.len(), 3);
    for (algorithm, key) in [("RS256", "rsa"), ("PS512", "any"), ("ES256", "x"), ("EdDSA", "y")] {
        let token = issuer().token(algorithm, key, &good());
        assert_eq!(verify(&token, &keys, &rules(), NOW).unwrap().user, "alice", "{algorithm}");
    }
    let token = issuer().token("ES384", "p384", &good());
    assert_eq!(verify(&token, &keys, &rules(), NOW), Err(TokenError::Signature));
}

#[test]
fn key_sets_are_bounded_and_choosy() {
    let parse = |set: Value| KeySet::parse(set.to_string().as_bytes(), Symmetric::Refused).map(|keys| keys.len());
    let rsa = || rsa_jwk(&issuer().rsa, "rsa");
    let changed = |name: &str, value: Value| {
        let mut key = rsa();
        key[name] = value;
        json!({ "keys": [key] })
    };
    assert_eq!(parse(json!({ "keys": [rsa()] })), Ok(1));
    assert_eq!(parse(json!({ "keys": [rsa(), { "kty": "new" }, 7, null, {}] })), Ok(1), "unknown ones are left out");
    assert_eq!(parse(json!({ "keys": vec![rsa(); KEYS_MAX] })), Ok(KEYS_MAX));
    assert!(parse(json!({ "keys": vec![rsa(); KEYS_MAX + 1] })).is_err());
    for (what, set) in [
        ("encryption", changed("use", json!("enc"))),
        ("signing only", changed("key_ops", json!(["sign"]))),
        ("another family's alg", changed("alg", json!("HS256"))),
        ("an encryption alg", changed("alg", json!("RSA-OAEP"))),
        ("a short modulus", changed("n", json!(base64url([0xff; 128])))),
        ("no modulus", changed("n", json!(""))),
        ("a shared secret", json!({ "keys": [{ "kty": "oct", "k": base64url([7; 64]) }] })),
        ("a short point", json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }] })),
        ("a curve that is not known", json!({ "keys": [{ "kty": "OKP", "crv": "Ed448", "x": base64url([7; 57]) }] })),
        ("nothing", json!({ "keys": [] })),
        ("no list", json!({ "keys": { "rsa": 1 } })),
        ("no object", json!([rsa()])),
    ] {
        assert!(parse(set).is_err(), "{what}");
    }
    let secret = json!({ "keys": [{ "kty": "oct", "k": base64url([7; 64]) }] }).to_string();
    assert!(KeySet::parse(secret.as_bytes(), Symmetric::Allowed).is_ok());
    assert!(KeySet::parse(b"", Symmetric::Allowed).is_err());
    assert!(KeySet::parse(&vec![b' '; KEY_SET_BYTES_MAX + 1], Symmetric::Allowed).is_err());
    let private = pem("PRIVATE KEY", &[1, 2, 3]);
    assert!(KeySet::parse(private.as_bytes(), Symmetric::Refused).unwrap_err().contains("private key"));
    assert!(KeySet::parse(b"-----BEGIN PUBLIC KEY-----\nAAAA\n", Symmetric::Refused).is_err());
}
