//! What clients must not send: each piece is refused with its own ERROR and close code, the limits themselves still pass, and
//! nobody else notices. One neighbour, on the same AMQP connections, sees all of it.

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, Received};

/// 4 MiB and 10 KiB, 100 headers, 64 KiB of message headers: the defaults.
const FRAME_MAX: usize = 4 << 20;
const HEADER_LINE_MAX: usize = 10 << 10;
const HEADERS_MAX: usize = 100;
const MESSAGE_HEADERS_MAX: usize = 64 << 10;

/// Before the messages of a case the client logs in, unless the case is about that.
#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    Login,
    Start,
}

#[derive(Clone, Debug)]
enum Expect {
    /// An ERROR with this message and error-code, and this close code.
    Error(&'static str, &'static str, u16),
    /// Nothing is wrong: a DISCONNECT behind it is answered.
    Fine,
    /// Some ERROR and a close.
    Refused,
}
use Expect::{Error, Fine, Refused};

struct Case {
    expect: Expect,
    from: From,
    /// Binary WebSocket messages.
    messages: Vec<Vec<u8>>,
    name: String,
}

/// Frames as text, `^` standing for NUL.
fn case(name: &str, text: &str, expect: Expect) -> Case {
    raw(name, text.replace('^', "\0").into_bytes(), expect)
}

fn raw(name: &str, bytes: Vec<u8>, expect: Expect) -> Case {
    Case { expect, from: From::Login, messages: vec![bytes], name: name.to_owned() }
}

fn first(name: &str, text: &str, expect: Expect) -> Case {
    Case { from: From::Start, ..case(name, text, expect) }
}

/// Cut in the middle into two messages.
fn halved(case: Case) -> Case {
    let bytes = case.messages.concat();
    let (left, right) = bytes.split_at(bytes.len() / 2);
    Case { messages: vec![left.to_vec(), right.to_vec()], name: format!("{}, halved", case.name), ..case }
}

const MALFORMED: Expect = Error("Malformed frame", "frame.malformed", 1007);
const TOO_BIG: Expect = Error("Unreadable message", "limit.message", 1009);
const BAD_VALUE: Expect = Error("Processing error", "frame.header_value", 1002);
const BAD_NAME: Expect = Error("Invalid destination", "destination.invalid", 1002);
const BAD_COMMAND: Expect = Error("Bad command", "frame.command", 1002);
const BAD_CONNECT: Expect = Error("Bad CONNECT", "connect.refused", 1008);
const FORBIDDEN: Expect = Error("access_refused", "broker.access_refused", 1008);
const PRECONDITION: Expect = Error("precondition_failed", "broker.precondition_failed", 1002);

fn broken_frames() -> Vec<Case> {
    let bytes = |name: &str, bytes: &[u8]| raw(name, bytes.to_vec(), MALFORMED);
    vec![
        case("content-length too short", "SEND\ndestination:/topic/a\ncontent-length:2\n\nabc^", MALFORMED),
        case("content-length too long", "SEND\ncontent-length:9\n\nabc^SEND\ndestination:/topic/a\n\n^", MALFORMED),
        case("content-length in characters", "SEND\ncontent-length:1\n\né^", MALFORMED),
        case("carriage return between frames", "\rSEND\n\n^", MALFORMED),
        case("carriage return in a command", "SE\rND\n\n^", MALFORMED),
        case("carriage return in a header", "SEND\na:b\rc\n\n^", MALFORMED),
        bytes("command not UTF-8", b"SEN\xff\n\n\0"),
        case("long command", &format!("{}\n\n^", "S".repeat(33)), MALFORMED),
        case("negative content-length", "SEND\ncontent-length:-1\n\n^", MALFORMED),
        case("announced body over the limit", &format!("SEND\ncontent-length:{FRAME_MAX}\n\n"), MALFORMED),
        bytes("header name not UTF-8", b"SEND\n\xff:a\n\n\0"),
        bytes("overlong NUL", b"SEND\na:\xc0\x80\n\n\0"),
        bytes("surrogate", b"SEND\na:\xed\xa0\x80\n\n\0"),
        bytes("beyond Unicode", b"SEND\na:\xf4\x90\x80\x80\n\n\0"),
        bytes("cut character", b"SEND\na:\xe2\x82\n\n\0"),
        case("header without colon", "SEND\nabc\n\n^", MALFORMED),
        case("NUL in the command", "SEND^", MALFORMED),
        case("NUL in a header", "SEND\na:b^", MALFORMED),
        case("undefined escape in a name", "SEND\n\\t:b\n\n^", MALFORMED),
        case("undefined escape in a value", "SEND\na:b\\\n\n^", MALFORMED),
        case("broken behind a good frame", "BEGIN\ntransaction:t\n\n^NONSENSE^", MALFORMED),
        case("unknown command", "NONSENSE\n\n^", BAD_COMMAND),
        case("lower case", "send\ndestination:/topic/a\n\n^", BAD_COMMAND),
        case("a server's command", "MESSAGE\ndestination:/topic/a\n\n^", BAD_COMMAND),
        case("command with a blank", "SEND \ndestination:/topic/a\n\n^", BAD_COMMAND),
        case("a request of HTTP", "GET / HTTP/1.1\nHost: a\n\n^", BAD_COMMAND),
    ]
}

fn limits() -> Vec<Case> {
    // The topic has no listener: nothing piles up.
    let send = |headers: &str| format!("SEND\ndestination:/topic/limit\n{headers}\n\n^");
    let line = |bytes: usize| send(&format!("x:{}", "v".repeat(bytes - 2)));
    let headers = |count: usize| {
        let lines: Vec<String> = (1..count).map(|number| format!("h{number}:v")).collect();
        send(&lines.join("\n"))
    };
    let frame = |bytes: usize| {
        let head = "SEND\ndestination:/topic/limit\n\n";
        format!("{head}{}^", "b".repeat(bytes - head.len() - 1))
    };
    // As the relay counts them: name, value, 6 bytes each.
    let message_headers = |bytes: usize| {
        let each = 8000;
        let whole = (bytes - 1) / each;
        let sizes = (0..whole).map(|_| each).chain([bytes - whole * each]);
        let lines: Vec<String> =
            sizes.enumerate().map(|(number, size)| format!("h{number:02}:{}", "v".repeat(size - 9))).collect();
        send(&lines.join("\n"))
    };
    let keys = |count: usize| vec!["k"; count].join(",");
    let commas = ",".repeat(HEADER_LINE_MAX - 4);
    let filler = "v".repeat(HEADER_LINE_MAX - 4);
    let bindings: Vec<String> = (0..90).map(|number| format!("x-bind-{number:02}:{filler:.10000}")).collect();
    let bindings = bindings.join("\n");
    let too_long = Error("Invalid header", "frame.header", 1002);
    let many_headers = Error("Invalid header", "limit.message_headers", 1002);
    vec![
        case("longest header line", &line(HEADER_LINE_MAX), Fine),
        case("header line over the limit", &line(HEADER_LINE_MAX + 1), MALFORMED),
        case("most headers", &headers(HEADERS_MAX), Fine),
        case("a header too many", &headers(HEADERS_MAX + 1), MALFORMED),
        case("largest frame", &frame(FRAME_MAX), Fine),
        case("message over the limit", &frame(FRAME_MAX + 1), TOO_BIG),
        halved(case("largest frame", &frame(FRAME_MAX), Fine)),
        halved(case("frame over the limit", &frame(FRAME_MAX + 1), MALFORMED)),
        case("most message headers", &message_headers(MESSAGE_HEADERS_MAX), Fine),
        case("message headers over the limit", &message_headers(MESSAGE_HEADERS_MAX + 1), many_headers),
        case("longest header name", &send(&format!("{}:v", "n".repeat(255))), Fine),
        case("header name over AMQP's limit", &send(&format!("{}:v", "n".repeat(256))), too_long),
        case("empty header name", &send(":v"), Fine),
        case("longest short property", &send(&format!("content-type:{}", "t".repeat(255))), Fine),
        case("short property over AMQP's limit", &send(&format!("content-type:{}", "t".repeat(256))), BAD_VALUE),
        // Each comma makes an entry of a list, which takes more bytes in AMQP than in STOMP.
        case(
            "lists that grow",
            &send(&format!("CC:{commas}\nBCC:{commas}\na:{filler}\nb:{filler}\nc:{filler}\nd:{filler}")),
            Error("Invalid header", "limit.copies", 1002),
        ),
        case("most copies", &send(&format!("CC:{}\nBCC:{}", keys(60), keys(40))), Fine),
        case(
            "copies over the limit",
            &send(&format!("CC:{}\nBCC:{}", keys(60), keys(41))),
            Error("Invalid header", "limit.copies", 1002),
        ),
        case(
            "binding arguments beyond a frame of AMQP",
            &format!("SUBSCRIBE\nid:1\ndestination:/exchange/amq.headers/k\n{bindings}\n\n^"),
            MALFORMED,
        ),
        Case {
            from: From::Start,
            ..case(
                "message over the limit before login",
                &format!("CONNECT\n\n{}^", "b".repeat(64 << 10)),
                Error("Unreadable message", "limit.message", 1009),
            )
        },
        Case {
            from: From::Start,
            ..halved(case("frame before login", &format!("CONNECT\n\n{}^", "b".repeat(64 << 10)), MALFORMED))
        },
        case(
            "20,000 frames in one message",
            &"BEGIN\ntransaction:t\n\n^ABORT\ntransaction:t\n\n^".repeat(10_000),
            Fine,
        ),
        case(
            "20,000 receipts in one message",
            &"BEGIN\ntransaction:t\nreceipt:b\n\n^ABORT\ntransaction:t\nreceipt:a\n\n^".repeat(10_000),
            Fine,
        ),
        case("a million line feeds", &format!("{}SEND\ndestination:/topic/limit\n\n^", "\n".repeat(1_000_000)), Fine),
        case(
            "a million repeats of a header",
            &send(&"a:\n".repeat(1_000_000).trim_end().replace("a:", "x:")),
            MALFORMED,
        ),
    ]
}

fn headers() -> Vec<Case> {
    let missing = |message| Error(message, "frame.header_missing", 1002);
    let mut cases = vec![
        case("SEND without destination", "SEND\n\nx^", missing("Missing destination")),
        case("SUBSCRIBE without destination", "SUBSCRIBE\nid:1\n\n^", missing("Missing destination")),
        case("UNSUBSCRIBE of nothing", "UNSUBSCRIBE\n\n^", missing("Missing destination or id")),
        case("durable without id", "SUBSCRIBE\ndestination:/topic/a\ndurable:true\n\n^", missing("Missing Header")),
        case("ACK without id", "ACK\n\n^", missing("Missing header")),
        case("NACK without id", "NACK\nmessage-id:x\n\n^", missing("Missing header")),
        case("BEGIN without transaction", "BEGIN\n\n^", missing("Missing transaction")),
        case("COMMIT of nothing", "COMMIT\ntransaction:t\n\n^", Error("Bad transaction", "transaction.invalid", 1002)),
        case(
            "BEGIN twice",
            &"BEGIN\ntransaction:t\n\n^".repeat(2),
            Error("Bad transaction", "transaction.invalid", 1002),
        ),
        case(
            "UNSUBSCRIBE of another's",
            "UNSUBSCRIBE\nid:neighbour\n\n^",
            Error("No subscription found", "subscription.unknown", 1002),
        ),
        case(
            "message-id on SEND",
            "SEND\ndestination:/topic/a\nmessage-id:1\n\n^",
            Error("Invalid header", "frame.header", 1002),
        ),
        case("ACK of nonsense", "ACK\nid:nonsense\n\n^", Error("Invalid header", "ack.id", 1002)),
        case("ACK of a word", "ACK\nid:T_1@@session-x@@one\n\n^", BAD_VALUE),
        case("ACK beyond 64 bits", "ACK\nid:T_1@@session-x@@18446744073709551616\n\n^", BAD_VALUE),
        case("forged ACK", "ACK\nid:T_neighbour@@session-x@@1\n\n^", Error("Message not found", "ack.unknown", 1002)),
        case("forged NACK", "NACK\nid:T_neighbour@@session-x@@1\n\n^", Error("Message not found", "ack.unknown", 1002)),
        case(
            "duplicated id",
            &"SUBSCRIBE\nid:1\ndestination:/topic/a\n\n^".repeat(2),
            Error("Duplicated subscription identifier", "subscription.duplicate", 1002),
        ),
        case("id of a reply queue", "SUBSCRIBE\nid:/temp-queue/a\ndestination:/topic/a\n\n^", BAD_VALUE),
        case("unknown ack mode", "SUBSCRIBE\nid:1\ndestination:/topic/a\nack:sometimes\n\n^", BAD_VALUE),
        case("another's user-id", "SEND\ndestination:/topic/a\nuser-id:somebody\n\n^", PRECONDITION),
        case("zero prefetch", "SUBSCRIBE\nid:1\ndestination:/topic/a\nprefetch-count:0\n\n^", Fine),
        case("large prefetch", "SUBSCRIBE\nid:1\ndestination:/topic/a\nprefetch-count:4294967296\n\n^", Fine),
        case("largest timestamp", "SEND\ndestination:/topic/a\ntimestamp:18446744073709551615\n\n^", Fine),
        case("largest expiration", "SEND\ndestination:/topic/a\nexpiration:4294967295\n\n^", Fine),
        case(
            "text beyond the basic plane",
            "SEND\ndestination:/topic/𝄞\n😀:\u{feff}\u{fffe}\u{10ffff}e\u{301}\n\n^",
            Fine,
        ),
        case("junk as content-length", "SEND\ndestination:/topic/a\ncontent-length:ten\n\nabc^", BAD_VALUE),
        case("header of dead-lettering", "SEND\ndestination:/topic/a\nx-death:1\nx-first-death-queue:q\n\n^", Fine),
        case("negative delay", "SEND\ndestination:/topic/a\nx-delay:-1\n\n^", Fine),
    ];
    for (name, values) in [
        ("priority", &["256", "-1", "high", "1.5", ""][..]),
        ("timestamp", &["-1", "18446744073709551616", "now", ""]),
        ("expiration", &["-1", "4294967296", "1.5", "5s", "", "１"]),
        ("durable", &["maybe", "1"]),
        ("auto-delete", &["yes"]),
        ("x-message-ttl", &["soon", "99999999999999999999"]),
        ("x-single-active-consumer", &["perhaps"]),
        ("reply-to", &["", "/nonsense", "/queue/a/b", "amq.rabbitmq.reply-to"]),
    ] {
        for value in values {
            let name = format!("{name}:{value} on SEND");
            let header = name.trim_end_matches(" on SEND");
            cases.push(case(&name, &format!("SEND\ndestination:/queue/never\n{header}\n\n^"), BAD_VALUE));
        }
    }
    for (name, values) in [
        ("prefetch-count", &["-1", "many", "1.5", "", "99999999999999999999"][..]),
        ("exclusive", &["TRUE"]),
        (
            "x-stream-offset",
            &["bogus", "", "offset=x", "offset=9223372036854775808", "timestamp=-1", "timestamp=4294967296"],
        ),
        ("x-stream-match-unfiltered", &["2"]),
        ("x-priority", &["top", "2147483648"]),
        ("x-max-length", &["1e3", "-1"]),
        ("x-message-ttl", &["-1"]),
        ("x-expires", &["0"]),
        ("x-max-priority", &["256"]),
        ("x-queue-type", &["nonsense"]),
        ("x-overflow", &["nonsense"]),
        ("x-queue-mode", &["nonsense"]),
    ] {
        for value in values {
            let name = format!("{name}:{value} on SUBSCRIBE");
            let header = name.trim_end_matches(" on SUBSCRIBE");
            cases.push(case(&name, &format!("SUBSCRIBE\nid:1\ndestination:/queue/never\n{header}\n\n^"), BAD_VALUE));
        }
    }
    // These the broker refuses.
    for argument in ["x-dead-letter-routing-key:without-exchange", "x-queue-type:quorum\nexclusive:true"] {
        let text = format!("SUBSCRIBE\nid:1\ndestination:/queue/never\n{argument}\n\n^");
        cases.push(case(argument, &text, PRECONDITION));
    }
    cases
}

fn destinations() -> Vec<Case> {
    let (long, longest) = ("n".repeat(256), "n".repeat(255));
    let unknown = || Error("Unknown destination", "destination.unknown", 1002);
    let not_found = || Error("not_found", "broker.not_found", 1008);
    let mut cases = Vec::new();
    for (destination, on_send, on_subscribe) in [
        ("".to_owned(), BAD_NAME, BAD_NAME),
        ("/queue".to_owned(), BAD_NAME, BAD_NAME),
        ("/queue/".to_owned(), BAD_NAME, BAD_NAME),
        ("/queue/a/b".to_owned(), BAD_NAME, BAD_NAME),
        (format!("/queue/{long}"), BAD_NAME, BAD_NAME),
        (format!("/queue/{longest}"), Fine, Fine),
        (format!("/queue/{}", "é".repeat(128)), BAD_NAME, BAD_NAME),
        (long.clone(), BAD_NAME, BAD_NAME),
        (format!("/topic/{long}"), BAD_NAME, BAD_NAME),
        (format!("/topic/{longest}"), Fine, Fine),
        (format!("/exchange/{long}"), BAD_NAME, BAD_NAME),
        (format!("/exchange/{longest}"), not_found(), not_found()),
        (format!("/exchange/amq.direct/{long}"), BAD_NAME, BAD_NAME),
        (format!("/exchange/amq.direct/{longest}"), Fine, Fine),
        (format!("/amq/queue/{long}"), BAD_NAME, BAD_NAME),
        (format!("/reply-queue/{long}"), BAD_NAME, BAD_NAME),
        ("/queue/a\\nb".to_owned(), BAD_NAME, BAD_NAME),
        ("/queue/a\\rb".to_owned(), BAD_NAME, BAD_NAME),
        ("/queue/a\tb".to_owned(), BAD_NAME, BAD_NAME),
        ("/queue/a\u{7f}b".to_owned(), BAD_NAME, BAD_NAME),
        ("/topic/a\u{85}b".to_owned(), BAD_NAME, BAD_NAME),
        ("/nonsense/a".to_owned(), unknown(), unknown()),
        ("queue/a".to_owned(), unknown(), unknown()),
        ("/temp-queue/a".to_owned(), BAD_NAME, BAD_NAME),
        ("/queue/amq.rabbitmq.reply-to".to_owned(), FORBIDDEN, FORBIDDEN),
        ("/queue/amq.rabbitmq.reply-to.AAAA.AAAA".to_owned(), FORBIDDEN, FORBIDDEN),
        ("amq.rabbitmq.reply-to.AAAA.AAAA".to_owned(), FORBIDDEN, FORBIDDEN),
        ("/amq/queue/amq.rabbitmq.reply-to.AAAA.AAAA".to_owned(), FORBIDDEN, FORBIDDEN),
        ("/reply-queue/amq.rabbitmq.reply-to.AAAA.AAAA".to_owned(), FORBIDDEN, FORBIDDEN),
        ("/exchange//amq.rabbitmq.reply-to.AAAA.AAAA".to_owned(), BAD_NAME, BAD_NAME),
        ("/exchange/amq.rabbitmq.trace".to_owned(), FORBIDDEN, FORBIDDEN),
        ("/exchange/amq.rabbitmq.trace/#".to_owned(), FORBIDDEN, FORBIDDEN),
        ("/exchange/amq.rabbitmq.log/info".to_owned(), FORBIDDEN, FORBIDDEN),
        ("/queue/amq.foo".to_owned(), FORBIDDEN, FORBIDDEN),
        ("/exchange/nonsense/k".to_owned(), not_found(), not_found()),
        ("/amq/queue/nonsense".to_owned(), Fine, not_found()),
    ] {
        let shown: String = destination.chars().take(40).flat_map(char::escape_default).collect();
        let send = format!("SEND\ndestination:{destination}\n\n^");
        let subscribe = format!("SUBSCRIBE\nid:1\ndestination:{destination}\n\n^");
        cases.push(case(&format!("SEND to {shown}"), &send, on_send));
        cases.push(case(&format!("SUBSCRIBE to {shown}"), &subscribe, on_subscribe));
    }
    let receipted = "SEND\ndestination:/amq/queue/nonsense\nreceipt:r\n\n^";
    cases.push(case("unroutable", receipted, Error("Message returned", "publish.unroutable", 1008)));
    let carbon = "SEND\ndestination:/topic/a\nCC:amq.rabbitmq.reply-to.AAAA.AAAA\nBCC:amq.rabbitmq.reply-to\n\n^";
    cases.push(case("carbon copy to direct reply-to", carbon, Error("access_refused", "broker.access_refused", 1008)));
    let nack = "SUBSCRIBE\nid:1\ndestination:/queue/stream\nx-queue-type:stream\nauto-delete:false\nexclusive:false\n\
                durable:true\nack:client-individual\nprefetch-count:5\n\n^\
                SEND\ndestination:/queue/stream\nx-queue-type:stream\nreceipt:stored\n\nx^NACK\nid:{ack}\n\n^";
    cases.push(case("NACK of a stream's message", nack, Error("Processing error", "ack.stream", 1002)));
    let again = "SUBSCRIBE\nid:1\ndestination:/queue/neighbour\nx-max-length:5\n\n^";
    cases.push(case("declared otherwise", again, PRECONDITION));
    let locked = "SUBSCRIBE\nid:1\ndestination:/amq/queue/neighbour.own\n\n^";
    cases.push(case("another's exclusive queue", locked, Error("resource_locked", "broker.resource_locked", 1008)));
    cases
}

fn logins() -> Vec<Case> {
    let connect = |lines: &str| format!("CONNECT\naccept-version:1.2\n{lines}\n\n^");
    let illegal = |code| Error("Illegal command", code, 1002);
    let repeated =
        format!("{}BEGIN\ntransaction:a\n\n^", "BEGIN\ntransaction:t\n\n^ABORT\ntransaction:t\n\n^".repeat(499));
    vec![
        first("SEND first", "SEND\ndestination:/topic/a\n\n^", illegal("connect.required")),
        first(
            "unknown version",
            "CONNECT\naccept-version:3.0\n\n^",
            Error("Version mismatch", "connect.version", 1002),
        ),
        first("no credentials", &connect("host:/"), BAD_CONNECT),
        first("wrong passcode", &connect("host:/\nlogin:guest\npasscode:wrong"), BAD_CONNECT),
        first("unknown user", &connect("host:/\nlogin:nobody\npasscode:x"), BAD_CONNECT),
        first("unknown virtual host", &connect("host:nonsense\nlogin:guest\npasscode:guest"), BAD_CONNECT),
        first(
            "long virtual host",
            &connect(&format!("host:{}\nlogin:guest\npasscode:guest", "h".repeat(256))),
            BAD_CONNECT,
        ),
        first("long login", &connect(&format!("login:{}\npasscode:x", "l".repeat(9000))), Refused),
        first("long passcode", &connect(&format!("login:guest\npasscode:{}", "p".repeat(9000))), Refused),
        first("heart-beat of words", &connect("login:guest\npasscode:guest\nheart-beat:often,never"), BAD_VALUE),
        first("heart-beat of one number", &connect("login:guest\npasscode:guest\nheart-beat:1"), BAD_VALUE),
        first("largest heart-beat", &connect("login:guest\npasscode:guest\nheart-beat:4294967295,4294967295"), Fine),
        case("CONNECT twice", &connect("login:guest\npasscode:guest"), illegal("connect.repeated")),
        case(
            "CONNECT as the 1000th frame",
            &(repeated + &connect("login:guest\npasscode:guest")),
            illegal("connect.repeated"),
        ),
    ]
}

/// Bytes without a plan, and good frames with a few bytes changed. What ends each of them makes whatever is open a frame,
/// and the last is refused.
fn noise() -> Vec<Case> {
    const END: &[u8] = b"\n\n\0\0BAD\n\n\0";
    let mut random = Random(0x5eed);
    let mut cases = Vec::new();
    for number in 0..30 {
        let bytes: Vec<u8> = (0..random.below(2000)).map(|_| random.below(256) as u8).collect();
        cases.push(raw(&format!("random bytes {number}"), [&bytes, END].concat(), Refused));
    }
    let good = "SUBSCRIBE\nid:1\ndestination:/queue/noise\nack:client\nauto-delete:true\ndurable:false\n\n^\
                BEGIN\ntransaction:t\n\n^SEND\ndestination:/exchange/amq.direct/noise\ntransaction:t\npriority:1\nexpiration:9\n\nhello^\
                SEND\ndestination:/topic/noise\nreply-to:/temp-queue/noise\nreceipt:1\nx-a\\c:b\\n\n\nhello^\
                COMMIT\ntransaction:t\nreceipt:2\n\n^UNSUBSCRIBE\nid:1\n\n^";
    for number in 0..60 {
        let mut bytes = good.replace('^', "\0").into_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                _ => drop(bytes.remove(at)),
            }
        }
        cases.push(raw(&format!("changed bytes {number}"), [&bytes, END].concat(), Refused));
    }
    cases
}

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Until {
    Close,
    Error,
}

fn cases() -> impl Iterator<Item = Case> {
    [broken_frames(), limits(), headers(), destinations(), logins(), noise()].into_iter().flatten()
}

/// A relay, a login and virtual host of its own, and the neighbour.
struct House {
    client: Client,
    login: String,
    rabbit: &'static Rabbit,
    relay: Relay,
    turn: usize,
}

impl House {
    async fn open(settings: &str) -> House {
        let rabbit = Rabbit::shared();
        let login = unique("bad-input");
        rabbit.ctl(&["add_vhost", &login]);
        rabbit.add_user(&login, "secret", &login, [".*"; 3]);
        let relay = Relay::start_with(rabbit, settings);
        let client = House::neighbour(&relay, &login).await;
        let mut house = House { client, login, rabbit, relay, turn: 0 };
        assert!(house.message_arrives().await);
        house
    }

    async fn neighbour(relay: &Relay, login: &str) -> Client {
        let mut client = relay.client_with(&House::connect(login)).await;
        client.subscribe("id:neighbour\ndestination:/queue/neighbour").await;
        client
            .subscribe("id:own\ndestination:/exchange/amq.direct/own\nexclusive:true\nx-queue-name:neighbour.own")
            .await;
        client
    }

    fn connect(login: &str) -> String {
        format!("accept-version:1.2\nhost:{login}\nlogin:{login}\npasscode:secret")
    }

    /// Whether the neighbour can still send and gets what it sends, over both of its AMQP connections.
    async fn message_arrives(&mut self) -> bool {
        self.turn += 1;
        let body = format!("turn {}", self.turn);
        self.client.send(&format!("SEND\ndestination:/queue/neighbour\n\n{body}")).await;
        loop {
            match self.client.receive().await {
                Received::Close(..) => return false,
                Received::Frame(frame) => return frame.command.as_str() == "MESSAGE" && frame.body == body,
                Received::Heartbeat => {}
            }
        }
    }

    /// The AMQP connections of this login that anybody depends on.
    fn links(&self) -> Vec<String> {
        self.rabbit.links_of(&self.login)
    }

    async fn leave(self) {
        self.client.disconnect().await;
        self.rabbit.ctl(&["delete_vhost", &self.login]);
        self.rabbit.ctl(&["delete_user", &self.login]);
    }

    /// What came of a case up to the close, or up to the first ERROR, in the words of its expectation.
    async fn outcome(&self, case: &Case, until: Until) -> String {
        let mut client = match case.from {
            From::Login => self.relay.client_with(&House::connect(&self.login)).await,
            From::Start => Client::open(&self.relay.ws).await,
        };
        for message in &case.messages {
            let text = String::from_utf8_lossy(message);
            let Some((before, after)) = text.split_once("{ack}") else {
                client.send_bytes(message).await;
                continue;
            };
            let cut = before.rfind('\0').expect("a frame before it") + 1;
            client.send_bytes(&before.as_bytes()[..cut]).await;
            let ack = loop {
                let frame = client.frame().await;
                if let Some(ack) = frame.header("ack") {
                    break ack.to_owned();
                }
                assert_ne!(frame.command.as_str(), "ERROR", "{frame:?}");
            };
            client.send_bytes(format!("{}{ack}{after}", &before[cut..]).as_bytes()).await;
        }
        // Behind what is refused it may come too late to be written.
        if matches!(case.expect, Fine) || until == Until::Error {
            let _ = client.try_send("DISCONNECT\nreceipt:bye\n\n").await;
        }
        let mut story = String::new();
        loop {
            match client.receive().await {
                Received::Close(code, _) => return format!("{story}{code}"),
                Received::Frame(frame) => match frame.command.as_str() {
                    "ERROR" => {
                        let header = |name| frame.header(name).unwrap_or_default();
                        story.push_str(&format!("ERROR {} ({}) ", header("message"), header("error-code")));
                        if until == Until::Error {
                            return story;
                        }
                    }
                    _ if frame.header("receipt-id") == Some("bye") => story.push_str("fine "),
                    _ => {}
                },
                Received::Heartbeat => {}
            }
        }
    }
}

impl Expect {
    fn is(&self, outcome: &str) -> bool {
        match self {
            Error(message, code, close) => outcome == format!("ERROR {message} ({code}) {close}"),
            Fine => outcome == "fine 1000",
            Refused => {
                outcome.starts_with("ERROR ") && outcome.matches("ERROR").count() == 1 && !outcome.ends_with("1006")
            }
        }
    }
}

/// Plays every case; what is wrong, a line each.
async fn play(house: &mut House, until: Until) -> String {
    let links = house.links();
    assert_eq!(links.len(), 2, "one AMQP connection to publish and one to consume: {links:?}");
    let mut wrong = String::new();
    for case in cases() {
        let outcome = house.outcome(&case, until).await;
        if until == Until::Close && !case.expect.is(&outcome) {
            wrong.push_str(&format!("{}: {outcome}, not {:?}\n", case.name, case.expect));
        }
        if !house.message_arrives().await {
            wrong.push_str(&format!("{}: {outcome}, and the neighbour is hurt\n", case.name));
            house.client = House::neighbour(&house.relay, &house.login).await;
        }
    }
    if house.links() != links {
        wrong.push_str("the AMQP connections are not the same any more\n");
    }
    wrong
}

#[tokio::test]
async fn bad_input_is_refused_and_hurts_nobody_else() {
    let mut house = House::open("").await;
    let wrong = play(&mut house, Until::Close).await;
    assert!(wrong.is_empty(), "{wrong}");
    house.leave().await;
}

/// Much of it is no error there, or one that leaves the connection open; but the neighbour's peace is the same.
#[tokio::test]
async fn bad_input_hurts_nobody_else_in_compatibility_mode() {
    let mut house = House::open("[stomp]\ncompatibility = \"rabbitmq\"\n").await;
    let wrong = play(&mut house, Until::Error).await;
    assert!(wrong.is_empty(), "{wrong}");
    house.leave().await;
}
