//! The configuration as operators meet it: exact problem lines, precedence of the sources, secrets, the reference page.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::support::scratch::Scratch;
use stomp_relay::config::{Config, ListenUrl, LogFormat, Overrides, Scheme, render_reference};
use stomp_relay::dev_cert::{self, Existing};
use stomp_relay::listener::Opcode;
use stomp_relay::session::config::Compatibility;

type Variables<'a> = &'a [(&'a str, &'a str)];

fn load(path: Option<&Path>, variables: Variables<'_>, flags: &Overrides) -> Result<Config, String> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(path, variables, flags).map_err(|problems| problems.to_string())
}

/// Loads a file of this text; in the report, `DIR/` stands for the scratch directory.
fn load_text(scratch: &Scratch, text: &str, variables: Variables<'_>) -> Result<Config, String> {
    let path = scratch.write("relay.toml", &text.replace("DIR/", &format!("{}/", scratch.folder().display())));
    load(Some(&path), variables, &Overrides::default()).map_err(|report| shorten(scratch, &report))
}

fn shorten(scratch: &Scratch, report: &str) -> String {
    let directory = format!("{}/", scratch.folder().display());
    report.replace(&format!("{directory}relay.toml"), "relay.toml").replace(&directory, "DIR/")
}

#[track_caller]
fn assert_report(text: &str, variables: Variables<'_>, expected: &[&str]) {
    let scratch = Scratch::new();
    let report = load_text(&scratch, text, variables).expect_err(text);
    assert_eq!(report.lines().collect::<Vec<_>>(), expected, "for {text}");
}

#[test]
fn each_mistake_in_a_file_has_its_line() {
    let cases = [
        // Unknown names.
        ("listn = []", r#"1:1: error: unknown key "listn"; did you mean "listen"?"#),
        (
            "connect_timeout = \"1s\"",
            r#"1:1: error: unknown key "connect_timeout"; did you mean "broker.connect_timeout"?"#,
        ),
        ("\n[brokr]\nvhost = \"/\"", r#"2:2: error: unknown section "brokr"; did you mean "broker"?"#),
        ("[qqq]", r#"1:2: error: unknown section "qqq""#),
        ("[tls]\n  cert = \"x\"", r#"2:3: error: unknown key "tls.cert"; did you mean "tls.cert_file"?"#),
        ("[session]\nzzz = 1", r#"2:1: error: unknown key "session.zzz""#),
        ("[tls]\nlisten = []", r#"2:1: error: unknown key "tls.listen"; did you mean "listen"?"#),
        (
            "session.prefech_auto = 1",
            r#"1:9: error: unknown key "session.prefech_auto"; did you mean "session.prefetch_auto"?"#,
        ),
        ("[log.level]\nx = 1", r#"1:1: error: log.level: expected a string, found a table"#),
        ("broker = \"amqp://mq\"", r#"1:1: error: "broker" is a section; write its keys below [broker]"#),
        ("[[tls]]", r#"1:3: error: "tls" is a section; write its keys below [tls]"#),
        // Units.
        ("[websocket]\nping_interval = 25", r#"2:17: error: websocket.ping_interval: 25 has no unit; write "25s""#),
        (
            "[websocket]\nping_interval = \"25\"",
            r#"2:17: error: websocket.ping_interval: "25" has no unit; write "25s""#,
        ),
        (
            "[websocket]\nping_interval = \"25sec\"",
            r#"2:17: error: websocket.ping_interval: "25sec" is not a duration; write a whole number with ms, s, m or h, such as "25s""#,
        ),
        (
            "[websocket]\nping_interval = \"1.5s\"",
            r#"2:17: error: websocket.ping_interval: "1.5s" is not a duration; write a whole number with ms, s, m or h, such as "25s""#,
        ),
        (
            "[websocket]\nping_interval = true",
            r#"2:17: error: websocket.ping_interval: a boolean is not a duration; write a whole number with ms, s, m or h, such as "25s""#,
        ),
        ("[stomp]\nframe_bytes_max = 65536", r#"2:19: error: stomp.frame_bytes_max: 65536 has no unit; write "64KiB""#),
        (
            "[stomp]\nframe_bytes_max = \"4MB\"",
            r#"2:19: error: stomp.frame_bytes_max: "4MB" is not a size; write a whole number with B, KiB, MiB or GiB, such as "4MiB""#,
        ),
        // Types.
        (
            "listen = \"ws://127.0.0.1:1\"",
            "1:10: error: listen: expected a list, found a string; put it between [ and ]",
        ),
        ("listen = [1]", "1:11: error: listen: expected a string, found an integer"),
        ("[broker]\nignore_host = \"yes\"", "2:15: error: broker.ignore_host: expected true or false, found a string"),
        (
            "[broker]\nvhosts = [\"a\"]",
            r#"2:10: error: broker.vhosts: expected a table, found a list; write { "name" = "value" }"#,
        ),
        ("[broker]\nvhosts = { a = 1 }", r#"2:16: error: broker.vhosts: "a": expected a string, found an integer"#),
        (
            "[limits]\nconnections_max = \"many\"",
            "2:19: error: limits.connections_max: expected an integer, found a string",
        ),
        (
            "[limits]\nconnections_max = 1.5",
            "2:19: error: limits.connections_max: expected an integer, found a decimal number",
        ),
        ("[log]\nlevel = 2026-01-01", "2:9: error: log.level: expected a string, found a date"),
        (
            "[stomp]\ncompatibility = \"stric\"",
            r#"2:17: error: stomp.compatibility: "stric" is not "strict" or "rabbitmq"; did you mean "strict"?"#,
        ),
        (
            "[log]\nlevel = \"inof\"",
            r#"2:9: error: log.level: "inof" is not a level (off, error, warn, info, debug, trace); did you mean "info"?"#,
        ),
        // Ranges.
        (
            "[broker]\nheartbeat = \"120s\"",
            r#"2:13: error: broker.heartbeat: "120s" is out of range; allowed is 1s to 1m"#,
        ),
        ("[broker]\nheartbeat = \"1500ms\"", "2:13: error: broker.heartbeat: 1500ms is not in whole seconds"),
        (
            "[broker]\nframe_bytes_max = \"99999999999GiB\"",
            r#"2:19: error: broker.frame_bytes_max: "99999999999GiB" is out of range; allowed is 4KiB to 1MiB"#,
        ),
        (
            "[session]\nprefetch_auto = 0",
            "2:17: error: session.prefetch_auto: 0 is out of range; allowed is 1 to 65535",
        ),
        (
            "[session]\nprefetch_auto = 65536",
            "2:17: error: session.prefetch_auto: 65536 is out of range; allowed is 1 to 65535",
        ),
        (
            "[session]\nprefetch_auto = -1",
            "2:17: error: session.prefetch_auto: -1 is out of range; allowed is 1 to 65535",
        ),
        (
            "[stomp]\nheartbeat_tolerance = 0.5",
            "2:23: error: stomp.heartbeat_tolerance: 0.5 is out of range; allowed is 1.0 to 10.0",
        ),
        (
            "[stomp]\nheartbeat_tolerance = nan",
            "2:23: error: stomp.heartbeat_tolerance: NaN is out of range; allowed is 1.0 to 10.0",
        ),
        ("listen = []", "1:10: error: listen: must name at least one"),
        ("[broker]\nvhost = \"\"", "2:9: error: broker.vhost: must not be empty"),
        (
            "[http]\ncontent_security_policy = \"a\\nb\"",
            r#"2:27: error: http.content_security_policy: holds '\n'; an HTTP header takes printable ASCII only"#,
        ),
        // Addresses.
        (
            "listen = [\"http://127.0.0.1\"]",
            r#"1:11: error: listen: "http://127.0.0.1" is not a listen URL: it must begin with ws:// or wss://"#,
        ),
        (
            "listen = [\"ws://example.com:80\"]",
            r#"1:11: error: listen: "ws://example.com:80" is not a listen URL: "example.com" is neither an IP address nor localhost nor *"#,
        ),
        (
            "listen = [\"ws://127.0.0.1:70000\"]",
            r#"1:11: error: listen: "ws://127.0.0.1:70000" is not a listen URL: "70000" is not a port, 0 to 65535"#,
        ),
        (
            "listen = [\"ws://::1:80\"]",
            r#"1:11: error: listen: "ws://::1:80" is not a listen URL: an IPv6 address stands between [ and ]"#,
        ),
        (
            "listen = [\"ws://*/a?b\"]",
            r#"1:11: error: listen: "ws://*/a?b" is not a listen URL: '?' is not allowed in the path"#,
        ),
        ("listen = [\"ws://*:1/a\", \"ws://*:1/b\"]", "1:10: error: listen: 0.0.0.0:1 is named twice"),
        (
            "[broker]\nuris = [\"amqp://bob:canary@mq\"]",
            r#"2:9: error: broker.uris: "amqp://***@mq" is not a broker URI: clients log in with their own RabbitMQ login and passcode; use auth.default_login for clients without"#,
        ),
        (
            "[broker]\nuris = [\"amqp://mq/prod\"]",
            r#"2:9: error: broker.uris: "amqp://mq/prod" is not a broker URI: it names a virtual host; set broker.vhost instead"#,
        ),
        (
            "[broker]\nuris = [\"amqp://\"]",
            r#"2:9: error: broker.uris: "amqp://" is not a broker URI: the host is missing"#,
        ),
        (
            "[broker]\nuris = [\"amqp://mq?heartbeat=5\"]",
            r#"2:9: error: broker.uris: "amqp://mq?heartbeat=5" is not a broker URI: it takes no parameters"#,
        ),
        (
            "[admin]\nlisten = \"127.0.0.1\"",
            r#"2:10: error: admin.listen: "127.0.0.1" is not an address: the port is missing; write "127.0.0.1:15680" or "none""#,
        ),
        (
            "[admin]\nlisten = \"127.0.0.1:8080\"",
            "2:10: error: admin.listen: 127.0.0.1:8080 is also an address of listen",
        ),
        // Rules between keys.
        (
            "listen = [\"wss://127.0.0.1:1\"]",
            "1:10: error: listen: wss://127.0.0.1:1/ws needs tls.cert_file and tls.key_file",
        ),
        (
            "[auth]\ndefault_login = \"app\"",
            "2:17: error: auth.default_login and auth.default_passcode: set both or none",
        ),
        (
            "[broker]\nignore_host = true\nvhosts = { a = \"b\" }",
            "2:15: error: broker.vhosts is never used while broker.ignore_host is true: remove one",
        ),
        (
            "[websocket]\nping_interval = \"5s\"",
            "2:17: error: websocket.pong_timeout 10s must be below websocket.ping_interval 5s",
        ),
        (
            "[drain]\ntimeout = \"10s\"",
            "2:11: error: drain.delay 1s and drain.spread 20s together exceed drain.timeout 10s",
        ),
        (
            "[stomp]\nframe_bytes_max = \"32KiB\"",
            "2:19: error: stomp.login_frame_bytes_max 64KiB must not exceed stomp.frame_bytes_max 32KiB",
        ),
        // Files.
        (
            "[broker]\nca_file = \"DIR/none.pem\"",
            "2:11: error: broker.ca_file: DIR/none.pem: cannot read: No such file or directory (os error 2)",
        ),
        (
            "[http]\nroot = \"DIR/none\"",
            "2:8: error: http.root: DIR/none: cannot read: No such file or directory (os error 2)",
        ),
        (
            "[log]\naudit_file = \"DIR/none/audit.log\"",
            "2:14: error: log.audit_file: DIR/none/audit.log: DIR/none is no folder; make it first",
        ),
        ("[log]\naudit_file = \"DIR/.\"", "2:14: error: log.audit_file: DIR/.: is a folder; name a file"),
        (
            "[broker]\nca_file = \"DIR/relay.toml\"",
            "2:11: error: broker.ca_file: DIR/relay.toml: holds no PEM certificate",
        ),
        // Syntax.
        ("[drain]\ndelay = 1s", "2:9: error: string values must be quoted, expected literal string"),
        ("[drain]\ndelay = \"1s\"\ndelay = \"2s\"", "3:1: error: duplicate key"),
        // The column counts characters, not bytes.
        (
            "broker = { vhost = \"ä\", vhots = 1 }",
            r#"1:25: error: unknown key "broker.vhots"; did you mean "broker.vhost"?"#,
        ),
    ];
    let scratch = Scratch::new();
    let mut failures = Vec::new();
    for (text, line) in cases {
        let expected = format!("relay.toml:{line}\n1 problem in relay.toml").replace("DIR/relay.toml", "relay.toml");
        let report = load_text(&scratch, text, &[]).err();
        if report.as_ref() != Some(&expected) {
            failures.push(format!("{text}\n  reported {report:?}\n  expected {expected:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn each_mistake_in_the_environment_has_its_line() {
    let cases = [
        ("STOMP_RELAY_LISTN", "", r#"unknown variable; did you mean "STOMP_RELAY_LISTEN"?"#),
        ("STOMP_RELAY_TLS_KEY_FILE", "x", r#"unknown variable; did you mean "STOMP_RELAY_TLS__KEY_FILE"?"#),
        (
            "STOMP_RELAY_WS__PING_INTERVAL",
            "1s",
            r#"unknown variable; did you mean "STOMP_RELAY_WEBSOCKET__PING_INTERVAL"?"#,
        ),
        ("STOMP_RELAY_QQQ", "", "unknown variable"),
        ("STOMP_RELAY_WEBSOCKET__PING_INTERVAL", "25", r#"websocket.ping_interval: "25" has no unit; write "25s""#),
        (
            "STOMP_RELAY_WEBSOCKET__PING_INTERVAL",
            "",
            r#"websocket.ping_interval: "" is not a duration; write a whole number with ms, s, m or h, such as "25s""#,
        ),
        ("STOMP_RELAY_BROKER__IGNORE_HOST", "1", r#"broker.ignore_host: expected true or false, found "1""#),
        ("STOMP_RELAY_SESSION__PREFETCH_AUTO", "x", r#"session.prefetch_auto: expected an integer, found "x""#),
        ("STOMP_RELAY_STOMP__HEARTBEAT_TOLERANCE", "x", r#"stomp.heartbeat_tolerance: expected a number, found "x""#),
        ("STOMP_RELAY_BROKER__VHOSTS", "a", r#"broker.vhosts: "a" is not a pair; write name=value,name=value"#),
        ("STOMP_RELAY_LISTEN", "", "listen: must name at least one"),
        ("STOMP_RELAY_HTTP__ROOT", "a\u{fffd}", "http.root: is not UTF-8 text"),
    ];
    for (name, value, text) in cases {
        let report = load(None, &[(name, value)], &Overrides::default()).expect_err(name);
        assert_eq!(report, format!("env {name}: error: {text}\n1 problem in the environment"));
    }
}

#[test]
fn all_problems_are_reported_in_one_run_in_order() {
    let text = r#"
listen = ["ws://127.0.0.1:1", "tcp://x", "ws://127.0.0.1:x"]

[tls]
cert_file = "DIR/none.pem"
key_file = "DIR/relay.toml"
handshake_timeout = 10

[brokr]

[stomp]
heartbeat_min = "1 parsec"
frame_byte_max = "1MiB"
"#;
    assert_report(
        text,
        &[("STOMP_RELAY_LOG__FORMAT", "jsn"), ("STOMP_RELAY_DRAIN__DELAY", "3")],
        &[
            r#"relay.toml:2:31: error: listen: "tcp://x" is not a listen URL: it must begin with ws:// or wss://"#,
            r#"relay.toml:2:42: error: listen: "ws://127.0.0.1:x" is not a listen URL: "x" is not a port, 0 to 65535"#,
            "relay.toml:5:13: error: tls.cert_file: DIR/none.pem: cannot read: No such file or directory (os error 2)",
            "relay.toml:6:12: error: tls.key_file: relay.toml: holds no PEM private key",
            r#"relay.toml:7:21: error: tls.handshake_timeout: 10 has no unit; write "10s""#,
            r#"relay.toml:9:2: error: unknown section "brokr"; did you mean "broker"?"#,
            r#"relay.toml:12:17: error: stomp.heartbeat_min: "1 parsec" is not a duration; write a whole number with ms, s, m or h, such as "25s""#,
            r#"relay.toml:13:1: error: unknown key "stomp.frame_byte_max"; did you mean "stomp.frame_bytes_max"?"#,
            r#"env STOMP_RELAY_DRAIN__DELAY: error: drain.delay: "3" has no unit; write "3s""#,
            r#"env STOMP_RELAY_LOG__FORMAT: error: log.format: "jsn" is not "auto" or "pretty" or "json"; did you mean "json"?"#,
            "10 problems in relay.toml and the environment",
        ],
    );
}

#[test]
fn lines_without_a_syntax_error_are_judged_beside_one_with() {
    assert_report(
        "[broker]\nconnect_timeout = 10s\nvhots = \"/\"\nheartbeat = 20\n",
        &[],
        &[
            "relay.toml:2:19: error: string values must be quoted, expected literal string",
            r#"relay.toml:3:1: error: unknown key "broker.vhots"; did you mean "broker.vhost"?"#,
            r#"relay.toml:4:13: error: broker.heartbeat: 20 has no unit; write "20s""#,
            "3 problems in relay.toml",
        ],
    );
}

#[test]
fn a_rule_does_not_blame_a_default_that_stands_for_a_wrong_value() {
    assert_report(
        "[websocket]\nping_interval = \"5s\"\npong_timeout = 3\n",
        &[],
        &[r#"relay.toml:3:16: error: websocket.pong_timeout: 3 has no unit; write "3s""#, "1 problem in relay.toml"],
    );
}

#[test]
fn a_wrong_flag_has_its_line() {
    let flags = Overrides {
        listen: vec!["wss://127.0.0.1:1".into(), "127.0.0.1:80".into()],
        broker: vec!["amqp://bob:canary@mq".into()],
        admin: Some("nowhere".into()),
        ..Overrides::default()
    };
    let report = load(None, &[], &flags).unwrap_err();
    let expected = [
        r#"flag --admin: error: admin.listen: "nowhere" is not an address: the port is missing; write "127.0.0.1:15680" or "none""#,
        r#"flag --broker: error: broker.uris: "amqp://***@mq" is not a broker URI: clients log in with their own RabbitMQ login and passcode; use auth.default_login for clients without"#,
        r#"flag --listen: error: listen: "127.0.0.1:80" is not a listen URL: it must begin with ws:// or wss://"#,
        "3 problems in the command line",
    ];
    assert_eq!(report.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_of_the_file() {
    let scratch = Scratch::new();
    let path = scratch.path("relay.toml");
    let report = shorten(&scratch, &load(Some(&path), &[], &Overrides::default()).unwrap_err());
    let expected = "relay.toml: error: cannot read: No such file or directory (os error 2)\n1 problem in relay.toml";
    assert_eq!(report, expected);
    fs::write(&path, b"\xff").unwrap();
    let report = shorten(&scratch, &load(Some(&path), &[], &Overrides::default()).unwrap_err());
    assert_eq!(report, "relay.toml: error: is not UTF-8 text\n1 problem in relay.toml");
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let scratch = Scratch::new();
    let file = scratch.write("relay.toml", "listen = [\"ws://127.0.0.1:2\"]");
    let variable = [("STOMP_RELAY_LISTEN", "ws://127.0.0.1:3")];
    let flag = Overrides { listen: vec!["ws://127.0.0.1:4".into()], ..Overrides::default() };
    let none = Overrides::default();
    let ports = |path: Option<&Path>, variables: Variables<'_>, flags: &Overrides| -> Vec<u16> {
        load(path, variables, flags).unwrap().listen.iter().map(|url| url.address.port()).collect()
    };
    assert_eq!(ports(None, &[], &none), [8080]);
    assert_eq!(ports(Some(&file), &[], &none), [2]);
    assert_eq!(ports(Some(&file), &variable, &none), [3]);
    assert_eq!(ports(None, &variable, &none), [3]);
    assert_eq!(ports(Some(&file), &variable, &flag), [4]);
    assert_eq!(ports(Some(&file), &[], &flag), [4]);
}

#[test]
fn every_flag_reaches_its_key() {
    let scratch = Scratch::new();
    let made = dev_cert::write(&scratch.path("tls"), Existing::Keep).unwrap();
    let flags = Overrides {
        listen: vec!["wss://*:0".into(), "ws://[::1]:0/x".into()],
        broker: vec!["amqps://mq1".into(), "amqp://mq2".into()],
        tls_cert: Some(made.cert.clone()),
        tls_key: Some(made.key.clone()),
        admin: Some("none".into()),
    };
    let config = load(None, &[], &flags).unwrap();
    let listen: Vec<String> = config.listen.iter().map(ListenUrl::to_string).collect();
    assert_eq!(listen, ["wss://0.0.0.0:0/ws", "ws://[::1]:0/x"]);
    assert_eq!(config.listen[0].scheme, Scheme::Wss);
    assert_eq!((config.broker.uris[0].tls, config.broker.uris[0].port), (true, 5671));
    assert_eq!((config.broker.uris[1].tls, config.broker.uris[1].port), (false, 5672));
    assert_eq!((config.tls.cert_file, config.tls.key_file), (Some(made.cert), Some(made.key)));
    assert_eq!(config.admin.listen, None);
}

#[test]
fn environment_values_are_read_as_their_key_wants_them() {
    let config = load(
        None,
        &[
            ("HOME", "/root"),
            ("STOMP_RELAY_SERVICE_HOST", "10.0.0.1"),
            ("STOMP_RELAY_PORT_443_TCP_ADDR", "10.0.0.1"),
            ("STOMP_RELAY_LISTEN", "ws://127.0.0.1:1, ws://127.0.0.1:2"),
            ("STOMP_RELAY_AUTH__LOOPBACK_USERS", r#"["a,b", "c"]"#),
            ("STOMP_RELAY_BROKER__VHOSTS", "a.example=x, b.example=y"),
            ("STOMP_RELAY_BROKER__IGNORE_HOST", "false"),
            ("STOMP_RELAY_BROKER__HEARTBEAT", "5s"),
            ("STOMP_RELAY_STOMP__HEARTBEAT_TOLERANCE", "3"),
            ("STOMP_RELAY_STOMP__COMPATIBILITY", "rabbitmq"),
            ("STOMP_RELAY_SESSION__PREFETCH_AUTO", "7"),
            ("STOMP_RELAY_TLS__CERT_FILE", ""),
        ],
        &Overrides::default(),
    )
    .unwrap();
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.auth.loopback_users, ["a,b", "c"]);
    assert_eq!(config.broker.vhosts["b.example"], "y");
    assert_eq!(config.broker.heartbeat, Duration::from_secs(5));
    assert_eq!(config.stomp.heartbeat_tolerance, 3.0);
    assert_eq!(config.stomp.compatibility, Compatibility::Rabbitmq);
    assert_eq!(config.session.prefetch_auto, 7);
    assert_eq!(config.tls.cert_file, None);
    let users = [("STOMP_RELAY_AUTH__LOOPBACK_USERS", "")];
    assert!(load(None, &users, &Overrides::default()).unwrap().auth.loopback_users.is_empty());
    let table = [("STOMP_RELAY_BROKER__VHOSTS", r#"{ "a.b" = "c=d" }"#)];
    assert_eq!(load(None, &table, &Overrides::default()).unwrap().broker.vhosts["a.b"], "c=d");
}

#[test]
fn the_defaults_are_a_valid_configuration() {
    let config = load(None, &[], &Overrides::default()).unwrap();
    assert_eq!(config.listen[0].to_string(), "ws://127.0.0.1:8080/ws");
    assert_eq!(config.broker.uris[0].to_string(), "amqp://127.0.0.1:5672");
    assert_eq!(config.broker.frame_bytes_max, 131_072);
    assert_eq!(config.auth.loopback_users, ["guest"]);
    assert_eq!(config.stomp.frame_bytes_max, 4_194_304);
    assert_eq!(config.websocket.frames, Opcode::TextWhenUtf8);
    assert_eq!(config.admin.listen, Some(SocketAddr::from(([127, 0, 0, 1], 15680))));
    assert_eq!(config.log.format, LogFormat::Auto);
    assert!(config.broker.vhosts.is_empty());
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
}

#[test]
fn a_secret_comes_from_its_key_or_from_its_file() {
    let scratch = Scratch::new();
    for (content, secret) in [("canary", "canary"), ("canary\n", "canary"), ("canary\r\n", "canary"), ("a\n\n", "a\n")]
    {
        scratch.write("passcode", content);
        let text = "[auth]\ndefault_login = \"app\"\ndefault_passcode_file = \"DIR/passcode\"";
        let config = load_text(&scratch, text, &[]).unwrap();
        assert_eq!(config.auth.default_passcode.unwrap().expose(), secret);
    }
    let variables = [("STOMP_RELAY_AUTH__DEFAULT_LOGIN", "app"), ("STOMP_RELAY_AUTH__DEFAULT_PASSCODE", "canary")];
    let config = load(None, &variables, &Overrides::default()).unwrap();
    assert_eq!(config.auth.default_passcode.as_ref().unwrap().expose(), "canary");
    let shown = format!("{config:?} {:#?} {}", config, config.auth.default_passcode.as_ref().unwrap());
    assert!(!shown.contains("canary") && shown.contains("***"), "{shown}");
}

#[test]
fn mistakes_with_secrets_do_not_show_them() {
    let both = "relay.toml:4:25: error: auth.default_passcode_file: give either default_passcode or \
                default_passcode_file, not both";
    assert_report(
        "[auth]\ndefault_login = \"app\"\ndefault_passcode = \"canary\"\ndefault_passcode_file = \"DIR/x\"",
        &[],
        &[both, "1 problem in relay.toml"],
    );
    assert_report(
        "[auth]\ndefault_login = \"app\"\ndefault_passcode_file = \"DIR/x\"",
        &[],
        &[
            "relay.toml:3:25: error: auth.default_passcode_file: DIR/x: cannot read: No such file or directory (os error 2)",
            "1 problem in relay.toml",
        ],
    );
    assert_report(
        "[auth]\ndefault_login = \"app\"\ndefault_passcode = 4711",
        &[],
        &[
            "relay.toml:3:20: error: auth.default_passcode: expected a string, found an integer",
            "1 problem in relay.toml",
        ],
    );
}

#[test]
fn certificate_and_key_are_loaded_and_held_against_each_other() {
    let scratch = Scratch::new();
    dev_cert::write(&scratch.path("a"), Existing::Keep).unwrap();
    dev_cert::write(&scratch.path("b"), Existing::Keep).unwrap();
    scratch.write("old.pem", &expired_certificate());
    let broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    scratch.write("broken.pem", broken);
    scratch.write("locked.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let tls = |cert: &str, key: &str| format!("[tls]\ncert_file = \"DIR/{cert}\"\nkey_file = \"DIR/{key}\"");
    load_text(&scratch, &tls("a/cert.pem", "a/key.pem"), &[]).unwrap();
    for (cert, key, line) in [
        ("a/cert.pem", "b/key.pem", "3:12: error: tls.key_file: does not match tls.cert_file"),
        ("a/cert.pem", "a/cert.pem", "3:12: error: tls.key_file: DIR/a/cert.pem: holds no PEM private key"),
        ("a/key.pem", "a/key.pem", "2:13: error: tls.cert_file: DIR/a/key.pem: holds no PEM certificate"),
        ("broken.pem", "a/key.pem", "2:13: error: tls.cert_file: DIR/broken.pem: holds a broken certificate"),
        (
            "a/cert.pem",
            "locked.pem",
            "3:12: error: tls.key_file: DIR/locked.pem: is encrypted with a pass phrase; decrypt it first \
             (openssl pkey -in KEY -out PLAIN)",
        ),
        (
            "old.pem",
            "a/key.pem",
            "2:13: error: tls.cert_file: DIR/old.pem: expired on Jan  1 00:00:00 2000 +00:00; renew the certificate",
        ),
    ] {
        let report = load_text(&scratch, &tls(cert, key), &[]).unwrap_err();
        assert_eq!(report, format!("relay.toml:{line}\n1 problem in relay.toml"));
    }
    let report = load_text(&scratch, "[tls]\nkey_file = \"DIR/a/key.pem\"", &[]).unwrap_err();
    let line = "relay.toml:2:12: error: tls.key_file needs tls.cert_file: set both or none";
    assert_eq!(report, format!("{line}\n1 problem in relay.toml"));
}

#[test]
fn keys_of_tls_need_each_other_and_their_files() {
    let scratch = Scratch::new();
    dev_cert::write(&scratch.path("a"), Existing::Keep).unwrap();
    dev_cert::write(&scratch.path("b"), Existing::Keep).unwrap();
    let tls = |cert: &str, key: &str| format!("[tls]\ncert_file = \"DIR/{cert}\"\nkey_file = \"DIR/{key}\"");
    for (text, expected) in [
        (
            "[[tls.certificates]]\ncert_file = \"DIR/b/cert.pem\"\nkey_file = \"DIR/a/key.pem\"",
            "tls.certificates: DIR/a/key.pem: does not match DIR/b/cert.pem",
        ),
        ("certificates = [{ cert_file = \"DIR/a/cert.pem\" }]", "4:17: error: tls.certificates: key_file is missing"),
        (
            "certificates = [{ cert_fil = \"x\" }]",
            "4:17: error: tls.certificates: unknown key \"cert_fil\"; did you mean \"cert_file\"?",
        ),
        ("certificates = [\"x\"]", "4:17: error: tls.certificates: expected a table, found a string"),
        ("client_auth = \"require\"", "4:15: error: tls.client_auth needs tls.client_ca_file"),
        ("client_ca_file = \"DIR/a/ca.pem\"", "tls.client_ca_file is never used while tls.client_auth is \"off\""),
        ("client_crl_file = \"x\"", "tls.client_crl_file is never used while tls.client_auth is \"off\""),
        (
            "client_auth = \"require\"\nclient_ca_file = \"DIR/a/key.pem\"",
            "5:18: error: tls.client_ca_file: DIR/a/key.pem: holds no PEM certificate",
        ),
        (
            "client_auth = \"request\"\nclient_ca_file = \"DIR/a/ca.pem\"\nclient_crl_file = \"DIR/a/ca.pem\"",
            "6:19: error: tls.client_crl_file: DIR/a/ca.pem: holds no PEM revocation list",
        ),
        (
            "client_auth = \"request\"\nclient_ca_file = \"DIR/a/ca.pem\"",
            "4:15: error: tls.client_auth protects nothing: no address of listen has wss://",
        ),
        ("min_version = \"1.1\"", "tls.min_version: \"1.1\" is not \"1.2\" or \"1.3\""),
        ("client_name = \"san_mail\"", "did you mean \"san_email\"?"),
    ] {
        let report = load_text(&scratch, &format!("{}\n{text}", tls("a/cert.pem", "a/key.pem")), &[]).unwrap_err();
        assert!(report.contains(expected), "{text}:\n{report}");
    }
    let folder = scratch.folder().display();
    let list = format!("[{{ cert_file = \"{folder}/b/cert.pem\", key_file = \"{folder}/b/key.pem\" }}]");
    let further = [("STOMP_RELAY_TLS__CERTIFICATES", list.as_str())];
    let config = load_text(&scratch, &tls("a/cert.pem", "a/key.pem"), &further).unwrap();
    assert_eq!(config.tls_config().unwrap().certificates.len(), 2);
}

#[test]
fn redirects_and_hsts_are_checked() {
    assert_report(
        "[http]\nredirect_listen = \"127.0.0.1:80\"",
        &[],
        &[
            "relay.toml:2:19: error: http.redirect_listen needs an address with wss:// in listen, to redirect to",
            "1 problem in relay.toml",
        ],
    );
    for (address, other) in [("127.0.0.1:8080", "listen"), ("127.0.0.1:15680", "admin.listen")] {
        let scratch = Scratch::new();
        let report = load_text(&scratch, &format!("[http]\nredirect_listen = \"{address}\""), &[]).unwrap_err();
        let expected = format!("http.redirect_listen: {address} is also an address of {other}");
        assert!(report.contains(&expected), "{report}");
    }
    for policy in ["max-age=0", "max-age=63072000; includeSubDomains", "MAX-AGE=1;includesubdomains;preload"] {
        let config = load_text(&Scratch::new(), &format!("[http]\nhsts = \"{policy}\""), &[]).unwrap();
        assert_eq!(config.http.hsts.as_deref(), Some(policy));
    }
    for policy in ["3600", "includeSubDomains", "max-age=1y", "max-age=1; max-age=2", "max-age=1; other", "max-age=1;"]
    {
        let report = load_text(&Scratch::new(), &format!("[http]\nhsts = \"{policy}\""), &[]).unwrap_err();
        assert!(report.contains("http.hsts:") && report.contains("max-age=63072000"), "{report}");
    }
}

fn expired_certificate() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(1999, 1, 1);
    params.not_after = rcgen::date_time_ymd(2000, 1, 1);
    params.self_signed(&key).unwrap().pem()
}

#[test]
fn the_reference_page_is_what_the_declarations_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let rendered = render_reference();
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &rendered).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == rendered,
        "docs/configuration.md is out of date; rewrite it with: BLESS=1 cargo test --test it config"
    );
    for part in ["## [tls]", "| `heartbeat` |", "`\"25s\"`", "default_passcode_file"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn the_keys_about_tokens_fit_each_other() {
    let relay = "[auth]\njwt = \"relay\"\nservice_login = \"s\"\nservice_passcode = \"p\"\naudience = [\"a\"]\n";
    let at = |line: usize, text: &str| (format!("relay.toml:{line}:"), text.to_owned());
    for (lines, expected) in [
        (
            "",
            at(
                2,
                "auth.jwt needs keys: set auth.keys_file, auth.jwks_url, auth.hmac_secret, or auth.issuer for discovery",
            ),
        ),
        ("issuer = \"acme\"", at(6, "auth.issuer: is not a URL; without it there is no discovery, set auth.jwks_url")),
        (
            "jwks_url = \"http://id.example.com/keys\"",
            at(6, "auth.jwks_url: is not encrypted; http is for this machine only, use https"),
        ),
        (
            "jwks_url = \"https://id.example.com/keys\"\nhmac_secret = \"01234567890123456789012345678901\"",
            at(6, "auth.keys_file, auth.jwks_url and auth.hmac_secret: set one"),
        ),
        ("hmac_secret = \"short\"", at(6, "auth.hmac_secret: is shorter than 32 bytes")),
        (
            "keys_file = \"DIR/none\"",
            at(6, "auth.keys_file: DIR/none: cannot read: No such file or directory (os error 2)"),
        ),
        (
            "issuer = \"https://id.example.com\"\nsources = [\"jwt_cookie\"]",
            at(7, "auth.sources: jwt_cookie needs auth.cookie_origins"),
        ),
        (
            "issuer = \"https://id.example.com\"\nsources = [\"jwt_cookie\"]\ncookie_origins = [\"*\"]",
            at(8, "auth.cookie_origins: \"*\" is no origin; write https://app.example.com, without a path"),
        ),
    ] {
        let scratch = Scratch::new();
        let report = load_text(&scratch, &format!("{relay}{lines}\n"), &[]).expect_err(lines);
        let (first, (place, text)) = (report.lines().next().unwrap_or_default(), expected);
        assert!(first.starts_with(&place) && first.ends_with(&format!(" error: {text}")), "{first} for {lines}");
    }
    for (text, expected) in [
        (
            "[auth]\njwt = \"relay\"\naudience = [\"a\"]\nissuer = \"https://i\"\n",
            "auth.jwt = \"relay\" needs auth.service_login and auth.service_passcode",
        ),
        (
            "[auth]\njwt = \"broker\"\nissuer = \"https://i\"\n",
            "auth.jwt needs auth.audience: else tokens for any service are accepted",
        ),
    ] {
        let scratch = Scratch::new();
        let report = load_text(&scratch, text, &[]).expect_err(text);
        assert!(report.lines().next().unwrap_or_default().ends_with(expected), "{report} for {text}");
    }
    let scratch = Scratch::new();
    let text = "[auth]\nsources = [\"certificate\"]\n";
    let report = load_text(&scratch, text, &[]).expect_err(text);
    assert!(report.contains("certificate needs auth.service_login"), "{report}");
    load_text(&scratch, &format!("{relay}issuer = \"https://id.example.com\"\n"), &[]).unwrap();
}
