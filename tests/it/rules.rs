//! Rules, from the configuration to what a real RabbitMQ gets to see: a table of who may do what, properties of all values
//! and patterns, problems that `check` reports, `explain`, the page for users.

mod config;
mod explain;
mod fence;
mod play;
mod properties;
mod reload;
mod table;

use std::collections::BTreeMap;

use stomp_relay::session::identity::Identity;
use stomp_relay::session::rules::{Effect, Operation, Pattern, Rule, RuleSet, Stance};
use stomp_relay::stomp::Headers;

/// A rule for everybody that allows these patterns for both operations.
fn allow(patterns: &[&str]) -> Rule {
    let patterns: Vec<_> = patterns.iter().map(|text| Pattern::parse(text).expect(text)).collect();
    play::rule(Effect::Allow, &patterns)
}

/// `alice org=acme org=emca cert=dev-1 vhost=/`: a user, claims, and what else there is.
fn who(text: &str) -> (Identity, String) {
    let mut words = text.split(' ');
    let mut identity = Identity::of_login(words.next().unwrap_or_default());
    let (mut virtual_host, mut claims) = ("/".to_owned(), BTreeMap::<String, Vec<String>>::new());
    for (name, value) in words.map(|word| word.split_once('=').expect("a pair")) {
        match name {
            "cert" => identity.certificate_name = Some(value.to_owned()),
            "vhost" => virtual_host = value.to_owned(),
            _ => claims.entry(name.to_owned()).or_default().push(value.to_owned()),
        }
    }
    identity.claims = claims;
    (identity, virtual_host)
}

/// Whether `SEND /queue/a name:value` of this client is allowed. A destination that can't be read is not.
fn allowed(rules: &RuleSet, stance: Stance, (identity, virtual_host): &(Identity, String), frame: &str) -> bool {
    let mut words = frame.split(' ');
    let operation = match words.next() {
        Some("SEND") => Operation::Send,
        Some("SUBSCRIBE") => Operation::Subscribe,
        other => panic!("{other:?}"),
    };
    let mut headers = Headers::new();
    headers.push("destination", words.next().expect("a destination"));
    words.filter_map(|word| word.split_once(':')).for_each(|(name, value)| headers.push(name, value));
    play::judge(rules, stance, (identity, virtual_host), operation, &headers) == Some(true)
}
