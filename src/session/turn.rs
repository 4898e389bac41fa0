//! Frames that wait for their turn, so that each acts on what the ones before it have left.
//!
//! Publishing and consuming are two AMQP connections, and nothing orders what goes over one before what goes over the other.
//! So a SUBSCRIBE or UNSUBSCRIBE waits until the SENDs before it are confirmed, and a SUBSCRIBE also until an UNSUBSCRIBE has
//! freed its name, its room and its queue. While a frame waits no other is read, so at most one does.
//! While RabbitMQ takes no SEND (a memory or disk alarm, or the publishing connection is lost) nobody waits for one: to consume
//! is what ends an alarm.
//! What a SEND waits for is in `publish`, what an ACK waits for in `settle`.

use super::Session;
use super::amqp::Body;
use super::blocked::Publishable;
use super::destination::Destination;
use super::refusal::Refusal;
use super::transaction::Action;
use crate::stomp::{Command, Frame};

impl Session {
    /// Carries out what goes over the consuming connection, now or when its turn has come.
    pub(super) fn take_turn(&mut self, frame: &mut Frame) -> Result<(), Refusal> {
        if self.is_its_turn(frame) {
            return self.carry_out(frame);
        }
        frame.body = Body::default();
        let empty = Frame::new(frame.command.clone());
        self.actions.push_back(Action::Frame(Box::new(std::mem::replace(frame, empty))));
        Ok(())
    }

    pub(super) fn is_its_turn(&self, frame: &Frame) -> bool {
        match frame.command {
            Command::Subscribe => {
                let free = self.awaited_send().is_none() && !self.subscriptions.has_stopping();
                free && !self.declares_with_another(frame)
            }
            Command::Unsubscribe => self.awaited_send().is_none(),
            // In a transaction it is COMMIT's turn that counts.
            _ => frame.headers.contains("transaction") || !self.subscriptions.has_stopping(),
        }
    }

    /// The number of the last SEND that others wait for.
    pub(super) fn awaited_send(&self) -> Option<u64> {
        let taken = self.publishable == Publishable::Yes && !self.outages.publish.is_lost();
        self.publishing.last_unconfirmed().filter(|_| taken)
    }

    /// A queue is declared by the first that uses it, whatever the later ones say of it.
    fn declares_with_another(&self, frame: &Frame) -> bool {
        if !self.has_pending_consumer_work() {
            return false;
        }
        let destination =
            frame.header("destination").map(|text| Destination::parse(text, self.config.destination_decoding));
        match destination {
            Some(Ok(Destination::Queue(name))) => self.subscriptions.is_declaring(&name),
            _ => false,
        }
    }

    /// Refuses a frame. If that ends the session, it comes behind the receipts of the frames before it, as for a client that
    /// waits for each; no frame is read meanwhile.
    pub(super) fn refuse_in_turn(&mut self, refusal: Refusal) {
        match self.owes_receipts() && refusal.ends_session(self.config.compatibility) {
            true => self.actions.push_back(Action::Refuse(Box::new(refusal))),
            false => self.refuse(refusal),
        }
    }

    /// Whether the answer to something that was handed to RabbitMQ is a receipt's. What it can't answer now is not waited for.
    pub(super) fn owes_receipts(&self) -> bool {
        let sends = self.publishing.unconfirmed_receipts().chain(self.transactions.commit_receipts());
        self.subscriptions.owe_receipts()
            || (self.awaited_send().is_some() && sends.chain(self.held.receipts()).next().is_some())
    }

    pub(super) fn carry_out(&mut self, frame: &Frame) -> Result<(), Refusal> {
        match frame.command {
            Command::Subscribe => self.handle_subscribe(frame),
            Command::Unsubscribe => self.handle_unsubscribe(frame),
            _ => self.handle_settle(frame, self.agreed_version()),
        }
    }
}
