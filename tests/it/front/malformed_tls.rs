//! Peers that do not finish a TLS handshake: those that leave, those that stand still, and bytes that are no TLS.

use std::time::Duration;

use super::tls_server::{Front, PLAIN, Setup};
use crate::support::authority::{Authority, BOTH, handshake, shown};
use crate::support::raw_http::RawClient;

/// Short, because some of these peers wait for it; long enough for a good one on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn handshakes_that_end_or_stand_still_are_counted() {
    let front = Front::start(Setup { handshake_timeout: TIMEOUT, ..PLAIN });
    // A load balancer that looks whether the port is open.
    drop(front.server.connect().await);
    front.count_is("lost", "none", 1).await;
    // Half a hello, and then nothing: the deadline ends it.
    let mut silent = front.server.raw().await;
    silent.send(&record(0x16, &[1, 0, 1, 0])[..7]).await;
    assert_eq!(silent.rest().await, b"");
    front.count_is("timeout", "none", 1).await;
    // A client that does not trust the authority says so.
    let error = handshake(&front.address, "localhost", Authority::new("other").trusting(None, &BOTH)).await;
    assert!(error.unwrap_err().to_string().contains("UnknownIssuer"));
    front.count_is("failed", "none", 1).await;
}

/// A TLS record with the length it really has.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, 3, 1], &length[..], body].concat()
}

/// The first bytes of a hello that says to have 64,000, in records of 16,000.
fn unfinished_hello(bytes: usize) -> Vec<u8> {
    let length = 64_000_u32.to_be_bytes();
    let hello = [&[1], &length[1..], &[3, 3], &vec![7; bytes]].concat();
    hello.chunks(16_000).flat_map(|part| record(0x16, part)).collect()
}

#[tokio::test]
async fn malformed_bytes_end_their_connection_only() {
    let front = Front::start(Setup { handshake_timeout: TIMEOUT, ..PLAIN });
    let mut good =
        RawClient::new(handshake(&front.address, "localhost", front.authority.trusting(None, &BOTH)).await.unwrap());
    // The message length says more than 64 KiB.
    let hello_of_any_length = [&[1, 0xff, 0xff, 0xff][..], &[0; 100]].concat();
    let many_extensions = {
        let mut extensions = Vec::new();
        for kind in 0..3000_u16 {
            extensions.extend_from_slice(&[&kind.to_be_bytes()[..], &[0, 0]].concat());
        }
        let length = u16::try_from(extensions.len()).unwrap().to_be_bytes();
        let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &length, &extensions].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        record(0x16, &[&[1], &length[1..], &body].concat())
    };
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing but the first byte's promise", vec![0x16, 0xff, 0xff, 0xff, 0xff], "failed"),
        ("a record of an unknown version", vec![0x16, 9, 9, 0, 1, 1], "any"),
        ("an empty record", record(0x16, b""), "any"),
        ("a record that is too long", [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat(), "failed"),
        ("a handshake of an unknown kind", record(0x16, &[99, 0, 0, 0]), "failed"),
        ("a server's hello", record(0x16, &[2, 0, 0, 2, 3, 3]), "failed"),
        ("a hello of 60 KB, beyond all", unfinished_hello(60_000), "failed"),
        ("a hello without a body", record(0x16, &[1, 0, 0, 0]), "failed"),
        ("a hello that is cut", record(0x16, &[1, 0, 0, 10, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0]), "failed"),
        ("a hello with a length beyond all", record(0x16, &hello_of_any_length), "failed"),
        ("a hello with thousands of extensions", many_extensions, "failed"),
        ("random bytes, which say a length beyond all", record(0x16, &[0xa5; 1000]), "failed"),
        ("an alert first", record(0x15, &[2, 40]), "not_tls"),
        ("application data first", record(0x17, b"GET / HTTP/1.1"), "not_tls"),
        ("change cipher spec first", record(0x14, &[1]), "not_tls"),
        ("an SSL 2 hello", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10], "not_tls"),
        ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "not_tls"),
        ("a heartbeat request", vec![0x18, 3, 3, 0, 3, 1, 0x40, 0], "not_tls"),
        ("zeros", vec![0; 4096], "not_tls"),
    ];
    for (what, bytes, result) in table {
        let before = front.counted(result, "none");
        let mut client = front.server.raw().await;
        // The server may close before it has all.
        let _ = client.try_send(&bytes).await;
        let answer = client.rest().await;
        // Nothing is said to a message that will not be waited for.
        if result == "failed" && !what.ends_with("beyond all") {
            assert_eq!(answer.first(), Some(&0x15), "{what}: an alert, not {answer:?}");
        }
        if result != "any" {
            front.count_is(result, "none", before + 1).await;
        }
    }
    // A hello in records of one byte is slow, not wrong.
    let mut hello = Vec::new();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(front.authority.trusting(None, &BOTH), name).unwrap();
    connection.write_tls(&mut hello).unwrap();
    let mut client = front.server.raw().await;
    for byte in &hello[5..] {
        client.send([0x16, 3, 1, 0, 1, *byte]).await;
    }
    drop(client);
    assert_eq!(good.request("GET", "/", "").await.status, 404);
    shown(&front.address, "localhost", front.authority.trusting(None, &BOTH)).await;
}
