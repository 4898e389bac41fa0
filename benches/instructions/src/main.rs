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

/// A name of letters and hyphens, and what to do so many times.
type Case = (&'static str, fn(u64));

const CASES: [Case; 11] = [
    ("decode-send", codec::decode_send),
    ("decode-send-in-pieces", codec::decode_send_in_pieces),
    ("decode-send-16k", codec::decode_send_16k),
    ("encode-message", codec::encode_message),
    ("encode-receipt", codec::encode_receipt),
    ("send", play::send),
    ("send-receipt", play::send_receipt),
    ("deliver-auto", play::deliver_auto),
    ("deliver-individual", play::deliver_individual),
    ("deliver-next-subscriber", play::deliver_next_subscriber),
    ("connect-subscribe", play::connect_subscribe),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => CASES.iter().for_each(|(name, _)| println!("{name}")),
        [name, times] => {
            let case = CASES.iter().find(|(known, _)| *known == name);
            let (Some((_, run)), Ok(times)) = (case, times.parse()) else { return usage() };
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
