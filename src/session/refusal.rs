//! A refusal: why a frame or a session was turned down, and the one place where that becomes an ERROR frame and a
//! WebSocket close code.
//!
//! The `message` texts are those of RabbitMQ's plugin wherever it has one, since clients compare them. In strict mode the
//! body goes on to say what to do; in compatibility mode it is the plugin's text alone.

use std::borrow::Cow;

use super::config::Compatibility;
use super::event::connection_limit as connection_limit_of;
use crate::stomp::{Command, Frame, Version};

/// WebSocket close codes (RFC 6455, 7.4; 4000 to 4999 are the application's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum CloseCode {
    Normal = 1000,
    ProtocolError = 1002,
    /// Bytes that are not a STOMP frame, or a frame over the limit. RabbitMQ's Web STOMP answers the same.
    InvalidFrame = 1007,
    PolicyViolation = 1008,
    TooBig = 1009,
    /// The broker or the relay failed, not the client.
    InternalError = 1011,
    ServiceRestart = 1012,
    TryAgainLater = 1013,
    TokenExpired = 4001,
    SlowConsumer = 4004,
    HeartbeatMissed = 4005,
}

/// Why and how the WebSocket is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    pub code: CloseCode,
    /// The `error-code` of the ERROR before it; None if there was none.
    pub error: Option<&'static str>,
    /// At most 123 bytes reach the peer (RFC 6455, 5.5).
    pub reason: Cow<'static, str>,
}

impl Close {
    pub fn new(code: CloseCode, reason: impl Into<Cow<'static, str>>) -> Close {
        Close { code, error: None, reason: reason.into() }
    }
}

/// Whether the plugin would have kept the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The session ends in both modes.
    Fatal,
    /// The session goes on in both modes: what was refused leaves it as it was.
    Harmless,
    /// The session ends in strict mode and goes on in compatibility mode.
    Soft,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What happened and why.
    pub body: String,
    pub close: CloseCode,
    /// The dotted `error-code`, listed in docs/errors.md.
    pub code: &'static str,
    /// What to do; left out in compatibility mode.
    pub hint: &'static str,
    pub message: Cow<'static, str>,
    pub receipt: Option<String>,
    pub severity: Severity,
    pub subscription: Option<String>,
}

impl Refusal {
    /// A mistake of the client that the plugin forgives.
    pub fn soft(code: &'static str, message: &'static str, body: impl Into<String>, hint: &'static str) -> Refusal {
        Refusal {
            body: body.into(),
            close: CloseCode::ProtocolError,
            code,
            hint,
            message: Cow::Borrowed(message),
            receipt: None,
            severity: Severity::Soft,
            subscription: None,
        }
    }

    /// What ends the session in both modes.
    pub fn fatal(
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
        body: impl Into<String>,
        hint: &'static str,
    ) -> Refusal {
        Refusal { message: message.into(), severity: Severity::Fatal, ..Refusal::soft(code, "", body, hint) }
    }

    /// A header value that can't be used; the plugin hides these behind `Processing error`.
    pub fn bad_header(header: &str, what: impl std::fmt::Display) -> Refusal {
        Refusal::soft("frame.header_value", "Processing error", format!("header '{header}': {what}\n"), "")
    }

    /// A header that STOMP or the frame requires is not there.
    pub fn missing_header(command: &str, header: &str, hint: &'static str) -> Refusal {
        let body = format!("\"{command}\" must include the \"{header}\" header\n");
        Refusal::soft("frame.header_missing", "Missing header", body, hint)
    }

    pub fn closing(mut self, close: CloseCode) -> Refusal {
        self.close = close;
        self
    }

    pub fn about_receipt(mut self, receipt: Option<&str>) -> Refusal {
        self.receipt = self.receipt.or_else(|| receipt.map(str::to_owned));
        self
    }

    pub fn about_subscription(mut self, id: &str) -> Refusal {
        self.subscription = Some(id.to_owned());
        self
    }

    /// A channel exception, which is always this client's own error (AMQP 0-9-1, 1.2.8: soft reply codes).
    pub fn from_reply(reply_code: u16, reply_text: &str) -> Refusal {
        let (name, code, hint) = reply_name(reply_code);
        if let Some(limit) = Limit::of(reply_code, reply_text) {
            return limit.refusal(name, reply_text);
        }
        let close = match reply_code {
            403..=405 => CloseCode::PolicyViolation,
            500.. => CloseCode::InternalError,
            _ => CloseCode::ProtocolError,
        };
        Refusal::fatal(code, name, reply_text, hint).closing(close)
    }

    /// The same for a client that works at RabbitMQ as an account which it does not know and is not to know: RabbitMQ's texts end
    /// with the account's name, which may be cut.
    pub fn speaking_of(mut self, user: &str) -> Refusal {
        const NAMES_IT: [&str; 2] = ["for user '", "authenticated user was '"];
        let end = NAMES_IT.iter().filter_map(|words| Some(self.body.rfind(words)? + words.len())).max();
        if let Some(end) = end {
            self.body.truncate(end);
            self.body.push_str(user);
            self.body.push('\'');
        }
        self
    }

    pub fn ends_session(&self, compatibility: Compatibility) -> bool {
        match self.severity {
            Severity::Fatal => true,
            Severity::Harmless => false,
            Severity::Soft => compatibility == Compatibility::Strict,
        }
    }

    /// The ERROR frame. `message` is the first header: test suites of the plugin compare its place.
    pub fn to_frame(&self, compatibility: Compatibility) -> Frame {
        let mut body = self.body.clone();
        if compatibility == Compatibility::Strict && !self.hint.is_empty() {
            if !body.ends_with('\n') {
                body.push('\n');
            }
            body.push_str(self.hint);
            body.push('\n');
        }
        let mut frame = Frame::new(Command::Error);
        frame.headers.push("message", &self.message);
        frame.headers.push("content-type", "text/plain");
        frame.headers.push("version", Version::SUPPORTED);
        if let Some(id) = &self.subscription {
            frame.headers.push("subscription", id);
        }
        if let Some(id) = &self.receipt {
            frame.headers.push("receipt-id", id);
        }
        frame.headers.push("error-code", self.code);
        frame.body = body.into();
        frame
    }

    pub fn to_close(&self) -> Close {
        let reason = format!("{}: {}", self.code, self.message);
        Close { error: Some(self.code), ..Close::new(self.close, reason) }
    }
}

/// One of RabbitMQ's limits. They have AMQP's codes for mistakes of all kinds, so only their texts tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Channels,
    Connections(&'static str),
    Consumers,
    ConsumerTimeout,
    MessageBytes,
    Queues,
}

impl Limit {
    /// Only what stands before the first quoted name, or after the last one, is RabbitMQ's own.
    fn of(reply_code: u16, reply_text: &str) -> Option<Limit> {
        let (_, text) = reply_text.split_once(" - ")?;
        match reply_code {
            406 if text.starts_with("delivery acknowledgement on channel ") => Some(Limit::ConsumerTimeout),
            406 if text.starts_with("message size ") && text.contains(" is larger than ") => Some(Limit::MessageBytes),
            406 if text.starts_with("cannot declare queue '") && text.ends_with(") is reached") => Some(Limit::Queues),
            530 if text.starts_with("number of channels opened ") => Some(Limit::Channels),
            530 if text.starts_with("reached maximum (") && text.contains(" of consumers per channel") => {
                Some(Limit::Consumers)
            }
            530 => connection_limit_of(reply_text).map(Limit::Connections),
            _ => None,
        }
    }

    fn refusal(self, name: &'static str, reply_text: &str) -> Refusal {
        let (code, hint, close) = match self {
            Limit::Channels => (
                "broker.channel_limit",
                "Try again later. RabbitMQ's limit on channels of the user (set_user_limits, max-channels) or of a connection \
                 (channel_max) leaves no room; its administrator can raise it.",
                CloseCode::TryAgainLater,
            ),
            Limit::Connections(whose) => {
                return Refusal { severity: Severity::Fatal, ..connection_limit(name, whose) };
            }
            Limit::Consumers => (
                "broker.consumer_limit",
                "UNSUBSCRIBE from something. RabbitMQ's consumer_max_per_channel bounds what one session may consume.",
                CloseCode::PolicyViolation,
            ),
            Limit::ConsumerTimeout => (
                "broker.consumer_timeout",
                "ACK or NACK messages sooner, or ask for fewer at a time (prefetch-count). RabbitMQ's consumer_timeout is how \
                 long one may stay unacknowledged.",
                CloseCode::PolicyViolation,
            ),
            Limit::MessageBytes => (
                "broker.message_limit",
                "Send a smaller body. RabbitMQ's max_message_size is less than the relay's limit.",
                CloseCode::TooBig,
            ),
            Limit::Queues => (
                "broker.queue_limit",
                "Try again when there are fewer queues. RabbitMQ's limit on queues (set_vhost_limits, max-queues, or \
                 cluster_queue_limit) is reached; its administrator can raise it.",
                CloseCode::TryAgainLater,
            ),
        };
        Refusal::fatal(code, name, reply_text, hint).closing(close)
    }
}

/// RabbitMQ lets the relay open no further connection.
pub(super) fn connection_limit(message: &'static str, whose: &str) -> Refusal {
    let body = format!("RabbitMQ's limit on connections of the {whose} is reached\n");
    let hint = "Try again later. RabbitMQ's administrator can raise it (max-connections of set_vhost_limits or set_user_limits, \
                connection_max).";
    Refusal::soft("broker.connection_limit", message, body, hint).closing(CloseCode::TryAgainLater)
}

/// AMQP's reply codes by the names that the plugin puts into `message`, with our code and advice.
fn reply_name(reply_code: u16) -> (&'static str, &'static str, &'static str) {
    match reply_code {
        311 => ("content_too_large", "broker.content_too_large", "Send a smaller body."),
        313 => ("no_consumers", "broker.no_consumers", ""),
        320 => ("connection_forced", "broker.connection_forced", "Connect again."),
        402 => ("invalid_path", "broker.invalid_path", ""),
        403 => ("access_refused", "broker.access_refused", "Ask the broker's administrator for the permission."),
        404 => ("not_found", "broker.not_found", "Create it first, or correct the name."),
        405 => ("resource_locked", "broker.resource_locked", "The queue belongs to another session."),
        406 => (
            "precondition_failed",
            "broker.precondition_failed",
            "Use the flags and arguments that the queue has, or /amq/queue/<name> to use it as it is.",
        ),
        502 => ("syntax_error", "broker.syntax_error", ""),
        503 => ("command_invalid", "broker.command_invalid", ""),
        504 => ("channel_error", "broker.channel_error", ""),
        505 => ("unexpected_frame", "broker.unexpected_frame", ""),
        506 => ("resource_error", "broker.resource_error", "Try again in a while."),
        530 => ("not_allowed", "broker.not_allowed", ""),
        540 => ("not_implemented", "broker.not_implemented", ""),
        _ => (
            "internal_error",
            "broker.internal_error",
            "Check the arguments of the queue; if they are right, try again in a while.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_of_rabbitmq_has_its_own_code() {
        for (code, text, expected) in [
            (
                406,
                "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1000 ms.",
                "broker.consumer_timeout",
            ),
            (
                406,
                "PRECONDITION_FAILED - message size 2000 is larger than configured max size 1000",
                "broker.message_limit",
            ),
            (
                406,
                "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost '/' (1) is reached",
                "broker.queue_limit",
            ),
            (
                530,
                "NOT_ALLOWED - number of channels opened for user 'a' has reached the maximum allowed user limit of (3)",
                "broker.channel_limit",
            ),
            (
                530,
                "NOT_ALLOWED - number of channels opened (9) has reached the negotiated channel_max (9)",
                "broker.channel_limit",
            ),
            (530, "NOT_ALLOWED - reached maximum (2) of consumers per channel", "broker.consumer_limit"),
            (
                530,
                "NOT_ALLOWED - Connection refused for user 'a': user connection limit (2) is reached",
                "broker.connection_limit",
            ),
            (530, "NOT_ALLOWED - vhost 'x' not found", "broker.not_allowed"),
            (
                406,
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'message size is larger than'",
                "broker.precondition_failed",
            ),
        ] {
            assert_eq!(Refusal::from_reply(code, text).code, expected, "{text}");
        }
    }
}
