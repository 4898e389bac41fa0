//! Which queue a frame means: its name and its `queue.declare` flags, read from the headers of a SUBSCRIBE or SEND. Flags and
//! names follow RabbitMQ's plugin, whose defaults depend on the version. Arguments are `arguments`' part.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use md5::{Digest as _, Md5};
use sha2::{Digest as _, Sha256};

use super::amqp::{Binding, FieldValue, QueueDeclaration, ShortText};
use super::arguments::{self, fitting};
use super::boolean::flag;
use super::config::{Compatibility, DurableQueueNaming};
use super::properties::short;
use super::refusal::Refusal;
use crate::stomp::Headers;

/// What a queue is for; the plugin's default flags depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A subscription to `/exchange/…`
    Exchange,
    /// `/queue/…` or a bare name
    Queue,
    /// A subscription to `/topic/…`
    Topic,
}

/// The defaults for `exclusive` and `auto-delete` changed twice; a queue must be declared as the broker's own plugin would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FlagEra {
    /// Up to 3.11.7: subscription queues are not exclusive.
    V3_10,
    /// From 3.11.8: those of `/exchange` are.
    V3_11_8,
    /// From 4.3.0: those of `/topic` too; brokers deny transient queues that are not exclusive.
    V4_3,
}

impl FlagEra {
    /// From the version that the broker announces; an unreadable one counts as the newest.
    pub(super) fn of(version: &str) -> FlagEra {
        let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        match (next(), next(), next()) {
            (0, ..) => FlagEra::V4_3,
            version if version >= (4, 3, 0) => FlagEra::V4_3,
            version if version >= (3, 11, 8) => FlagEra::V3_11_8,
            _ => FlagEra::V3_10,
        }
    }
}

/// What is needed to read queue headers besides the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueRules {
    pub compatibility: Compatibility,
    pub era: FlagEra,
}

/// Which frame the headers stand on: on a SEND `persistent` is the message's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    Send,
    Subscribe,
}

/// # Errors
/// A flag or an argument that can't be read.
pub(super) fn declaration(
    name: ShortText,
    purpose: Purpose,
    on: On,
    headers: &Headers,
    rules: QueueRules,
) -> Result<QueueDeclaration, Refusal> {
    let durable = durable_flag(on, headers, rules.compatibility)?;
    let auto_delete = flag(headers, "auto-delete")?;
    let exclusive = flag(headers, "exclusive")?;
    let durable_queue = durable.unwrap_or(purpose == Purpose::Queue);
    let auto_delete_default = !(purpose == Purpose::Queue && durable_queue);
    let exclusive_default = match (purpose, durable_queue) {
        (Purpose::Exchange, _) => rules.era >= FlagEra::V3_11_8,
        (Purpose::Queue, durable) => !durable,
        (Purpose::Topic, true) => false,
        (Purpose::Topic, false) => rules.era >= FlagEra::V4_3,
    };
    let arguments = arguments::of_queue(headers, rules)?;
    // From 4.3 the plugin forces what replicated queues and streams need anyway.
    let replicated = rules.era >= FlagEra::V4_3 && matches!(headers.get("x-queue-type"), Some("quorum" | "stream"));
    Ok(QueueDeclaration {
        arguments,
        auto_delete: auto_delete.unwrap_or(auto_delete_default && !replicated),
        durable: durable_queue || replicated,
        exclusive: exclusive.unwrap_or(exclusive_default) && !replicated,
        name,
    })
}

/// Makes of a queue that would end with its connection one that lives on without a consumer for `time`.
pub(super) fn survive(queue: &mut QueueDeclaration, time: Duration) {
    queue.auto_delete = false;
    queue.durable = true;
    queue.exclusive = false;
    let milliseconds = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    queue.arguments.push((ShortText::lit("x-expires"), FieldValue::Integer(milliseconds)));
    // A virtual host may make queues quorum that do not say what they are.
    queue.arguments.push((ShortText::lit("x-queue-type"), FieldValue::Text("classic".to_owned())));
}

/// `durable`, or its alias `persistent`. On a SEND the plugin reads `persistent:false` as a wish for a transient queue, which
/// disconnects senders to a durable one; strict mode leaves `persistent` to the message.
fn durable_flag(on: On, headers: &Headers, compatibility: Compatibility) -> Result<Option<bool>, Refusal> {
    let durable = flag(headers, "durable")?;
    if on == On::Send && compatibility == Compatibility::Strict {
        return Ok(durable);
    }
    Ok(durable.or(flag(headers, "persistent")?))
}

/// Whether the subscription outlives its session: its queue's name comes from its id, and UNSUBSCRIBE may delete the queue.
///
/// # Errors
/// A flag that can't be read.
pub(super) fn is_durable(headers: &Headers) -> Result<bool, Refusal> {
    let (durable, persistent) = (flag(headers, "durable")?, flag(headers, "persistent")?);
    Ok(durable == Some(true) || persistent == Some(true))
}

/// `x-bind-<name>` headers as binding arguments, which headers exchanges route by.
pub(super) fn binding(exchange: ShortText, routing_key: ShortText, headers: &Headers) -> Result<Binding, Refusal> {
    let mut arguments = Vec::new();
    for (name, value) in headers.iter() {
        if let Some(argument) = name.strip_prefix("x-bind-") {
            arguments.push((short(name, argument)?, FieldValue::Text(value.to_owned())));
        }
    }
    Ok(Binding { arguments: fitting(arguments)?, exchange, routing_key })
}

/// The queue name of a durable `/topic` or `/exchange` subscription, exactly as the plugin computes it, so that a client that
/// moves over finds its queue: `stomp-subscription-` and the MD5, in base64url, of an Erlang pair of key and id.
pub(super) fn durable_name(routing_key: &str, id: &str, naming: DurableQueueNaming) -> ShortText {
    let mut term = vec![131, 104, 2];
    for text in [routing_key.as_bytes(), id.as_bytes()] {
        match naming {
            DurableQueueNaming::Legacy => erlang_string(text, &mut term),
            DurableQueueNaming::Native => {
                term.push(109);
                term.extend((text.len() as u32).to_be_bytes());
                term.extend(text);
            }
        }
    }
    hashed_name(&term)
}

/// Whose a durable queue is where rules are in force, and what it is bound to. All of it is in the name: no other user, exchange,
/// key or id leads to the queue, so the right to it is the right to what it is bound to.
#[derive(Clone, Copy)]
pub(super) struct Owned<'a> {
    pub(super) user: &'a str,
    pub(super) exchange: &'a str,
    pub(super) routing_key: &'a str,
    pub(super) id: &'a str,
}

impl Owned<'_> {
    /// `stomp-subscription-` and a SHA-256, in base64url. Not the plugin's MD5: who can choose key and id could make two of one hash.
    pub(super) fn name(self) -> ShortText {
        let mut hash = Sha256::new();
        for text in [self.user, self.exchange, self.routing_key, self.id] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        // 19 + 43 bytes, far below 255.
        ShortText::new(format!("stomp-subscription-{}", URL_SAFE_NO_PAD.encode(hash.finalize()))).unwrap_or_default()
    }
}

/// Erlang writes a list of bytes as STRING_EXT up to 65,535 of them, and a header line is shorter than that.
fn erlang_string(text: &[u8], term: &mut Vec<u8>) {
    if text.is_empty() {
        term.push(106);
        return;
    }
    term.push(107);
    term.extend((text.len().min(usize::from(u16::MAX)) as u16).to_be_bytes());
    term.extend(text);
}

/// The queue name of a subscription that ends with its session: unguessable, as it comes from the session's random seed.
pub(super) fn transient_name(seed: &[u8; 16], number: u64) -> ShortText {
    let mut input = seed.to_vec();
    input.extend(number.to_be_bytes());
    hashed_name(&input)
}

fn hashed_name(input: &[u8]) -> ShortText {
    let hash = URL_SAFE_NO_PAD.encode(Md5::digest(input));
    // 19 + 22 bytes, far below 255.
    ShortText::new(format!("stomp-subscription-{hash}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_names_are_those_of_the_plugin() {
        let cases = [
            ("dur1", "t2", "Go6xF4R5x5YgdzfXjEIzlA", "qjN2pP4Tz9mDfQ-6T0Iz2g"),
            ("durable", "test.subscription", "tMbeqL30tjlgaXMmaFM6Ew", "mN8EtNJgeewoAWGIePSs-A"),
            ("", "x", "h-fwebydKM-y5XzgjiGmqA", "ltHoOwiEH_6FdclaEx2twA"),
        ];
        for (key, id, legacy, native) in cases {
            let name = |naming| durable_name(key, id, naming).as_str().to_owned();
            assert_eq!(name(DurableQueueNaming::Legacy), format!("stomp-subscription-{legacy}"));
            assert_eq!(name(DurableQueueNaming::Native), format!("stomp-subscription-{native}"));
        }
    }

    #[test]
    fn an_owned_queue_is_led_to_by_nothing_else() {
        let queue = Owned { user: "bob", exchange: "orders", routing_key: "eu.*", id: "d" };
        let others = [
            Owned { user: "bo", ..queue },
            Owned { user: "Bob", ..queue },
            Owned { exchange: "news", ..queue },
            Owned { routing_key: "eu.#", ..queue },
            Owned { id: "e", ..queue },
            Owned { user: "bobo", exchange: "rders", ..queue },
            Owned { exchange: "orderse", routing_key: "u.*", ..queue },
            Owned { routing_key: "eu.*d", id: "", ..queue },
        ];
        assert!(others.iter().all(|other| other.name() != queue.name()));
        assert_eq!(queue.name(), Owned { ..queue }.name());
    }

    #[test]
    fn flag_eras_follow_the_version() {
        let cases = [
            ("3.10.8", FlagEra::V3_10),
            ("3.11.7", FlagEra::V3_10),
            ("3.11.8", FlagEra::V3_11_8),
            ("4.0.5", FlagEra::V3_11_8),
            ("4.3.0", FlagEra::V4_3),
            ("4.3.0-rc.1", FlagEra::V4_3),
            ("", FlagEra::V4_3),
        ];
        for (version, era) in cases {
            assert_eq!(FlagEra::of(version), era, "{version}");
        }
    }
}
