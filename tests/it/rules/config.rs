//! `[[rules]]` in a file: what it means, and what `check` says about mistakes.

use stomp_relay::config::{Config, Overrides};
use stomp_relay::session::identity::Identity;
use stomp_relay::session::proof::ProofKind;

use crate::support::scratch::Scratch;

pub(super) fn load(text: &str) -> Result<Config, String> {
    let scratch = Scratch::new();
    let path = scratch.write("relay.toml", text);
    let folder = format!("{}/", scratch.folder().display());
    let loaded = Config::load(Some(&path), std::iter::empty(), &Overrides::default());
    loaded.map_err(|problems| problems.to_string().replace(&folder, ""))
}

#[track_caller]
fn assert_problems(text: &str, expected: &[&str]) {
    let report = load(text).expect_err(text);
    let lines: Vec<&str> = report.lines().filter_map(|line| line.strip_prefix("relay.toml:")).collect();
    assert_eq!(lines, expected, "for {text}");
}

#[test]
fn mistakes_in_a_rule_have_line_and_column() {
    const FORMS: &str = "a pattern is /queue/NAME, /topic/KEY, /exchange/NAME[/KEY], /amq/queue/NAME, /reply-queue/NAME, \
                         /temp-queue/NAME or **, with %2F for a slash in a name";
    let bad_patterns = [
        ("queue/a", format!("is no destination; {FORMS}")),
        ("/queues/a", format!("is no destination; {FORMS}")),
        ("/queue/a/b", format!("is no destination; {FORMS}")),
        ("/queue/", format!("has an empty name; {FORMS}")),
        ("/topic/#", "\"#\" is AMQP's; write \"**\" as the last part, or %23 for the character".to_owned()),
        ("/topic/**.a", "\"**\" stands for all further parts: it must be the last part, alone between dots".to_owned()),
        ("/topic/a**", "\"**\" stands for all further parts: it must be the last part, alone between dots".to_owned()),
        (
            "/topic/{user}",
            "unknown placeholder {user}; there are {username}, {vhost}, {claim.NAME}, {cert.cn}".to_owned(),
        ),
        (
            "/topic/{claim.}",
            "unknown placeholder {claim.}; there are {username}, {vhost}, {claim.NAME}, {cert.cn}".to_owned(),
        ),
        ("/topic/{username", "\"{\" has no \"}\"; a name with a brace has %7B and %7D".to_owned()),
        ("/topic/username}", "\"}\" has no \"{\"; a name with a brace has %7B and %7D".to_owned()),
        ("/topic/a%2", "\"%\" needs two hexadecimal digits; a percent sign itself is %25".to_owned()),
        ("/topic/a%2E", "write a dot as it is, not as %2E".to_owned()),
        ("/topic/a%00", "has a control character, which no destination has".to_owned()),
        ("/topic/a%ff", "does not decode to UTF-8".to_owned()),
        ("/topic/{claim.a}{claim.b}{claim.c}", "names 3 claims; a pattern may name 2".to_owned()),
    ];
    for (pattern, reason) in bad_patterns {
        let text = format!("[[rules]]\nsend = [\"/queue/a\", \"{pattern}\"]\n");
        assert_problems(&text, &[&format!("2:21: error: rules.send: \"{pattern}\": {reason}")]);
    }
    let cases = [
        (
            "[[rules]]\nsnd = []\nsend = [\"/queue/a\"]",
            r#"2:1: error: unknown key "rules.snd"; did you mean "rules.send"?"#,
        ),
        (
            "[[rules]]\nsend = \"/queue/a\"",
            "2:8: error: rules.send: expected a list, found a string; put it between [ and ]",
        ),
        ("[rules]\nsend = []", r#"1:2: error: "rules" is a list of sections; write the keys of each below [[rules]]"#),
        ("rules = [1]", r#"1:10: error: "rules" is a list of sections; write the keys of each below [[rules]]"#),
        ("[[rule]]\nsend = []", r#"1:3: error: unknown key "rule""#),
        (
            "[[rules]]\nsend = [\"**\"]\neffect = \"permit\"",
            r#"3:10: error: rules.effect: "permit" is not "allow" or "deny""#,
        ),
        (
            "[[rules]]\nsend = [\"**\"]\nheaders = [\"priority\"]",
            "3:12: error: rules.headers: \"priority\" is no controlled header; these are: auto-delete, durable, exclusive, \
             persistent, user-id, BCC, CC, x-*",
        ),
        (
            "[[rules]]\nsend = [\"**\"]\nprefetch_max = 0",
            "3:16: error: rules.prefetch_max: 0 is out of range; allowed is 1 to 65535",
        ),
        (
            "\n[[rules]]\nname = \"x\"",
            "2:1: error: rules: this rule names no destination; give it send, subscribe or both",
        ),
        (
            "[[rules]]\nsend = [\"/temp-queue/x\"]",
            "2:8: error: rules.send: \"/temp-queue/x\" can only stand in reply_to",
        ),
        (
            "[[rules]]\neffect = \"deny\"\nsend = [\"/queue/{username}\"]\n[[rules]]\nsend = [\"**\"]",
            "3:8: error: rules.send: \"/queue/{username}\": a rule that denies takes no placeholder",
        ),
        (
            "[[rules]]\neffect = \"deny\"\nsend = [\"/queue/a\"]\ndeclare = true\n[[rules]]\nsend = [\"**\"]",
            "2:10: error: rules.effect: a rule that denies grants nothing; headers, reply_to, declare, prefetch_max and \
             subscriptions_max are for those that allow",
        ),
        (
            "[[rules]]\neffect = \"deny\"\nsend = [\"/queue/a\"]",
            "1:1: error: rules: all rules deny, so nothing is allowed; end with one that allows, such as send = [\"**\"] and \
             subscribe = [\"**\"]",
        ),
    ];
    for (text, expected) in cases {
        assert_problems(text, &[expected]);
    }
}

#[test]
fn rules_that_are_never_reached_are_reported() {
    let second = |first: &str, second: &str| format!("[[rules]]\n{first}\n\n[[rules]]\n{second}\n");
    let hidden = [
        ("send = [\"**\"]", "send = [\"/queue/a\"]"),
        ("send = [\"/queue/a.**\"]", "send = [\"/queue/a.b\", \"/queue/a.{username}.*\"]"),
        ("send = [\"/queue/a-*\"]", "send = [\"/amq/queue/a-{claim.x}\"]"),
        ("send = [\"/topic/*.b\"]\nsubscribe = [\"/topic/**\"]", "send = [\"/topic/a.b\"]"),
        ("send = [\"/exchange/**\"]", "send = [\"/exchange/a/b\"]"),
        ("users = [\"a*\"]\nsend = [\"**\"]", "users = [\"ab\"]\nsend = [\"/queue/a\"]"),
        ("claims = { r = \"*\" }\nsend = [\"**\"]", "claims = { r = \"x\", s = \"y\" }\nsend = [\"/queue/a\"]"),
        ("effect = \"deny\"\nsend = [\"/queue/**\"]", "send = [\"/queue/stomp-subscription-*\"]"),
    ];
    for (first, later) in hidden {
        let text = second(first, later);
        let line = first.lines().count() + 3;
        let problem = "rules: this rule is never reached: rule 1 (line 1) decides all that it names";
        assert_problems(&text, &[&format!("{line}:1: error: {problem}")]);
    }
    let reached = [
        ("send = [\"/queue/a\"]", "send = [\"**\"]"),
        ("send = [\"**\"]", "subscribe = [\"/queue/a\"]"),
        ("send = [\"/queue/a-*\"]", "send = [\"/queue/{claim.x}\"]"),
        ("send = [\"/queue/{claim.x}\"]", "send = [\"/queue/a\"]"),
        ("send = [\"/queue/*\"]", "send = [\"/queue/a.b\"]"),
        ("send = [\"/queue/**\"]", "send = [\"/queue/stomp-subscription-*\"]"),
        ("users = [\"a\"]\nsend = [\"**\"]", "send = [\"/queue/a\"]"),
        ("users = [\"a*a\"]\nsend = [\"**\"]", "users = [\"a\"]\nsend = [\"/queue/a\"]"),
        ("claims = { r = \"x\" }\nsend = [\"**\"]", "claims = { r = \"*\" }\nsend = [\"/queue/a\"]"),
        ("vhosts = [\"/\"]\nsend = [\"**\"]", "certificates = [\"*\"]\nsend = [\"/queue/a\"]"),
    ];
    for (first, later) in reached {
        let config = load(&second(first, later)).unwrap_or_else(|report| panic!("{first}, {later}: {report}"));
        assert_eq!(config.rules.len(), 2);
    }
}

#[test]
fn a_broken_rule_is_not_taken_for_another() {
    // Without its users the first rule would hide the second.
    let text = "[[rules]]\nusers = 1\nsend = [\"**\"]\n[[rules]]\nsend = [\"/queue/a\"]\n";
    assert_problems(text, &["2:9: error: rules.users: expected a list, found an integer; put it between [ and ]"]);
    let text = "rules = [{ send = [\"/queue/a\"] }, { send = [\"/queue/b\"] }]\n";
    let rules = load(text).expect("inline tables do as well").rule_set();
    assert_eq!(rules.rules().iter().map(|rule| rule.line).collect::<Vec<_>>(), [Some(1), Some(1)]);
}

#[test]
fn a_variable_cannot_set_a_rule() {
    let variables = [("STOMP_RELAY_RULES__SEND".to_owned(), "**".to_owned())];
    let problems = Config::load(None, variables.into_iter(), &Overrides::default()).expect_err("there is no such key");
    assert!(problems.to_string().starts_with("env STOMP_RELAY_RULES__SEND: error: unknown variable"), "{problems}");
}

/// Whether such a client may SEND to `/queue/a` on this virtual host.
fn may_send(settings: &str, user: &str, proof: ProofKind, virtual_host: &str) -> bool {
    let config = load(settings).unwrap_or_else(|problems| panic!("{settings}: {problems}"));
    let identity = Identity { proof, ..Identity::of_login(user) };
    let session = config.session_config();
    let who = &(identity, virtual_host.to_owned());
    super::allowed(&session.rules, session.stance, who, "SEND /queue/a")
}

#[test]
fn a_rule_may_be_for_one_proof_of_a_name_only() {
    let rule = |proof: &str| format!("[[rules]]\nusers = [\"bob\"]\nproof = [{proof}]\nsend = [\"/queue/a\"]\n");
    for (proof, kinds) in [
        ("\"token\"", vec![ProofKind::Token]),
        ("\"password\", \"certificate\"", vec![ProofKind::Password, ProofKind::Certificate]),
    ] {
        for (name, kind) in ProofKind::NAMES {
            assert_eq!(
                may_send(&rule(proof), "bob", kind, "/"),
                kinds.contains(&kind),
                "{name} where {proof} is asked"
            );
        }
    }
}

#[test]
fn another_spelling_escapes_no_rule_that_denies_and_gains_none_that_allows() {
    const DENY: &str = "[[rules]]\neffect = \"deny\"\nusers = [\"Contractor\", \"temp-*\"]\nsend = [\"**\"]\n\
                        [[rules]]\nsend = [\"**\"]\n";
    const ALLOW: &str = "[[rules]]\nusers = [\"alice\"]\nsend = [\"**\"]\n";
    let case = |case: &str, rules: &str| format!("auth.user_case = \"{case}\"\n{rules}");
    let may = |settings: &str, user: &str| may_send(settings, user, ProofKind::Password, "/");
    for user in ["contractor", "CONTRACTOR", "contractor ", "Temp-7", "TEMP-x"] {
        assert!(!may(DENY, user) && !may(&case("lower", DENY), user), "{user:?}");
        assert!(may(&case("exact", DENY), user), "{user:?}: told apart");
    }
    assert!(may(ALLOW, "alice") && !may(ALLOW, "Alice"), "as it is written");
    assert!(may(&case("lower", ALLOW), "Alice") && !may(&case("exact", ALLOW), "Alice"));
}

#[test]
fn rules_of_a_service_account_hold_where_the_configuration_says() {
    const SERVICE: &str = "broker.vhost = \"main\"\nbroker.vhosts = { \"shop.example.com\" = \"shop\" }\n\
                           auth = { service_login = \"svc\", service_passcode = \"x\" }\n";
    let may = |settings: &str, vhost: &str| may_send(settings, "bob", ProofKind::Token, vhost);
    let rule = "[[rules]]\nsend = [\"/queue/a\"]\n";
    let with = format!("{SERVICE}{rule}");
    assert!(may(&with, "main") && may(&with, "shop") && !may(&with, "secret"));
    let everywhere = format!("{SERVICE}{rule}vhosts = [\"*\"]\n");
    assert!(may(&everywhere, "secret"));
    // One that denies holds everywhere, and so does one where RabbitMQ knows the user.
    let deny = format!(
        "{SERVICE}[[rules]]\neffect = \"deny\"\nsend = [\"/queue/a\"]\n[[rules]]\nsend = [\"**\"]\nvhosts = [\"*\"]\n"
    );
    assert!(!may(&deny, "secret"));
    assert!(may(rule, "anything"));
}

#[test]
fn an_empty_list_is_not_for_everybody() {
    for key in ["users", "proof", "certificates", "vhosts"] {
        let text = format!("[[rules]]\nsend = [\"/queue/a\"]\n{key} = []\n");
        let why = "an empty list fits nobody; leave the key out if the rule is for everybody";
        assert_problems(&text, &[&format!("3:{}: error: rules.{key}: {why}", key.len() + 4)]);
    }
}
