//! A publisher and a subscriber over either protocol.

use std::sync::Arc;

use bytes::Bytes;
use lapin::Connection;
use stomp_relay::stomp::{Command, Frame};

use super::options::{AckMode, Settings};
use super::stomp::{BATCH, CutOff, Endpoint, Session, Traffic, send, subscription};
use super::{Unusable, amqp};

/// The server under test.
pub enum Target {
    Amqp { uri: String, connections: tokio::sync::Mutex<Vec<Arc<Connection>>> },
    Stomp(Endpoint),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Declared by the run itself.
    Queue(String),
    /// Declared by whoever uses it first.
    OwnQueue(String),
    Topic(String),
}

pub enum Publisher {
    Amqp(amqp::Publisher),
    Stomp { destination: String, session: Session, receipts: bool, sent: u64 },
}

pub enum Subscriber {
    Amqp { subscriber: amqp::Subscriber, _connection: Arc<Connection> },
    Stomp { ack: AckMode, session: Session },
}

impl Destination {
    fn stomp(&self) -> String {
        match self {
            Destination::Queue(name) => format!("/amq/queue/{name}"),
            Destination::OwnQueue(name) => format!("/queue/{name}"),
            Destination::Topic(name) => format!("/topic/{name}"),
        }
    }

    fn amqp(&self) -> (&'static str, &str) {
        match self {
            Destination::Queue(name) | Destination::OwnQueue(name) => ("", name),
            Destination::Topic(name) => ("amq.topic", name),
        }
    }
}

impl Target {
    pub fn new(settings: &Settings) -> Result<Target, Unusable> {
        let url = &settings.url;
        if url.starts_with("amqp://") {
            return Ok(Target::Amqp { uri: url.clone(), connections: tokio::sync::Mutex::default() });
        }
        let passcode = settings.passcode()?;
        Endpoint::new(url, settings.ca.as_deref(), &settings.login, &passcode).map(Target::Stomp)
    }

    pub fn endpoint(&self) -> Result<&Endpoint, Unusable> {
        match self {
            Target::Amqp { .. } => Err(Unusable("this scenario needs ws:// or wss://".to_owned())),
            Target::Stomp(endpoint) => Ok(endpoint),
        }
    }

    pub async fn publisher(&self, destination: &Destination, settings: &Settings) -> Result<Publisher, Unusable> {
        let receipts = settings.window > 0;
        match self {
            Target::Amqp { uri, .. } => {
                let (exchange, routing_key) = destination.amqp();
                amqp::Publisher::open(uri, exchange, routing_key, receipts).await.map(Publisher::Amqp)
            }
            Target::Stomp(endpoint) => {
                let session = endpoint.log_in(settings.heart_beat, Traffic::Busy).await?;
                Ok(Publisher::Stomp { destination: destination.stomp(), session, receipts, sent: 0 })
            }
        }
    }

    pub async fn subscriber(
        &self,
        destination: &Destination,
        settings: &Settings,
        traffic: Traffic,
    ) -> Result<Subscriber, Unusable> {
        match self {
            Target::Amqp { .. } => {
                let connection = self.shared_connection().await?;
                let subscriber = match destination {
                    Destination::Topic(key) => amqp::Subscriber::to_topic(&connection, key).await?,
                    Destination::Queue(name) | Destination::OwnQueue(name) => {
                        amqp::Subscriber::to_queue(&connection, name, settings.ack, settings.prefetch).await?
                    }
                };
                Ok(Subscriber::Amqp { subscriber, _connection: connection })
            }
            Target::Stomp(endpoint) => {
                let mut session = endpoint.log_in(settings.heart_beat, traffic).await?;
                let frame = subscription(&destination.stomp(), settings.ack.name(), settings.prefetch);
                let subscribed = session.subscribe(&frame).await;
                subscribed.map_err(|error| Unusable::because("SUBSCRIBE", error))?;
                Ok(Subscriber::Stomp { ack: settings.ack, session })
            }
        }
    }

    /// Of a few connections, by turns.
    async fn shared_connection(&self) -> Result<Arc<Connection>, Unusable> {
        let Target::Amqp { uri, connections } = self else { return Err(Unusable("not AMQP".to_owned())) };
        let mut connections = connections.lock().await;
        if connections.len() < amqp::CONNECTIONS_MAX {
            connections.push(Arc::new(amqp::connect(uri).await?));
        } else {
            connections.rotate_left(1);
        }
        connections.last().cloned().ok_or_else(|| Unusable("no AMQP connection".to_owned()))
    }
}

impl Publisher {
    /// Into buffers only; `flush` writes.
    pub async fn feed(&mut self, body: Bytes) -> Result<(), CutOff> {
        match self {
            Publisher::Amqp(publisher) => publisher.feed(&body).await,
            Publisher::Stomp { destination, session, receipts, sent } => {
                let receipt = receipts.then_some(*sent);
                *sent += 1;
                session.feed(&send(destination, receipt, body)).await
            }
        }
    }

    pub async fn flush(&mut self) -> Result<(), CutOff> {
        match self {
            Publisher::Amqp(_) => Ok(()),
            Publisher::Stomp { session, .. } => session.flush().await,
        }
    }

    /// Receipts that have arrived; with `wait`, waits for one first.
    pub async fn confirmed(&mut self, wait: bool) -> Result<u64, CutOff> {
        match self {
            Publisher::Amqp(publisher) => publisher.confirmed(wait).await,
            Publisher::Stomp { session, .. } => {
                let mut count = 0;
                if wait {
                    count += u64::from(session.next().await?.command == Command::Receipt);
                }
                while let Some(frame) = session.next_now() {
                    count += u64::from(frame?.command == Command::Receipt);
                }
                Ok(count)
            }
        }
    }

    /// Waits until the server has taken all that was sent.
    pub async fn leave(self) -> Result<(), CutOff> {
        match self {
            Publisher::Amqp(publisher) => publisher.leave().await,
            Publisher::Stomp { session, .. } => session.leave().await,
        }
    }
}

impl Subscriber {
    /// Waits for messages and hands over the bodies of all that are there, at most [`BATCH`]; then acknowledges them: in
    /// mode client the last one, in mode client-individual each.
    pub async fn next(&mut self, take: &mut impl FnMut(&[u8])) -> Result<(), CutOff> {
        let (ack, session) = match self {
            Subscriber::Amqp { subscriber, .. } => return subscriber.next(take).await,
            Subscriber::Stomp { ack, session } => (*ack, session),
        };
        let mut frame = session.next().await?;
        for count in 1.. {
            if frame.command == Command::Message {
                take(&frame.body);
            }
            let following = if count < BATCH { session.next_now() } else { None };
            let id = frame.header("ack").filter(|_| ack != AckMode::Auto);
            if let Some(id) = id.filter(|_| ack == AckMode::ClientIndividual || following.is_none()) {
                session.feed(&Frame::new(Command::Ack).with_header("id", id)).await?;
            }
            match following {
                None => break,
                Some(next) => frame = next?,
            }
        }
        if ack == AckMode::Auto { Ok(()) } else { session.flush().await }
    }

    /// Reads no more, and keeps the connection until then. Whether it was cut off meanwhile.
    pub async fn stall(self, until: impl Future<Output = ()>) -> bool {
        until.await;
        match self {
            Subscriber::Amqp { .. } => false,
            Subscriber::Stomp { mut session, .. } => {
                let read_on = async { while session.next().await.is_ok() {} };
                tokio::time::timeout(std::time::Duration::from_secs(2), read_on).await.is_ok()
            }
        }
    }
}
