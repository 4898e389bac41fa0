//! A throw-away certificate authority that signs what a test asks for, and TLS clients that trust it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::raw_http::within;
use super::scratch::Scratch;

const DAY: Duration = Duration::from_secs(24 * 3600);

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Signed {
    pub cert: String,
    pub key: String,
}

/// Days from now: after the first and before the second a certificate or list is valid.
pub type Validity = (i32, i32);

pub const NOW: Validity = (-1, 90);

fn days(count: i32) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let distance = DAY * count.unsigned_abs();
    if count < 0 { now - distance } else { now + distance }
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn server(&self, names: &[&str], valid: Validity) -> Signed {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, 1, valid)
    }

    /// With this common name, serial number and alternative names.
    pub fn client(&self, name: &str, serial: u64, alternatives: Vec<SanType>) -> Signed {
        self.client_for(name, serial, alternatives, NOW, ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub fn client_for(
        &self,
        name: &str,
        serial: u64,
        alternatives: Vec<SanType>,
        valid: Validity,
        purpose: ExtendedKeyUsagePurpose,
    ) -> Signed {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = alternatives;
        params.extended_key_usages = vec![purpose];
        self.sign(params, serial, valid)
    }

    /// With this common name, valid for so many seconds from now.
    pub fn client_until(&self, name: &str, seconds: i64) -> Signed {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let epoch = date_time_ymd(1970, 1, 1);
        (params.not_before, params.not_after) =
            (epoch + days(-1), epoch + Duration::from_secs((since_1970 + seconds) as u64));
        self.signed(params, 7)
    }

    fn sign(&self, mut params: CertificateParams, serial: u64, valid: Validity) -> Signed {
        let epoch = date_time_ymd(1970, 1, 1);
        (params.not_before, params.not_after) = (epoch + days(valid.0), epoch + days(valid.1));
        self.signed(params, serial)
    }

    fn signed(&self, mut params: CertificateParams, serial: u64) -> Signed {
        let key = KeyPair::generate().unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        Signed { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// The list of these serial numbers, PEM.
    pub fn revocations(&self, serials: &[u64], valid: Validity) -> String {
        let epoch = date_time_ymd(1970, 1, 1);
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: epoch + days(-1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: epoch + days(valid.0),
            next_update: epoch + days(valid.1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A client that trusts this authority, with a certificate of its own or without.
    pub fn trusting(&self, own: Option<&Signed>, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        Arc::new(match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let chain = CertificateDer::pem_slice_iter(own.cert.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        })
    }
}

impl Signed {
    /// Writes `NAME.pem` and `NAME-key.pem`.
    pub fn write(&self, folder: &Scratch, name: &str) -> (PathBuf, PathBuf) {
        (folder.write(&format!("{name}.pem"), &self.cert), folder.write(&format!("{name}-key.pem"), &self.key))
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()
    }
}

/// Both versions that there are.
pub const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A handshake with the server at `HOST:PORT`, asking for this name.
pub async fn handshake(address: &str, name: &str, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = within("connect", TcpStream::connect(address)).await?;
    within("TLS handshake", TlsConnector::from(config).connect(name, stream)).await
}

/// The certificate that the server shows to a client which asks for this name.
pub async fn shown(address: &str, name: &str, config: Arc<ClientConfig>) -> CertificateDer<'static> {
    let stream = handshake(address, name, config).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}
