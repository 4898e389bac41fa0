//! Any pattern, any value, any destination, any key: what must hold. Shared with the fuzz target `rules`.

use stomp_relay::session::amqp::ShortText;
use stomp_relay::session::config::DestinationDecoding;
use stomp_relay::session::destination::Destination;
use stomp_relay::session::identity::Identity;
use stomp_relay::session::rules::{
    Audience, Client, Demand, Effect, Grants, Operation, Pattern, Rule, RuleSet, Stance,
};
use stomp_relay::stomp::Headers;

/// RabbitMQ's rule for topic exchanges, written out. Keys and bindings are lists of words.
pub fn lets_through(binding: &[&str], key: &[&str]) -> bool {
    match binding.split_first() {
        None => key.is_empty(),
        Some((&"#", rest)) => (0..=key.len()).any(|taken| lets_through(rest, &key[taken..])),
        Some((word, rest)) => {
            key.split_first().is_some_and(|(first, key)| (*word == "*" || word == first) && lets_through(rest, key))
        }
    }
}

/// How RabbitMQ reads a key.
pub fn words(key: &str) -> Vec<&str> {
    if key.is_empty() { Vec::new() } else { key.split('.').collect() }
}

/// A rule for everybody with these patterns for both operations.
pub fn rule(effect: Effect, patterns: &[Pattern]) -> Rule {
    Rule {
        audience: Audience::default(),
        effect,
        grants: Grants::default(),
        line: None,
        name: None,
        send: patterns.to_vec(),
        subscribe: patterns.to_vec(),
    }
}

/// Whether a frame with these headers is allowed; None if its destination can't be read.
pub fn judge(
    rules: &RuleSet,
    stance: Stance,
    (identity, virtual_host): (&Identity, &str),
    operation: Operation,
    headers: &Headers,
) -> Option<bool> {
    let (exchange, decoding) = (ShortText::lit("amq.topic"), DestinationDecoding::Rabbitmq);
    let destination = Destination::parse(headers.get("destination")?, decoding).ok()?;
    let demand = Demand::of(operation, headers, &destination, &exchange, decoding);
    let client = Client { identity, topic_exchange: exchange.as_str(), virtual_host };
    Some(rules.judge(&demand, &client, stance).is_ok())
}

/// The text's lines are pattern, value, destination and further keys.
pub fn play(text: &str) {
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (pattern, value, destination) = (next(), next(), next());
    let Ok(pattern) = Pattern::parse(pattern) else { return };
    let mut identity = Identity::of_login(value);
    identity.claims.insert("c".to_owned(), vec![value.to_owned()]);
    identity.certificate_name = Some(value.to_owned());
    let patterns = [pattern];
    let allowing = RuleSet::new(vec![rule(Effect::Allow, &patterns)]);
    let judge = |rules: &RuleSet, operation, destination: &str| {
        let mut headers = Headers::new();
        headers.push("destination", destination);
        judge(rules, Stance::Open, (&identity, value), operation, &headers)
    };
    let [sent, subscribed] =
        [Operation::Send, Operation::Subscribe].map(|operation| judge(&allowing, operation, destination) == Some(true));
    if patterns[0].has_placeholders() {
        let special = value.chars().any(|c| "/.*#%{}".contains(c) || c.is_control());
        assert!(!(special || value.is_empty()) || !(sent || subscribed), "{value:?} reaches {destination:?}");
        return;
    }
    let everything = [Pattern::parse("**").expect("it is one")];
    let denying = RuleSet::new(vec![rule(Effect::Deny, &patterns), rule(Effect::Allow, &everything)]);
    for (allowed, operation) in [(sent, Operation::Send), (subscribed, Operation::Subscribe)] {
        let left = judge(&denying, operation, destination);
        assert!(!allowed || left == Some(false), "{destination:?} is allowed, but not denied by the same pattern");
    }
    let Some(binding) = destination.strip_prefix("/topic/") else { return };
    for key in lines.filter(|key| lets_through(&words(binding), &words(key))) {
        let Some(reached) = judge(&allowing, Operation::Send, &format!("/topic/{key}")) else { continue };
        assert!(!subscribed || reached, "{binding:?} is allowed and lets {key:?} through, which is not");
        let left = judge(&denying, Operation::Subscribe, destination) == Some(true);
        assert!(!left || !reached, "{binding:?} is left by a denial, but lets {key:?} through, which is denied");
    }
}
