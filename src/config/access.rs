//! `[[rules]]`: who may send where and subscribe to what. What the rules mean is in `session::rules`; here are the keys, and
//! what `check` finds wrong with them.

use std::collections::BTreeMap;

use super::Config;
use super::kind::{Kind, ListMin, Shape, boolean, choice, list, name, optional, string, table};
use super::quantity::count;
use super::reader::{Reader, section};
use crate::session::identity::UserCase;
use crate::session::proof::ProofKind;
use crate::session::rules::{self, Audience, Conditions, Effect, Grants, Operation, Pattern, RuleSet, Spellings};

section! {
    /// Who may do what with which destination, see [rules.md](rules.md). The first rule that is for a client and names the
    /// destination decides; with any rule, what none allows is denied.
    pub struct Rule in each "rules" {
        /// For people, in `stomp-relay explain`.
        name: Option<String> = optional(name()), "";
        /// Whether the rule allows or denies.
        effect: Effect = choice(&[("allow", Effect::Allow), ("deny", Effect::Deny)]), "allow";
        /// For these users; `*` stands for any characters. None named: for all.
        users: Vec<String> = list(name(), ListMin::Zero), "";
        /// For users who proved their name by one of these: `password`, `token`, `certificate`. None named: by any. A user `bob` with a
        /// password and one with a token may be two people.
        proof: Vec<ProofKind> = list(choice(&ProofKind::NAMES), ListMin::Zero), "";
        /// For clients whose token has all these claims; of a claim with several values one must match. `*` stands for any
        /// characters.
        claims: BTreeMap<String, String> = table(), "";
        /// For clients with a certificate of one of these common names; `*` stands for any characters.
        certificates: Vec<String> = list(name(), ListMin::Zero), "";
        /// For clients on these virtual hosts; `*` stands for any characters. None named: on all, but with a service account a rule
        /// that allows holds on `broker.vhost` and those of `broker.vhosts` only, since the account may have rights on others.
        vhosts: Vec<String> = list(name(), ListMin::Zero), "";
        /// Where the client may (or may not) send to.
        send: Vec<Pattern> = list(pattern(), ListMin::Zero), "";
        /// What the client may (or may not) subscribe to.
        subscribe: Vec<Pattern> = list(pattern(), ListMin::Zero), "";
        /// Controlled headers that the client may set: `auto-delete`, `durable`, `exclusive`, `persistent` (of a SUBSCRIBE),
        /// `user-id`, `CC`, `BCC`, and all that begin with `x-`; `*` at the end stands for any rest. Not set: all where RabbitMQ
        /// checks the login, none where the relay does.
        headers: Option<Vec<String>> = set(list(controlled_header(), ListMin::Zero)), "";
        /// Where the client may ask for answers to (`reply-to`). Not set: anywhere where RabbitMQ checks the login, else to its
        /// own `/temp-queue/` only.
        reply_to: Option<Vec<Pattern>> = set(list(pattern(), ListMin::Zero)), "";
        /// Whether `/queue/` destinations are declared when needed; else they must exist. Not set: yes where RabbitMQ checks the
        /// login, else no.
        declare: Option<bool> = optional(boolean()), "";
        /// Largest `prefetch-count` of a subscription.
        prefetch_max: Option<u16> = optional(count(1..=65_535)), "";
        /// Subscriptions of one session that this rule allows; `session.subscriptions_max` holds besides.
        subscriptions_max: Option<usize> = optional(count(1..=100_000)), "";
    }
}

/// A list for which none and empty are not the same.
fn set<T: 'static>(list: Kind<Vec<T>>) -> Kind<Option<Vec<T>>> {
    Kind { shape: Shape::Bare, ..optional(list) }
}

fn pattern() -> Kind<Pattern> {
    Kind::simple("destination pattern", Shape::Text, |value| {
        let text = string(value)?;
        Pattern::parse(text).map_err(|reason| format!("{text:?}: {reason}"))
    })
}

fn controlled_header() -> Kind<String> {
    Kind::simple("header", Shape::Text, |value| {
        let text = string(value)?;
        match text == "*" || rules::is_controlled(text.trim_end_matches('*'), Operation::Subscribe) {
            true => Ok(text.to_owned()),
            false => {
                Err(format!("{text:?} is no controlled header; these are: {}", rules::CONTROLLED_HEADERS.join(", ")))
            }
        }
    })
}

impl Config {
    /// What sessions judge by.
    pub fn rule_set(&self) -> RuleSet {
        RuleSet::new(self.rules.iter().map(|rule| self.rule(rule)).collect())
    }

    fn rule(&self, rule: &Rule) -> rules::Rule {
        let denies = rule.effect == Effect::Deny;
        let spellings = match self.auth.user_case {
            UserCase::Exact => Spellings::This,
            UserCase::Guarded if !denies => Spellings::This,
            UserCase::Guarded | UserCase::Lower => Spellings::All,
        };
        let configured = self.configured_virtual_hosts();
        let anywhere = denies || self.auth.service_login.is_none();
        let virtual_hosts = if rule.vhosts.is_empty() && !anywhere { &configured } else { &rule.vhosts };
        let audience = Audience::new(&Conditions {
            certificates: &rule.certificates,
            claims: rule.claims.clone(),
            proofs: &rule.proof,
            spellings,
            users: &rule.users,
            virtual_hosts,
        });
        rule.to_session(audience)
    }

    /// Those that the configuration names. A `*` in one of them would stand for any characters, which widens it to names like it.
    fn configured_virtual_hosts(&self) -> Vec<String> {
        let mut names = vec![self.broker.vhost.clone()];
        names.extend(self.broker.vhosts.values().cloned());
        names
    }
}

impl Rule {
    fn to_session(&self, audience: Audience) -> rules::Rule {
        rules::Rule {
            audience,
            effect: self.effect,
            grants: Grants {
                declare: self.declare,
                headers: self.headers.clone(),
                prefetch_max: self.prefetch_max,
                reply_to: self.reply_to.clone(),
                subscriptions_max: self.subscriptions_max,
            },
            line: self.place.as_ref().and_then(super::Place::line),
            name: self.name.clone(),
            send: self.send.clone(),
            subscribe: self.subscribe.clone(),
        }
    }

    /// The keys that say whom it is for, and whether they are empty.
    fn conditions(&self) -> [(&'static str, bool); 5] {
        [
            ("users", self.users.is_empty()),
            ("proof", self.proof.is_empty()),
            ("claims", self.claims.is_empty()),
            ("certificates", self.certificates.is_empty()),
            ("vhosts", self.vhosts.is_empty()),
        ]
    }

    fn grants_something(&self) -> bool {
        self.headers.is_some()
            || self.reply_to.is_some()
            || self.declare.is_some()
            || self.prefetch_max.is_some()
            || self.subscriptions_max.is_some()
    }
}

pub(super) fn check(config: &Config, reader: &mut Reader) {
    for (index, rule) in config.rules.iter().enumerate().filter(|(index, _)| sound(reader, *index)).collect::<Vec<_>>()
    {
        for (key, text) in mistakes(rule) {
            reader.blame_table("rules", index, key, text);
        }
        for (key, empty) in rule.conditions() {
            if empty && reader.is_set(&format!("rules.{index}.{key}")) {
                let text =
                    format!("rules.{key}: an empty list fits nobody; leave the key out if the rule is for everybody");
                reader.blame_table("rules", index, key, text);
            }
        }
    }
    if (0..config.rules.len()).all(|index| sound(reader, index)) {
        unreachable(config, reader);
    }
}

/// A rule with a broken key says something else than it was meant to.
fn sound(reader: &Reader, index: usize) -> bool {
    const KEYS: [&str; 8] = ["effect", "users", "proof", "claims", "certificates", "vhosts", "send", "subscribe"];
    KEYS.iter().all(|key| reader.sound(&[&format!("rules.{index}.{key}")]))
}

/// What is wrong with one rule alone, and the key to mend.
fn mistakes(rule: &Rule) -> Vec<(&'static str, String)> {
    let mut mistakes = Vec::new();
    if rule.send.is_empty() && rule.subscribe.is_empty() {
        mistakes.push(("", "rules: this rule names no destination; give it send, subscribe or both".to_owned()));
    }
    for (key, patterns) in [("send", &rule.send), ("subscribe", &rule.subscribe)] {
        if let Some(pattern) = patterns.iter().find(|pattern| pattern.is_reply_queue()) {
            mistakes.push((key, format!("rules.{key}: {:?} can only stand in reply_to", pattern.as_str())));
        }
        // Without the value such a rule would not apply, and so allow.
        let open = patterns.iter().find(|pattern| pattern.has_placeholders() && rule.effect == Effect::Deny);
        if let Some(pattern) = open {
            let text = format!("rules.{key}: {:?}: a rule that denies takes no placeholder", pattern.as_str());
            mistakes.push((key, text));
        }
    }
    if rule.effect == Effect::Deny && rule.grants_something() {
        let text = "rules.effect: a rule that denies grants nothing; headers, reply_to, declare, prefetch_max and \
                    subscriptions_max are for those that allow";
        mistakes.push(("effect", text.to_owned()));
    }
    mistakes
}

fn unreachable(config: &Config, reader: &mut Reader) {
    let rules = config.rule_set();
    for index in 0..config.rules.len() {
        let Some(earlier) = rules.hides(index) else { continue };
        let line = rules.rules()[earlier].line.map(|line| format!(" (line {line})")).unwrap_or_default();
        let text = format!("rules: this rule is never reached: rule {}{line} decides all that it names", earlier + 1);
        reader.blame_table("rules", index, "", text);
    }
    let denies = |rule: &Rule| rule.effect == Effect::Deny;
    if !config.rules.is_empty() && config.rules.iter().all(denies) {
        let text = "rules: all rules deny, so nothing is allowed; end with one that allows, such as send = [\"**\"] and \
                    subscribe = [\"**\"]";
        reader.blame_table("rules", 0, "", text.to_owned());
    }
}
