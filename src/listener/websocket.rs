//! One client's WebSocket (RFC 6455): messages in, messages out, both at once, and an orderly close.
//!
//! Frames are read by [`incoming`](super::incoming) and written by [`outgoing`](super::outgoing), in tungstenite's format.
//! Neither its stream nor its protocol machine is used: what waits to be written must be countable, and an unfinished message
//! must not be kept here beside what its reader keeps. Knows nothing of STOMP: one queued frame is one message, and messages
//! come as they arrive, in pieces or several at once.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::coop;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data};

use super::event::{DriveError, Event, Incoming, ReceiveError, SendError};
use super::incoming::{ControlFrame, FrameReader};
use super::outgoing::{Messages, Outgoing};
use super::stream::Stream;
use crate::patience;

/// Longest reason of a close frame: a control frame's 125 bytes less the code (RFC 6455 section 5.5).
const CLOSE_REASON_MAX: usize = 123;

/// How one client's WebSocket behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebSocketConfig {
    /// Largest message accepted from the client, in bytes, until [`WebSocket::set_message_bytes_max`] says otherwise.
    pub message_bytes_max: usize,
    pub opcode: Opcode,
}

/// In which kind of message a frame goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// Text when it is UTF-8, else binary: a browser ends the connection over a text message that is not UTF-8.
    TextWhenUtf8,
    /// Always binary, for clients whose text messages end at NUL (React Native).
    Binary,
}

/// Whether [`WebSocket::drive`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Yes,
    /// Leaves the peer's bytes in the socket: back-pressure.
    No,
}

/// Whether [`WebSocket::drive`] writes queued messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Yes,
    /// Holds back messages that were not begun; pings, pongs and what was begun still go out.
    No,
}

/// What the receiving side can still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Open,
    /// A close frame or the end of the stream was seen.
    Closed,
    /// After an error the stream cannot be parsed further, but the peer may still be there.
    Failed,
}

/// A client's WebSocket. Dropping it cuts the connection; [`WebSocket::close`] ends it in order.
pub struct WebSocket {
    stream: Stream,
    arrived: Arrived,
    /// We have said goodbye: pings and the peer's own goodbye are not answered.
    close_sent: bool,
    frames: FrameReader,
    outgoing: Outgoing,
    /// Bytes that came behind the request head, before anything is read from the stream.
    read_ahead: Vec<u8>,
    opcode: Opcode,
    read: u64,
    receiving: Receiving,
    /// Bytes were written to the stream but it was not flushed yet (TLS keeps records of its own).
    unflushed: bool,
    /// Something was queued since `Flushed` was last reported.
    flush_owed: bool,
    /// Alternates the two directions, so that a fast peer starves neither.
    reported: Reported,
}

/// Without contents, as those of [`Incoming`].
impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queued = self.queued_bytes();
        f.debug_struct("WebSocket").field("receiving", &self.receiving).field("queued_bytes", &queued).finish()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reported {
    Incoming,
    Flushed,
}

impl WebSocket {
    /// Takes over a stream after the 101 answer; `read_ahead` was read behind the request head.
    pub(super) fn new(stream: Stream, read_ahead: &[u8], config: WebSocketConfig) -> Self {
        WebSocket {
            stream,
            arrived: Arrived::default(),
            close_sent: false,
            frames: FrameReader::new(config.message_bytes_max),
            outgoing: Outgoing::default(),
            read_ahead: read_ahead.to_vec(),
            opcode: config.opcode,
            read: 0,
            receiving: Receiving::Open,
            unflushed: false,
            flush_owed: false,
            reported: Reported::Flushed,
        }
    }

    /// Changes the largest message accepted from now on, in bytes: small before login, larger after it.
    pub fn set_message_bytes_max(&mut self, bytes: usize) {
        self.frames.set_message_bytes_max(bytes);
    }

    /// Queues one STOMP frame (or heart-beat) as one message. Only buffers: the caller bounds [`Self::queued_bytes`].
    /// After the peer's close it is ignored.
    pub fn queue(&mut self, frame: Bytes) {
        if self.receiving == Receiving::Closed || self.close_sent {
            return;
        }
        let opcode = match self.opcode {
            Opcode::TextWhenUtf8 if std::str::from_utf8(&frame).is_ok() => Data::Text,
            Opcode::TextWhenUtf8 | Opcode::Binary => Data::Binary,
        };
        self.outgoing.push(opcode, frame);
        self.flush_owed = true;
    }

    /// Queues a ping, which overtakes queued messages. While one waits, another adds nothing.
    pub fn queue_ping(&mut self) {
        self.outgoing.push_ping();
        self.flush_owed = true;
    }

    /// What the client has shown in its TLS handshake, its own certificate first; empty if it has shown none.
    pub fn client_certificates(&self) -> &[CertificateDer<'static>] {
        self.stream.certificates()
    }

    /// Bytes queued and not yet taken by the operating system; for messages not begun, their payload alone.
    pub fn queued_bytes(&self) -> usize {
        self.outgoing.bytes()
    }

    /// What is kept for this WebSocket beside its own few KiB.
    pub fn retained_bytes(&self) -> usize {
        self.outgoing.retained_bytes() + self.arrived.data.capacity() + self.read_ahead.capacity()
    }

    /// Forgets the queued messages that were not begun.
    pub fn drop_messages(&mut self) {
        self.outgoing.drop_messages();
    }

    /// Bytes that the operating system has taken since the beginning; when it stands still, the peer does not read.
    pub fn written_bytes(&self) -> u64 {
        self.outgoing.written_bytes()
    }

    /// Bytes that came since the beginning, those of a message included that is not complete.
    pub fn read_bytes(&self) -> u64 {
        self.read
    }

    /// Reads and writes at once until there is something to tell. A peer that does not read does not stop us from
    /// reading what it sends, and the other way round. `Flushed` comes once after all that was queued is written; with
    /// nothing queued, `Write::Yes` waits quietly. Without `Read::Yes` and with nothing to write it never returns.
    ///
    /// Cancel-safe: dropped at any point, nothing is lost or repeated.
    ///
    /// # Errors
    /// After any error only [`Self::close`] makes sense. After `Closed`, reading returns `Closed` again.
    pub async fn drive(&mut self, read: Read, write: Write) -> Result<Event, DriveError> {
        poll_fn(|cx| self.poll_drive(cx, read, write)).await
    }

    /// Waits for the peer; writes nothing but pongs. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::drive`].
    pub async fn recv(&mut self) -> Result<Incoming, DriveError> {
        loop {
            if let Event::Incoming(incoming) = self.drive(Read::Yes, Write::No).await? {
                return Ok(incoming);
            }
        }
    }

    /// Writes all that is queued. Cancel-safe.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn flush(&mut self) -> Result<(), SendError> {
        poll_fn(|cx| self.poll_write_out(cx, Messages::Encoded)).await?;
        self.flush_owed = false;
        Ok(())
    }

    /// Writes all that is queued, then a close frame, waits for the peer's close frame and ends the connection; cuts it
    /// when `deadline` has passed. What the peer sends meanwhile is thrown away. If the peer closed first, only its
    /// close is answered. `reason` is cut to 123 bytes at a character boundary.
    pub async fn close(mut self, code: u16, reason: &str, deadline: Duration) {
        // An error here means that the peer is gone, a timeout that it does not care: both end the connection.
        let _ = patience::timeout(deadline, self.finish(code, reason)).await;
    }

    async fn finish(&mut self, code: u16, reason: &str) -> io::Result<()> {
        self.discard_until(WriteDone::Enough).await?;
        if self.receiving != Receiving::Closed && !self.close_sent {
            let reason = cut(reason, CLOSE_REASON_MAX);
            let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
            self.outgoing.push_control(Frame::close(Some(frame)));
            self.close_sent = true;
        }
        self.discard_until(WriteDone::Enough).await?;
        if self.receiving == Receiving::Open {
            self.discard_until(WriteDone::PeerCloses).await?;
        }
        self.stream.shutdown().await?;
        if self.receiving == Receiving::Failed {
            // The peer's close frame cannot be found any more, and bytes left unread would make the kernel reset the
            // connection and lose what the peer has not taken yet: read on until it leaves.
            let mut ignored = [0; 1024];
            while self.stream.read(&mut ignored).await? > 0 {}
        }
        Ok(())
    }

    /// Writes while reading and discarding: a peer may read only after it has written.
    async fn discard_until(&mut self, done: WriteDone) -> io::Result<()> {
        poll_fn(|cx| {
            let sent =
                self.poll_write_out(cx, Messages::Encoded).map_err(|error| io::Error::other(error.to_string()))?;
            while self.receiving == Receiving::Open {
                match self.poll_receive(cx) {
                    Poll::Ready(_) => {}
                    Poll::Pending => break,
                }
            }
            match done {
                WriteDone::Enough if sent.is_ready() && self.outgoing.is_empty() => Poll::Ready(Ok(())),
                WriteDone::PeerCloses if self.receiving != Receiving::Open => Poll::Ready(Ok(())),
                _ => Poll::Pending,
            }
        })
        .await
    }

    fn poll_drive(&mut self, cx: &mut Context<'_>, read: Read, write: Write) -> Poll<Result<Event, DriveError>> {
        // Messages that are buffered already come without asking the socket: without this, a burst of them would keep the
        // task running although its writes are refused until it yields.
        if !coop::has_budget_remaining() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let messages = match write {
            Write::Yes => Messages::Encoded,
            Write::No => Messages::Held,
        };
        let mut sent = self.poll_write_out(cx, messages)?;
        if read == Read::Yes && !(self.reported == Reported::Incoming && self.flush_done(sent)) {
            if let Poll::Ready(incoming) = self.poll_receive(cx) {
                self.reported = Reported::Incoming;
                // Replies go out with the next call at the latest; the driver calls again after each event.
                return Poll::Ready(Ok(Event::Incoming(incoming?)));
            }
            sent = self.poll_write_out(cx, messages)?;
        }
        if self.flush_done(sent) {
            self.flush_owed = false;
            self.reported = Reported::Flushed;
            return Poll::Ready(Ok(Event::Flushed));
        }
        Poll::Pending
    }

    fn flush_done(&self, sent: Poll<()>) -> bool {
        self.flush_owed && sent.is_ready() && self.outgoing.is_empty()
    }

    /// Ready when all that may be written was taken by the operating system.
    fn poll_write_out(&mut self, cx: &mut Context<'_>, messages: Messages) -> Poll<Result<(), SendError>> {
        let failed = |error: io::Error| SendError(error.to_string());
        loop {
            let bytes = self.outgoing.next_bytes(messages);
            if bytes.is_empty() {
                break;
            }
            match Pin::new(&mut self.stream).poll_write(cx, bytes).map_err(failed)? {
                Poll::Ready(0) => return Poll::Ready(Err(SendError("the connection takes no more bytes".into()))),
                Poll::Ready(count) => {
                    self.outgoing.written(count);
                    self.unflushed = true;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.unflushed {
            std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx)).map_err(failed)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, ReceiveError>> {
        if self.receiving != Receiving::Open {
            return Poll::Ready(Ok(Incoming::Closed { code: None }));
        }
        loop {
            if let Some(result) = self.arrived.next() {
                return Poll::Ready(self.told(result));
            }
            match ready!(self.poll_read(cx)) {
                Ok(()) => {}
                Err(error) => return Poll::Ready(self.read_failure(&error)),
            }
        }
    }

    /// Reads once, and takes note of all that has come.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let WebSocket { arrived, close_sent, frames, outgoing, .. } = self;
        let mut taking = Taking { arrived, close_sent, frames, outgoing };
        if !self.read_ahead.is_empty() {
            taking.take(&std::mem::take(&mut self.read_ahead));
            return Poll::Ready(Ok(()));
        }
        let read = ready!(self.stream.poll_take(cx, |bytes| taking.take(bytes)))?;
        if read == 0 {
            self.arrived.end = Some(Ok(None));
        }
        self.read += read as u64;
        Poll::Ready(Ok(()))
    }

    /// Follows what is told to the driver.
    fn told(&mut self, result: Result<Incoming, ReceiveError>) -> Result<Incoming, ReceiveError> {
        match &result {
            Ok(Incoming::Closed { .. }) => self.peer_closed(),
            Err(_) => self.receiving = Receiving::Failed,
            Ok(_) => {}
        }
        result
    }

    fn peer_closed(&mut self) {
        self.receiving = Receiving::Closed;
        self.outgoing.drop_messages();
    }

    fn read_failure(&mut self, error: &io::Error) -> Result<Incoming, ReceiveError> {
        // The end of the stream without TLS's own goodbye.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            self.peer_closed();
            return Ok(Incoming::Closed { code: None });
        }
        self.receiving = Receiving::Failed;
        Err(ReceiveError::Io(error.to_string()))
    }
}

/// What reading changes of a WebSocket, while its stream shows what has come.
struct Taking<'a> {
    arrived: &'a mut Arrived,
    close_sent: &'a mut bool,
    frames: &'a mut FrameReader,
    outgoing: &'a mut Outgoing,
}

impl Taking<'_> {
    /// Takes note of all that has come; nothing is the end of the stream, of which this says nothing.
    fn take(&mut self, mut bytes: &[u8]) {
        self.arrived.something = !bytes.is_empty();
        while !bytes.is_empty() && self.arrived.end.is_none() {
            match self.frames.read(bytes, &mut self.arrived.data) {
                Ok((taken, control)) => {
                    bytes = &bytes[taken..];
                    match control {
                        None => {}
                        Some(ControlFrame::Close(payload)) => self.arrived.end = Some(self.take_close(&payload)),
                        Some(ControlFrame::Ping(payload)) if !*self.close_sent => {
                            self.outgoing.push_control(Frame::pong(payload));
                        }
                        Some(ControlFrame::Ping(_)) => {}
                        Some(ControlFrame::Pong) => self.arrived.pong = true,
                    }
                }
                Err(error) => self.arrived.end = Some(Err(error)),
            }
        }
    }

    /// The peer's goodbye, which is answered in kind (RFC 6455 section 5.5.1), and its code.
    fn take_close(&mut self, payload: &[u8]) -> Result<Option<u16>, ReceiveError> {
        let frame = match payload {
            [] => None,
            [_] => return Err(ReceiveError::Protocol(ProtocolError::InvalidCloseSequence.to_string())),
            [high, low, reason @ ..] => {
                let code = CloseCode::from(u16::from_be_bytes([*high, *low]));
                let reason = std::str::from_utf8(reason).map_err(|_| ReceiveError::NotUtf8)?;
                Some(match code.is_allowed() {
                    true => CloseFrame { code, reason: reason.into() },
                    false => CloseFrame { code: CloseCode::Protocol, reason: "Protocol violation".into() },
                })
            }
        };
        let code = frame.as_ref().map(|frame| frame.code.into());
        self.outgoing.drop_messages();
        if !std::mem::replace(self.close_sent, true) {
            self.outgoing.push_control(Frame::close(frame));
        }
        Ok(code)
    }
}

/// What one read from the socket brought and the driver has not been told.
#[derive(Default)]
struct Arrived {
    data: BytesMut,
    /// The peer's goodbye or the end of the stream, with the code; or why nothing more can be read.
    end: Option<Result<Option<u16>, ReceiveError>>,
    pong: bool,
    /// Anything at all: the peer lives.
    something: bool,
}

impl Arrived {
    /// What to tell next: what was sent before an end comes before it.
    fn next(&mut self) -> Option<Result<Incoming, ReceiveError>> {
        let something = std::mem::take(&mut self.something);
        if !self.data.is_empty() {
            return Some(Ok(Incoming::Data(std::mem::take(&mut self.data))));
        }
        if std::mem::take(&mut self.pong) {
            return Some(Ok(Incoming::Pong));
        }
        match self.end.take() {
            Some(end) => Some(end.map(|code| Incoming::Closed { code })),
            None => something.then_some(Ok(Incoming::Activity)),
        }
    }
}

/// How far [`WebSocket::discard_until`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteDone {
    /// All is written.
    Enough,
    /// All is written and the peer has closed.
    PeerCloses,
}

/// The longest prefix of at most `max` bytes that ends at a character boundary.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_reasons_between_characters() {
        assert_eq!(cut("short", CLOSE_REASON_MAX), "short");
        let long = "ä".repeat(100);
        assert_eq!(cut(&long, CLOSE_REASON_MAX).len(), 122);
        assert_eq!(cut("ä", 1), "");
    }
}
