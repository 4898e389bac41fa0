//! Any pattern, value, destination and key; see the module for what must hold.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/rules/play.rs"]
mod play;

fuzz_target!(|text: &str| {
    // Keys and names have 255 bytes at most; longer ones only make the reference slow.
    if text.len() <= 600 && text.matches('#').count() <= 6 {
        play::play(text);
    }
});
