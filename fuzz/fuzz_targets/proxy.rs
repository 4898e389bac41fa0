//! Any bytes where a PROXY protocol header is expected: no panic, the way they are cut changes nothing, and no byte behind the
//! header is taken.

#![no_main]

use libfuzzer_sys::fuzz_target;
use stomp_relay::listener::PROXY_HEADER_BYTES_MAX;
use stomp_relay::listener::fuzzing::{announced, announced_byte_by_byte};

fuzz_target!(|data: &[u8]| {
    let (address, rest) = announced(data);
    let (dripped, dripped_rest) = announced_byte_by_byte(data);
    assert_eq!(address, dripped, "the cuts change the address");
    assert!(data.len() - rest <= PROXY_HEADER_BYTES_MAX);
    if address.is_some() {
        assert_eq!(rest, dripped_rest, "the cuts change the rest");
        // What is behind the header is not looked at.
        let header = &data[..data.len() - rest];
        assert_eq!(announced(header), (address, 0));
    }
});
