//! Patterns of destinations, as rules name them, and which targets they reach.

use super::placeholder::{Placeholder, Values};
use super::target::{Key, Target};
use super::words::{Words, outside_braces};
use super::{Client, Effect};

/// Queues that the relay or RabbitMQ named for one session: only a pattern that begins with such a name reaches them.
const GENERATED_QUEUES: [&str; 2] = ["amq.", "stomp-subscription-"];

/// Different claims that one pattern may name.
const CLAIMS_MAX: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    kind: Kind,
    /// Each once.
    placeholders: Vec<Placeholder>,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// `**`
    Everything,
    Exchange {
        key: Words,
        name: Words,
    },
    Queue(Words),
    ReplyQueue(Words),
    Topic(Words),
}

impl Pattern {
    /// # Errors
    /// Why it can't be read, for people.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let kind = kind(text)?;
        let mut placeholders = Vec::new();
        let words = match &kind {
            Kind::Everything => Vec::new(),
            Kind::Exchange { key, name } => vec![name, key],
            Kind::Queue(words) | Kind::ReplyQueue(words) | Kind::Topic(words) => vec![words],
        };
        for placeholder in words.into_iter().flat_map(Words::placeholders) {
            if !placeholders.contains(placeholder) {
                placeholders.push(placeholder.clone());
            }
        }
        let claims = placeholders.iter().filter(|placeholder| matches!(placeholder, Placeholder::Claim(_))).count();
        if claims > CLAIMS_MAX {
            return Err(format!("names {claims} claims; a pattern may name {CLAIMS_MAX}"));
        }
        Ok(Pattern { kind, placeholders, text: text.to_owned() })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn has_placeholders(&self) -> bool {
        !self.placeholders.is_empty()
    }

    /// Whether it can only reach reply queues of a session, which no SEND or SUBSCRIBE names.
    pub fn is_reply_queue(&self) -> bool {
        matches!(self.kind, Kind::ReplyQueue(_))
    }

    /// The first placeholder for which the client has no value that may be used.
    pub(super) fn unfilled(&self, client: &Client<'_>) -> Option<&Placeholder> {
        self.placeholders.iter().find(|placeholder| !placeholder.can_be_filled(client))
    }

    /// An allowing pattern must admit all of the target, a denying one some of it.
    pub(super) fn reaches(&self, target: &Target, effect: Effect, client: &Client<'_>) -> bool {
        match effect {
            Effect::Allow => {
                Values::any(&self.placeholders, client, target.texts(), |values| self.allows(target, client, values))
            }
            Effect::Deny => self.denies(target, client),
        }
    }

    fn allows(&self, target: &Target, client: &Client<'_>, values: &Values<'_>) -> bool {
        let through = |words: &Words, key: &Key| match key {
            Key::Binding(key) => words.admits_all_of(key, values),
            Key::Exactly(key) => words.admits(key, values),
        };
        match (&self.kind, target) {
            (Kind::Everything, _) => true,
            (Kind::Exchange { key: keys, name: names }, Target::Exchange { name, key }) => {
                names.admits(name, values) && through(keys, key)
            }
            (Kind::Topic(keys), Target::Exchange { name, key }) => name == client.topic_exchange && through(keys, key),
            (Kind::Queue(names), Target::Queue(name)) => {
                let hidden = is_generated(name) && !is_generated(&names.prefix());
                !hidden && names.admits(name, values)
            }
            (Kind::ReplyQueue(names), Target::ReplyQueue(name)) => names.admits(name, values),
            _ => false,
        }
    }

    fn denies(&self, target: &Target, client: &Client<'_>) -> bool {
        let through = |words: &Words, key: &Key| match key {
            Key::Binding(key) => words.admits_some_of(key),
            Key::Exactly(key) => words.admits(key, &Values::NONE),
        };
        match (&self.kind, target) {
            (Kind::Everything, _) | (Kind::Queue(_), Target::AnyQueue) => true,
            (Kind::Exchange { key: keys, name: names }, Target::Exchange { name, key }) => {
                names.admits(name, &Values::NONE) && through(keys, key)
            }
            (Kind::Topic(keys), Target::Exchange { name, key }) => name == client.topic_exchange && through(keys, key),
            (Kind::Queue(names), Target::Queue(name)) | (Kind::ReplyQueue(names), Target::ReplyQueue(name)) => {
                names.admits(name, &Values::NONE)
            }
            _ => false,
        }
    }

    /// Whether everything that `other`, of an allowing rule, reaches is surely reached too.
    pub(super) fn covers(&self, other: &Pattern, effect: Effect) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Everything, _) => true,
            (Kind::Exchange { key, name }, Kind::Exchange { key: others, name: other_names }) => {
                name.covers(other_names) && key.covers(others)
            }
            (Kind::Queue(names), Kind::Queue(others)) => {
                let hidden = is_generated(&others.prefix()) && !is_generated(&names.prefix());
                !(hidden && effect == Effect::Allow) && names.covers(others)
            }
            (Kind::Topic(words), Kind::Topic(others)) | (Kind::ReplyQueue(words), Kind::ReplyQueue(others)) => {
                words.covers(others)
            }
            _ => false,
        }
    }
}

fn is_generated(name: &str) -> bool {
    GENERATED_QUEUES.iter().any(|prefix| name.starts_with(prefix))
}

fn kind(text: &str) -> Result<Kind, String> {
    const FORMS: &str = "a pattern is /queue/NAME, /topic/KEY, /exchange/NAME[/KEY], /amq/queue/NAME, /reply-queue/NAME, \
                         /temp-queue/NAME or **, with %2F for a slash in a name";
    if text == "**" {
        return Ok(Kind::Everything);
    }
    let parts = outside_braces(text, '/');
    let words = |text: &str| match text {
        "" => Err(format!("has an empty name; {FORMS}")),
        _ => Words::parse(text),
    };
    match parts[..] {
        ["", "queue" | "reply-queue", name] | ["", "amq", "queue", name] => Ok(Kind::Queue(words(name)?)),
        ["", "topic", key] => Ok(Kind::Topic(words(key)?)),
        ["", "temp-queue", name] => Ok(Kind::ReplyQueue(words(name)?)),
        ["", "exchange", "**"] => Ok(Kind::Exchange { key: Words::all(), name: Words::all() }),
        ["", "exchange", name] => Ok(Kind::Exchange { key: Words::parse("")?, name: words(name)? }),
        ["", "exchange", name, key] => Ok(Kind::Exchange { key: Words::parse(key)?, name: words(name)? }),
        _ => Err(format!("is no destination; {FORMS}")),
    }
}
