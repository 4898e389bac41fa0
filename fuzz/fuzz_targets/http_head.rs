//! Any bytes where an HTTP request is expected: no panic, an HTTP answer or none, and no WebSocket for a page that may not
//! connect. The client is behind a trusted proxy, so that forwarding headers are read too.

#![no_main]

use libfuzzer_sys::fuzz_target;
use stomp_relay::listener::fuzzing::{ORIGIN, knock};

/// So that mutations begin where requests differ.
const GOOD: &str = "GET /ws HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fuzz_target!(|data: &[u8]| {
    let [kind, rest @ ..] = data else { return };
    let bytes = if kind % 2 == 0 { rest.to_vec() } else { [GOOD.as_bytes(), rest, b"\r\n\r\n"].concat() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let knocked = runtime.block_on(knock(&bytes));
    assert!(knocked.answer.is_empty() || knocked.answer.starts_with(b"HTTP/1."), "{:?}", knocked.answer);
    if let Some((origin, source)) = knocked.opened {
        let allowed = |origin: &str| origin.trim_end_matches(":443").eq_ignore_ascii_case(ORIGIN);
        assert!(origin.as_deref().is_none_or(allowed), "{origin:?}");
        assert!(!source.is_local());
        assert!(source.through().len() <= stomp_relay::listener::HOPS_MAX);
    }
});
