//! An identity provider for tests: keys of every kind, the key set that it publishes, and tokens signed with them.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

pub const AUDIENCE: &str = "stomp-relay";
pub const ISSUER: &str = "https://id.example.com";
pub const SECRET: &str = "a secret of thirty-two bytes, or more";

/// Keys are made once per process: RSA takes its time.
pub struct Issuer {
    pub rsa: RsaKeyPair,
    /// What the next rotation brings.
    pub other_rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

pub fn issuer() -> &'static Issuer {
    static ISSUER: OnceLock<Issuer> = OnceLock::new();
    ISSUER.get_or_init(|| Issuer {
        rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
        other_rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
        p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
        p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
        ed25519: Ed25519KeyPair::generate().unwrap(),
    })
}

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that a relay with the tests' settings accepts, for `seconds` from now.
pub fn claims(user: &str, seconds: u64) -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": user, "exp": now() + seconds })
}

/// `head.payload` and what signs it.
pub fn token_of(header: &Value, payload: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", base64url(header.to_string()), base64url(payload));
    let signature = sign(message.as_bytes());
    format!("{message}.{}", base64url(signature))
}

pub fn hmac_of(algorithm: hmac::Algorithm, secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, secret), message).as_ref().to_vec()
}

pub fn rsa_of(key: &RsaKeyPair, encoding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

impl Issuer {
    /// The signature that fits to `algorithm`, with the key that the key set has for it.
    pub fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match algorithm {
            "RS256" => rsa_of(&self.rsa, &signature::RSA_PKCS1_SHA256, message),
            "RS384" => rsa_of(&self.rsa, &signature::RSA_PKCS1_SHA384, message),
            "RS512" => rsa_of(&self.rsa, &signature::RSA_PKCS1_SHA512, message),
            "PS256" => rsa_of(&self.rsa, &signature::RSA_PSS_SHA256, message),
            "PS384" => rsa_of(&self.rsa, &signature::RSA_PSS_SHA384, message),
            "PS512" => rsa_of(&self.rsa, &signature::RSA_PSS_SHA512, message),
            "ES256" => self.p256.sign(&random, message).unwrap().as_ref().to_vec(),
            "ES384" => self.p384.sign(&random, message).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed25519.sign(message).as_ref().to_vec(),
            "HS256" => hmac_of(hmac::HMAC_SHA256, SECRET.as_bytes(), message),
            "HS384" => hmac_of(hmac::HMAC_SHA384, SECRET.as_bytes(), message),
            "HS512" => hmac_of(hmac::HMAC_SHA512, SECRET.as_bytes(), message),
            other => panic!("no key for {other}"),
        }
    }

    pub fn token(&self, algorithm: &str, key_id: &str, claims: &Value) -> String {
        let header = json!({ "alg": algorithm, "typ": "JWT", "kid": key_id });
        token_of(&header, &claims.to_string(), |message| self.sign(algorithm, message))
    }

    /// Signed with RS256 and the key `rsa`.
    pub fn rs256(&self, claims: &Value) -> String {
        self.token("RS256", "rsa", claims)
    }

    /// The key set with the keys `rsa`, `p256`, `p384` and `ed`.
    pub fn key_set(&self) -> Value {
        let point =
            |bytes: &[u8], size: usize| (base64url(&bytes[1..1 + size]), base64url(&bytes[1 + size..1 + 2 * size]));
        let (x, y) = point(self.p256.public_key().as_ref(), 32);
        let p256 = json!({ "kty": "EC", "crv": "P-256", "kid": "p256", "use": "sig", "x": x, "y": y });
        let (x, y) = point(self.p384.public_key().as_ref(), 48);
        let p384 = json!({ "kty": "EC", "crv": "P-384", "kid": "p384", "x": x, "y": y });
        let x = base64url(self.ed25519.public_key().as_ref());
        let ed = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "x": x });
        json!({ "keys": [rsa_jwk(&self.rsa, "rsa"), p256, p384, ed] })
    }

    /// Public keys as PEM: RSA, P-256 and Ed25519.
    pub fn pem(&self) -> String {
        let p256: PublicKeyX509Der<'_> = self.p256.public_key().as_der().unwrap();
        let ed25519: PublicKeyX509Der<'_> = self.ed25519.public_key().as_der().unwrap();
        [self.rsa_der(), p256.as_ref().to_vec(), ed25519.as_ref().to_vec()].map(|der| pem("PUBLIC KEY", &der)).concat()
    }

    /// The public RSA key as SubjectPublicKeyInfo.
    pub fn rsa_der(&self) -> Vec<u8> {
        let key: PublicKeyX509Der<'_> = self.rsa.public_key().as_der().unwrap();
        key.as_ref().to_vec()
    }
}

pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

pub fn rsa_jwk(key: &RsaKeyPair, key_id: &str) -> Value {
    let public = key.public_key();
    let modulus = public.modulus().big_endian_without_leading_zero().to_vec();
    let exponent = public.exponent().big_endian_without_leading_zero().to_vec();
    json!({ "kty": "RSA", "kid": key_id, "use": "sig", "n": base64url(modulus), "e": base64url(exponent) })
}
