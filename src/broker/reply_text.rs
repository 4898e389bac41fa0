//! Refusals that RabbitMQ 4 can't put into words. Its refusals quote the names that they are about; it cuts their texts at 255
//! characters where AMQP has room for 255 bytes, and when more bytes remain it ends the whole connection
//! (`method_field_shortstr_overflow`). So what it might have to refuse with such a text is refused here.
//!
//! Not known here: the names that other clients gave, such as the arguments that a queue has already.

use crate::session::amqp::{FieldValue, ShortText};
use crate::session::event::Failure;

/// What a reply text holds (AMQP 0-9-1 short string).
const TEXT_BYTES_MAX: usize = 255;
const PRECONDITION_FAILED: u16 = 406;

/// The longest texts of RabbitMQ 4.0 about each kind of thing, without the names.
const ABOUT_ARGUMENT: &str = "PRECONDITION_FAILED - inequivalent arg '' for queue '' in vhost '': \
                              received the value '' of type 'longstr' but current is none";
const ABOUT_BINDING_ARGUMENT: &str = "PRECONDITION_FAILED - Invalid x-match field value ; expected all or any";
const ABOUT_QUEUE: &str = "PRECONDITION_FAILED - inequivalent arg 'auto_delete' for queue '' in vhost '': \
                           received 'false' but current is 'true'";
const ABOUT_TOPIC: &str = "ACCESS_REFUSED - access to topic '' in exchange '' in vhost '' refused for user ''";
const ABOUT_USER: &str = "PRECONDITION_FAILED - user_id property set to '' but authenticated user was ''";

/// Judges names that go to one link's broker.
pub(super) struct ReplyText<'a> {
    pub(super) login: &'a str,
    /// As the broker announces it.
    pub(super) version: &'a str,
    pub(super) vhost: &'a str,
}

impl ReplyText<'_> {
    pub(super) fn publish(
        &self,
        exchange: &ShortText,
        routing_key: &ShortText,
        user_id: Option<&ShortText>,
    ) -> Result<(), Failure> {
        self.judge(ABOUT_TOPIC, &[exchange.as_str(), routing_key.as_str(), self.vhost, self.login])?;
        user_id.map_or(Ok(()), |user_id| self.judge(ABOUT_USER, &[user_id.as_str(), self.login]))
    }

    pub(super) fn queue(&self, name: &ShortText, arguments: &[(ShortText, FieldValue)]) -> Result<(), Failure> {
        self.judge(ABOUT_QUEUE, &[name.as_str(), self.vhost, self.login])?;
        texts(arguments)
            .try_for_each(|(argument, value)| self.judge(ABOUT_ARGUMENT, &[argument, name.as_str(), self.vhost, value]))
    }

    pub(super) fn binding(
        &self,
        exchange: &ShortText,
        routing_key: &ShortText,
        arguments: &[(ShortText, FieldValue)],
    ) -> Result<(), Failure> {
        self.judge(ABOUT_TOPIC, &[exchange.as_str(), routing_key.as_str(), self.vhost, self.login])?;
        texts(arguments).try_for_each(|(_, value)| self.judge(ABOUT_BINDING_ARGUMENT, &[value]))
    }

    /// Whole characters of one byte each can be cut at 255 without harm.
    fn judge(&self, around: &str, names: &[&str]) -> Result<(), Failure> {
        let bytes = names.iter().fold(around.len(), |sum, name| sum + name.len());
        if bytes <= TEXT_BYTES_MAX || names.iter().all(|name| name.is_ascii()) || !self.cuts_at_characters() {
            return Ok(());
        }
        let room = TEXT_BYTES_MAX - around.len();
        let reply_text = format!(
            "PRECONDITION_FAILED - names of {} bytes that are not all ASCII; RabbitMQ {} can take {room} together",
            bytes - around.len(),
            self.version
        );
        Err(Failure::Refused { reply_code: PRECONDITION_FAILED, reply_text })
    }

    /// RabbitMQ 3.10 cuts at bytes, 4.0 does not; one that does not tell is taken for a new one.
    fn cuts_at_characters(&self) -> bool {
        let major = self.version.split('.').next().unwrap_or_default();
        major.parse::<u32>().map_or(true, |major| major >= 4)
    }
}

fn texts(arguments: &[(ShortText, FieldValue)]) -> impl Iterator<Item = (&str, &str)> {
    arguments.iter().filter_map(|(name, value)| match value {
        FieldValue::Text(text) => Some((name.as_str(), text.as_str())),
        FieldValue::Bool(_) | FieldValue::Integer(_) | FieldValue::List(_) | FieldValue::Timestamp(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RABBITMQ_4: ReplyText<'_> = ReplyText { login: "guest", version: "4.0.5", vhost: "/" };

    fn text(text: String) -> ShortText {
        ShortText::new(text).expect("at most 255 bytes")
    }

    fn exchange(name: String) -> bool {
        RABBITMQ_4.publish(&text(name), &ShortText::lit("k"), None).is_ok()
    }

    #[test]
    fn what_the_text_can_hold_passes() {
        let room = TEXT_BYTES_MAX - ABOUT_TOPIC.len() - "k/guest".len();
        assert!(exchange("a".repeat(255)), "cut at 255 characters, which are bytes");
        assert!(exchange("é".repeat(room / 2)));
        assert!(!exchange("é".repeat(room / 2 + 1)));
        assert!(!exchange(format!("é{}", "a".repeat(room - 1))));
    }

    #[test]
    fn every_name_counts() {
        let (short, long) = (text("q".into()), text("é".repeat(120)));
        assert!(RABBITMQ_4.publish(&short, &long, None).is_err());
        assert!(RABBITMQ_4.publish(&short, &short, Some(&long)).is_err());
        assert!(RABBITMQ_4.queue(&long, &[]).is_err());
        assert!(RABBITMQ_4.queue(&text("aufträge".into()), &[]).is_ok());
        let argument = |value: String| [(ShortText::lit("x-dead-letter-exchange"), FieldValue::Text(value))];
        assert!(RABBITMQ_4.queue(&short, &argument("é".repeat(100))).is_err());
        assert!(RABBITMQ_4.queue(&short, &argument("a".repeat(1000))).is_ok());
        assert!(RABBITMQ_4.queue(&text("aufträge".into()), &argument("a".repeat(1000))).is_err());
        assert!(RABBITMQ_4.binding(&short, &long, &[]).is_err());
        assert!(RABBITMQ_4.binding(&short, &short, &argument("é".repeat(120))).is_err());
    }

    #[test]
    fn older_brokers_cut_at_bytes() {
        let long = text("é".repeat(120));
        for (version, fine) in [("3.10.8", true), ("3.13.7", true), ("4.1.0", false), ("", false)] {
            let judged = ReplyText { version, ..RABBITMQ_4 }.queue(&long, &[]);
            assert_eq!(judged.is_ok(), fine, "{version}");
        }
    }
}
