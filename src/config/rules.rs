//! Rules between keys, and the checks of the files that keys name.
//!
//! A rule is skipped when one of its keys is already known to be wrong: it would blame a default.

use std::net::SocketAddr;
use std::path::Path;

use super::Config;
use super::access;
use super::files;
use super::parts::FRAME_COPIES;
use super::quantity::{duration_text, size_text};
use super::reader::Reader;
use super::tls_rules;
use super::token_rules as tokens;
use super::url::Scheme;

pub(super) fn check(config: &Config, reader: &mut Reader) {
    tls_rules::check(config, reader);
    addresses(config, reader);
    redirect(config, reader);
    broker(config, reader);
    default_login(config, reader);
    tokens::check(config, reader);
    limits(config, reader);
    memory(config, reader);
    timing(config, reader);
    static_files(config, reader);
    audit_file(config, reader);
    access::check(config, reader);
}

/// Reads a file that the key at `path` names, or reports why it can't.
pub(super) fn loaded<T>(
    reader: &mut Reader,
    key: &str,
    path: &Path,
    read: impl Fn(&Path) -> Result<T, String>,
) -> Option<T> {
    match read(path) {
        Ok(content) => Some(content),
        Err(reason) => {
            reader.blame(&[key], format!("{key}: {}: {reason}", path.display()));
            None
        }
    }
}

fn addresses(config: &Config, reader: &mut Reader) {
    let mut taken: Vec<SocketAddr> = Vec::new();
    for address in config.listen.iter().map(|url| url.address).filter(|address| address.port() != 0) {
        if taken.contains(&address) {
            reader.blame(&["listen"], format!("listen: {address} is named twice"));
        }
        taken.push(address);
    }
    if let Some(address) = config.admin.listen.filter(|address| taken.contains(address)) {
        reader.blame(&["admin.listen", "listen"], format!("admin.listen: {address} is also an address of listen"));
    }
}

fn audit_file(config: &Config, reader: &mut Reader) {
    if let Some(path) = &config.log.audit_file {
        loaded(reader, "log.audit_file", path, files::check_appendable);
    }
}

fn redirect(config: &Config, reader: &mut Reader) {
    const KEY: &str = "http.redirect_listen";
    let Some(address) = config.http.redirect_listen.filter(|_| reader.sound(&["listen", "admin.listen", KEY])) else {
        return;
    };
    let listen = config.listen.iter().any(|url| url.address == address).then_some("listen");
    let admin = (config.admin.listen == Some(address)).then_some("admin.listen");
    if let Some(other) = listen.or(admin).filter(|_| address.port() != 0) {
        reader.blame(&[KEY], format!("{KEY}: {address} is also an address of {other}"));
    }
    if !config.listen.iter().any(|url| url.scheme == Scheme::Wss) {
        reader.blame(&[KEY], format!("{KEY} needs an address with wss:// in listen, to redirect to"));
    }
}

fn broker(config: &Config, reader: &mut Reader) {
    if let Some(path) = &config.broker.ca_file {
        loaded(reader, "broker.ca_file", path, files::read_certificates);
    }
    let keys = ["broker.ignore_host", "broker.vhosts"];
    if config.broker.ignore_host && !config.broker.vhosts.is_empty() && reader.sound(&keys) {
        reader.blame(&keys, "broker.vhosts is never used while broker.ignore_host is true: remove one".to_owned());
    }
}

fn default_login(config: &Config, reader: &mut Reader) {
    let keys = ["auth.default_login", "auth.default_passcode", "auth.default_passcode_file"];
    if config.auth.default_login.is_some() != config.auth.default_passcode.is_some() && reader.sound(&keys) {
        reader.blame(&keys, "auth.default_login and auth.default_passcode: set both or none".to_owned());
    }
}

fn limits(config: &Config, reader: &mut Reader) {
    let stomp = &config.stomp;
    let frame = ("stomp.frame_bytes_max", stomp.frame_bytes_max);
    let login_frame = ("stomp.login_frame_bytes_max", stomp.login_frame_bytes_max);
    let line = ("stomp.header_line_bytes_max", stomp.header_line_bytes_max);
    let headers = ("stomp.header_bytes_max", stomp.header_bytes_max);
    let (count, lines) = (stomp.header_count_max, stomp.header_lines_max);
    let keys = ["stomp.header_count_max", "stomp.header_lines_max"];
    if count > lines && reader.sound(&keys) {
        reader.blame(&keys, format!("{} {count} must not exceed {} {lines}", keys[0], keys[1]));
    }
    for (smaller, larger) in [(login_frame, frame), (line, login_frame), (line, headers)] {
        let keys = [smaller.0, larger.0];
        if smaller.1 > larger.1 && reader.sound(&keys) {
            let (small, large) = (size_text(smaller.1), size_text(larger.1));
            reader.blame(&keys, format!("{} {small} must not exceed {} {large}", smaller.0, larger.0));
        }
    }
}

fn memory(config: &Config, reader: &mut Reader) {
    let (keys, frame) = (["limits.session_bytes_max", "stomp.frame_bytes_max"], config.stomp.frame_bytes_max);
    let least = frame.saturating_mul(FRAME_COPIES);
    if let Some(session) = config.limits.session_bytes_max.filter(|session| *session < least)
        && reader.sound(&keys)
    {
        let (session, frame) = (size_text(session), size_text(frame));
        reader.blame(&keys, format!("{} {session} must be at least three times {} {frame}", keys[0], keys[1]));
    }
    let pairs = [
        ("limits.session_bytes_max", config.limits.session_bytes_max),
        ("limits.user_bytes_max", config.limits.user_bytes_max),
    ];
    for (key, value) in pairs {
        let (Some(value), Some(process)) = (value, config.limits.memory_max) else { continue };
        let keys = [key, "limits.memory_max"];
        if value > process && reader.sound(&keys) {
            let (small, large) = (size_text(value), size_text(process));
            reader.blame(&keys, format!("{key} {small} must not exceed limits.memory_max {large}"));
        }
    }
}

fn timing(config: &Config, reader: &mut Reader) {
    let websocket = &config.websocket;
    let keys = ["websocket.pong_timeout", "websocket.ping_interval"];
    if websocket.pong_timeout >= websocket.ping_interval && reader.sound(&keys) {
        let (pong, ping) = (duration_text(websocket.pong_timeout), duration_text(websocket.ping_interval));
        reader.blame(&keys, format!("{} {pong} must be below {} {ping}", keys[0], keys[1]));
    }
    let drain = &config.drain;
    let keys = ["drain.timeout", "drain.delay", "drain.spread"];
    if drain.delay + drain.spread > drain.timeout && reader.sound(&keys) {
        let (timeout, delay) = (duration_text(drain.timeout), duration_text(drain.delay));
        let spread = duration_text(drain.spread);
        let text = format!("drain.delay {delay} and drain.spread {spread} together exceed drain.timeout {timeout}");
        reader.blame(&keys, text);
    }
}

fn static_files(config: &Config, reader: &mut Reader) {
    if let Some(path) = &config.http.root
        && let Err(error) = std::fs::read_dir(path)
    {
        reader.blame(&["http.root"], format!("http.root: {}: cannot read: {error}", path.display()));
    }
    let secrets =
        config.tls_config().into_iter().flat_map(|tls| tls.certificates).map(|pair| ("tls.key_file", pair.key));
    let secrets = secrets.chain(config.auth.keys_file.clone().map(|path| ("auth.keys_file", path)));
    let secrets = secrets.chain(config.log.audit_file.clone().map(|path| ("log.audit_file", path)));
    for (key, secret) in secrets {
        if let Some(root) = &config.http.root
            && is_within(&secret, root)
        {
            let (secret, root) = (secret.display(), root.display());
            let text =
                format!("http.root: {root} would let everybody read {key} {secret}: use a folder of its own for pages");
            reader.blame(&["http.root"], text);
        }
    }
}

/// Wherever links lead.
fn is_within(file: &Path, folder: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(file).zip(real(folder)).is_some_and(|(file, folder)| file.starts_with(folder))
}
