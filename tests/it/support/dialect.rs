//! The ways in which one behaviour must look the same: every STOMP version over ws, and the latest over wss as well.

use stomp_relay::stomp::Frame;

use super::relay::Relay;
use super::stomp::Client;

/// TOML for a relay that answers as RabbitMQ's plugin does, so that soft errors leave the connection open.
pub const RABBITMQ: &str = "[stomp]\ncompatibility = \"rabbitmq\"\n";

pub const DIALECTS: [Dialect; 4] = [
    Dialect { transport: Transport::Ws, version: "1.0" },
    Dialect { transport: Transport::Ws, version: "1.1" },
    Dialect { transport: Transport::Ws, version: "1.2" },
    Dialect { transport: Transport::Wss, version: "1.2" },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Ws,
    Wss,
}

impl Transport {
    /// A WebSocket on which nothing was said yet.
    pub async fn open(self, relay: &Relay) -> Client {
        match self {
            Transport::Ws => Client::open(&relay.ws).await,
            Transport::Wss => Client::open_tls(&relay.wss, &relay.ca).await,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    pub transport: Transport,
    pub version: &'static str,
}

impl Dialect {
    pub async fn guest(&self, relay: &Relay) -> Client {
        self.login(relay, "guest", "guest").await
    }

    /// A client that is logged in on `/`.
    pub async fn login(&self, relay: &Relay, login: &str, passcode: &str) -> Client {
        let mut client = self.transport.open(relay).await;
        let version = self.version;
        client
            .send(&format!("CONNECT\naccept-version:{version}\nhost:/\nlogin:{login}\npasscode:{passcode}\n\n"))
            .await;
        assert_eq!(client.expect("CONNECTED").await.header("version"), Some(version));
        client
    }

    /// An ACK or NACK of `message` with these further header lines, each ended by a line feed.
    pub fn settle(&self, command: &str, message: &Frame, further: &str) -> String {
        let (header, id) = match self.version {
            "1.2" => ("id", message.header("ack").expect("a MESSAGE to acknowledge names its ack id")),
            _ => ("message-id", message.header("message-id").expect("every MESSAGE has an id")),
        };
        // What came unescaped from the frame goes back escaped.
        format!("{command}\n{header}:{}\n{}{further}\n", id.replace(':', "\\c"), self.subscription(message))
    }

    /// STOMP 1.1 names a message by its subscription, too.
    fn subscription(&self, message: &Frame) -> String {
        let named = message.header("subscription").filter(|_| self.version == "1.1");
        named.map(|id| format!("subscription:{}\n", id.replace(':', "\\c"))).unwrap_or_default()
    }

    /// The same by `message-id`, which is the ack id too; for messages that need no ACK and so carry none.
    pub fn settle_by_message_id(&self, command: &str, message: &Frame, further: &str) -> String {
        let header = if self.version == "1.2" { "id" } else { "message-id" };
        let id = message.header("message-id").expect("every MESSAGE has an id");
        format!("{command}\n{header}:{}\n{}{further}\n", id.replace(':', "\\c"), self.subscription(message))
    }
}
