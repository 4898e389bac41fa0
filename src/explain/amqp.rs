//! Broker commands as the AMQP methods that they become, a line each.

use std::fmt::Write as _;

use crate::session::amqp::{FieldValue, Properties, QueueDeclaration, ShortText};
use crate::session::command::{AfterUnsubscribe, BrokerCommand, Outgoing, Sharing, Subscribe, SubscribedQueue};

/// `named`: whether the frame itself decides the name of a queue that the relay makes; else it is random.
pub(super) fn show(text: &mut String, command: &BrokerCommand, named: bool) {
    match command {
        BrokerCommand::Close | BrokerCommand::Restore { .. } | BrokerCommand::Settle { .. } => {}
        BrokerCommand::Declare { queue, .. } => line(text, "queue.declare", &declared(queue, queue.name.as_str())),
        BrokerCommand::Publish(publish) => line(text, "basic.publish", &published(&publish.message)),
        BrokerCommand::Subscribe(subscribe) => subscribed(text, subscribe, named),
        BrokerCommand::Delete { queue, only: None } => line(text, "queue.delete", &format!("queue='{queue}'")),
        BrokerCommand::Delete { queue, only: Some(binding) } => {
            line(text, "queue.unbind", &format!("queue='{queue}' exchange='{}'", binding.exchange));
        }
        BrokerCommand::Unsubscribe { queue: AfterUnsubscribe::Delete, .. } => {
            line(text, "basic.cancel, queue.delete", "")
        }
        BrokerCommand::Unsubscribe { queue: AfterUnsubscribe::Keep, .. } => line(text, "basic.cancel", ""),
    }
}

fn line(text: &mut String, method: &str, arguments: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "  {}", format!("{method} {arguments}").trim_end());
}

fn declared(queue: &QueueDeclaration, name: &str) -> String {
    let mut text = format!("queue='{name}'");
    let flags = [(queue.durable, " durable"), (queue.auto_delete, " auto-delete"), (queue.exclusive, " exclusive")];
    flags.iter().filter(|(set, _)| *set).for_each(|(_, flag)| text.push_str(flag));
    text + &table(&queue.arguments)
}

fn subscribed(text: &mut String, subscribe: &Subscribe, named: bool) {
    let random = subscribe.binding.is_some() && !named;
    let name = if random { "stomp-subscription-(random)" } else { subscribe.queue.name().as_str() };
    if let SubscribedQueue::Declared(queue) = &subscribe.queue {
        line(text, "queue.declare", &declared(queue, name));
    }
    if let Some(binding) = &subscribe.binding {
        let (exchange, key) = (&binding.exchange, &binding.routing_key);
        let arguments = table(&binding.arguments);
        line(text, "queue.bind", &format!("queue='{name}' exchange='{exchange}' routing-key='{key}'{arguments}"));
    }
    line(text, "basic.qos", &format!("prefetch-count={}", subscribe.prefetch));
    let exclusive = if subscribe.exclusive { " exclusive" } else { "" };
    let arguments = table(&subscribe.consumer_arguments);
    line(text, "basic.consume", &format!("queue='{name}'{exclusive}{arguments}"));
    if subscribe.sharing != Sharing::Own {
        text.push_str("  (one such queue serves all subscribers of this key at this relay)\n");
    }
}

fn published(message: &Outgoing) -> String {
    let mandatory = if message.mandatory { " mandatory" } else { "" };
    let (exchange, key) = (&message.exchange, &message.routing_key);
    let mut text = format!("exchange='{exchange}' routing-key='{key}'{mandatory}");
    for (name, value) in properties(&message.properties) {
        let _ = write!(text, " {name}='{value}'");
    }
    text + &table(&message.properties.headers)
}

/// Those that are set, under AMQP's names.
fn properties(all: &Properties) -> Vec<(&'static str, String)> {
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let short = |value: &Option<ShortText>| value.as_ref().map(ShortText::to_string);
    let known = [
        ("content-type", short(&all.content_type)),
        ("content-encoding", short(&all.content_encoding)),
        ("delivery-mode", number(all.delivery_mode.map(u64::from))),
        ("priority", number(all.priority.map(u64::from))),
        ("correlation-id", short(&all.correlation_id)),
        ("reply-to", short(&all.reply_to)),
        ("expiration", short(&all.expiration)),
        ("message-id", short(&all.message_id)),
        ("timestamp", number(all.timestamp)),
        ("type", short(&all.kind)),
        ("user-id", short(&all.user_id)),
        ("app-id", short(&all.app_id)),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn table(fields: &[(ShortText, FieldValue)]) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        let _ = match value {
            FieldValue::Bool(value) => write!(text, " {name}={value}"),
            FieldValue::Integer(value) => write!(text, " {name}={value}"),
            FieldValue::List(values) => write!(text, " {name}={values:?}"),
            FieldValue::Text(value) => write!(text, " {name}='{value}'"),
            FieldValue::Timestamp(value) => write!(text, " {name}={value}"),
        };
    }
    text
}
