//! Any bytes, cut anywhere: no panic, nothing piles up, and the cuts change neither frames nor errors.
//!
//! The first byte says how large the pieces are and how escapes are read; the rest is what a peer sends.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use stomp_relay::stomp::{DecodeError, Decoder, Escapes, Item, Limits};

/// Small, so that a fuzzer's inputs cross each of them.
const LIMITS: Limits = Limits {
    frame_bytes_max: 256,
    header_count_max: 4,
    header_line_bytes_max: 64,
    header_lines_max: usize::MAX,
    header_bytes_max: usize::MAX,
};

fuzz_target!(|data: &[u8]| {
    let Some((control, input)) = data.split_first() else { return };
    let escapes = if control & 0x80 == 0 { Escapes::All } else { Escapes::ExceptConnect };
    let piece_bytes = usize::from(control & 0x7f) + 1;
    let whole = decode(input, input.len().max(1), escapes);
    assert_eq!(decode(input, piece_bytes, escapes), whole);
    assert_eq!(decode(input, 1, escapes), whole);
    if let (_, Some(error)) = whole {
        let text = error.to_string();
        assert!(text.chars().count() < 250 && !text.contains(char::is_control), "{text:?}");
    }
});

/// Heart-beats that follow each other count as one: how many a run gives depends on the cuts.
fn decode(input: &[u8], piece_bytes: usize, escapes: Escapes) -> (Vec<Item>, Option<DecodeError>) {
    let mut decoder = Decoder::new(LIMITS, escapes);
    let mut buffer = BytesMut::new();
    let mut items = Vec::new();
    for piece in input.chunks(piece_bytes) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(Item::Heartbeat)) if items.last() == Some(&Item::Heartbeat) => {}
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.decode(&mut buffer), Err(error.clone()));
                    return (items, Some(error));
                }
            }
        }
        assert!(buffer.len() <= LIMITS.frame_bytes_max);
    }
    (items, None)
}
