//! The guard over whole streams, cut anywhere: what passes, what is taken out, what is repaired.

use super::*;
use crate::broker::frame::raw_frame;
use crate::broker::table;
use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame};
use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use proptest::prelude::*;

/// AMQP's smallest.
const FRAME_BYTES_MAX: u32 = 4096;

fn short(text: &str) -> Vec<u8> {
    let mut bytes = vec![text.len() as u8];
    bytes.extend(text.as_bytes());
    bytes
}

fn method(class: u16, method: u16, arguments: &[u8]) -> Vec<u8> {
    [&class.to_be_bytes()[..], &method.to_be_bytes()[..], arguments].concat()
}

fn returned_message(channel: u16, message_id: &str, body_frames: &[&[u8]]) -> Vec<u8> {
    let mut arguments = 312u16.to_be_bytes().to_vec();
    arguments.extend(short("NO_ROUTE"));
    arguments.extend(short("ex"));
    arguments.extend(short("key"));
    let mut bytes = raw_frame(1, channel, &method(60, 50, &arguments));
    let mut header = vec![0, 60, 0, 0];
    header.extend((body_frames.iter().map(|body| body.len() as u64).sum::<u64>()).to_be_bytes());
    // content-type, headers, delivery-mode, message-id
    header.extend((1u16 << 15 | 1 << 13 | 1 << 12 | 1 << 7).to_be_bytes());
    header.extend(short("text/plain"));
    header.extend([0, 0, 0, 5]);
    header.extend([1, b'a', b't', 1, 0xCE]);
    header.push(2);
    header.extend(short(message_id));
    bytes.extend(raw_frame(2, channel, &header));
    for body in body_frames {
        bytes.extend(raw_frame(3, channel, body));
    }
    bytes
}

/// Runs `stream`, cut into pieces of `cuts` bytes, through a guard whose reader offers buffers of `sizes` bytes.
fn run(stream: &[u8], cuts: &[usize], sizes: &[usize], wire: &Arc<Wire>) -> Vec<u8> {
    let mut guard = Guard::new("test".into(), FRAME_BYTES_MAX, wire.clone());
    let mut out = Vec::new();
    let (mut at, mut turn) = (0, 0);
    loop {
        let mut buffer = vec![0; sizes[turn % sizes.len()].max(1)];
        turn += 1;
        let result = guard.poll_fill(&mut buffer, |space| {
            let bytes = cuts[at % cuts.len()].max(1).min(space.len()).min(stream.len() - at);
            space[..bytes].copy_from_slice(&stream[at..at + bytes]);
            at += bytes;
            Poll::Ready(Ok(bytes))
        });
        match result {
            Poll::Ready(Ok(0)) => return out,
            Poll::Ready(Ok(bytes)) => out.extend(&buffer[..bytes]),
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// A frame of any kind but basic.return, with random content.
fn random_frame() -> impl Strategy<Value = Vec<u8>> {
    let methods = [None, Some((10u8, 10u8)), Some((10, 30)), Some((10, 50)), Some((20, 40)), Some((60, 60))];
    let content = (prop::collection::vec(any::<u8>(), 0..200), prop::sample::select(methods.to_vec()));
    (prop::sample::select(vec![1u8, 2, 3, 8]), 0u16..4, content).prop_map(|(kind, channel, (mut payload, method))| {
        if let (1, Some((class, method)), true) = (kind, method, payload.len() >= 4) {
            payload[..4].copy_from_slice(&[0, class, 0, method]);
        }
        if kind == 1 && payload.starts_with(&[0, 60, 0, 50]) {
            payload[0] = 1;
        }
        raw_frame(kind, channel, &payload)
    })
}

/// A content header as amq-protocol writes it.
fn content_header() -> impl Strategy<Value = Vec<u8>> {
    let short = || prop_oneof!["[a-z]{0,9}", "\\PC{0,5}"].prop_map(|text| ShortString::try_new(text).expect("short"));
    let value = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        (-1e9f32..1e9).prop_map(AMQPValue::Float),
        (-1e9..1e9).prop_map(AMQPValue::Double),
        (any::<u8>(), any::<u32>()).prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
        Just(AMQPValue::Void),
    ];
    let table = move |values: BoxedStrategy<AMQPValue>| {
        prop::collection::btree_map(short(), values, 0..4).prop_map(FieldTable::from)
    };
    let value = value.prop_recursive(6, 40, 4, move |inner| {
        prop_oneof![
            table(inner.clone()).prop_map(AMQPValue::FieldTable),
            prop::collection::vec(inner, 0..4).prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values))),
        ]
    });
    let texts = prop::collection::vec(prop::option::of(short()), 10);
    let rest = (prop::option::of(any::<u8>()), prop::option::of(any::<u64>()), any::<u64>());
    (prop::option::of(table(value.boxed())), texts, rest, 0u16..4).prop_map(
        |(headers, texts, (octet, timestamp, body_size), channel)| {
            let mut properties = AMQPProperties::default();
            if let Some(headers) = headers {
                properties = properties.with_headers(headers);
            }
            if let Some(octet) = octet {
                properties = properties.with_delivery_mode(octet).with_priority(octet);
            }
            if let Some(timestamp) = timestamp {
                properties = properties.with_timestamp(timestamp);
            }
            let setters = [
                AMQPProperties::with_content_type,
                AMQPProperties::with_content_encoding,
                AMQPProperties::with_correlation_id,
                AMQPProperties::with_reply_to,
                AMQPProperties::with_expiration,
                AMQPProperties::with_message_id,
                AMQPProperties::with_type,
                AMQPProperties::with_user_id,
                AMQPProperties::with_app_id,
                AMQPProperties::with_cluster_id,
            ];
            for (set, text) in setters.into_iter().zip(texts) {
                if let Some(text) = text {
                    properties = set(properties, text);
                }
            }
            encode(&AMQPFrame::Header(channel, AMQPContentHeader { class_id: 60, body_size, properties }))
        },
    )
}

fn encode(frame: &AMQPFrame) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 14];
    let (_, bytes) =
        gen_frame(frame)(WriteContext::from(io::Cursor::new(&mut buffer[..]))).expect("encodes").into_inner();
    buffer.truncate(bytes as usize);
    buffer
}

/// A delivery's method frame.
fn deliver(tag: &[u8], exchange: &[u8], routing_key: &[u8]) -> Vec<u8> {
    let short = |text: &[u8]| [&[text.len() as u8], text].concat();
    let arguments = [short(tag), vec![0, 0, 0, 0, 0, 0, 0, 9, 1], short(exchange), short(routing_key)].concat();
    raw_frame(1, 1, &method(60, 60, &arguments))
}

/// A content header frame with only a headers table, of this content.
fn header_with_table(content: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    payload.extend((1u16 << 15 | 1 << 13 | 1 << 12 | 1 << 7).to_be_bytes());
    payload.extend(short("text/plain"));
    payload.extend((content.len() as u32).to_be_bytes());
    payload.extend(content);
    payload.push(2);
    payload.extend(short("m-1"));
    raw_frame(2, 1, &payload)
}

/// lapin's parser. `None`: it would end the connection.
fn parse(frame: &[u8]) -> Option<AMQPFrame> {
    match parse_frame(frame) {
        Ok(([], frame)) => Some(frame),
        _ => None,
    }
}

fn properties(frame: &[u8]) -> AMQPProperties {
    match parse(frame) {
        Some(AMQPFrame::Header(1, AMQPContentHeader { class_id: 60, body_size: 7, properties })) => properties,
        other => panic!("{other:?}"),
    }
}

fn repairs(wire: &Wire) -> u64 {
    wire.repaired_frames()
}

/// How the reads of a stream come in: pieces from the socket, buffers from lapin.
fn cuts() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    let sizes = prop::collection::vec(prop_oneof![1usize..20, 60usize..300, Just(10_000)], 1..10);
    (prop::collection::vec(prop_oneof![1usize..50, Just(10_000)], 1..10), sizes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_lapin_can_read_passes_unchanged(
        frames in prop::collection::vec(prop_oneof![random_frame(), content_header()], 0..8),
        tail in prop::collection::vec(3u8..8, 0..40),
        (cuts, sizes) in cuts(),
    ) {
        let wire = Arc::new(Wire::default());
        // What lapin's parser refuses is another test's subject.
        let frames = frames.into_iter().filter(|frame| parse(frame).is_some() || frame[0] == 3).collect::<Vec<_>>();
        let bytes = [frames.concat(), tail].concat();
        prop_assert_eq!(run(&bytes, &cuts, &sizes, &wire), bytes);
        prop_assert_eq!(repairs(&wire), 0);
    }

    #[test]
    fn a_content_header_is_readable_afterwards_whatever_it_was(
        (mut frame, flips, size) in (
            content_header(),
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            prop::option::of(any::<prop::sample::Index>()),
        ),
        (cuts, sizes) in cuts(),
    ) {
        let channel = u16::from_be_bytes([frame[1], frame[2]]);
        let mut payload = frame[7..frame.len() - 1].to_vec();
        for (at, value) in flips {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        if let Some(size) = size {
            payload.truncate(14.max(size.index(payload.len())));
        }
        frame = raw_frame(2, channel, &payload);
        let heartbeat = raw_frame(8, 0, &[]);
        let wire = Arc::new(Wire::default());
        let out = run(&[&frame[..], &heartbeat].concat(), &cuts, &sizes, &wire);
        let passed = out.strip_suffix(&heartbeat[..]).expect("the stream goes on as before");
        let parsed = parse(&frame);
        prop_assert_eq!(repairs(&wire), u64::from(parsed.is_none()));
        match parsed {
            Some(_) => prop_assert_eq!(passed, &frame[..]),
            None => {
                let now = parse(passed);
                prop_assert!(now.is_some(), "{passed:?}");
                let same = |header: &[u8]| (header[1..3].to_vec(), header[7..19].to_vec());
                prop_assert_eq!(same(passed), same(&frame));
                prop_assert!(passed.len() <= frame.len());
            }
        }
    }

    #[test]
    fn a_delivery_is_readable_afterwards_whatever_its_texts_are(
        texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..255), 3),
        (cuts, sizes) in cuts(),
    ) {
        let frame = deliver(&texts[0], &texts[1], &texts[2]);
        let wire = Arc::new(Wire::default());
        let out = run(&frame, &cuts, &sizes, &wire);
        prop_assert!(parse(&out).is_some());
        prop_assert_eq!(out.len(), frame.len());
        prop_assert_eq!(out == frame, repairs(&wire) == 0);
    }

    #[test]
    fn random_bytes_never_panic_and_cuts_change_nothing(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..2000),
            prop::collection::vec(random_frame(), 0..9).prop_map(|frames| frames.concat()),
        ],
        (cuts, sizes) in cuts(),
    ) {
        let whole = run(&bytes, &[usize::MAX], &[1 << 20], &Arc::new(Wire::default()));
        prop_assert_eq!(run(&bytes, &cuts, &sizes, &Arc::new(Wire::default())), whole);
        for parse in [frame::message_id, frame::server_version] {
            parse(&bytes);
        }
        frame::basic_return(&bytes);
        frame::channel_close(&bytes);
        frame::delivered_from(&bytes);
        frame::table_at(&bytes);
        frame::tune_frame_max(&bytes);
    }

    #[test]
    fn returns_are_taken_out_and_recorded(
        before in prop::collection::vec(random_frame(), 0..8),
        (cuts, sizes) in cuts(),
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..4),
    ) {
        let wire = Arc::new(Wire::default());
        wire.watch_channel(7);
        let before = before.into_iter().filter(|frame| parse(frame).is_some()).collect::<Vec<_>>().concat();
        let heartbeat = raw_frame(8, 0, &[]);
        let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        let input = [&before[..], &returned_message(7, "m-1", &bodies), &heartbeat].concat();
        prop_assert_eq!(run(&input, &cuts, &sizes, &wire), [&before[..], &heartbeat].concat());
        let returned = wire.take_return(7, Some("m-1"), "ex", "key");
        prop_assert_eq!(returned.map(|returned| returned.cause.reply_code), Some(312));
        prop_assert!(wire.take_return(7, Some("m-1"), "ex", "key").is_none());
    }

    #[test]
    fn an_oversize_content_header_goes_on_without_its_table(
        content in prop_oneof![
            // Whatever the table holds, it is not looked at.
            (1usize..FRAME_BYTES_MAX as usize * 3).prop_map(|bytes| vec![0xCE; bytes + FRAME_BYTES_MAX as usize]),
            (5_000usize..9_000).prop_map(|bytes| [&[1, b'a', b'S'][..], &(bytes as u32).to_be_bytes(), &vec![b'x'; bytes]].concat()),
        ],
        (cuts, sizes) in cuts(),
    ) {
        let wire = Arc::new(Wire::default());
        let heartbeat = raw_frame(8, 0, &[]);
        let input = [&header_with_table(&content)[..], &heartbeat].concat();
        let out = run(&input, &cuts, &sizes, &wire);
        prop_assert_eq!(&out, &[&header_with_table(&[])[..], &heartbeat].concat());
        prop_assert_eq!(repairs(&wire), 1);
        prop_assert_eq!(properties(&out[..out.len() - heartbeat.len()]).message_id().clone(), Some("m-1".into()));
    }
}

/// `levels` containers within each other, as the value of a field `deep`, with a field on either side.
fn nested(kind: u8, levels: usize) -> Vec<u8> {
    let per_level = if kind == b'F' { 1 + 1 + 1 + 4 } else { 1 + 4 };
    let mut value = Vec::new();
    for level in 0..levels {
        value.push(kind);
        value.extend((((levels - level - 1) * per_level) as u32).to_be_bytes());
        if kind == b'F' && level + 1 < levels {
            value.extend([1, b'n']);
        }
    }
    [&[1, b'a', b't', 1][..], &short("deep"), &value, &[1, b'z', b't', 1]].concat()
}

#[test]
fn nesting_is_cut_at_its_limit() {
    for kind in *b"AF" {
        for levels in (1..100).chain([600, 1_000, 5_000, 20_000]) {
            let frame = header_with_table(&nested(kind, levels));
            let wire = Arc::new(Wire::default());
            let mut guard = Guard::new("test".into(), 1 << 20, wire.clone());
            let mut at = 0;
            let mut out = vec![0; frame.len()];
            let read = |space: &mut [u8]| {
                let bytes = space.len().min(frame.len() - at);
                space[..bytes].copy_from_slice(&frame[at..at + bytes]);
                at += bytes;
                Poll::Ready(Ok(bytes))
            };
            let Poll::Ready(Ok(bytes)) = guard.poll_fill(&mut out, read) else { panic!("nothing passed") };
            // The headers table itself is a level.
            assert_eq!(repairs(&wire), u64::from(levels >= table::NESTING_MAX), "{levels}");
            let properties = properties(&out[..bytes]);
            let headers = properties.headers().as_ref().expect("the headers are there");
            let names = headers.into_iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
            assert_eq!(names, ["a", "deep", "z"]);
            assert_eq!(properties.message_id().clone(), Some("m-1".into()));
        }
    }
}

#[test]
fn what_is_not_utf8_is_mended_where_it_stands() {
    let wire = Arc::new(Wire::default());
    let inner = [&[2, b'x', 0xFF, b'S', 0, 0, 0, 2, 0xFF, 0xFE][..]].concat();
    let content = [&[3, b'k', 0xC3, b'(', b'F', 0, 0, 0, inner.len() as u8][..], &inner].concat();
    let input = [deliver(b"s1", b"e\xff", b"caf\xe9"), header_with_table(&content)].concat();
    let out = run(&input, &[1000], &[1000], &wire);
    assert_eq!(out.len(), input.len());
    let at = deliver(b"s1", b"e\xff", b"caf\xe9").len();
    assert_eq!(&out[..at], &deliver(b"s1", b"e?", b"caf?"));
    let properties = properties(&out[at..]);
    let Some(AMQPValue::FieldTable(table)) = properties.headers().as_ref().and_then(|t| t.inner().get("k?(")) else {
        panic!("{properties:?}");
    };
    // Long strings are bytes.
    assert_eq!(table.inner().get("x?"), Some(&AMQPValue::LongString(vec![0xFF, 0xFE].into())));
    assert_eq!(repairs(&wire), 2);
}

#[test]
fn an_exception_whose_text_was_cut_in_a_character_is_readable() {
    for (class, method_id, channel) in [(20, 40, 3), (10, 50, 0)] {
        let wire = Arc::new(Wire::default());
        wire.watch_channel(3);
        let mut arguments = 404u16.to_be_bytes().to_vec();
        arguments.extend([4, b'n', b'o', b' ', 0xC3, 0, 60, 0, 40]);
        let out = run(&raw_frame(1, channel, &method(class, method_id, &arguments)), &[3], &[50], &wire);
        assert!(parse(&out).is_some());
        assert_eq!(repairs(&wire), 1);
        let text = wire.refusal(3).map(|refusal| refusal.reply_text);
        assert_eq!(text, (class == 20).then(|| "no ?".to_owned()));
    }
}

#[test]
fn the_smaller_frame_size_counts() {
    for (tuned, repaired) in [(0u32, 0), (1 << 20, 0), (4096, 1)] {
        let wire = Arc::new(Wire::default());
        let mut guard = Guard::new("test".into(), 8192, wire.clone());
        let tune = raw_frame(1, 0, &method(10, 30, &[&[7, 255][..], &tuned.to_be_bytes(), &[0, 60]].concat()));
        let value = [&[1, b'a', b'S', 0, 0, 0x14, 0][..], &[b'x'; 0x1400]].concat();
        let mut input = [tune, header_with_table(&value)].concat();
        let length = input.len();
        let Poll::Ready(Ok(bytes)) = guard.poll_fill(&mut vec![0; length], |space| {
            space.copy_from_slice(&input);
            Poll::Ready(Ok(std::mem::take(&mut input).len()))
        }) else {
            panic!("nothing passed");
        };
        assert_eq!((repairs(&wire), bytes < length), (repaired, repaired > 0));
    }
}

#[test]
fn start_and_close_are_read_while_they_pass() {
    let wire = Arc::new(Wire::default());
    wire.watch_channel(3);
    let mut properties = Vec::new();
    properties.extend([&short("capabilities")[..], b"F", &[0, 0, 0, 4], &[1, b'x', b't', 1]].concat());
    properties.extend([&short("version")[..], b"S", &[0, 0, 0, 6], b"3.10.8"].concat());
    let mut start = vec![0, 9];
    start.extend((properties.len() as u32).to_be_bytes());
    start.extend(properties);
    let mut close = 404u16.to_be_bytes().to_vec();
    close.extend(short("NOT_FOUND - no exchange 'x'"));
    close.extend([0, 60, 0, 40]);
    let stream = [raw_frame(1, 0, &method(10, 10, &start)), raw_frame(1, 3, &method(20, 40, &close))].concat();
    assert_eq!(run(&stream, &[5], &[100], &wire), stream);
    assert_eq!(wire.version(), "3.10.8");
    assert_eq!(wire.refusal(3).map(|refusal| refusal.reply_code), Some(404));
    assert_eq!(wire.broker_closed_channels(), 1);
}

#[test]
fn a_version_refusal_passes() {
    let wire = Arc::new(Wire::default());
    assert_eq!(run(b"AMQP\x00\x00\x09\x01", &[3], &[64], &wire), b"AMQP\x00\x00\x09\x01");
}
