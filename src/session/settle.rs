//! ACK and NACK: from the id that the client names to settlements of the broker's deliveries.

use super::Session;
use super::boolean::flag;
use super::command::{DeliveryTag, Settlement};
use super::ledger::{NamedId, Serial};
use super::refusal::Refusal;
use super::transaction::{Action, SettleAction};
use crate::stomp::{Command, Frame, Version};

/// The deliveries that one settlement covers; the usual case takes no list.
enum Covered {
    None,
    One(DeliveryTag),
    Many(Vec<DeliveryTag>),
}

impl Covered {
    fn add(&mut self, tag: DeliveryTag) {
        match self {
            Covered::None => *self = Covered::One(tag),
            Covered::One(first) => *self = Covered::Many(vec![*first, tag]),
            Covered::Many(tags) => tags.push(tag),
        }
    }
}

impl Session {
    pub(super) fn handle_settle(&mut self, frame: &Frame, version: Version) -> Result<(), Refusal> {
        let action = self.read_settle(frame, version)?;
        match frame.header("transaction") {
            Some(name) => {
                self.require_transaction(name)?;
                self.check_outstanding(&action)?;
                self.enlist(name, Action::Settle(action))?;
                self.receipt_for(frame);
            }
            None => {
                self.check_outstanding(&action)?;
                let stale = self.ledger.is_stale(action.serial);
                self.settle(&action)?;
                match frame.header("receipt") {
                    Some(receipt) if !stale => self.receipt_in_turn(receipt),
                    // There is nothing that it could wait for.
                    _ => self.receipt_for(frame),
                }
            }
        }
        Ok(())
    }

    fn read_settle(&self, frame: &Frame, version: Version) -> Result<SettleAction, Refusal> {
        let (command, outcome) = match frame.command {
            Command::Nack => ("NACK", Settlement::Nack { requeue: self.requeue(frame)? }),
            _ => ("ACK", Settlement::Ack),
        };
        // STOMP 1.2 names the header `id`, the older versions `message-id`; the value is the same.
        let header = if version == Version::V1_2 { "id" } else { "message-id" };
        let value = frame.header(header).ok_or_else(|| {
            Refusal::soft(
                "frame.header_missing",
                "Missing header",
                format!("\"{command}\" must include the \"{header}\" header\n"),
                "STOMP 1.2 takes the MESSAGE's ack header as id; 1.0 and 1.1 take its message-id.",
            )
        })?;
        let id = NamedId::parse(value).ok_or_else(|| {
            Refusal::soft(
                "ack.id",
                "Invalid header",
                format!("\"{command}\" must include a valid \"{header}\" header\n"),
                "Give back the value of the MESSAGE as it was.",
            )
        })?;
        let serial =
            id.serial.parse().map(Serial).map_err(|_| Refusal::bad_header(header, "not an id of this relay"))?;
        let outstanding = self.ledger.get(serial).is_some_and(|entry| *entry.name == *id.name);
        let known = (outstanding || self.ledger.is_stale(serial)) && id.session == self.id;
        // In STOMP 1.1 both headers name the message.
        let known = known && (!self.is_strict() || version != Version::V1_1 || named_subscription(frame, id.name));
        match known {
            true => Ok(SettleAction { outcome, serial }),
            false => Err(not_found(serial)),
        }
    }

    fn requeue(&self, frame: &Frame) -> Result<bool, Refusal> {
        Ok(flag(&frame.headers, "requeue")?.unwrap_or(self.config.default_nack_requeue))
    }

    fn check_outstanding(&self, action: &SettleAction) -> Result<(), Refusal> {
        if self.ledger.is_stale(action.serial) {
            return Ok(());
        }
        let entry = self.ledger.get(action.serial).ok_or_else(|| not_found(action.serial))?;
        if entry.offset.is_some() && action.outcome != Settlement::Ack {
            return Err(Refusal::soft(
                "ack.stream",
                "Processing error",
                "a message of a stream cannot be given back by NACK\n",
                "ACK it; a stream keeps its messages, and x-stream-offset reads them again.",
            ));
        }
        Ok(())
    }

    /// Settles what the action covers. In a COMMIT a delivery may be gone already, by an earlier cumulative one of it.
    pub(super) fn settle(&mut self, action: &SettleAction) -> Result<(), Refusal> {
        let mut covered = Covered::None;
        let count = self.ledger.settle(action.serial, |tag| covered.add(tag)).map_err(|_| not_found(action.serial))?;
        if count == 0 {
            self.stats.late_acks += 1;
        }
        match covered {
            Covered::None => {}
            Covered::One(tag) => self.settle_in_turn(tag, action.outcome),
            Covered::Many(tags) => tags.into_iter().for_each(|tag| self.settle_in_turn(tag, action.outcome)),
        }
        Ok(())
    }
}

/// Whether the subscription that the frame names is that of the message id: `T_` and the subscription's id.
fn named_subscription(frame: &Frame, name: &str) -> bool {
    name.strip_prefix("T_") == frame.header("subscription")
}

/// Unknown, settled before, delivered with `ack:auto`, or another session's.
pub(super) fn not_found(serial: Serial) -> Refusal {
    Refusal::soft(
        "ack.unknown",
        "Message not found",
        format!("unknown delivery tag {}\n", serial.0),
        "It is settled already, was delivered with ack:auto, or belongs to an earlier connection.",
    )
}
