//! Any play of a client, a broker, a socket and a clock around one session; see the module for what must hold.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/session_properties/play.rs"]
mod play;

fuzz_target!(|data: &[u8]| {
    play::play(data);
});
