//! The command of a frame. Does not know which side may send which command.

use std::fmt;

/// The first line of a frame (STOMP 1.2, "Augmented BNF"). Case-sensitive: `send` is [`Command::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    Abort,
    Ack,
    Begin,
    Commit,
    Connect,
    Connected,
    Disconnect,
    Error,
    Message,
    Nack,
    Receipt,
    Send,
    Stomp,
    Subscribe,
    Unsubscribe,
    /// Whatever else stood there, word for word. Decoded rather than refused, so that the answer can name it.
    Unknown(Box<str>),
}

impl Command {
    /// `None` if the bytes are not UTF-8. Nothing is trimmed.
    pub fn from_bytes(bytes: &[u8]) -> Option<Command> {
        let command = match bytes {
            b"ABORT" => Command::Abort,
            b"ACK" => Command::Ack,
            b"BEGIN" => Command::Begin,
            b"COMMIT" => Command::Commit,
            b"CONNECT" => Command::Connect,
            b"CONNECTED" => Command::Connected,
            b"DISCONNECT" => Command::Disconnect,
            b"ERROR" => Command::Error,
            b"MESSAGE" => Command::Message,
            b"NACK" => Command::Nack,
            b"RECEIPT" => Command::Receipt,
            b"SEND" => Command::Send,
            b"STOMP" => Command::Stomp,
            b"SUBSCRIBE" => Command::Subscribe,
            b"UNSUBSCRIBE" => Command::Unsubscribe,
            other => Command::Unknown(std::str::from_utf8(other).ok()?.into()),
        };
        Some(command)
    }

    pub fn as_str(&self) -> &str {
        match self {
            Command::Unknown(text) => text,
            known => known.name().unwrap_or_default(),
        }
    }

    /// The name of a command that STOMP has; None for others.
    pub fn name(&self) -> Option<&'static str> {
        let name = match self {
            Command::Abort => "ABORT",
            Command::Ack => "ACK",
            Command::Begin => "BEGIN",
            Command::Commit => "COMMIT",
            Command::Connect => "CONNECT",
            Command::Connected => "CONNECTED",
            Command::Disconnect => "DISCONNECT",
            Command::Error => "ERROR",
            Command::Message => "MESSAGE",
            Command::Nack => "NACK",
            Command::Receipt => "RECEIPT",
            Command::Send => "SEND",
            Command::Stomp => "STOMP",
            Command::Subscribe => "SUBSCRIBE",
            Command::Unsubscribe => "UNSUBSCRIBE",
            Command::Unknown(_) => return None,
        };
        Some(name)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Command;

    #[test]
    fn every_known_command_reads_back_as_itself() {
        let names = "ABORT ACK BEGIN COMMIT CONNECT CONNECTED DISCONNECT ERROR MESSAGE NACK RECEIPT SEND STOMP SUBSCRIBE \
                     UNSUBSCRIBE";
        for name in names.split(' ') {
            let command = Command::from_bytes(name.as_bytes()).unwrap();
            assert_eq!(command.as_str(), name);
            assert!(!matches!(command, Command::Unknown(_)), "{name} is unknown");
        }
    }

    #[test]
    fn commands_are_case_sensitive_and_not_trimmed() {
        for text in ["send", "Send", "SEND ", " SEND", ""] {
            assert_eq!(Command::from_bytes(text.as_bytes()), Some(Command::Unknown(text.into())));
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_no_command() {
        assert_eq!(Command::from_bytes(b"SEND\xff"), None);
    }
}
