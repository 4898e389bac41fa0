//! What values hold on the heap: the one measure by which a session charges what a client makes it keep.
//!
//! Capacities count, not lengths, and each allocation with what the allocator adds. Owns no limit.

use super::amqp::{Binding, FieldValue, Properties, QueueDeclaration, ShortText};
use super::command::{Outgoing, Subscribe, SubscribedQueue};
use super::identity::Identity;
use super::rules::{Demand, Purpose, Target};
use crate::stomp::Frame;

/// What an allocator keeps about an allocation, and what lies unused between them.
const ALLOCATION_BYTES: usize = 16;

/// The two counters in front of what is shared.
const SHARED_BYTES: usize = 2 * size_of::<usize>();

/// An entry of a map or a set beside its key and value: its nodes are half full at worst.
pub(super) const MAP_ENTRY_BYTES: usize = 48;

/// What an allocation of this size takes; an empty one takes nothing. Allocators have sizes to which they round: jemalloc four
/// for each doubling, and below 128 every 16 bytes, so that 9,000 bytes take 10,240. Of large ones only the pages in use count.
pub(super) const fn allocation(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let step = match bytes {
        0..=128 => 16,
        129..=16_384 => 1 << ((bytes - 1).ilog2() - 2),
        _ => 4096,
    };
    bytes.next_multiple_of(step) + ALLOCATION_BYTES
}

/// The heap behind an `Arc` or `Box` beside what its content holds itself.
pub(super) const fn shared<T>() -> usize {
    allocation(size_of::<T>() + SHARED_BYTES)
}

pub(super) fn string(text: &String) -> usize {
    allocation(text.capacity())
}

pub(super) fn maybe_string(text: Option<&String>) -> usize {
    text.map_or(0, string)
}

pub(super) fn short_text(text: &ShortText) -> usize {
    text.heap_bytes().map_or(0, |bytes| allocation(bytes + SHARED_BYTES))
}

pub(super) fn fields(fields: &Vec<(ShortText, FieldValue)>) -> usize {
    let each = |(name, value): &(ShortText, FieldValue)| short_text(name) + field_value(value);
    allocation(fields.capacity() * size_of::<(ShortText, FieldValue)>()) + fields.iter().map(each).sum::<usize>()
}

fn field_value(value: &FieldValue) -> usize {
    match value {
        FieldValue::Bool(_) | FieldValue::Integer(_) | FieldValue::Timestamp(_) => 0,
        FieldValue::List(entries) => {
            allocation(entries.capacity() * size_of::<String>()) + entries.iter().map(string).sum::<usize>()
        }
        FieldValue::Text(text) => string(text),
    }
}

fn properties(properties: &Properties) -> usize {
    let texts = [
        &properties.app_id,
        &properties.content_encoding,
        &properties.content_type,
        &properties.correlation_id,
        &properties.expiration,
        &properties.message_id,
        &properties.reply_to,
        &properties.kind,
        &properties.user_id,
    ];
    texts.into_iter().flatten().map(short_text).sum::<usize>() + fields(&properties.headers)
}

/// Without its body.
pub(super) fn frame(frame: &Frame) -> usize {
    allocation(size_of::<Frame>()) + frame.headers.retained_bytes() + 2 * ALLOCATION_BYTES
}

/// Of a shared message. Its body has an allocation of its own, which the decoder sees to.
pub(super) fn outgoing(message: &Outgoing) -> usize {
    shared::<Outgoing>()
        + allocation(message.body.len())
        + short_text(&message.exchange)
        + short_text(&message.routing_key)
        + properties(&message.properties)
}

pub(super) fn declaration(queue: &QueueDeclaration) -> usize {
    short_text(&queue.name) + fields(&queue.arguments)
}

fn binding(binding: &Binding) -> usize {
    short_text(&binding.exchange) + short_text(&binding.routing_key) + fields(&binding.arguments)
}

pub(super) fn subscribe(subscribe: &Subscribe) -> usize {
    let queue = match &subscribe.queue {
        SubscribedQueue::Existing(name) => short_text(name),
        SubscribedQueue::Declared(queue) => declaration(queue),
    };
    queue + fields(&subscribe.consumer_arguments) + subscribe.binding.as_ref().map_or(0, binding)
}

pub(super) fn demand(demand: &Demand) -> usize {
    let texts = |target: &Target| target.texts().iter().map(|text| allocation(text.len())).sum::<usize>();
    let purpose = |purpose: &Purpose| match purpose {
        Purpose::Bound(text)
        | Purpose::Copy(text)
        | Purpose::DeadLetters(text)
        | Purpose::Drained(text)
        | Purpose::QueueName(text) => string(text),
        Purpose::Itself => 0,
    };
    let targets = demand.targets().map(|(why, _, target)| Demand::TARGET_BYTES + purpose(why) + texts(target));
    let headers = demand.headers().iter().map(|name| size_of::<String>() + string(name));
    let reply_to = demand.reply_to().map_or(0, |(text, target)| string(text) + texts(target));
    allocation(size_of::<Demand>()) + 2 * ALLOCATION_BYTES + targets.chain(headers).sum::<usize>() + reply_to
}

pub(super) fn identity(identity: &Identity) -> usize {
    let values = |values: &Vec<String>| {
        allocation(values.capacity() * size_of::<String>()) + values.iter().map(string).sum::<usize>()
    };
    let entry = MAP_ENTRY_BYTES + size_of::<String>() + size_of::<Vec<String>>();
    let claims = identity.claims.iter().map(|(name, claim)| entry + string(name) + values(claim));
    string(&identity.user) + maybe_string(identity.certificate_name.as_ref()) + claims.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn message(headers: Vec<(ShortText, FieldValue)>) -> Outgoing {
        Outgoing {
            body: Bytes::from(vec![0; 1000]),
            exchange: ShortText::lit("amq.topic"),
            mandatory: false,
            properties: Properties { headers, ..Properties::default() },
            routing_key: ShortText::lit("a"),
        }
    }

    #[test]
    fn values_and_lists_count_with_their_capacity() {
        let bare = outgoing(&message(Vec::new()));
        assert!((1000..1600).contains(&bare), "{bare}");
        let mut text = String::with_capacity(10_000);
        text.push('x');
        let long = outgoing(&message(vec![(ShortText::lit("a"), FieldValue::Text(text))]));
        assert!(long >= bare + 10_000, "{long}");
        let keys = vec!["k".to_owned(); 100];
        let copies = outgoing(&message(vec![(ShortText::lit("CC"), FieldValue::List(keys))]));
        assert!(copies >= bare + 100 * (size_of::<String>() + 1 + ALLOCATION_BYTES), "{copies}");
    }

    #[test]
    fn allocations_count_with_the_rounding_of_their_size() {
        let rounded =
            [(1, 16), (128, 128), (129, 160), (256, 256), (257, 320), (9_000, 10_240), (3_900_000, 3_903_488)];
        for (bytes, takes) in rounded {
            assert_eq!(allocation(bytes), takes + ALLOCATION_BYTES, "{bytes}");
        }
        assert_eq!(allocation(0), 0);
    }

    #[test]
    fn short_texts_on_the_heap_count() {
        let short = ShortText::new("x".repeat(20)).unwrap();
        let long = ShortText::new("x".repeat(255)).unwrap();
        assert_eq!(short_text(&short), 0);
        assert!(short_text(&long) >= 255 + SHARED_BYTES);
    }
}
