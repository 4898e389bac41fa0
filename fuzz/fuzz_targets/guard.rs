//! Any bytes from the broker, cut anywhere: no panic, the cuts change nothing, what has passed once passes unchanged, and
//! every content header and delivery that passes can be read by lapin's parser.
//!
//! The first two bytes say how large the pieces and the reader's buffers are; the rest is what the broker sends.

#![no_main]

use amq_protocol::frame::parse_frame;
use libfuzzer_sys::fuzz_target;
use stomp_relay::broker::fuzzing::through_the_guard;

/// Small, so that a fuzzer's inputs cross it.
const FRAME_BYTES_MAX: u32 = 4096;
const END: u8 = 0xCE;

fuzz_target!(|data: &[u8]| {
    let [pieces, buffers, input @ ..] = data else { return };
    let whole = through_the_guard(input, usize::MAX, 1 << 16, FRAME_BYTES_MAX);
    let cut = through_the_guard(input, usize::from(*pieces) + 1, usize::from(*buffers) * 16 + 1, FRAME_BYTES_MAX);
    assert!(cut == whole, "the cuts change what passes");
    assert!(whole.len() <= input.len());
    assert!(through_the_guard(&whole, usize::MAX, 1 << 16, FRAME_BYTES_MAX) == whole, "repaired twice");
    let mut rest = &whole[..];
    while let [kind @ (1 | 2 | 3 | 8), _, _, a, b, c, d, ..] = *rest {
        let Some(frame) = rest.get(..u32::from_be_bytes([a, b, c, d]) as usize + 8) else { break };
        // A content header without its fixed part, or a frame without its end, is past repair.
        if kind == 2 && frame.len() >= 22 && frame.last() == Some(&END) {
            assert!(frame.len() <= FRAME_BYTES_MAX as usize);
            assert!(matches!(parse_frame(frame), Ok(([], _))), "{frame:?}");
        }
        rest = &rest[frame.len()..];
    }
});
