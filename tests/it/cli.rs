//! The built program: verbs, output, exit codes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::support::process::Process;
use crate::support::scratch::Scratch;

/// The program with an environment of its own.
fn relay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stomp-relay"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    text_of(&relay(arguments).output().unwrap())
}

fn text_of(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn check_says_ok_or_lists_the_problems() {
    let scratch = Scratch::new();
    let settings = "[drain]\ndelay = \"2s\"\n[limits]\nmemory_max = \"512MiB\"\n";
    let path = scratch.write("relay.toml", settings);
    let file = path.to_str().unwrap();
    let memory = "memory 512MiB (limits.memory_max), 128MiB for a session";
    let ok = (0, format!("{file}: ok\n{memory}\n"), String::new());
    assert_eq!(run(&["check", "--config", file]), ok);
    assert_eq!(run(&["check", "--config", file, "--offline"]), ok);

    let output = relay(&["check", "--config", file]).env("STOMP_RELAY_DRAIN__DELAY", "2").output().unwrap();
    let report = "env STOMP_RELAY_DRAIN__DELAY: error: drain.delay: \"2\" has no unit; write \"2s\"\n\
                  1 problem in the environment\n";
    assert_eq!(text_of(&output), (78, String::new(), report.to_owned()));

    fs::write(&path, "[drain]\ndelai = \"2s\"\n[tls]\nkey = 1\n").unwrap();
    let report = format!(
        "{file}:2:1: error: unknown key \"drain.delai\"; did you mean \"drain.delay\"?\n\
         {file}:4:1: error: unknown key \"tls.key\"; did you mean \"tls.key_file\"?\n\
         2 problems in {file}\n"
    );
    assert_eq!(run(&["check", "--config", file]), (78, String::new(), report));
}

#[test]
fn a_variable_that_is_not_utf8_is_refused_by_name() {
    use std::os::unix::ffi::OsStrExt;
    let value = std::ffi::OsStr::from_bytes(b"/srv/\xff");
    let output = relay(&["serve"]).env("STOMP_RELAY_HTTP__ROOT", value).output().unwrap();
    let report = "env STOMP_RELAY_HTTP__ROOT: error: http.root: is not UTF-8 text\n1 problem in the environment\n";
    assert_eq!(text_of(&output), (78, String::new(), report.to_owned()));
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &["serve", "--passcode", "x"][..],
        &["serve", "--tls-cert", "x"],
        &["serve", "--tls-key", "x"],
        &["check"],
        &["dev-cert"],
        &["frobnicate"],
        &[],
    ] {
        let (code, out, _) = run(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
    }
}

#[test]
fn serve_refuses_a_bad_configuration_with_78() {
    let (code, out, report) = run(&["serve", "--listen", "wss://127.0.0.1:0"]);
    let line = "flag --listen: error: listen: wss://127.0.0.1:0/ws needs tls.cert_file and tls.key_file";
    assert_eq!((code, out, report), (78, String::new(), format!("{line}\n1 problem in the command line\n")));
}

#[test]
fn version_is_text_or_json() {
    let version = env!("CARGO_PKG_VERSION");
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    assert_eq!(run(&["version"]), (0, format!("stomp-relay {version} ({os} {arch})\n"), String::new()));
    let json = format!(r#"{{"name":"stomp-relay","version":"{version}","os":"{os}","arch":"{arch}"}}"#);
    assert_eq!(run(&["version", "--json"]), (0, format!("{json}\n"), String::new()));
}

#[test]
fn dev_cert_writes_what_tls_takes() {
    let scratch = Scratch::new();
    let directory = scratch.path("made/here");
    let out = directory.to_str().unwrap();
    let (code, listed, errors) = run(&["dev-cert", "--out", out]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert_eq!(listed, format!("{out}/ca.pem\n{out}/cert.pem\n{out}/key.pem\n"));
    let mode = fs::metadata(directory.join("key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    names.sort();
    assert_eq!(names, ["ca.pem", "cert.pem", "key.pem"]);

    for name in ["localhost", "127.0.0.1", "::1"] {
        handshake(&directory, name).unwrap();
    }
    assert!(handshake(&directory, "example.com").is_err());
}

#[test]
fn check_and_serve_warn_of_a_key_that_is_open_to_others() {
    let scratch = Scratch::new();
    let folder = scratch.folder().to_str().unwrap();
    assert_eq!(run(&["dev-cert", "--out", folder]).0, 0);
    let key = scratch.path("key.pem");
    let set = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    let tls = format!("[tls]\ncert_file = \"{folder}/cert.pem\"\nkey_file = \"{folder}/key.pem\"\n");
    let config = scratch.write("relay.toml", &format!("listen = [\"wss://127.0.0.1:0/ws\"]\n{tls}"));
    let file = config.to_str().unwrap();
    let check = || {
        let (code, said, warnings) = run(&["check", "--config", file]);
        assert!(code == 0 && said.starts_with(&format!("{file}: ok\nmemory ")), "{said}{warnings}");
        warnings
    };
    assert_eq!(check(), "");
    let of_root = fs::metadata(&key).unwrap().uid() == 0;
    for (mode, open_to) in [
        (0o400, None),
        // Root gives keys to services by their group.
        (0o640, if of_root { None } else { Some("its group (mode 0640)") }),
        (0o660, Some(if of_root { "its group for more than reading (mode 0660)" } else { "its group (mode 0660)" })),
        (0o604, Some("everybody on this machine (mode 0604)")),
        (0o644, Some("everybody on this machine (mode 0644)")),
    ] {
        set(mode);
        let warnings = check();
        let Some(open_to) = open_to else {
            assert_eq!(warnings, "", "{mode:o}");
            continue;
        };
        let start = format!("{file}: warning: the private key {folder}/key.pem is open to {open_to}: ");
        assert!(warnings.starts_with(&start), "{warnings}");
        assert!(warnings.contains(&format!("chmod 0600 {folder}/key.pem")), "{warnings}");
    }

    let arguments = ["serve", "--config", file, "--broker", "amqp://127.0.0.1:1", "--admin", "127.0.0.1:0"];
    let mut process = Process::start(&arguments, &[("STOMP_RELAY_DRAIN__DELAY", "0s")]);
    process.ready();
    process.log.until("open to everybody on this machine (mode 0644)");
    set(0o606);
    process.signal("HUP");
    process.log.until("open to everybody on this machine (mode 0606)");
}

/// Settings that undo a defence, and what the warning names.
const OPENINGS: &[(&str, &str)] = &[
    ("http.origins = [\"*\"]\nauth.sources = [\"password\", \"basic\"]\n", "basic in auth.sources"),
    ("http.origins = [\"null\"]\nauth.sources = [\"basic\"]\n", "basic in auth.sources"),
    (
        "http.origins = [\"*\"]\nauth.default_login = \"web\"\nauth.default_passcode = \"x\"\n",
        "with auth.default_login",
    ),
    ("http.hosts = [\"*\"]\n", "http.hosts"),
    ("http.hosts = [\"*.com\"]\n", "http.hosts"),
    ("http.origins = [\"https://*.com\"]\nauth.sources = [\"basic\"]\n", "basic in auth.sources"),
    ("http.origins = [\"file://\"]\nauth.sources = [\"basic\"]\n", "basic in auth.sources"),
    ("http.origins = [\"http://app.example.com\"]\nauth.sources = [\"basic\"]\n", "an origin with http://"),
    ("http.root = \"/usr\"\nhttp.content_security_policy = \"\"\n", "http.content_security_policy"),
    ("http.root = \"/\"\n", "http.root is /"),
    ("proxy.trusted = [\"11.0.0.0/8\", \"13.0.0.0/8\"]\n", "proxy.trusted"),
    ("limits.memory_max = \"1000GiB\"\n", "limits.memory_max"),
    ("listen = [\"ws://10.0.0.1:8080/ws\"]\nauth.failure_window = \"1s\"\n", "auth.failure_window"),
    (
        "listen = [\"ws://10.0.0.1:8080/ws\"]\nstomp.compatibility = \"rabbitmq\"\nauth.attempts_max = 1000\n",
        "auth.attempts_max",
    ),
    ("listen = [\"ws://10.0.0.1:8080/ws\"]\nlimits.strangers_max = 10000\n", "limits.strangers_max"),
    ("listen = [\"ws://10.0.0.1:8080/ws\"]\nlimits.stranger_timeout = \"10m\"\n", "limits.stranger_timeout"),
    ("listen = [\"ws://10.0.0.1:8080/ws\"]\nlimits.network_ipv4_bits = 0\n", "limits.network_ipv4_bits"),
    (
        "listen = [\"ws://10.0.0.1:8080/ws\"]\nlimits.memory_max = \"256MiB\"\nlimits.session_bytes_max = \"256MiB\"\n",
        "one session can take all memory",
    ),
    ("admin.hosts = [\"*\"]\n", "admin.hosts"),
    ("proxy.trusted = [\"0.0.0.0/0\"]\n", "proxy.trusted"),
    ("proxy.trusted = [\"::/0\"]\n", "proxy.trusted"),
    ("proxy.protocol_from = [\"0.0.0.0/1\"]\n", "proxy.protocol_from"),
    ("listen = [\"ws://0.0.0.0:0/ws\"]\n", "in the clear; use wss://"),
    ("listen = [\"ws://[2001:db8::1]:8080/ws\"]\n", "in the clear; use wss://"),
    ("admin.listen = \"0.0.0.0:15680\"\n", "admin.listen"),
    ("broker.uris = [\"amqp://mq.example.com\"]\n", "amqps://"),
    ("broker.uris = [\"amqp://203.0.113.5\"]\n", "amqps://"),
    (
        "auth = { jwt = \"broker\", hmac_secret = \"0123456789012345678901234567890123\", audience = [\"a\"] }\n",
        "auth.issuer",
    ),
    (
        "auth = { jwt = \"broker\", issuer = \"https://id.example.com\", audience = [\"a\"], leeway = \"60s\" }\n",
        "auth.leeway",
    ),
    (
        "auth = { jwt = \"broker\", issuer = \"https://id.example.com\", audience = [\"a\"] }\n\
         [[rules]]\nusers = [\"bob\"]\nsend = [\"**\"]\n",
        "add proof",
    ),
    (
        "auth = { jwt = \"broker\", issuer = \"https://id.example.com\", audience = [\"a\"], cookie_origins = [\"http://a.example.com\"], \
         sources = [\"jwt_cookie\"] }\n",
        "auth.cookie_origins",
    ),
    ("auth.recheck = \"24h\"\n", "auth.recheck"),
    (
        "auth = { service_login = \"svc\", service_passcode = \"x\" }\n[[rules]]\nsend = [\"**\"]\n",
        "allows ** to everybody",
    ),
    (
        "auth = { service_login = \"svc\", service_passcode = \"x\" }\n[[rules]]\nsend = [\"/topic/a\"]\nheaders = [\"*\"]\n",
        "all headers to everybody",
    ),
    ("auth = { service_login = \"svc\", service_passcode = \"x\" }\n", "log.audit_file"),
    (
        "listen = [\"ws://10.0.0.1:8080/ws\"]\nauth = { service_login = \"guest\", service_passcode = \"x\" }\n",
        "well-known administrator",
    ),
    ("listen = [\"ws://10.0.0.1:8080/ws\"]\nauth.loopback_users = []\n", "auth.loopback_users"),
    ("listen = [\"ws://10.0.0.1:8080/ws\"]\nauth.failures_per_address_max = 100000\n", "passwords can be guessed"),
    ("listen = [\"ws://10.0.0.1:8080/ws\"]\nauth.failure_delay = \"0s\"\n", "auth.failure_delay"),
    ("listen = [\"ws://10.0.0.1:8080/ws\"]\nlimits.connect_rate_max = 0\n", "a rate in limits is 0"),
    (
        "listen = [\"ws://10.0.0.1:8080/ws\"]\nlimits.connections_per_address_max = 10000\n",
        "one address can take every place",
    ),
];

/// Settings that are usual, and open nothing.
const CLOSED: &[&str] = &[
    "",
    "listen = [\"ws://10.0.0.1:8080/ws\"]\nbroker.uris = [\"amqp://rabbitmq\", \"amqp://mq.svc.cluster.local\"]\n",
    "listen = [\"ws://0.0.0.0:8080/ws\"]\nproxy.trusted = [\"10.0.0.0/8\"]\nadmin.listen = \"10.0.0.1:15680\"\n",
    "http.origins = [\"*\"]\n",
    "http.origins = [\"https://app.example.com\"]\nauth.sources = [\"basic\"]\n",
    "http.origins = [\"https://*.example.com\", \"capacitor://localhost\", \"http://localhost:5173\"]\nauth.sources = [\"basic\"]\n",
];

#[test]
fn check_warns_of_settings_that_undo_a_defence() {
    let scratch = Scratch::new();
    let check = |settings: &str, flags: &[&str]| {
        let file = scratch.write("relay.toml", settings);
        run(&[&["check", "--config", file.to_str().unwrap()], flags].concat())
    };
    for (settings, named) in OPENINGS {
        let (code, _, said) = check(settings, &[]);
        assert_eq!(code, 0, "{settings}: {said}");
        assert!(said.lines().any(|line| line.contains(": warning: ") && line.contains(named)), "{settings}: {said}");
        assert_eq!(check(settings, &["--strict"]).0, 78, "{settings}");
    }
    for settings in CLOSED {
        let (code, _, said) = check(settings, &["--strict"]);
        assert_eq!((code, said.as_str()), (0, ""), "{settings}");
    }

    let file = scratch.write("relay.toml", "auth.recheck = \"24h\"\n");
    let file = file.to_str().unwrap();
    let arguments = ["serve", "--config", file, "--broker", "amqp://127.0.0.1:1", "--admin", "127.0.0.1:0"];
    let arguments = [&arguments[..], &["--listen", "ws://127.0.0.1:0/ws"]].concat();
    let mut process = Process::start(&arguments, &[("STOMP_RELAY_DRAIN__DELAY", "0s")]);
    process.ready();
    process.log.until("auth.recheck is long");
}

#[test]
fn dev_cert_replaces_only_by_force() {
    let scratch = Scratch::new();
    let key = scratch.write("key.pem", "mine");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let out = key.parent().unwrap().to_str().unwrap();
    let refusal = format!("error: {out}/key.pem exists already; remove it, or replace it with --force\n");
    assert_eq!(run(&["dev-cert", "--out", out]), (1, String::new(), refusal));
    assert_eq!(fs::read_to_string(&key).unwrap(), "mine");
    assert!(!scratch.path("ca.pem").exists());

    assert_eq!(run(&["dev-cert", "--out", out, "--force"]).0, 0);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    handshake(key.parent().unwrap(), "localhost").unwrap();
}

/// A TLS handshake in memory between a client that trusts `ca.pem` and a server with `cert.pem` and `key.pem`.
fn handshake(directory: &std::path::Path, name: &str) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(directory.join("cert.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let server = server.with_no_client_auth().with_single_cert(chain, key)?;
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let client = client.with_root_certificates(roots).with_no_client_auth();

    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        server.process_new_packets()?;
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}
