//! Keys that tokens are verified with, read from a JWKS (RFC 7517), from PEM, or from a shared secret.
//!
//! A key carries the algorithms it is good for, so a token never chooses what a key is used as: a public key is no HMAC
//! secret. A `kid` is compared and nothing else: it is no path, no URL, no query.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Bytes of a key set.
pub const KEY_SET_BYTES_MAX: usize = 256 * 1024;
/// Keys of a key set.
pub const KEYS_MAX: usize = 64;
/// Bytes of an RSA modulus; a shorter one is broken.
const RSA_MODULUS_BYTES_MIN: usize = 256;
/// Bytes of a shared secret: as many as the shortest hash gives (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;

const RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
const HMAC: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

const OID_RSA: &str = "1.2.840.113549.1.1.1";
const OID_EC: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";
const OID_P384: &str = "1.3.132.0.34";
const OID_ED25519: &str = "1.3.101.112";

/// Whether a key set may hold shared secrets. One that is published must not: everybody could sign with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symmetric {
    Allowed,
    Refused,
}

/// One key, and what it verifies. The crate's Debug output redacts the key itself.
#[derive(Clone, Debug)]
pub(super) struct Key {
    algorithms: Vec<Algorithm>,
    id: Option<String>,
    key: DecodingKey,
}

impl Key {
    /// Whether the signature over `message` is by this key.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &str) -> bool {
        self.algorithms.contains(&algorithm)
            && jsonwebtoken::crypto::verify(signature, message, &self.key, algorithm).unwrap_or(false)
    }
}

/// Keys that are trusted.
#[derive(Clone, Debug, Default)]
pub struct KeySet(Vec<Key>);

impl KeySet {
    /// Reads a key set, or PEM public keys and certificates.
    ///
    /// # Errors
    /// A text for people, without content of the file.
    pub fn parse(bytes: &[u8], symmetric: Symmetric) -> Result<KeySet, String> {
        if bytes.len() > KEY_SET_BYTES_MAX {
            return Err(format!("is larger than {} KiB", KEY_SET_BYTES_MAX >> 10));
        }
        let pem = bytes.windows(11).any(|window| window == b"-----BEGIN ");
        let keys = if pem { from_pem(bytes)? } else { from_jwks(bytes, symmetric)? };
        match keys.len() {
            0 => Err("holds no key that can verify a token".to_owned()),
            1..=KEYS_MAX => Ok(KeySet(keys)),
            _ => Err(format!("holds more than {KEYS_MAX} keys")),
        }
    }

    /// A secret that is shared with who signs the tokens.
    ///
    /// # Errors
    /// It is too short.
    pub fn of_secret(secret: &str) -> Result<KeySet, String> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(format!("is shorter than {SECRET_BYTES_MIN} bytes"));
        }
        let key = DecodingKey::from_secret(secret.as_bytes());
        Ok(KeySet(vec![Key { algorithms: HMAC.to_vec(), id: None, key }]))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys that a token may mean: those of its `kid`, and those that have none. Without a `kid`, all.
    pub(super) fn candidates<'a>(&'a self, id: Option<&'a str>) -> impl Iterator<Item = &'a Key> {
        self.0.iter().filter(move |key| id.is_none() || key.id.is_none() || key.id.as_deref() == id)
    }
}

/// Keys of a kind that is not known, or for another use, are left out, as RFC 7517, 5 asks.
fn from_jwks(bytes: &[u8], symmetric: Symmetric) -> Result<Vec<Key>, String> {
    let broken = || "is neither a JSON web key set nor PEM".to_owned();
    let mut set: Value = serde_json::from_slice(bytes).map_err(|_| broken())?;
    let Some(Value::Array(keys)) = set.get_mut("keys").map(Value::take) else { return Err(broken()) };
    if keys.len() > KEYS_MAX {
        return Err(format!("holds more than {KEYS_MAX} keys"));
    }
    Ok(keys.into_iter().filter_map(|key| from_jwk(&serde_json::from_value(key).ok()?, symmetric)).collect())
}

fn from_jwk(jwk: &Jwk, symmetric: Symmetric) -> Option<Key> {
    let common = &jwk.common;
    let signs = common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let verifies = common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !signs || !verifies {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let bytes = || key.try_get_as_bytes().map_or(0, <[u8]>::len);
    let fitting: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) if rsa_is_long_enough(&key) => &RSA,
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 if bytes() == 65 => &[Algorithm::ES256],
            EllipticCurve::P384 if bytes() == 97 => &[Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(curve) if curve.curve == EllipticCurve::Ed25519 && bytes() == 32 => {
            &[Algorithm::EdDSA]
        }
        AlgorithmParameters::OctetKey(_) if symmetric == Symmetric::Allowed && bytes() >= SECRET_BYTES_MIN => &HMAC,
        _ => return None,
    };
    let mut algorithms = fitting.to_vec();
    if let Some(only) = common.key_algorithm {
        algorithms.retain(|algorithm| named(only) == Some(*algorithm));
    }
    (!algorithms.is_empty()).then(|| Key { algorithms, id: common.key_id.clone(), key })
}

fn named(algorithm: KeyAlgorithm) -> Option<Algorithm> {
    algorithm.to_string().parse().ok()
}

fn rsa_is_long_enough(key: &DecodingKey) -> bool {
    use jsonwebtoken::DecodingKeyKind::RsaModulusExponent;
    match key.kind() {
        RsaModulusExponent { n, .. } => n.iter().skip_while(|byte| **byte == 0).count() >= RSA_MODULUS_BYTES_MIN,
        _ => false,
    }
}

fn from_pem(bytes: &[u8]) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
        let (kind, der) = section.map_err(|_| "holds broken PEM".to_owned())?;
        let key = match kind {
            SectionKind::PublicKey => SubjectPublicKeyInfo::from_der(&der).ok().and_then(|(_, key)| from_spki(&key)),
            SectionKind::Certificate => {
                X509Certificate::from_der(&der).ok().and_then(|(_, certificate)| from_spki(certificate.public_key()))
            }
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err("holds a private key; give the public one (openssl pkey -pubout)".to_owned());
            }
            _ => continue,
        };
        keys.push(key.ok_or("holds a public key that is not RSA of 2048 bits, P-256, P-384 or Ed25519")?);
    }
    Ok(keys)
}

fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Option<Key> {
    let curve = || Some(spki.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string());
    let (algorithms, key) = match spki.algorithm.algorithm.to_id_string().as_str() {
        OID_RSA => {
            let PublicKey::RSA(rsa) = spki.parsed().ok()? else { return None };
            let modulus: Vec<u8> = rsa.modulus.iter().copied().skip_while(|byte| *byte == 0).collect();
            let key = DecodingKey::from_rsa_raw_components(&modulus, rsa.exponent);
            (rsa_is_long_enough(&key).then(|| RSA.to_vec())?, key)
        }
        OID_EC => {
            let PublicKey::EC(point) = spki.parsed().ok()? else { return None };
            let algorithm = match curve()?.as_str() {
                OID_P256 => Algorithm::ES256,
                OID_P384 => Algorithm::ES384,
                _ => return None,
            };
            (vec![algorithm], DecodingKey::from_ec_der(point.data()))
        }
        OID_ED25519 => (vec![Algorithm::EdDSA], DecodingKey::from_ed_der(&spki.subject_public_key.data)),
        _ => return None,
    };
    Some(Key { algorithms, id: None, key })
}
