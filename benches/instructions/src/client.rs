//! One client as the relay's driver serves it: bytes in, decoder, session, encoder, bytes out. Without socket and broker;
//! what the broker would be told is kept for the case to answer.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;

use crate::session::command::{BrokerCommand, DeliveryTag, PublishToken, SubscriptionKey};
use crate::session::config::SessionConfig;
use crate::session::event::{BrokerEvent, BrokerInfo, Delivery, Message};
use crate::session::identity::Identity;
use crate::session::io::{Input, LoggedIn, Output};
use crate::session::{Locality, Session, SessionSeed, Stats};
use crate::stomp::{Decoder, Escapes, Item, Limits, encode};

const CONNECT: &[u8] = b"CONNECT\naccept-version:1.2\nhost:/\nlogin:a\npasscode:b\nheart-beat:10000,10000\n\n\0";

pub(crate) struct Client {
    /// The last one that the session gave.
    command: Option<BrokerCommand>,
    decoder: Decoder,
    input: BytesMut,
    now: Instant,
    session: Session,
    pub(crate) written: BytesMut,
}

impl Client {
    /// Logged in.
    pub(crate) fn connected(config: &Arc<SessionConfig>, now: Instant) -> Client {
        let seed = SessionSeed { id: "session-AAAAAAAAAAAAAAAAAAAAAA".to_owned(), queue_names: [7; 16] };
        let mut client = Client {
            command: None,
            decoder: Decoder::new(Limits::default(), Escapes::All),
            input: BytesMut::new(),
            now,
            session: Session::new(config.clone(), seed, Locality::Remote, now),
            written: BytesMut::with_capacity(1024),
        };
        client.receive(CONNECT);
        let broker = BrokerInfo { version: "4.0.5".to_owned() };
        client.input(Input::Login(Ok(LoggedIn { broker, identity: Identity::of_login("a") })));
        client
    }

    /// Without the buffers: what they keep is the driver's business.
    pub(crate) fn into_session(self) -> Session {
        self.session
    }

    pub(crate) fn stats(&self) -> Stats {
        self.session.stats()
    }

    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        while let Some(item) = self.decoder.decode(&mut self.input).expect("a frame without fault") {
            if let Item::Frame(frame) = item {
                self.input(Input::Frame(frame));
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.session.handle_input(self.now, input);
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Frame(frame) => {
                    self.written.clear();
                    encode(&frame, &mut self.written);
                }
                Output::Command(command) => self.command = Some(command),
                other => drop(black_box(other)),
            }
        }
        black_box(self.session.poll_timeout());
    }

    /// The broker does what it was told last.
    pub(crate) fn obey(&mut self) {
        let event = match self.command.take().expect("a command") {
            BrokerCommand::Close => BrokerEvent::Closed,
            BrokerCommand::Declare { token, queue } => BrokerEvent::Declared { token, queue: queue.name },
            BrokerCommand::Publish(publish) => BrokerEvent::Confirmed { token: publish.token },
            BrokerCommand::Delete { .. } | BrokerCommand::Restore { .. } | BrokerCommand::Settle { .. } => return,
            BrokerCommand::Subscribe(subscribe) => {
                BrokerEvent::Subscribed { key: subscribe.key, queue: subscribe.queue.name().clone() }
            }
            BrokerCommand::Unsubscribe { key, .. } => BrokerEvent::Unsubscribed { key },
        };
        self.input(Input::Broker(event));
    }

    /// Of the publish that was given last; nothing is taken.
    pub(crate) fn published(&self) -> Option<PublishToken> {
        match &self.command {
            Some(BrokerCommand::Publish(publish)) => Some(publish.token),
            _ => None,
        }
    }

    /// To the first subscription.
    pub(crate) fn deliver(&mut self, message: Arc<Message>, tag: Option<DeliveryTag>) {
        let delivery = Delivery { key: SubscriptionKey(0), message, redelivered: false, tag };
        self.input(Input::Broker(BrokerEvent::Delivery(delivery)));
    }

    pub(crate) fn flushed(&mut self) {
        self.input(Input::Flushed);
    }

    /// Whether a settlement of this tag was given last; takes it.
    pub(crate) fn take_settled(&mut self, expected: DeliveryTag) -> bool {
        matches!(self.command.take(), Some(BrokerCommand::Settle { tag, .. }) if tag == expected)
    }
}
