//! Pairs of certificate and key, `{ cert_file = "…", key_file = "…" }`, as a type of key.

use std::path::PathBuf;

use super::kind::{Kind, Shape, string};
use super::suggest::nearest;
use super::value::{Data, Value, parse_toml};
use crate::listener::tls::CertificateFiles;

const FIELDS: [&str; 2] = ["cert_file", "key_file"];

pub(super) fn certificate_files() -> Kind<CertificateFiles> {
    Kind::simple("tables `{ cert_file, key_file }`", Shape::Text, |value| match &value.data {
        Data::Raw(text) => parse(&parse_toml(text, &value.place)?),
        _ => parse(value),
    })
}

fn parse(value: &Value) -> Result<CertificateFiles, String> {
    let Data::Table(fields) = &value.data else {
        let found = value.type_name();
        return Err(format!("expected a table, found {found}; write {{ cert_file = \"…\", key_file = \"…\" }}"));
    };
    if let Some(odd) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let hint = nearest(odd, FIELDS).map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default();
        return Err(format!("unknown key \"{odd}\"{hint}"));
    }
    let path = |name: &str| match fields.get(name).map(string).transpose()? {
        None | Some("") => Err(format!("{name} is missing")),
        Some(path) => Ok(PathBuf::from(path)),
    };
    Ok(CertificateFiles { cert: path("cert_file")?, key: path("key_file")? })
}
