//! Why a link died, as far as it matters for what follows: only what one of its sessions may have caused raises suspicion, and
//! what the broker's own state caused is nobody's fault.

use super::fault::{is_channel_limit, reason};
use lapin::ErrorKind;
use lapin::protocol::AMQPErrorKind;

/// AMQP's reply code for an operator's doing: shutdown, `rabbitmqctl close_connection`, a deleted virtual host.
const CONNECTION_FORCED: u16 = 320;
/// AMQP's reply codes for what RabbitMQ can't do at the moment: a stream or quorum queue without a majority, a process that
/// crashed.
const RESOURCE_ERROR: u16 = 506;
const INTERNAL_ERROR: u16 = 541;
/// AMQP's reply code for a frame that can't be read; stands for lapin's own reading errors, which have none.
const FRAME_ERROR: u16 = 501;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// The broker closed it in order, or we did.
    Forced,
    /// End of stream, reset, silence.
    Network,
    /// The broker closed it for something that was sent on it (its reply code), or lapin could not read what came.
    Protocol { reply_code: u16 },
    /// The broker closed it because of its own state. Something that was sent on it met that state and will meet it again, but
    /// nobody is to blame for it.
    State { reply_code: u16 },
}

/// How a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) death: Death,
    /// For logs and errors.
    pub(super) reason: String,
}

impl Loss {
    pub(super) fn forced(reason: &str) -> Loss {
        Loss { death: Death::Forced, reason: reason.to_owned() }
    }

    pub(super) fn network(reason: impl Into<String>) -> Loss {
        Loss { death: Death::Network, reason: reason.into() }
    }

    /// By the error that ended the connection.
    pub(super) fn of(error: &lapin::Error) -> Loss {
        Loss { death: death(error), reason: reason(error) }
    }
}

fn death(error: &lapin::Error) -> Death {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) => match (amqp.kind(), amqp.get_id()) {
            (AMQPErrorKind::Hard(_), CONNECTION_FORCED) => Death::Forced,
            (AMQPErrorKind::Hard(_), reply_code @ (RESOURCE_ERROR | INTERNAL_ERROR)) => Death::State { reply_code },
            // Whoever opened one channel too many knows it by itself.
            (AMQPErrorKind::Hard(_), _) if is_channel_limit(&reason(error)) => Death::Network,
            (AMQPErrorKind::Hard(_), reply_code) => Death::Protocol { reply_code },
            (AMQPErrorKind::Soft(_), _) => Death::Network,
        },
        ErrorKind::ParsingError(_)
        | ErrorKind::InvalidProtocolVersion(_)
        | ErrorKind::InvalidChannel(_)
        | ErrorKind::InvalidChannelState(..)
        | ErrorKind::SerialisationError(_) => Death::Protocol { reply_code: FRAME_ERROR },
        // What the guard in front of lapin gave up on.
        ErrorKind::IOError(io) if io.kind() == std::io::ErrorKind::InvalidData => {
            Death::Protocol { reply_code: FRAME_ERROR }
        }
        _ => Death::Network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::protocol::{AMQPError, AMQPHardError};
    use std::io;

    #[test]
    fn only_what_a_session_may_have_caused_is_a_protocol_death() {
        let hard = |error| {
            lapin::Error::from(ErrorKind::ProtocolError(AMQPError::new(AMQPErrorKind::Hard(error), "why".into())))
        };
        let protocol = |reply_code| Death::Protocol { reply_code };
        let io = |kind: io::ErrorKind| lapin::Error::from(ErrorKind::IOError(io::Error::from(kind).into()));
        let cases = [
            (hard(AMQPHardError::CONNECTIONFORCED), Death::Forced),
            (hard(AMQPHardError::INTERNALERROR), Death::State { reply_code: 541 }),
            (hard(AMQPHardError::RESOURCEERROR), Death::State { reply_code: 506 }),
            (hard(AMQPHardError::NOTIMPLEMENTED), protocol(540)),
            (hard(AMQPHardError::FRAMEERROR), protocol(501)),
            (ErrorKind::InvalidChannel(3).into(), protocol(501)),
            (io(io::ErrorKind::InvalidData), protocol(501)),
            (io(io::ErrorKind::ConnectionReset), Death::Network),
            (ErrorKind::MissingHeartbeatError.into(), Death::Network),
        ];
        for (error, expected) in cases {
            assert_eq!(Loss::of(&error).death, expected, "{error}");
        }
    }
}
