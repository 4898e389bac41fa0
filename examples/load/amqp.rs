//! RabbitMQ without a front end: the ceiling that the others are held against, and the queues that a run needs.

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use std::future::Future;
use std::pin::Pin;

use super::Unusable;
use super::options::AckMode;
use super::stomp::{BATCH, CutOff};

/// Unwritten or unconfirmed publishes of a publisher: bounds what the library keeps in memory.
const PENDING_MAX: usize = 4096;

/// Each connection has a thread and 8 MiB of buffers, so subscribers of a topic share some.
pub const CONNECTIONS_MAX: usize = 4;

type Pending = Pin<Box<dyn Future<Output = Result<(), CutOff>> + Send>>;

pub struct Publisher {
    channel: Channel,
    confirms: bool,
    /// Keeps the channel's connection.
    _connection: Connection,
    exchange: ShortString,
    pending: FuturesUnordered<Pending>,
    properties: BasicProperties,
    /// Done and not reported yet.
    ready: u64,
    routing_key: ShortString,
}

pub struct Subscriber {
    ack: AckMode,
    channel: Channel,
    consumer: Consumer,
}

/// Queues that exist as long as a run.
pub struct Queues {
    channel: Channel,
    _connection: Connection,
    names: Vec<String>,
}

fn cut_off(error: impl std::fmt::Display) -> CutOff {
    CutOff(error.to_string())
}

pub async fn connect(uri: &str) -> Result<Connection, Unusable> {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await;
    // The URI may hold a password.
    connection.map_err(|error| Unusable::because("AMQP", error))
}

impl Queues {
    pub async fn declare(uri: &str, names: Vec<String>) -> Result<Queues, Unusable> {
        let connection = connect(uri).await?;
        let unusable = |error| Unusable::because("AMQP", error);
        let channel = connection.create_channel().await.map_err(unusable)?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        for name in &names {
            channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await.map_err(unusable)?;
        }
        Ok(Queues { channel, _connection: connection, names })
    }

    pub async fn delete(self) {
        for name in &self.names {
            // One that is gone already needs no deletion.
            let _ = self.channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await;
        }
    }
}

impl Publisher {
    pub async fn open(uri: &str, exchange: &str, routing_key: &str, confirms: bool) -> Result<Publisher, Unusable> {
        let unusable = |error| Unusable::because("AMQP", error);
        let connection = connect(uri).await?;
        let channel = connection.create_channel().await.map_err(unusable)?;
        if confirms {
            channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(unusable)?;
        }
        Ok(Publisher {
            channel,
            confirms,
            _connection: connection,
            exchange: exchange.into(),
            pending: FuturesUnordered::new(),
            properties: BasicProperties::default(),
            ready: 0,
            routing_key: routing_key.into(),
        })
    }

    pub async fn feed(&mut self, body: &[u8]) -> Result<(), CutOff> {
        while self.pending.len() >= PENDING_MAX {
            self.pending.next().await.unwrap_or(Ok(()))?;
            self.ready += 1;
        }
        let (channel, body) = (self.channel.clone(), body.to_vec());
        let (exchange, key, properties) = (self.exchange.clone(), self.routing_key.clone(), self.properties.clone());
        let confirms = self.confirms;
        let mut publish: Pending = Box::pin(async move {
            let options = BasicPublishOptions::default();
            let publish = channel.basic_publish(exchange, key, options, &body, properties);
            let confirm = publish.await.map_err(cut_off)?;
            match confirms.then_some(confirm) {
                None => Ok(()),
                Some(confirm) => match confirm.await.map_err(cut_off)? {
                    Confirmation::Nack(_) => Err(CutOff("a publish was refused".to_owned())),
                    _ => Ok(()),
                },
            }
        });
        // The first poll hands the frames to the connection, in the order of the calls.
        match (&mut publish).now_or_never() {
            Some(result) => {
                self.ready += 1;
                result
            }
            None => {
                self.pending.push(publish);
                Ok(())
            }
        }
    }

    /// Confirmations that are there; with `wait`, at least one.
    pub async fn confirmed(&mut self, wait: bool) -> Result<u64, CutOff> {
        if wait && self.ready == 0 {
            match self.pending.next().await {
                None => return std::future::pending().await,
                Some(result) => result?,
            }
            self.ready += 1;
        }
        while let Some(Some(result)) = self.pending.next().now_or_never() {
            result?;
            self.ready += 1;
        }
        let count = std::mem::take(&mut self.ready);
        Ok(if self.confirms { count } else { 0 })
    }

    /// Waits until the broker has taken all that was published.
    pub async fn leave(mut self) -> Result<(), CutOff> {
        while let Some(result) = self.pending.next().await {
            result?;
        }
        // A synchronous method is answered after all that was written before it.
        self.channel.basic_qos(1, BasicQosOptions::default()).await.map_err(cut_off)
    }
}

impl Subscriber {
    pub async fn to_queue(
        connection: &Connection,
        queue: &str,
        ack: AckMode,
        prefetch: Option<u16>,
    ) -> Result<Subscriber, Unusable> {
        let unusable = |error| Unusable::because("AMQP", error);
        let channel = connection.create_channel().await.map_err(unusable)?;
        Subscriber::consume(channel, queue, ack, prefetch).await.map_err(unusable)
    }

    /// With an exclusive queue of its own.
    pub async fn to_topic(connection: &Connection, routing_key: &str) -> Result<Subscriber, Unusable> {
        let unusable = |error| Unusable::because("AMQP", error);
        let channel = connection.create_channel().await.map_err(unusable)?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.map_err(unusable)?;
        let name = queue.name().to_string();
        let (exchange, options) = ("amq.topic".into(), QueueBindOptions::default());
        let bind =
            channel.queue_bind(name.as_str().into(), exchange, routing_key.into(), options, FieldTable::default());
        bind.await.map_err(unusable)?;
        Subscriber::consume(channel, &name, AckMode::Auto, None).await.map_err(unusable)
    }

    async fn consume(
        channel: Channel,
        queue: &str,
        ack: AckMode,
        prefetch: Option<u16>,
    ) -> Result<Subscriber, lapin::Error> {
        if let Some(count) = prefetch {
            channel.basic_qos(count, BasicQosOptions::default()).await?;
        }
        let options = BasicConsumeOptions { no_ack: ack == AckMode::Auto, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        Ok(Subscriber { ack, channel, consumer })
    }

    /// Waits for messages and hands over all that are there, at most [`BATCH`]; then acknowledges them.
    pub async fn next(&mut self, take: &mut impl FnMut(&[u8])) -> Result<(), CutOff> {
        let ended = || CutOff("the consumer was cancelled".to_owned());
        let mut delivery = self.consumer.next().await.ok_or_else(ended)?.map_err(cut_off)?;
        for count in 1.. {
            take(&delivery.data);
            let tag = delivery.delivery_tag;
            let following = if count < BATCH { self.consumer.next().now_or_never() } else { None };
            let last = following.is_none();
            if self.ack == AckMode::ClientIndividual || (self.ack == AckMode::Client && last) {
                let options = BasicAckOptions { multiple: self.ack == AckMode::Client };
                self.channel.basic_ack(tag, options).await.map_err(cut_off)?;
            }
            match following {
                None => break,
                Some(next) => delivery = next.ok_or_else(ended)?.map_err(cut_off)?,
            }
        }
        Ok(())
    }
}
