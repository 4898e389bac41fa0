//! Each rule of the grammar by example. That cuts change nothing is checked on all of them by [`decode_all`].

use super::{Decoder, Item};
use crate::stomp::{Command, DecodeError, Escapes, Frame, Headers, Limits};
use bytes::{Bytes, BytesMut};

const SMALL: Limits = Limits {
    frame_bytes_max: 60,
    header_count_max: 3,
    header_line_bytes_max: 20,
    header_lines_max: usize::MAX,
    header_bytes_max: usize::MAX,
};

type Outcome = (Vec<Item>, Option<DecodeError>);

/// Feeds pieces of the given size; heart-beats that follow each other count as one.
fn decode_pieces(input: &[u8], piece_bytes: usize, limits: Limits, escapes: Escapes) -> Outcome {
    let mut decoder = Decoder::new(limits, escapes);
    let mut buffer = BytesMut::new();
    let mut items = Vec::new();
    for piece in input.chunks(piece_bytes) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(Item::Heartbeat)) if items.last() == Some(&Item::Heartbeat) => {}
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => return (items, Some(error)),
            }
        }
    }
    (items, None)
}

fn decode_with(input: impl AsRef<[u8]>, limits: Limits, escapes: Escapes) -> Outcome {
    let input = input.as_ref();
    let whole = decode_pieces(input, input.len().max(1), limits, escapes);
    for piece_bytes in [1, 2, 3, 7] {
        let cut = decode_pieces(input, piece_bytes, limits, escapes);
        assert_eq!(cut, whole, "in pieces of {piece_bytes} bytes");
    }
    whole
}

fn decode_all(input: impl AsRef<[u8]>) -> Outcome {
    decode_with(input, Limits::default(), Escapes::All)
}

/// The frames, if all went well.
#[track_caller]
fn frames(input: impl AsRef<[u8]>) -> Vec<Frame> {
    let (items, error) = decode_all(input);
    assert_eq!(error, None);
    items.into_iter().filter_map(|item| if let Item::Frame(frame) = item { Some(frame) } else { None }).collect()
}

#[track_caller]
fn only_frame(input: impl AsRef<[u8]>) -> Frame {
    let mut frames = frames(input);
    assert_eq!(frames.len(), 1, "{frames:?}");
    frames.remove(0)
}

#[track_caller]
fn error(input: impl AsRef<[u8]>) -> DecodeError {
    decode_all(input).1.expect("an error")
}

fn send(body: &str) -> Frame {
    Frame { body: Bytes::copy_from_slice(body.as_bytes()), ..Frame::new(Command::Send) }
}

/// A SEND with headers `n0` to `n{count - 1}`, each with an empty value.
fn send_with_headers(count: usize) -> String {
    let headers: String = (0..count).map(|number| format!("n{number}:\n")).collect();
    format!("SEND\n{headers}\n\0")
}

mod between_frames {
    use super::*;

    #[test]
    fn line_ends_and_nuls_are_skipped() {
        for before in ["", "\n", "\r\n", "\0", "\0\0", "\n\r\n\0\n\0\r\n"] {
            assert_eq!(only_frame(format!("{before}SEND\n\n\0")), send(""), "{before:?}");
        }
    }

    #[test]
    fn line_ends_are_a_heartbeat() {
        for input in ["\n", "\r\n", "\n\n\n", "\0\n\0"] {
            assert_eq!(decode_all(input), (vec![Item::Heartbeat], None), "{input:?}");
        }
    }

    #[test]
    fn a_run_of_line_ends_is_one_heartbeat() {
        let mut decoder = Decoder::new(Limits::default(), Escapes::All);
        let mut input = BytesMut::from("\n\r\n\0\n");
        assert_eq!(decoder.decode(&mut input), Ok(Some(Item::Heartbeat)));
        assert_eq!(decoder.decode(&mut input), Ok(None));
        assert!(input.is_empty());
    }

    #[test]
    fn nuls_alone_report_nothing() {
        assert_eq!(decode_all("\0\0\0"), (vec![], None));
    }

    #[test]
    fn heartbeats_stand_between_the_frames_where_they_came() {
        let (items, error) = decode_all("\nSEND\n\na\0SEND\n\nb\0\n\n");
        assert_eq!(error, None);
        let expected = [Item::Heartbeat, Item::Frame(send("a")), Item::Frame(send("b")), Item::Heartbeat];
        assert_eq!(items, expected);
    }

    #[test]
    fn a_lone_carriage_return_is_an_error() {
        assert_eq!(decode_all("\rSEND\n\n\0"), (vec![], Some(DecodeError::CarriageReturnBetweenFrames)));
        assert_eq!(decode_all("\r\r\n"), (vec![], Some(DecodeError::CarriageReturnBetweenFrames)));
        assert_eq!(decode_all("\n\r\0"), (vec![Item::Heartbeat], Some(DecodeError::CarriageReturnBetweenFrames)));
    }

    #[test]
    fn a_carriage_return_at_the_end_waits_for_its_line_feed() {
        assert_eq!(decode_all("\r"), (vec![], None));
    }

    #[test]
    fn heartbeats_never_count_towards_the_frame() {
        let input = format!("{}SEND\n\n{}\0", "\n".repeat(1000), "b".repeat(53));
        let (items, error) = decode_with(input, SMALL, Escapes::All);
        assert_eq!((items.len(), error), (2, None));
    }
}

mod commands {
    use super::*;

    #[test]
    fn a_frame_needs_no_headers_and_no_body() {
        assert_eq!(only_frame("COMMIT\n\n\0"), Frame::new(Command::Commit));
    }

    #[test]
    fn unknown_commands_are_decoded() {
        let frame = only_frame("send\na:b\n\nbody\0");
        assert_eq!(frame.command, Command::Unknown("send".into()));
        assert_eq!((frame.header("a"), frame.body.as_ref()), (Some("b"), b"body".as_ref()));
    }

    #[test]
    fn a_carriage_return_elsewhere_than_at_the_end_is_an_error() {
        for input in ["SE\rND\n\n\0", "SE\r\r\nND", "SE\rWRONG"] {
            assert_eq!(error(input), DecodeError::CarriageReturnInCommand { command: "SE".into() }, "{input:?}");
        }
    }

    #[test]
    fn a_command_has_at_most_32_bytes() {
        let longest = "C".repeat(32);
        assert_eq!(only_frame(format!("{longest}\n\n\0")).command.as_str(), longest);
        assert_eq!(only_frame(format!("{longest}\r\n\n\0")).command.as_str(), longest);
        assert_eq!(error(format!("{longest}D")), DecodeError::CommandTooLong { command: longest });
    }

    #[test]
    fn a_nul_before_the_line_end_is_an_error() {
        assert_eq!(error("DISCONNECT\0"), DecodeError::NulInCommand { command: "DISCONNECT".into() });
    }

    #[test]
    fn a_command_that_is_not_utf8_is_an_error() {
        assert_eq!(error(b"SEND\xff\n"), DecodeError::CommandNotUtf8 { command: "SEND\u{fffd}".into() });
    }
}

mod header_lines {
    use super::*;

    #[test]
    fn lines_end_with_lf_or_crlf() {
        let expected =
            Frame { body: "body\r\n".into(), ..Frame::new(Command::Send).with_header("a", "1").with_header("b", "2") };
        assert_eq!(only_frame("SEND\na:1\nb:2\n\nbody\r\n\0"), expected);
        assert_eq!(only_frame("SEND\r\na:1\r\nb:2\r\n\r\nbody\r\n\0"), expected);
        assert_eq!(only_frame("SEND\r\na:1\nb:2\r\n\nbody\r\n\0"), expected);
    }

    #[test]
    fn blanks_are_kept() {
        assert_eq!(only_frame("SEND\n a : 1 \n\n\0").headers.iter().collect::<Vec<_>>(), [(" a ", " 1 ")]);
    }

    #[test]
    fn name_and_value_may_be_empty() {
        assert_eq!(only_frame("SEND\n:v\nn:\n\n\0").headers.iter().collect::<Vec<_>>(), [("", "v"), ("n", "")]);
    }

    #[test]
    fn names_and_values_may_be_any_utf8() {
        assert_eq!(only_frame("SEND\nключ:値\n\n\0").header("ключ"), Some("値"));
    }

    #[test]
    fn raw_colons_belong_to_the_value() {
        assert_eq!(only_frame("SEND\na:b:c::\n\n\0").header("a"), Some("b:c::"));
    }

    #[test]
    fn the_first_of_repeated_headers_wins() {
        let frame = only_frame("SEND\na:1\nb:2\na:3\na:4\n\n\0");
        assert_eq!(frame.headers.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
    }

    #[test]
    fn repetition_is_judged_after_escapes_are_resolved() {
        assert_eq!(only_frame("SEND\na\\\\:1\na\\\\:2\n\n\0").headers.len(), 1);
    }

    #[test]
    fn escapes_are_resolved_once_in_name_and_value() {
        let frame = only_frame("SEND\n\\n\\r\\c\\\\\\\\r:\\n\\r\\c\\\\\\\\r\n\n\0");
        assert_eq!(frame.header("\n\r:\\\\r"), Some("\n\r:\\\\r"));
    }

    #[test]
    fn other_escapes_are_errors_that_name_the_header() {
        let expected = DecodeError::UndefinedEscapeInValue { line: 2, name: "login".into() };
        assert_eq!(error("CONNECT\na:b\nlogin:DOMAIN\\user\n\n\0"), expected);
        assert_eq!(error("SEND\na:b\nlogin:end\\\n\n\0"), expected);
        let expected = DecodeError::UndefinedEscapeInName { line: 1, name: "a\\\\t".into() };
        assert_eq!(error("SEND\na\\t:b\n\n\0"), expected);
    }

    #[test]
    fn connect_headers_can_be_taken_literally() {
        for command in ["CONNECT", "STOMP", "CONNECTED"] {
            let input = format!("{command}\npasscode:a\\b\\\\c\n\n\0");
            let (items, error) = decode_with(input, Limits::default(), Escapes::ExceptConnect);
            assert_eq!(error, None);
            let Item::Frame(frame) = &items[0] else { panic!("{items:?}") };
            assert_eq!(frame.header("passcode"), Some("a\\b\\\\c"));
        }
        let (_, error) = decode_with("SEND\na:\\b\n\n\0", Limits::default(), Escapes::ExceptConnect);
        assert!(matches!(error, Some(DecodeError::UndefinedEscapeInValue { .. })), "{error:?}");
    }

    #[test]
    fn a_line_without_colon_is_an_error() {
        assert_eq!(error("SEND\na:1\nfoo\n\n\0"), DecodeError::HeaderWithoutColon { line: 2 });
    }

    #[test]
    fn a_raw_carriage_return_is_an_error() {
        assert_eq!(error("SEND\na\rb:1\n\n\0"), DecodeError::CarriageReturnInHeader { line: 1 });
        assert_eq!(error("SEND\na:1\r2\n\n\0"), DecodeError::CarriageReturnInHeader { line: 1 });
        assert_eq!(error("SEND\na:1\r\r\n\n\0"), DecodeError::CarriageReturnInHeader { line: 1 });
    }

    #[test]
    fn a_nul_before_the_empty_line_is_an_error() {
        assert_eq!(error("SEND\n\0"), DecodeError::NulInHeader { line: 1 });
        assert_eq!(error("SEND\na:1\nb:2\0"), DecodeError::NulInHeader { line: 2 });
        assert_eq!(error("SEND\na:1\n\0"), DecodeError::NulInHeader { line: 2 });
    }

    #[test]
    fn what_is_not_utf8_is_an_error_that_names_the_header() {
        let expected = DecodeError::HeaderNameNotUtf8 { line: 1, name: "a\u{fffd}".into() };
        assert_eq!(error(b"SEND\na\xff:1\n\n\0"), expected);
        assert_eq!(
            error(b"SEND\na:1\nb:\xc3\x28\n\n\0"),
            DecodeError::HeaderValueNotUtf8 { line: 2, name: "b".into() }
        );
    }

    #[test]
    fn errors_never_show_a_value() {
        let rests: [&[u8]; 8] =
            [b"\\t\n", b"\\\n", b"\rx", b"\0", b"\xff\n", b"\nsecret\n", b"\nsecret\rx", b"\nsecret\0"];
        for rest in rests {
            let error = error([b"CONNECT\npasscode:secret", rest].concat());
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }
}

mod bodies {
    use super::*;

    #[test]
    fn a_body_ends_at_the_first_nul() {
        assert_eq!(frames("SEND\n\na\0SEND\n\nb\0"), [send("a"), send("b")]);
    }

    #[test]
    fn any_frame_may_have_a_body() {
        assert_eq!(only_frame("BEGIN\n\nbody\0").body, "body");
    }

    #[test]
    fn a_body_keeps_only_itself_alive() {
        let mut input = BytesMut::from(&*format!("{}SEND\n\nbody\0", "\n".repeat(100_000)));
        let whole = input.as_ptr_range();
        let mut decoder = Decoder::new(Limits::default(), Escapes::All);
        assert_eq!(decoder.decode(&mut input), Ok(Some(Item::Heartbeat)));
        let item = decoder.decode(&mut input);
        let Ok(Some(Item::Frame(frame))) = item else { panic!("{item:?}") };
        assert!(!whole.contains(&frame.body.as_ptr()), "it is a part of what arrived with it");
        assert!(frame.body.is_unique());
    }

    #[test]
    fn an_unfinished_body_holds_about_what_has_come() {
        for announced in ["", "content-length:3000000\n"] {
            let mut decoder = Decoder::new(Limits::default(), Escapes::All);
            let mut input = BytesMut::from(&*format!("SEND\n{announced}\n"));
            assert_eq!(decoder.decode(&mut input), Ok(None));
            for come in (10_000..=3_000_000).step_by(10_000) {
                input.extend_from_slice(&[b'b'; 10_000]);
                assert_eq!(decoder.decode(&mut input), Ok(None));
                assert_eq!(input.is_empty(), come >= 40_000, "only a short body stays in the input");
                let held = decoder.retained_bytes() + input.len();
                assert!((come..=come + come / 4 + 16_384).contains(&held), "{held} bytes for {come}");
            }
            input.extend_from_slice(b"\0");
            let Ok(Some(Item::Frame(frame))) = decoder.decode(&mut input) else { panic!("no frame") };
            assert_eq!(frame.body.len(), 3_000_000);
            assert_eq!(decoder.retained_bytes(), 0);
        }
    }

    #[test]
    fn content_length_of_send_counts_bytes() {
        assert_eq!(only_frame("SEND\ncontent-length:5\n\na\0\n\0b\0").body, "a\0\n\0b");
        assert_eq!(only_frame("SEND\ncontent-length:2\n\né\0").body, "é");
    }

    #[test]
    fn content_length_may_be_zero() {
        assert_eq!(only_frame("SEND\ncontent-length:0\n\n\0").body, "");
    }

    #[test]
    fn blanks_around_content_length_are_trimmed() {
        assert_eq!(only_frame("SEND\ncontent-length:  3 \n\na\0b\0").body, "a\0b");
    }

    #[test]
    fn content_length_of_other_commands_is_ignored() {
        assert_eq!(frames("BEGIN\ncontent-length:3\n\na\0\nCOMMIT\ncontent-length:-1\n\n\0").len(), 2);
    }

    #[test]
    fn content_length_that_is_no_number_counts_as_absent() {
        for value in ["abc", "", "1.5", "5 bytes", "0x3"] {
            assert_eq!(only_frame(format!("SEND\ncontent-length:{value}\n\nbody\0")).body, "body", "{value:?}");
        }
    }

    #[test]
    fn negative_content_length_is_an_error() {
        assert_eq!(error("SEND\ncontent-length:-1\n\n"), DecodeError::ContentLengthNegative);
    }

    #[test]
    fn first_content_length_wins() {
        assert_eq!(only_frame("SEND\ncontent-length:3\ncontent-length:-1\n\na\0b\0").body, "a\0b");
    }

    #[test]
    fn a_sized_body_must_end_with_nul() {
        assert_eq!(error("SEND\ncontent-length:3\n\nabcd\0"), DecodeError::BodyNotTerminated { content_length: 3 });
        assert_eq!(error("SEND\ncontent-length:0\n\nabcd\0"), DecodeError::BodyNotTerminated { content_length: 0 });
    }
}

mod limits {
    use super::*;

    fn decode_small(input: impl AsRef<[u8]>) -> Outcome {
        decode_with(input, SMALL, Escapes::All)
    }

    #[test]
    fn a_frame_may_have_as_many_bytes_as_the_limit() {
        let head = "SEND\n\n".len();
        let (items, error) = decode_small(format!("SEND\n\n{}\0", "b".repeat(60 - head - 1)));
        assert_eq!((items.len(), error), (1, None));
        let (items, error) = decode_small(format!("SEND\n\n{}\0", "b".repeat(60 - head)));
        assert_eq!((items.len(), error), (0, Some(DecodeError::FrameTooLarge { limit: 60 })));
    }

    #[test]
    fn a_frame_that_never_ends_is_refused_at_the_limit() {
        let mut decoder = Decoder::new(SMALL, Escapes::All);
        let mut input = BytesMut::from("SEND\n\n");
        input.extend_from_slice(&[b'b'; 53]);
        assert_eq!(decoder.decode(&mut input), Ok(None));
        input.extend_from_slice(b"b");
        assert_eq!(decoder.decode(&mut input), Err(DecodeError::FrameTooLarge { limit: 60 }));
    }

    #[test]
    fn the_limit_holds_for_each_frame_anew() {
        let frame = format!("SEND\n\n{}\0", "b".repeat(53));
        let (items, error) = decode_small(frame.repeat(3));
        assert_eq!((items.len(), error), (3, None));
    }

    #[test]
    fn content_length_beyond_the_limit_is_refused_before_the_body() {
        let head = "SEND\ncontent-length:00\n\n".len();
        let fits = 60 - head - 1;
        let (items, error) = decode_small(format!("SEND\ncontent-length:{fits}\n\n{}\0", "b".repeat(fits)));
        assert_eq!((items.len(), error), (1, None));
        let (_, error) = decode_small(format!("SEND\ncontent-length:{}\n\n", fits + 1));
        assert_eq!(error, Some(DecodeError::ContentLengthTooLarge { limit: 60 }));
        let (_, error) = decode_all(format!("SEND\ncontent-length:{}\n\n", "9".repeat(100)));
        assert_eq!(error, Some(DecodeError::ContentLengthTooLarge { limit: 4 << 20 }));
    }

    #[test]
    fn headers_count_towards_the_frame() {
        let header = format!("a:{}\n", "v".repeat(17));
        let (_, error) = decode_small(format!("SEND\n{header}{header}{header}"));
        assert_eq!(error, Some(DecodeError::FrameTooLarge { limit: 60 }));
    }

    #[test]
    fn a_header_line_may_have_as_many_bytes_as_the_limit() {
        for end in ["\n", "\r\n"] {
            let (items, error) = decode_small(format!("SEND\na:{}{end}{end}\0", "v".repeat(18)));
            assert_eq!((items.len(), error), (1, None));
            let (_, error) = decode_small(format!("SEND\nb:1{end}a:{}{end}{end}\0", "v".repeat(19)));
            assert_eq!(error, Some(DecodeError::HeaderLineTooLong { line: 2, limit: 20 }));
        }
    }

    #[test]
    fn a_header_line_that_never_ends_is_refused_at_the_limit() {
        assert_eq!(decode_small("SEND\n12345678901234567890"), (vec![], None));
        let (_, error) = decode_small("SEND\n123456789012345678901");
        assert_eq!(error, Some(DecodeError::HeaderLineTooLong { line: 1, limit: 20 }));
    }

    #[test]
    fn as_many_headers_as_the_limit_are_accepted() {
        assert_eq!(only_frame(send_with_headers(100)).headers.len(), 100);
    }

    #[test]
    fn one_header_more_is_refused() {
        assert_eq!(error(send_with_headers(101)), DecodeError::TooManyHeaders { limit: 100 });
    }

    #[test]
    fn repeated_headers_do_not_count() {
        let full = send_with_headers(100).replace("\n\n\0", "\nn5:again\n\n\0");
        assert_eq!(only_frame(full).headers.len(), 100);
        let repeated: String = (0..200).map(|number| format!("same:{number}\n")).collect();
        assert_eq!(only_frame(format!("SEND\n{repeated}\n\0")).header("same"), Some("0"));
        let mixed = send_with_headers(50).replace("\n\n\0", &format!("\n{}\n\0", "n7:x\n".repeat(100)));
        assert_eq!(only_frame(mixed).headers.len(), 50);
    }

    #[test]
    fn lines_that_repeat_a_name_have_a_bound_of_their_own() {
        let frame = |lines: usize| format!("SEND\n{}\n\0", "a:\n".repeat(lines));
        let limits = Limits { header_lines_max: 7, ..Limits::default() };
        assert_eq!(decode_with(frame(7), limits, Escapes::All).1, None);
        let error = decode_with(frame(8), limits, Escapes::All).1;
        assert_eq!(error, Some(DecodeError::TooManyHeaderLines { limit: 7 }));
    }

    #[test]
    fn header_lines_have_a_bound_together() {
        let frame = "SEND\na:12345\r\nb:1\n\n\0";
        let limits = |header_bytes_max| Limits { header_bytes_max, ..Limits::default() };
        assert_eq!(decode_with(frame, limits(14), Escapes::All).1, None);
        let error = decode_with(frame, limits(13), Escapes::All).1;
        assert_eq!(error, Some(DecodeError::HeadersTooLarge { limit: 13 }));
    }

    #[test]
    fn limits_can_be_raised_after_login() {
        let mut decoder = Decoder::new(SMALL, Escapes::All);
        let mut input = BytesMut::from("CONNECT\n\n\0");
        assert!(matches!(decoder.decode(&mut input), Ok(Some(Item::Frame(_)))));
        decoder.set_limits(Limits::default());
        input.extend_from_slice(format!("SEND\n\n{}\0", "b".repeat(100)).as_bytes());
        assert!(matches!(decoder.decode(&mut input), Ok(Some(Item::Frame(_)))));
    }

    #[test]
    fn limits_can_be_lowered_within_a_frame() {
        for begun in ["SE", "SEND\nab", "SEND\n\nbody"] {
            let mut decoder = Decoder::new(SMALL, Escapes::All);
            let mut input = BytesMut::from(begun);
            assert_eq!(decoder.decode(&mut input), Ok(None));
            decoder.set_limits(Limits { frame_bytes_max: 1, ..SMALL });
            assert_eq!(decoder.decode(&mut input), Err(DecodeError::FrameTooLarge { limit: 1 }));
        }
    }

    #[test]
    fn limits_of_zero_refuse_every_frame() {
        let none = Limits {
            frame_bytes_max: 0,
            header_count_max: 0,
            header_line_bytes_max: 0,
            header_lines_max: usize::MAX,
            header_bytes_max: usize::MAX,
        };
        assert_eq!(decode_with("\nS", none, Escapes::All).1, Some(DecodeError::FrameTooLarge { limit: 0 }));
    }
}

#[test]
fn in_frame_from_the_first_byte_to_the_nul() {
    let mut decoder = Decoder::new(Limits::default(), Escapes::All);
    let mut input = BytesMut::from("\n\0\r");
    assert_eq!(decoder.decode(&mut input), Ok(Some(Item::Heartbeat)));
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert!(!decoder.in_frame());
    for piece in ["\nS", "END\n", "a:b\n", "\n", "body"] {
        input.extend_from_slice(piece.as_bytes());
        while decoder.decode(&mut input).unwrap().is_some() {}
        assert!(decoder.in_frame(), "{piece:?}");
    }
    input.extend_from_slice(b"\0");
    assert!(matches!(decoder.decode(&mut input), Ok(Some(Item::Frame(_)))));
    assert!(!decoder.in_frame());
}

#[test]
fn the_first_error_is_final() {
    let mut decoder = Decoder::new(Limits::default(), Escapes::All);
    let mut input = BytesMut::from("SEND\nfoo\n\n\0SEND\n\n\0");
    let first = decoder.decode(&mut input);
    assert_eq!(first, Err(DecodeError::HeaderWithoutColon { line: 1 }));
    assert!(!decoder.in_frame());
    input.clear();
    input.extend_from_slice(b"SEND\n\n\0");
    assert_eq!(decoder.decode(&mut input), first);
}

#[test]
fn headers_are_consumed_line_by_line() {
    let mut decoder = Decoder::new(Limits::default(), Escapes::All);
    let mut input = BytesMut::from("SEND\na:1\nb");
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert_eq!(input, "b");
}

#[test]
fn a_frame_without_headers_has_none() {
    assert_eq!(only_frame("ABORT\n\n\0").headers, Headers::new());
}
