//! What is done before a deadline is judged: whatever has come is handed over first, and a relay that woke up late looks
//! twice. What a deadline means is the session's.

use std::time::Instant;

use futures_util::FutureExt;

use super::Connection;
use crate::listener::{Read, Write};
use crate::patience;
use crate::session::io::Input;
use crate::session::refusal::Close;

impl Connection {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let stalled = self.stall.deadline(self.config.write_timeout);
        let deadlines = [self.session.poll_timeout(), stalled, self.drain_deadline()];
        let first = deadlines.into_iter().flatten().min()?;
        Some(self.second_look.map_or(first, |look| first.max(look)))
    }

    pub(super) fn handle_deadline(&mut self, now: Instant) -> Option<Close> {
        let due = self.deadline()?;
        if let Some(until) = patience::second_look(due.into(), now.into()) {
            self.second_look = Some(until.into());
            self.stall.restart(now);
            return self.input(now, Input::Unheard);
        }
        self.second_look = None;
        if let Some(close) = self.take_what_came(now) {
            return Some(close);
        }
        if self.is_stalled(now) {
            return self.input(now, Input::WriteStalled);
        }
        if self.drain_deadline().is_some_and(|until| now >= until)
            && let Some(close) = self.tell_drain(now)
        {
            return Some(close);
        }
        if self.heard != self.socket.read_bytes() {
            // Of a message that is not complete, which no pong can overtake.
            self.heard = self.socket.read_bytes();
            self.session.handle_input(now, Input::Received);
        } else if !self.listens()
            && let Some(close) = self.input(now, Input::Unheard)
        {
            return Some(close);
        }
        self.input(now, Input::Timeout)
    }

    /// One turn of everything that may have become ready together with the deadline.
    fn take_what_came(&mut self, now: Instant) -> Option<Close> {
        let read = self.read_now(self.has_room());
        if !self.socket_failed
            && let Some(event) = self.socket.drive(read, Write::Yes).now_or_never()
            && let Some(close) = self.handle_socket(now, event)
        {
            return Some(close);
        }
        if let Some(result) = self.login.as_mut().and_then(|login| login.now_or_never())
            && let Some(close) = self.handle_login(now, result)
        {
            return Some(close);
        }
        if let Some(close) = self.handle_frames() {
            return Some(close);
        }
        let room = self.has_room();
        match self.lease.as_mut().filter(|_| room).and_then(|lease| lease.next_event().now_or_never()) {
            Some(event) => self.handle_broker(now, event),
            None => None,
        }
    }

    /// Whether the client's silence says anything: it is read, and what it may be answering has been written.
    fn listens(&self) -> bool {
        self.read_now(self.has_room()) == Read::Yes && self.socket.queued_bytes() == 0
    }
}
