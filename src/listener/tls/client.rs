//! Client certificates (mutual TLS): who may come, and what a verified certificate calls its owner.
//!
//! The chain, its validity, purpose and revocation are judged by rustls-webpki; only the name is read here, and only from
//! certificates that passed.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use x509_parser::asn1_rs::ToDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::material::{Material, TlsError};

/// Longest name of a client in bytes: what an AMQP short string holds (AMQP 0-9-1, 4.2.5.3).
pub const NAME_BYTES_MAX: usize = 255;

/// How clients show who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    pub demand: Demand,
    /// PEM certificates of the authorities that sign clients' certificates.
    pub ca: PathBuf,
    /// PEM revocation lists, one of each authority in a chain.
    pub crl: Option<PathBuf>,
    pub name: NameSource,
}

/// Whether a client may come without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    Request,
    Require,
}

/// Which part of a certificate is the user's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameSource {
    /// The common name; a subject with several has no name.
    CommonName,
    /// The whole subject as RFC 4514 writes it: `CN=alice,O=Example`.
    DistinguishedName,
    /// The first DNS name among the subject's alternative names; the same for the following two.
    SanDns,
    SanEmail,
    SanUri,
}

impl NameSource {
    fn what(self) -> &'static str {
        match self {
            NameSource::CommonName => "common name",
            NameSource::DistinguishedName => "subject",
            NameSource::SanDns => "DNS name",
            NameSource::SanEmail => "e-mail address",
            NameSource::SanUri => "URI",
        }
    }
}

/// What a verified certificate says of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The part that the configuration asks for; 1 to [`NAME_BYTES_MAX`] bytes, no control character.
    pub name: String,
    /// The common name, if there is exactly one that could be a `name`.
    pub common_name: Option<String>,
    /// The last second in which it is valid, since 1970.
    pub not_after: i64,
    /// By which files.
    pub judged: Judged,
}

/// The files, of all that were ever loaded in this process, by which a certificate was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged(u64);

impl Judged {
    /// By files that have just been loaded.
    pub(super) fn next() -> Judged {
        static LOADED: AtomicU64 = AtomicU64::new(0);
        Judged(LOADED.fetch_add(1, Ordering::Relaxed))
    }
}

impl ClientCertificate {
    /// Reads a certificate that has been verified.
    ///
    /// # Errors
    /// A text for the log: it is not X.509, or has no usable name.
    pub(super) fn read(
        certificate: &CertificateDer<'_>,
        source: NameSource,
        judged: Judged,
    ) -> Result<ClientCertificate, String> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| "the client's certificate cannot be read".to_owned())?;
        let what = source.what();
        let found = match source {
            NameSource::CommonName => common_name(&certificate),
            NameSource::DistinguishedName => distinguished_name(certificate.subject()),
            NameSource::SanDns | NameSource::SanEmail | NameSource::SanUri => alternative_name(&certificate, source),
        };
        let name = found.ok_or_else(|| format!("the client's certificate has no {what}, or several"))?;
        usable(&name).map_err(|why| format!("the {what} in the client's certificate {why}"))?;
        let common_name = common_name(&certificate).filter(|name| usable(name).is_ok());
        Ok(ClientCertificate { name, common_name, not_after: certificate.validity().not_after.timestamp(), judged })
    }
}

fn usable(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("is {} bytes long; at most {NAME_BYTES_MAX} are allowed", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err("has a control character in it".to_owned());
    }
    Ok(())
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut names = certificate.subject().iter_common_name();
    let first = names.next()?.as_str().ok()?;
    names.next().is_none().then(|| first.to_owned())
}

fn alternative_name(certificate: &X509Certificate<'_>, source: NameSource) -> Option<String> {
    let extension = certificate.subject_alternative_name().ok()??;
    let mut names = extension.value.general_names.iter().filter_map(|name| match (name, source) {
        (GeneralName::DNSName(name), NameSource::SanDns)
        | (GeneralName::RFC822Name(name), NameSource::SanEmail)
        | (GeneralName::URI(name), NameSource::SanUri) => Some((*name).to_owned()),
        _ => None,
    });
    names.next()
}

/// RFC 4514: the last part first, with everything escaped that could look like another part.
fn distinguished_name(name: &X509Name<'_>) -> Option<String> {
    let parts: Vec<_> = name.iter_rdn().collect();
    let parts = parts.into_iter().rev().map(|part| {
        let attributes: Option<Vec<_>> = part.iter().map(attribute).collect();
        Some(attributes?.join("+"))
    });
    Some(parts.collect::<Option<Vec<_>>>()?.join(","))
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let oid = attribute.attr_type().to_id_string();
    let key = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return Some(format!("{oid}={}", hexadecimal(attribute)?)),
    };
    match attribute.as_str() {
        Ok(text) => Some(format!("{key}={}", escaped(text))),
        Err(_) => Some(format!("{key}={}", hexadecimal(attribute)?)),
    }
}

fn hexadecimal(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let mut text = "#".to_owned();
    for byte in attribute.attr_value().to_der_vec().ok()? {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}

fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(text.len());
    for (at, character) in text.chars().enumerate() {
        let edge = (at == 0 && matches!(character, ' ' | '#')) || (at == last && character == ' ');
        if edge || matches!(character, '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// Builds what judges clients' certificates.
pub(super) fn verifier(
    auth: &ClientAuth,
    material: &Material,
    provider: Arc<CryptoProvider>,
    judged: Judged,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in material.certificates(&auth.ca)? {
        let added = roots.add(authority);
        added.map_err(|error| TlsError::Authority { path: auth.ca.clone(), reason: error.to_string() })?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(crl) = &auth.crl {
        // A list that is out of date could miss the newest entries: it refuses, as other servers do.
        builder = builder.with_crls(material.revocations(crl)?).enforce_revocation_expiration();
    }
    if auth.demand == Demand::Request {
        builder = builder.allow_unauthenticated();
    }
    let inner = builder.build().map_err(|error| match &auth.crl {
        Some(crl) => TlsError::Revocations { path: crl.clone(), reason: error.to_string() },
        None => TlsError::Authority { path: auth.ca.clone(), reason: error.to_string() },
    })?;
    Ok(Arc::new(NamedVerifier { inner, judged, source: auth.name }))
}

/// Whether `refusal` is about the certificate; a revocation list that is out of date or missing says nothing of it.
fn is_about_the_certificate(refusal: &Error) -> bool {
    !matches!(
        refusal,
        Error::InvalidCertificate(
            CertificateError::ExpiredRevocationList
                | CertificateError::ExpiredRevocationListContext { .. }
                | CertificateError::UnknownRevocationStatus
        )
    )
}

/// Whether a chain that was let in before is one that must not stay.
pub(super) fn is_withdrawn(verifier: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>]) -> bool {
    let Some((own, intermediates)) = chain.split_first() else { return false };
    let verdict = verifier.verify_client_cert(own, intermediates, UnixTime::now());
    verdict.is_err_and(|refusal| is_about_the_certificate(&refusal))
}

/// Refuses, within the handshake, certificates that are valid but have no usable name.
#[derive(Debug)]
struct NamedVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    judged: Judged,
    source: NameSource,
}

/// Why a valid certificate is refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoName(String);

impl ClientCertVerifier for NamedVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        ClientCertificate::read(end_entity, self.source, self.judged)
            .map_err(|reason| CertificateError::Other(OtherError(Arc::new(NoName(reason)))))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName as Subject, DnType, KeyPair, SanType};

    fn certificate(subject: &[(DnType, &str)], alternatives: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = Subject::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.subject_alt_names = alternatives;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn name(certificate: &CertificateDer<'_>, source: NameSource) -> Result<String, String> {
        ClientCertificate::read(certificate, source, Judged::next()).map(|read| read.name)
    }

    #[test]
    fn each_source_reads_its_part() {
        let subject = [(DnType::OrganizationName, "Example"), (DnType::CommonName, "alice")];
        let text = |text: &str| text.try_into().unwrap();
        let alternatives = vec![
            SanType::DnsName(text("first.example")),
            SanType::DnsName(text("second.example")),
            SanType::Rfc822Name(text("alice@example.com")),
            SanType::URI(text("spiffe://example/alice")),
        ];
        let certificate = certificate(&subject, alternatives);
        for (source, expected) in [
            (NameSource::CommonName, "alice"),
            (NameSource::DistinguishedName, "CN=alice,O=Example"),
            (NameSource::SanDns, "first.example"),
            (NameSource::SanEmail, "alice@example.com"),
            (NameSource::SanUri, "spiffe://example/alice"),
        ] {
            let read = ClientCertificate::read(&certificate, source, Judged::next()).unwrap();
            assert_eq!((read.name.as_str(), read.common_name.as_deref()), (expected, Some("alice")), "{source:?}");
        }
    }

    #[test]
    fn a_certificate_without_the_part_has_no_name() {
        let certificate = certificate(&[(DnType::OrganizationName, "Example")], Vec::new());
        for source in [NameSource::CommonName, NameSource::SanDns, NameSource::SanEmail, NameSource::SanUri] {
            let error = name(&certificate, source).unwrap_err();
            assert!(error.contains(source.what()), "{error}");
        }
        let broken = CertificateDer::from(vec![0x30, 0x80, 1, 2, 3]);
        assert!(name(&broken, NameSource::CommonName).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn names_are_bounded_and_printable() {
        let of = |text: &str| name(&certificate(&[(DnType::CommonName, text)], Vec::new()), NameSource::CommonName);
        assert_eq!(of(&"x".repeat(NAME_BYTES_MAX)).unwrap().len(), NAME_BYTES_MAX);
        assert!(of(&"x".repeat(NAME_BYTES_MAX + 1)).unwrap_err().contains("256 bytes long"));
        assert!(of(&"é".repeat(128)).unwrap_err().contains("256 bytes long"));
        for hostile in ["a\nb", "a\0b", "\u{1b}[31m", "a\u{85}b"] {
            let error = of(hostile).unwrap_err();
            assert!(error.contains("control character") && !error.contains(hostile), "{error}");
        }
        assert!(of("").is_err());
    }

    #[test]
    fn a_value_cannot_look_like_another_part_of_the_name() {
        let of = |text: &str| {
            let subject = [(DnType::OrganizationName, "Example"), (DnType::CommonName, text)];
            name(&certificate(&subject, Vec::new()), NameSource::DistinguishedName).unwrap()
        };
        assert_eq!(of("eve,O=Admin"), r"CN=eve\,O\=Admin,O=Example");
        assert_eq!(of("a+b\"c\\d;<e>"), r#"CN=a\+b\"c\\d\;\<e\>,O=Example"#);
        assert_eq!(of(" #x "), r"CN=\ #x\ ,O=Example");
        assert_eq!(of("#"), r"CN=\#,O=Example");
    }

    #[test]
    fn unknown_attributes_are_written_as_numbers() {
        let subject = [(DnType::CustomDnType(vec![1, 3, 9999]), "x"), (DnType::CommonName, "a")];
        let certificate = certificate(&subject, Vec::new());
        assert_eq!(name(&certificate, NameSource::DistinguishedName).unwrap(), "CN=a,1.3.9999=#0c0178");
    }
}
