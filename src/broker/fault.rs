//! What went wrong on a channel, in the session's words; and the deadline around every wait for lapin.

use super::wire::Refusal;
use crate::patience;
use crate::session::event::Failure;
use lapin::ErrorKind;
use lapin::protocol::AMQPErrorKind;
use std::time::Duration;

/// Waits for lapin for at most `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    step: &'static str,
    work: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Fault> {
    match patience::timeout(limit, work).await {
        Ok(result) => result.map_err(Fault::Lapin),
        Err(_) => Err(Fault::TimedOut(step)),
    }
}

/// An error before it is known what the broker said about the channel.
#[derive(Debug)]
pub(super) enum Fault {
    Lapin(lapin::Error),
    TimedOut(&'static str),
}

impl Fault {
    /// `refusal` is what the guard saw of the channel's end: lapin forgets the reason in errors that follow the first.
    pub(super) fn into_failure(self, refusal: Option<Refusal>) -> Failure {
        match self {
            Fault::TimedOut(step) => Failure::TimedOut { step },
            Fault::Lapin(error) => failure(&error, refusal),
        }
    }
}

pub(super) fn failure(error: &lapin::Error, refusal: Option<Refusal>) -> Failure {
    if let ErrorKind::ProtocolError(amqp) = error.kind()
        && let AMQPErrorKind::Soft(_) = amqp.kind()
    {
        return Failure::Refused { reply_code: amqp.get_id(), reply_text: amqp.get_message().to_string() };
    }
    match refusal {
        Some(refusal) => refused(refusal),
        None => Failure::LinkLost { reason: reason(error) },
    }
}

/// The broker's own words if it said something, else lapin's.
pub(super) fn reason(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
        _ => error.to_string(),
    }
}

/// Whether RabbitMQ's reply to an opened channel says that it is one too many.
pub(super) fn is_channel_limit(reply_text: &str) -> bool {
    reply_text.starts_with("NOT_ALLOWED - number of channels opened ")
}

pub(super) fn refused(refusal: Refusal) -> Failure {
    Failure::Refused { reply_code: refusal.reply_code, reply_text: refusal.reply_text }
}
