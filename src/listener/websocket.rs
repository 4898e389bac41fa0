//! One client's WebSocket (RFC 6455): messages in, messages out, both at once, and an orderly close.
//!
//! Framing, masking, fragments, UTF-8 and the close state are tungstenite's; it is driven directly rather than through
//! its stream and sink, because the size limit must change after login, and because what waits to be written must be
//! countable. Knows nothing of STOMP: one queued frame is one message.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::coop;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data};
use tokio_tungstenite::tungstenite::protocol::{self, CloseFrame, Role, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error as ProtocolFailure, Message};

use super::event::{DriveError, Event, Incoming, ReceiveError, SendError};
use super::outgoing::{Messages, Outgoing};
use super::stream::Stream;
use crate::patience;

/// Bytes read from the socket at once. The buffer is touched in full by the first read of each session, so it decides
/// the memory of an idle one; small messages are no slower with it than with a larger one.
const READ_BUFFER: usize = 1024;

/// Room for control frames inside the protocol machine; they leave it at once.
const CONTROL_BUFFER: usize = 1024;

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
    protocol: WebSocketContext,
    outgoing: Outgoing,
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
        let limits = protocol::WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(CONTROL_BUFFER)
            .max_message_size(Some(config.message_bytes_max))
            .max_frame_size(Some(config.message_bytes_max));
        WebSocket {
            stream,
            protocol: WebSocketContext::from_partially_read(read_ahead.to_vec(), Role::Server, Some(limits)),
            outgoing: Outgoing::default(),
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
        self.protocol.set_config(|limits| {
            limits.max_message_size = Some(bytes);
            limits.max_frame_size = Some(bytes);
        });
    }

    /// Queues one STOMP frame (or heart-beat) as one message. Only buffers: the caller bounds [`Self::queued_bytes`].
    /// After the peer's close it is ignored.
    pub fn queue(&mut self, frame: Bytes) {
        if self.receiving == Receiving::Closed {
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

    /// Bytes queued and not yet taken by the operating system; for messages not begun, their payload alone.
    pub fn queued_bytes(&self) -> usize {
        self.outgoing.bytes()
    }

    /// What is kept for this WebSocket beside its own few KiB.
    pub fn retained_bytes(&self) -> usize {
        self.outgoing.bytes()
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
        if self.receiving != Receiving::Closed {
            let reason = cut(reason, CLOSE_REASON_MAX);
            let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
            // Fails only if the connection was terminated, which `receiving` excludes.
            let _ = self.protocol.close(&mut ControlSink(&mut self.outgoing), Some(frame));
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
        let mut duplex =
            Duplex { stream: &mut self.stream, cx, read: &mut self.read, control: ControlSink(&mut self.outgoing) };
        let result = match self.protocol.read(&mut duplex) {
            Ok(Message::Text(text)) => Ok(Incoming::Data(text.into())),
            Ok(Message::Binary(bytes)) => Ok(Incoming::Data(bytes)),
            Ok(Message::Close(frame)) => {
                self.peer_closed();
                // Queues the answering close frame; "closed" is then its only possible result.
                let _ = self.protocol.flush(&mut ControlSink(&mut self.outgoing));
                Ok(Incoming::Closed { code: frame.map(|frame| frame.code.into()) })
            }
            Ok(Message::Pong(_)) => Ok(Incoming::Pong),
            Ok(Message::Ping(_) | Message::Frame(_)) => {
                // Queues the pong that a ping asks for; into memory, so it cannot fail.
                let _ = self.protocol.flush(&mut ControlSink(&mut self.outgoing));
                Ok(Incoming::Activity)
            }
            Err(ProtocolFailure::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => self.receive_failure(error),
        };
        Poll::Ready(result)
    }

    fn peer_closed(&mut self) {
        self.receiving = Receiving::Closed;
        self.outgoing.drop_messages();
    }

    fn receive_failure(&mut self, error: ProtocolFailure) -> Result<Incoming, ReceiveError> {
        self.receiving = Receiving::Failed;
        match error {
            ProtocolFailure::ConnectionClosed
            | ProtocolFailure::AlreadyClosed
            | ProtocolFailure::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                self.peer_closed();
                Ok(Incoming::Closed { code: None })
            }
            // The end of the stream without TLS's own goodbye.
            ProtocolFailure::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.peer_closed();
                Ok(Incoming::Closed { code: None })
            }
            ProtocolFailure::Io(error) => Err(ReceiveError::Io(error.to_string())),
            ProtocolFailure::Capacity(_) => {
                let max = self.protocol.get_config().max_message_size.unwrap_or(usize::MAX);
                Err(ReceiveError::TooBig { max })
            }
            ProtocolFailure::Utf8(_) => Err(ReceiveError::NotUtf8),
            error => Err(ReceiveError::Protocol(error.to_string())),
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

/// The stream as the protocol machine sees it for the time of one call: reads come from the socket and never block,
/// the control frames that it writes by itself are queued.
struct Duplex<'a, 'b> {
    stream: &'a mut Stream,
    cx: &'a mut Context<'b>,
    read: &'a mut u64,
    control: ControlSink<'a>,
}

impl io::Read for Duplex<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        match Pin::new(&mut *self.stream).poll_read(self.cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                *self.read += buffer.filled().len() as u64;
                Ok(buffer.filled().len())
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl io::Write for Duplex<'_, '_> {
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.control.write(frame)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes the control frames of the protocol machine, which come one whole frame per write (its own buffer is off).
struct ControlSink<'a>(&'a mut Outgoing);

impl io::Read for ControlSink<'_> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl io::Write for ControlSink<'_> {
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.0.push_control(frame);
        Ok(frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
