//! What a SEND or SUBSCRIBE asks for, in AMQP's terms: its own target, the targets that its headers name, and the headers that
//! not everybody may set. And the judgement of all that together.

use super::target::{Operation, Target};
use super::{Client, Effect, Grants, RuleSet, Stance};
use crate::session::amqp::{SHORT_TEXT_BYTES_MAX, ShortText};
use crate::session::config::DestinationDecoding;
use crate::session::destination::Destination;
use crate::stomp::Headers;

/// Headers that a rule must name before a client may set them, where it names any. `*` stands for any rest.
pub const CONTROLLED_HEADERS: [&str; 8] =
    ["auto-delete", "durable", "exclusive", "persistent", "user-id", "BCC", "CC", "x-*"];

/// Keys in `CC` and `BCC` together; each is judged like a destination.
pub const COPIES_MAX: usize = 100;

/// Longer names of headers mean nothing to RabbitMQ: `x-bind-` and a short string of AMQP.
const HEADER_NAME_BYTES_MAX: usize = 7 + SHORT_TEXT_BYTES_MAX;

/// Whether rules have a say about this header. On a SEND `persistent` is the message's, and harmless.
pub fn is_controlled(header: &str, operation: Operation) -> bool {
    let of_message = header == "persistent" && operation == Operation::Send;
    !of_message && CONTROLLED_HEADERS.iter().any(|pattern| names(pattern, header))
}

fn names(pattern: &str, header: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => header.starts_with(prefix),
        None => pattern == header,
    }
}

/// What a target is named for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `x-queue-name`: what a binding brings goes into that queue, as if the client sent it there.
    Bound(String),
    /// A further routing key, in the header `CC` or `BCC`.
    Copy(String),
    /// `x-dead-letter-exchange`: RabbitMQ sends there, not the client.
    DeadLetters(String),
    /// The queue that a SEND would declare with `x-dead-letter-exchange`: what is in it goes where the client says.
    Drained(String),
    /// `destination`
    Itself,
    /// `x-queue-name`
    QueueName(String),
}

/// Everything about a frame that rules judge. Owned, so that it can be judged again when the client's identity has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The controlled ones that it has.
    headers: Vec<String>,
    reply_to: Option<(String, Target)>,
    /// Its own first.
    targets: Vec<(Purpose, Operation, Target)>,
}

/// What was not allowed, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    pub asked: Asked,
    /// The index of the rule that denies the target, or allows it without this; None where no rule decides.
    pub rule: Option<usize>,
}

/// The part of a [`Demand`] that was not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// There are more than [`COPIES_MAX`].
    Copies,
    /// Of the queue that an UNSUBSCRIBE is about, whose name the client chose.
    Deletion(String),
    Header(String),
    /// More than this, which is allowed.
    Prefetch(u16),
    ReplyTo(String),
    Target(Purpose),
}

/// What a frame may have that was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Whether its `/queue` is declared when needed.
    pub declare: bool,
    pub prefetch_max: Option<u16>,
    /// The rule's index.
    pub rule: Option<usize>,
    pub subscriptions_max: Option<usize>,
}

impl Permit {
    /// Where no rule has a say.
    pub const OPEN: Permit = Permit { declare: true, prefetch_max: None, rule: None, subscriptions_max: None };
}

impl Demand {
    pub fn of(
        operation: Operation,
        headers: &Headers,
        destination: &Destination,
        topic_exchange: &ShortText,
        decoding: DestinationDecoding,
    ) -> Demand {
        let own = Target::of(destination, operation, topic_exchange);
        let mut targets = vec![(Purpose::Itself, operation, own)];
        if let Some(exchange) = headers.get("x-dead-letter-exchange").map(str::trim) {
            let target = Target::dead_letters(exchange, headers.get("x-dead-letter-routing-key").map(str::trim));
            targets.push((Purpose::DeadLetters(exchange.to_owned()), Operation::Send, target));
            if let (Operation::Send, Destination::Queue(name)) = (operation, destination) {
                let name = name.as_str().to_owned();
                targets.push((Purpose::Drained(name.clone()), Operation::Subscribe, Target::Queue(name)));
            }
        }
        match operation {
            Operation::Send => {
                let address = destination.publish_address(topic_exchange);
                let keys = ["CC", "BCC"].iter().filter_map(|name| headers.get(name)).flat_map(|keys| keys.split(','));
                // One more than is allowed is enough to see that.
                let keys = keys.take(COPIES_MAX + 1);
                for (key, (exchange, _)) in keys.map(str::trim).filter_map(|key| Some((key, address.as_ref()?))) {
                    let target = Target::exchange(exchange.as_str(), key, Operation::Send);
                    targets.push((Purpose::Copy(key.to_owned()), Operation::Send, target));
                }
            }
            Operation::Subscribe => {
                if let Some(name) = headers.get("x-queue-name") {
                    let target = Target::Queue(name.to_owned());
                    targets.push((Purpose::QueueName(name.to_owned()), Operation::Subscribe, target.clone()));
                    if matches!(destination, Destination::Exchange { .. } | Destination::Topic(_)) {
                        targets.push((Purpose::Bound(name.to_owned()), Operation::Send, target));
                    }
                }
            }
        }
        let controlled = headers.iter().map(|(name, _)| name).filter(|name| is_controlled(name, operation));
        let controlled = controlled.filter(|name| name.len() <= HEADER_NAME_BYTES_MAX);
        let reply_to = headers.get("reply-to").filter(|_| operation == Operation::Send).and_then(|text| {
            // One that can't be read is refused for that.
            let destination = Destination::parse(text, decoding).ok()?;
            Some((text.to_owned(), Target::of(&destination, Operation::Send, topic_exchange)))
        });
        Demand { headers: controlled.map(str::to_owned).collect(), reply_to, targets }
    }

    /// The same with one more controlled header.
    pub(in crate::session) fn and_header(&self, name: &str) -> Demand {
        let mut more = self.clone();
        more.headers.push(name.to_owned());
        more
    }
}

impl Grants {
    fn allow_header(&self, stance: Stance, header: &str) -> bool {
        match (&self.headers, stance) {
            (Some(patterns), _) => patterns.iter().any(|pattern| names(pattern, header)),
            (None, stance) => stance == Stance::Open,
        }
    }

    fn allow_reply_to(&self, stance: Stance, target: &Target, client: &Client<'_>) -> bool {
        match (&self.reply_to, stance) {
            (Some(patterns), _) => patterns.iter().any(|pattern| pattern.reaches(target, Effect::Allow, client)),
            (None, Stance::Closed) => matches!(target, Target::ReplyQueue(_)),
            (None, Stance::Open) => true,
        }
    }
}

impl RuleSet {
    /// # Errors
    /// The first thing that is not allowed.
    pub fn judge(&self, demand: &Demand, client: &Client<'_>, stance: Stance) -> Result<Permit, Denial> {
        if self.rules.is_empty() && stance == Stance::Open {
            return Ok(Permit::OPEN);
        }
        let copies = demand.targets.iter().filter(|(purpose, ..)| matches!(purpose, Purpose::Copy(_))).count();
        if copies > COPIES_MAX {
            return Err(Denial { asked: Asked::Copies, rule: None });
        }
        let mut decided = None;
        for (purpose, operation, target) in &demand.targets {
            match self.decide(client, *operation, target) {
                Some((index, rule)) if rule.effect == Effect::Allow => decided = decided.or(Some((index, rule))),
                denying => {
                    let rule = denying.map(|(index, _)| index);
                    return Err(Denial { asked: Asked::Target(purpose.clone()), rule });
                }
            }
        }
        // Every demand has a target.
        let Some((index, rule)) = decided else {
            return Err(Denial { asked: Asked::Target(Purpose::Itself), rule: None });
        };
        let grants = &rule.grants;
        let not_granted = |asked| Err(Denial { asked, rule: Some(index) });
        if let Some(header) = demand.headers.iter().find(|header| !grants.allow_header(stance, header)) {
            return not_granted(Asked::Header(header.clone()));
        }
        if let Some((text, target)) = &demand.reply_to
            && !grants.allow_reply_to(stance, target, client)
        {
            return not_granted(Asked::ReplyTo(text.clone()));
        }
        Ok(Permit {
            declare: grants.declare.unwrap_or(stance == Stance::Open),
            prefetch_max: grants.prefetch_max,
            rule: Some(index),
            subscriptions_max: grants.subscriptions_max,
        })
    }
}

impl Demand {
    /// What an entry of its targets takes beside its texts.
    pub(in crate::session) const TARGET_BYTES: usize = size_of::<(Purpose, Operation, Target)>();

    pub(in crate::session) fn headers(&self) -> &[String] {
        &self.headers
    }

    pub(in crate::session) fn reply_to(&self) -> Option<&(String, Target)> {
        self.reply_to.as_ref()
    }

    /// Its own first, then those that headers name.
    pub fn targets(&self) -> impl Iterator<Item = (&Purpose, Operation, &Target)> {
        self.targets.iter().map(|(purpose, operation, target)| (purpose, *operation, target))
    }
}
