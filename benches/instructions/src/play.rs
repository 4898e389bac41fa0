//! What clients do, from bytes to commands for the broker and from its events to bytes.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::client::Client;
use crate::codec;
use crate::session::amqp::{FieldValue, Properties, ShortText};
use crate::session::command::DeliveryTag;
use crate::session::event::Message;

fn client() -> Client {
    Client::connected(&Arc::default(), Instant::now())
}

/// The queue is declared at the first SEND, and each SEND is confirmed before the next comes.
fn send_confirmed(times: u64, wire: &[u8]) -> Client {
    let mut client = client();
    client.receive(wire);
    client.obey();
    client.obey();
    for _ in 0..times {
        client.receive(black_box(wire));
        assert!(client.published().is_some());
        client.obey();
    }
    assert_eq!(client.stats().messages_confirmed, times + 1);
    client
}

pub(crate) fn send(times: u64) {
    send_confirmed(times, &codec::send(100));
}

pub(crate) fn send_receipt(times: u64) {
    let plain = codec::send(100);
    let wire = [b"SEND\nreceipt:message-12345\n", &plain[b"SEND\n".len()..]].concat();
    let client = send_confirmed(times, &wire);
    assert!(client.written.starts_with(b"RECEIPT\nreceipt-id:message-12345\n"));
}

fn subscribed(headers: &str) -> Client {
    let mut client = client();
    client.receive(format!("SUBSCRIBE\nid:sub-0\n{headers}\n\n\0").as_bytes());
    client.obey();
    client
}

/// As the broker side makes it of a delivery.
fn message(exchange: &str, routing_key: &str, body: &Bytes) -> Arc<Message> {
    let short = |text: &str| ShortText::new(text).expect("a short text");
    let properties = Properties {
        content_type: Some(short("text/plain")),
        correlation_id: Some(short("4711-0815")),
        headers: vec![(short("x-tenant"), FieldValue::Text("north".to_owned()))],
        ..Properties::default()
    };
    let (exchange, routing_key) = (short(exchange), short(routing_key));
    Arc::new(Message { body: body.clone(), exchange, properties, routing_key })
}

/// Counts the making of the message, too: each one is new.
pub(crate) fn deliver_auto(times: u64) {
    let mut client = subscribed("destination:/queue/orders.created");
    let body = Bytes::from(vec![b'x'; 100]);
    for number in 0..times {
        client.deliver(message("", "orders.created", black_box(&body)), Some(DeliveryTag(number)));
        client.flushed();
        assert!(client.take_settled(DeliveryTag(number)));
    }
    assert!(client.written.starts_with(b"MESSAGE\nsubscription:sub-0\n"));
    assert_eq!(client.stats().messages_delivered, times);
}

/// The ACK counts as well, with what the client reads to write it.
pub(crate) fn deliver_individual(times: u64) {
    let mut client = subscribed("destination:/queue/orders.created\nack:client-individual");
    let body = Bytes::from(vec![b'x'; 100]);
    let mut ack = Vec::with_capacity(256);
    for number in 0..times {
        client.deliver(message("", "orders.created", black_box(&body)), Some(DeliveryTag(number)));
        client.flushed();
        let id = ack_id(&client.written);
        ack.clear();
        ack.extend_from_slice(b"ACK\nid:");
        ack.extend_from_slice(id);
        ack.extend_from_slice(b"\n\n\0");
        client.receive(&ack);
        assert!(client.take_settled(DeliveryTag(number)));
    }
}

/// The value of the header `ack`.
fn ack_id(message: &[u8]) -> &[u8] {
    const NAME: &[u8] = b"\nack:";
    // Cheap, so that what is counted is the relay's.
    let value = &message[memchr::memmem::find(message, NAME).expect("a MESSAGE to acknowledge") + NAME.len()..];
    &value[..memchr::memchr(b'\n', value).expect("a line end")]
}

/// A message of a shared subscription, which another client had before.
pub(crate) fn deliver_next_subscriber(times: u64) {
    let mut first = subscribed("destination:/topic/orders.created");
    let mut next = subscribed("destination:/topic/orders.created");
    let message = message("amq.topic", "orders.created", &Bytes::from(vec![b'x'; 100]));
    first.deliver(message.clone(), None);
    for _ in 0..times {
        next.deliver(black_box(&message).clone(), None);
        next.flushed();
    }
    assert!(next.written.starts_with(b"MESSAGE\nsubscription:sub-0\n"));
    assert_eq!(next.stats().messages_delivered, times);
}

/// A session from CONNECT to its end, with one subscription.
pub(crate) fn connect_subscribe(times: u64) {
    let config = Arc::default();
    let now = Instant::now();
    for _ in 0..times {
        let mut client = Client::connected(&config, now);
        client.receive(black_box(b"SUBSCRIBE\nid:sub-0\ndestination:/topic/orders.created\nreceipt:1\n\n\0"));
        client.obey();
        assert!(client.written.starts_with(b"RECEIPT\n"));
        client.receive(black_box(b"UNSUBSCRIBE\nid:sub-0\nreceipt:2\n\n\0"));
        client.obey();
        assert!(client.written.starts_with(b"RECEIPT\n"));
    }
}

/// They are all there at the end: what is kept of each is what it holds between two frames.
pub(crate) fn idle_session(times: u64) {
    let config = Arc::default();
    let now = Instant::now();
    let mut sessions = Vec::new();
    for _ in 0..times {
        let mut client = Client::connected(&config, now);
        client.receive(black_box(b"SUBSCRIBE\nid:sub-0\ndestination:/topic/orders.created\nreceipt:1\n\n\0"));
        client.obey();
        sessions.push(Box::new(client.into_session()));
    }
    black_box(&sessions);
}
