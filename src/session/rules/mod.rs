//! Rules: who may send where and subscribe to what, and what such frames may ask for besides.
//!
//! The first rule that is for the client and reaches the target decides. Rules speak of AMQP targets ([`Target`]), not of the
//! text of a destination, so no other spelling gets around them. Nothing here knows the session or answers a client:
//! `session::access` does.

mod demand;
mod glob;
mod pattern;
mod placeholder;
mod reach;
mod target;
mod words;

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::identity::{Identity, fold};
use super::proof::ProofKind;
use glob::Glob;

pub use demand::{Asked, CONTROLLED_HEADERS, COPIES_MAX, Demand, Denial, Permit, Purpose, is_controlled};
pub use pattern::Pattern;
pub use placeholder::Placeholder;
pub use target::{Key, Operation, Target};

/// What a rule says to those that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Allow,
    /// Reaches every target of which it names a part.
    Deny,
}

/// What happens to what no rule speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stance {
    /// Without rules everything is allowed, as RabbitMQ judges; a rule that leaves something open does not restrict it.
    #[default]
    Open,
    /// Without rules nothing is allowed; what a rule leaves open is as little as clients can do with.
    Closed,
}

/// Who asks.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    pub identity: &'a Identity,
    /// The exchange behind `/topic`.
    pub topic_exchange: &'a str,
    pub virtual_host: &'a str,
}

/// Whom a rule is for; all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// Common names of certificates; empty: with or without one.
    certificates: Vec<Glob>,
    /// One of the claim's values must match.
    claims: BTreeMap<String, Glob>,
    /// Empty: whatever it was proven by.
    proofs: Vec<ProofKind>,
    /// Whether `users` are folded names, and so is the client's to be.
    spellings: Spellings,
    /// Empty: all.
    users: Vec<Glob>,
    /// Empty: all.
    virtual_hosts: Vec<Glob>,
}

/// Which spellings of a user's name a rule is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spellings {
    All,
    #[default]
    This,
}

/// What the conditions of a rule are made from; in each text `*` stands for any characters.
#[derive(Clone, Debug, Default)]
pub struct Conditions<'a> {
    pub certificates: &'a [String],
    pub claims: BTreeMap<String, String>,
    pub proofs: &'a [ProofKind],
    pub spellings: Spellings,
    pub users: &'a [String],
    pub virtual_hosts: &'a [String],
}

/// Why a rule is not for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotFor {
    Certificate,
    Claim(String),
    Proof,
    User,
    VirtualHost,
}

impl Spellings {
    fn of(self, user: &str) -> Cow<'_, str> {
        match self {
            Spellings::All => Cow::Owned(fold(user)),
            Spellings::This => Cow::Borrowed(user),
        }
    }
}

impl Audience {
    pub fn new(conditions: &Conditions<'_>) -> Audience {
        let Conditions { certificates, claims, proofs, spellings, users, virtual_hosts } = conditions;
        let globs = |texts: &[String]| texts.iter().map(|text| Glob::plain(text)).collect();
        Audience {
            certificates: globs(certificates),
            claims: claims.iter().map(|(name, value)| (name.clone(), Glob::plain(value))).collect(),
            proofs: proofs.to_vec(),
            spellings: *spellings,
            users: users.iter().map(|user| Glob::plain(&spellings.of(user))).collect(),
            virtual_hosts: globs(virtual_hosts),
        }
    }

    fn excludes(&self, client: &Client<'_>) -> Option<NotFor> {
        let matches = |glob: &Glob, text: &str| glob.matches(text, &placeholder::Values::NONE);
        let one_of = |globs: &[Glob], text: &str| globs.is_empty() || globs.iter().any(|glob| matches(glob, text));
        let identity = client.identity;
        if !self.users.is_empty() && !one_of(&self.users, &self.spellings.of(&identity.user)) {
            return Some(NotFor::User);
        }
        if !self.proofs.is_empty() && !self.proofs.contains(&identity.proof) {
            return Some(NotFor::Proof);
        }
        if !one_of(&self.virtual_hosts, client.virtual_host) {
            return Some(NotFor::VirtualHost);
        }
        let certified = identity.certificate_name.as_deref().is_some_and(|name| one_of(&self.certificates, name));
        if !self.certificates.is_empty() && !certified {
            return Some(NotFor::Certificate);
        }
        let held = |name: &String, glob: &Glob| {
            identity.claims.get(name).is_some_and(|values| values.iter().any(|value| matches(glob, value)))
        };
        let missing = self.claims.iter().find(|(name, glob)| !held(name, glob))?;
        Some(NotFor::Claim(missing.0.clone()))
    }
}

/// What a rule grants besides the destination; None: as the [`Stance`] has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Whether `/queue` is declared when needed; else it must exist.
    pub declare: Option<bool>,
    /// Of the controlled ones, in lower case or as AMQP has it; `*` at the end stands for any rest.
    pub headers: Option<Vec<String>>,
    /// Largest `prefetch-count`.
    pub prefetch_max: Option<u16>,
    /// Where answers may be asked to.
    pub reply_to: Option<Vec<Pattern>>,
    /// Subscriptions of one session that this rule allows.
    pub subscriptions_max: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub audience: Audience,
    pub effect: Effect,
    pub grants: Grants,
    /// In the configuration file.
    pub line: Option<usize>,
    pub name: Option<String>,
    pub send: Vec<Pattern>,
    pub subscribe: Vec<Pattern>,
}

/// What a rule has to say to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Decides(Effect),
    /// It reaches no such target.
    Elsewhere,
    NotFor(NotFor),
    /// It might reach it, but the client has no value for this placeholder that may be used.
    Unfilled(Placeholder),
}

impl Rule {
    fn patterns(&self, operation: Operation) -> &[Pattern] {
        match operation {
            Operation::Send => &self.send,
            Operation::Subscribe => &self.subscribe,
        }
    }

    fn decides(&self, client: &Client<'_>, operation: Operation, target: &Target) -> bool {
        let reaches = |pattern: &Pattern| pattern.reaches(target, self.effect, client);
        self.patterns(operation).iter().any(reaches) && self.audience.excludes(client).is_none()
    }

    pub fn verdict(&self, client: &Client<'_>, operation: Operation, target: &Target) -> Verdict {
        if let Some(reason) = self.audience.excludes(client) {
            return Verdict::NotFor(reason);
        }
        if self.decides(client, operation, target) {
            return Verdict::Decides(self.effect);
        }
        let unfilled = self.patterns(operation).iter().find_map(|pattern| pattern.unfilled(client));
        unfilled.map_or(Verdict::Elsewhere, |placeholder| Verdict::Unfilled(placeholder.clone()))
    }
}

/// Rules in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

impl RuleSet {
    pub fn new(rules: Vec<Rule>) -> RuleSet {
        RuleSet { rules }
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The first rule that decides, and its index.
    pub fn decide(&self, client: &Client<'_>, operation: Operation, target: &Target) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().find(|(_, rule)| rule.decides(client, operation, target))
    }

    /// The index of the first rule before the one at `index` that decides everything that could come to it.
    pub fn hides(&self, index: usize) -> Option<usize> {
        let later = self.rules.get(index)?;
        self.rules[..index].iter().position(|earlier| earlier.covers(later))
    }
}
