//! Rules of `[tls]`: files that can be read, keys that belong to their certificates, and what one key needs of another.
//!
//! In the end everything is set up as `serve` would do it, so that nothing is found only there.

use super::Config;
use super::files;
use super::reader::Reader;
use super::rules::loaded;
use super::url::Scheme;
use crate::listener::tls::{Acceptor, CertificateFiles};
use crate::metrics::TlsMetrics;

pub(super) fn check(config: &Config, reader: &mut Reader) {
    let before = reader.problems.len();
    default_certificate(config, reader);
    for pair in &config.tls.certificates {
        further_certificate(pair, reader);
    }
    certificate_for_wss(config, reader);
    client_certificates(config, reader);
    if reader.problems.len() == before
        && let Some(Err(error)) = config.tls_config().map(|tls| Acceptor::new(tls, TlsMetrics::default()))
    {
        reader.blame(&["tls.cert_file"], format!("tls: {error}"));
    }
}

fn default_certificate(config: &Config, reader: &mut Reader) {
    let (cert_file, key_file) = (config.tls.cert_file.as_deref(), config.tls.key_file.as_deref());
    let chain = cert_file.and_then(|path| loaded(reader, "tls.cert_file", path, files::read_server_chain));
    let key = key_file.and_then(|path| loaded(reader, "tls.key_file", path, files::read_key));
    if let (Some(chain), Some(key)) = (chain, key)
        && let Err(reason) = files::check_pair(chain, key, "tls.cert_file")
    {
        reader.blame(&["tls.key_file"], format!("tls.key_file: {reason}"));
    }
    if cert_file.is_some() != key_file.is_some() && reader.sound(&["tls.cert_file", "tls.key_file"]) {
        let (given, missing) = if cert_file.is_some() { ("cert", "key") } else { ("key", "cert") };
        reader.blame(
            &["tls.cert_file", "tls.key_file"],
            format!("tls.{given}_file needs tls.{missing}_file: set both or none"),
        );
    }
    if cert_file.is_none()
        && !config.tls.certificates.is_empty()
        && reader.sound(&["tls.cert_file", "tls.certificates"])
    {
        let text = "tls.certificates needs tls.cert_file, the certificate for all other names";
        reader.blame(&["tls.certificates"], text.to_owned());
    }
}

fn further_certificate(pair: &CertificateFiles, reader: &mut Reader) {
    const KEY: &str = "tls.certificates";
    let chain = loaded(reader, KEY, &pair.cert, files::read_server_chain);
    let key = loaded(reader, KEY, &pair.key, files::read_key);
    if let (Some(chain), Some(key)) = (chain, key)
        && let Err(reason) = files::check_pair(chain, key, &pair.cert.display().to_string())
    {
        reader.blame(&[KEY], format!("{KEY}: {}: {reason}", pair.key.display()));
    }
}

fn certificate_for_wss(config: &Config, reader: &mut Reader) {
    let none = config.tls.cert_file.is_none() && config.tls.key_file.is_none();
    let wss = config.listen.iter().find(|url| url.scheme == Scheme::Wss);
    if let Some(url) = wss.filter(|_| none)
        && reader.sound(&["listen", "tls.cert_file", "tls.key_file"])
    {
        reader.blame(&["listen"], format!("listen: {url} needs tls.cert_file and tls.key_file"));
    }
}

fn client_certificates(config: &Config, reader: &mut Reader) {
    let tls = &config.tls;
    if !reader.sound(&["tls.client_auth", "tls.client_ca_file", "tls.client_crl_file"]) {
        return;
    }
    match (tls.client_auth, &tls.client_ca_file, &tls.client_crl_file) {
        (Some(_), None, _) => {
            let text = "tls.client_auth needs tls.client_ca_file: the authorities that sign clients' certificates";
            reader.blame(&["tls.client_auth"], text.to_owned());
        }
        (None, Some(_), _) => {
            let text = "tls.client_ca_file is never used while tls.client_auth is \"off\": set that or remove this";
            reader.blame(&["tls.client_ca_file"], text.to_owned());
        }
        (None, None, Some(_)) => {
            let text = "tls.client_crl_file is never used while tls.client_auth is \"off\": set that or remove this";
            reader.blame(&["tls.client_crl_file"], text.to_owned());
        }
        (Some(_), Some(ca), crl) => {
            loaded(reader, "tls.client_ca_file", ca, files::read_certificates);
            if let Some(crl) = crl {
                loaded(reader, "tls.client_crl_file", crl, files::read_revocations);
            }
        }
        (None, None, None) => {}
    }
    if tls.client_auth.is_some()
        && !config.listen.iter().any(|url| url.scheme == Scheme::Wss)
        && reader.sound(&["listen"])
    {
        let text = "tls.client_auth protects nothing: no address of listen has wss://";
        reader.blame(&["tls.client_auth"], text.to_owned());
    }
}
