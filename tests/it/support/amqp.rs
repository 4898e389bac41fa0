//! A raw AMQP 0-9-1 publisher: puts bytes into messages that no well-behaved client library writes. Every publish is confirmed.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stomp::DEADLINE;

const FRAME_END: u8 = 0xCE;
const CHANNEL: u16 = 1;

pub struct Publisher {
    stream: TcpStream,
}

impl Publisher {
    /// Logs in as guest on `/` with frames as large as the broker allows, and opens a channel in confirm mode.
    pub async fn connect(port: u16) -> Publisher {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the broker listens");
        let mut publisher = Publisher { stream };
        publisher.write(b"AMQP\x00\x00\x09\x01").await;
        publisher.expect((10, 10)).await;
        let response = b"\0guest\0guest";
        let start_ok = [&long(b"")[..], &short(b"PLAIN"), &long(response), &short(b"en_US")].concat();
        publisher.method(0, (10, 11), &start_ok).await;
        let tune = publisher.expect((10, 30)).await;
        // The broker's own limits, no heart-beats.
        publisher.method(0, (10, 31), &[&tune[..6], &[0, 0]].concat()).await;
        publisher.method(0, (10, 40), &[&short(b"/")[..], &short(b""), &[0]].concat()).await;
        publisher.expect((10, 41)).await;
        publisher.method(CHANNEL, (20, 10), &short(b"")).await;
        publisher.expect((20, 11)).await;
        publisher.method(CHANNEL, (85, 10), &[0]).await;
        publisher.expect((85, 11)).await;
        publisher
    }

    /// Publishes and waits until the broker has taken the message. `properties` are the flags and what they announce.
    pub async fn publish(&mut self, exchange: &str, routing_key: &[u8], properties: &[u8], body: &[u8]) {
        let arguments = [&[0, 0][..], &short(exchange.as_bytes()), &short(routing_key), &[0]].concat();
        self.method(CHANNEL, (60, 40), &arguments).await;
        let header = [&[0, 60, 0, 0][..], &(body.len() as u64).to_be_bytes(), properties].concat();
        self.frame(2, CHANNEL, &header).await;
        self.frame(3, CHANNEL, body).await;
        self.expect((60, 80)).await;
    }

    async fn method(&mut self, channel: u16, (class, method): (u16, u16), arguments: &[u8]) {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.frame(1, channel, &payload).await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let size = u32::try_from(payload.len()).expect("no test is that large");
        let head = [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes()].concat();
        self.write(&[&head[..], payload, &[FRAME_END]].concat()).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the broker reads");
    }

    /// The arguments of the next method, which must be this one.
    async fn expect(&mut self, expected: (u16, u16)) -> Vec<u8> {
        let read = async {
            let mut head = [0; 7];
            self.stream.read_exact(&mut head).await.expect("the broker answers");
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let mut payload = vec![0; size + 1];
            self.stream.read_exact(&mut payload).await.expect("the broker answers");
            assert_eq!((head[0], payload.pop()), (1, Some(FRAME_END)), "a method frame");
            payload
        };
        let payload = tokio::time::timeout(DEADLINE, read).await.expect("the broker answers in time");
        let (name, arguments) = payload.split_at(4);
        let name = (u16::from_be_bytes([name[0], name[1]]), u16::from_be_bytes([name[2], name[3]]));
        assert_eq!(name, expected, "{}", String::from_utf8_lossy(arguments));
        arguments.to_vec()
    }
}

/// A short string.
pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("at most 255 bytes")][..], text].concat()
}

/// A long string, and what else has its length in four bytes: the content of a table, an array, a byte array.
pub fn long(content: &[u8]) -> Vec<u8> {
    [&u32::try_from(content.len()).expect("no test is that large").to_be_bytes()[..], content].concat()
}
