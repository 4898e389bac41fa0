//! Does one thing N times, for a tool outside to count the instructions and allocations of it.
//!
//! `instructions list` names the cases, `instructions CASE N` runs one. Owns what the cases are; counts and compares
//! nothing itself: that is scripts/instructions.

use std::process::ExitCode;

// The relay uses more of these rooms than the cases do.
#[allow(dead_code)]
#[path = "../../../src/rate.rs"]
mod rate;
#[allow(dead_code, unused_imports)]
#[path = "../../../src/session/mod.rs"]
mod session;
#[allow(dead_code, unused_imports)]
#[path = "../../../src/stomp/mod.rs"]
mod stomp;

mod client;
mod codec;
mod play;

/// A name, what it is, and what to do so many times.
type Case = (&'static str, &'static str, fn(u64));

const CASES: [Case; 12] = [
    ("decode-send", "SEND with 5 headers and 100 B, decoded", codec::decode_send),
    ("decode-send-in-pieces", "the same, arriving 7 bytes at a time", codec::decode_send_in_pieces),
    ("decode-send-16k", "the same with 16 KiB", codec::decode_send_16k),
    ("encode-message", "MESSAGE with 7 headers and 100 B, encoded", codec::encode_message),
    ("encode-receipt", "RECEIPT, encoded", codec::encode_receipt),
    ("send", "SEND to a queue without receipt: decoded, published, confirmed", play::send),
    ("send-receipt", "the same with a receipt, to the RECEIPT's bytes", play::send_receipt),
    ("deliver-auto", "a delivery to the MESSAGE's bytes, settled once written", play::deliver_auto),
    ("deliver-individual", "the same, settled by the client's ACK", play::deliver_individual),
    ("deliver-next-subscriber", "a shared message to one more of its subscribers", play::deliver_next_subscriber),
    ("connect-subscribe", "a session: CONNECT, SUBSCRIBE, UNSUBSCRIBE, its end", play::connect_subscribe),
    ("idle-session", "a session with a subscription that stays", play::idle_session),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => CASES.iter().for_each(|(name, what, _)| println!("{name} {what}")),
        [name, times] => {
            let case = CASES.iter().find(|(known, ..)| *known == name);
            let (Some((_, _, run)), Ok(times)) = (case, times.parse()) else { return usage() };
            run(times);
        }
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("instructions list | CASE N");
    ExitCode::from(2)
}
