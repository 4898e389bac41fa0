//! Decoder and encoder alone.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};

use crate::stomp::{Command, Decoder, Escapes, Frame, Item, Limits, encode};

/// Five headers, as a client library writes them, and the body.
pub(crate) fn send(body_bytes: usize) -> Vec<u8> {
    let head = format!(
        "SEND\ndestination:/queue/orders.created\ncontent-type:text/plain\ncorrelation-id:4711-0815\n\
         x-tenant:north\ncontent-length:{body_bytes}\n\n"
    );
    [head.as_bytes(), &vec![b'x'; body_bytes], b"\0"].concat()
}

pub(crate) fn decode_send(times: u64) {
    let wire = send(100);
    decode(times, &wire, wire.len());
}

/// What has arrived ends within lines and within the body.
pub(crate) fn decode_send_in_pieces(times: u64) {
    decode(times, &send(100), 7);
}

pub(crate) fn decode_send_16k(times: u64) {
    let wire = send(16 << 10);
    decode(times, &wire, wire.len());
}

fn decode(times: u64, wire: &[u8], piece_bytes: usize) {
    let mut decoder = Decoder::new(Limits::default(), Escapes::All);
    let mut input = BytesMut::new();
    let mut frames = 0;
    for _ in 0..times {
        for piece in black_box(wire).chunks(piece_bytes) {
            input.extend_from_slice(piece);
            while let Some(item) = decoder.decode(&mut input).expect("a frame without fault") {
                frames += u64::from(matches!(item, Item::Frame(_)));
                black_box(item);
            }
        }
    }
    assert_eq!(frames, times);
}

pub(crate) fn encode_message(times: u64) {
    let mut frame = Frame::new(Command::Message)
        .with_header("subscription", "sub-0")
        .with_header("destination", "/queue/orders.created")
        .with_header("message-id", "T_sub-0@@session-AAAAAAAAAAAAAAAAAAAAAA@@12345")
        .with_header("redelivered", "false")
        .with_header("x-tenant", "north")
        .with_header("correlation-id", "4711-0815")
        .with_header("content-type", "text/plain");
    frame.body = Bytes::from(vec![b'x'; 100]);
    encode_frame(times, &frame);
}

pub(crate) fn encode_receipt(times: u64) {
    encode_frame(times, &Frame::new(Command::Receipt).with_header("receipt-id", "message-12345"));
}

fn encode_frame(times: u64, frame: &Frame) {
    let mut output = BytesMut::with_capacity(1024);
    for _ in 0..times {
        output.clear();
        encode(black_box(frame), &mut output);
        assert!(output.ends_with(b"\0\n"));
    }
}
