//! Whatever the decoder accepts, the encoder writes so that the decoder reads the same again.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use stomp_relay::stomp::{Command, Decoder, Escapes, Frame, Item, Limits, encode};

/// Room for what the encoder adds: escapes for characters that may stand raw, and content-length.
const ROOMY: Limits = Limits {
    frame_bytes_max: 16 << 20,
    header_count_max: 101,
    header_line_bytes_max: 64 << 10,
    header_lines_max: usize::MAX,
    header_bytes_max: usize::MAX,
};

fuzz_target!(|data: &[u8]| {
    for frame in decode(data, Limits::default()) {
        // Of SEND alone the decoder reads the content-length that the encoder writes.
        let sent = Frame { command: Command::Send, ..frame };
        let mut output = BytesMut::new();
        encode(&sent, &mut output);
        let again = decode(&output, ROOMY);
        assert_eq!(again.len(), 1, "{again:?}");
        assert_eq!(again[0].body, sent.body);
        assert!(headers(&again[0]).eq(headers(&sent)), "{again:?}");
    }
});

/// All headers but the one that the encoder sees to.
fn headers(frame: &Frame) -> impl Iterator<Item = (&str, &str)> {
    frame.headers.iter().filter(|(name, _)| *name != "content-length")
}

/// The frames up to the first error.
fn decode(input: &[u8], limits: Limits) -> Vec<Frame> {
    let mut decoder = Decoder::new(limits, Escapes::All);
    let mut buffer = BytesMut::from(input);
    let mut frames = Vec::new();
    while let Ok(Some(item)) = decoder.decode(&mut buffer) {
        if let Item::Frame(frame) = item {
            frames.push(frame);
        }
    }
    frames
}
