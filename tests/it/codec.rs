//! Properties of the STOMP codec on generated input. The rules by example are tested beside the code.

use bytes::{Bytes, BytesMut};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use stomp_relay::stomp::{Command, DecodeError, Decoder, Escapes, Frame, Item, Limits, encode};

/// Small, so that generated input crosses each of them.
const SMALL: Limits = Limits {
    frame_bytes_max: 80,
    header_count_max: 3,
    header_line_bytes_max: 24,
    header_lines_max: usize::MAX,
    header_bytes_max: usize::MAX,
};

type Outcome = (Vec<Item>, Option<DecodeError>);

/// Feeds the input cut behind each of the positions. How many heart-beats a run of them gives depends on the cuts, so
/// those that follow each other are counted as one.
fn decode(input: &[u8], cuts: &[usize], limits: Limits) -> Outcome {
    let mut decoder = Decoder::new(limits, Escapes::All);
    let mut buffer = BytesMut::new();
    let mut items: Vec<Item> = Vec::new();
    let mut from = 0;
    for to in cuts.iter().copied().chain([input.len()]) {
        buffer.extend_from_slice(&input[from..to]);
        from = to;
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(Item::Heartbeat)) if items.last() == Some(&Item::Heartbeat) => {}
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => return (items, Some(error)),
            }
        }
        assert!(buffer.len() <= limits.frame_bytes_max, "{} bytes are left in the buffer", buffer.len());
    }
    (items, None)
}

fn decode_whole(input: &[u8]) -> Outcome {
    decode(input, &[], Limits::default())
}

fn encoded(frame: &Frame) -> BytesMut {
    let mut output = BytesMut::new();
    encode(frame, &mut output);
    output
}

/// Positions in the input, ascending.
fn cuts(positions: &[prop::sample::Index], input: &[u8]) -> Vec<usize> {
    let mut cuts: Vec<usize> = positions.iter().map(|position| position.index(input.len() + 1)).collect();
    cuts.sort_unstable();
    cuts
}

/// Text in which what needs escaping is frequent; without NUL, which no header can carry.
fn text() -> impl Strategy<Value = String> {
    "([a-z \\\\:\r\n\t]|\\PC){0,12}"
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    btree_map(text(), text(), 0..20).prop_map(|headers| headers.into_iter().collect()).prop_shuffle()
}

fn frame(command: Command, headers: &[(String, String)], body: Vec<u8>) -> Frame {
    let mut frame = Frame::new(command);
    for (name, value) in headers {
        frame.headers.push(name, value);
    }
    frame.body = Bytes::from(body);
    frame
}

/// Bytes that come near to frames and near to every error.
fn almost_frames() -> impl Strategy<Value = Vec<u8>> {
    let fragments: Vec<&[u8]> = vec![
        b"SEND\n",
        b"SEND\ncontent-length:3\n\nabc\0",
        b"CONNECT\n",
        b"BEGIN\n\n\0",
        b"UNKNOWN\r\n",
        b"A-COMMAND-OF-MORE-THAN-32-BYTES---",
        b"a:1\n",
        b"b:2\r\n",
        b"c:\\n\\c\n",
        b"d:4\n",
        b"e:\\t\n",
        b"content-length:3\n",
        b"content-length:-3\n",
        b"content-length:99\n",
        b"content-length:x\n",
        b"a line longer than the limit:",
        b"no colon\n",
        b"\n\nbody\0",
        b"\n",
        b"\r\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xa9",
        b":",
    ];
    let piece = prop_oneof![
        9 => prop::sample::select(fragments).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 1..9),
    ];
    vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_send_survives_encoding_and_decoding(headers in headers(), body in vec(any::<u8>(), 0..300)) {
        let sent = frame(Command::Send, &headers, body);
        let mut expected = sent.clone();
        if !sent.body.is_empty() {
            expected.headers.push("content-length", &sent.body.len().to_string());
        }
        prop_assert_eq!(decode_whole(&encoded(&sent)), (vec![Item::Frame(expected), Item::Heartbeat], None));
    }

    #[test]
    fn a_frame_without_body_survives_encoding_and_decoding(name in "[A-Z]{1,32}", headers in headers()) {
        let sent = frame(Command::from_bytes(name.as_bytes()).unwrap(), &headers, Vec::new());
        prop_assert_eq!(decode_whole(&encoded(&sent)), (vec![Item::Frame(sent), Item::Heartbeat], None));
    }

    #[test]
    fn what_was_decoded_survives_another_round(input in almost_frames()) {
        let (items, _) = decode_whole(&input);
        for item in items {
            let Item::Frame(mut frame) = item else { continue };
            // The encoder writes content-length itself; only of SEND is it read.
            frame.command = Command::Send;
            let first = decode_whole(&encoded(&frame));
            let (again, error) = &first;
            prop_assert_eq!(error, &None);
            let Some(Item::Frame(again)) = again.first() else { panic!("no frame in {first:?}") };
            prop_assert_eq!(&again.body, &frame.body);
            let content = |frame: &Frame| -> Vec<(String, String)> {
                let kept = frame.headers.iter().filter(|(name, _)| *name != "content-length");
                kept.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
            };
            prop_assert_eq!(content(again), content(&frame));
        }
    }

    #[test]
    fn cuts_change_neither_frames_nor_errors(
        input in almost_frames(),
        positions in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let cuts = cuts(&positions, &input);
        for limits in [SMALL, Limits::default()] {
            prop_assert_eq!(decode(&input, &cuts, limits), decode(&input, &[], limits));
        }
    }

    #[test]
    fn single_bytes_change_neither_frames_nor_errors(input in almost_frames()) {
        let cuts: Vec<usize> = (0..input.len()).collect();
        for limits in [SMALL, Limits::default()] {
            prop_assert_eq!(decode(&input, &cuts, limits), decode(&input, &[], limits));
        }
    }

    #[test]
    fn random_bytes_never_panic_nor_pile_up(
        input in vec(any::<u8>(), 0..500),
        positions in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        // decode() checks how much is left in the buffer.
        prop_assert_eq!(decode(&input, &cuts(&positions, &input), SMALL), decode(&input, &[], SMALL));
    }

    #[test]
    fn error_texts_are_short_and_free_of_control_characters(input in almost_frames()) {
        if let (_, Some(error)) = decode(&input, &[], SMALL) {
            let text = error.to_string();
            prop_assert!(text.chars().count() < 250 && !text.contains(char::is_control), "{:?}", text);
        }
    }

    #[test]
    fn up_to_100_different_headers_are_accepted(count in 0_usize..=100) {
        let (items, error) = decode_whole(send_with_headers(count).as_bytes());
        prop_assert_eq!(error, None);
        prop_assert!(matches!(&items[..], [Item::Frame(frame)] if frame.headers.len() == count));
    }

    #[test]
    fn more_than_100_different_headers_are_refused(count in 101_usize..=300) {
        let refused = DecodeError::TooManyHeaders { limit: 100 };
        prop_assert_eq!(decode_whole(send_with_headers(count).as_bytes()), (vec![], Some(refused)));
    }

    #[test]
    fn repeated_headers_do_not_count(different in 1_usize..=100, repeated in 0_usize..=500) {
        let repetition: String = (0..repeated).map(|number| format!("n{}:again\n", number % different)).collect();
        let input = send_with_headers(different).replace("\n\n\0", &format!("\n{repetition}\n\0"));
        let (items, error) = decode_whole(input.as_bytes());
        prop_assert_eq!(error, None);
        let [Item::Frame(frame)] = &items[..] else { panic!("{items:?}") };
        prop_assert_eq!(frame.headers.len(), different);
        prop_assert!(frame.headers.iter().all(|(_, value)| value == "first"));
    }

    #[test]
    fn negative_content_length_is_refused(length in i64::MIN..0) {
        let input = format!("SEND\ncontent-length:{length}\n\nbody\0");
        prop_assert_eq!(decode_whole(input.as_bytes()), (vec![], Some(DecodeError::ContentLengthNegative)));
    }

    #[test]
    fn content_length_that_is_no_number_never_fails(value in "[^0-9\0\r\n\\\\]{0,20}") {
        let (items, error) = decode_whole(format!("SEND\ncontent-length:{value}\n\nbody\0").as_bytes());
        prop_assert_eq!(error, None);
        prop_assert!(matches!(&items[..], [Item::Frame(frame)] if frame.body == "body"));
    }

    #[test]
    fn a_frame_is_accepted_up_to_its_limit(frame_bytes_max in 40_usize..400, more in -1_isize..=1, sized: bool) {
        let limits = Limits { frame_bytes_max, ..Limits::default() };
        let frame_bytes = frame_bytes_max.checked_add_signed(more).unwrap();
        let content_length = |bytes: usize| if sized { format!("content-length:{bytes:03}\n") } else { String::new() };
        let body_bytes = frame_bytes - "SEND\n\n\0".len() - content_length(0).len();
        let input = format!("SEND\n{}\n{}\0", content_length(body_bytes), "b".repeat(body_bytes));
        prop_assert_eq!(input.len(), frame_bytes);
        let (items, error) = decode(input.as_bytes(), &[], limits);
        prop_assert_eq!(items.len(), usize::from(more <= 0));
        prop_assert_eq!(error.is_some_and(|error| error.is_size_limit()), more > 0);
    }
}

/// A SEND with headers `n0` to `n{count - 1}`.
fn send_with_headers(count: usize) -> String {
    let headers: String = (0..count).map(|number| format!("n{number}:first\n")).collect();
    format!("SEND\n{headers}\n\0")
}
