//! The byte stream below HTTP and WebSocket: TCP in the clear or TLS over TCP, as one concrete type.
//!
//! Deliberately not a trait object: each byte of each client passes here.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::tls::Metered;

/// Bytes read from the socket at once.
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    /// What is read in the clear from any client's socket passes here within one call, so that no client has a buffer of its own.
    static ARRIVING: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// One client's byte stream.
pub(super) enum Stream {
    #[cfg(fuzzing)]
    Memory(tokio::io::DuplexStream),
    Plain(TcpStream),
    /// Boxed: the TLS state is about a kilobyte, and the stream is moved several times before it comes to rest.
    Tls(Box<TlsStream<Metered>>),
}

impl Stream {
    /// What the client has shown in its handshake, its own first; empty if it has shown none.
    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        match self {
            Stream::Tls(stream) => stream.get_ref().1.peer_certificates().unwrap_or_default(),
            _ => &[],
        }
    }

    /// Reads once and shows what has come, at most [`READ_BYTES`] or a TLS record, to `take`, which takes all of it. Answers with
    /// how many bytes that were: none at the end of the stream.
    pub(super) fn poll_take(&mut self, cx: &mut Context<'_>, take: impl FnOnce(&[u8])) -> Poll<io::Result<usize>> {
        if let Stream::Tls(stream) = self {
            // Where TLS has decrypted it.
            let bytes = ready!(Pin::new(&mut **stream).poll_fill_buf(cx))?;
            let count = bytes.len();
            take(bytes);
            Pin::new(&mut **stream).consume(count);
            return Poll::Ready(Ok(count));
        }
        ARRIVING.with_borrow_mut(|arriving| {
            let mut buffer = ReadBuf::new(arriving);
            ready!(Pin::new(self).poll_read(cx, &mut buffer))?;
            take(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            #[cfg(fuzzing)]
            Stream::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            #[cfg(fuzzing)]
            Stream::Memory(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            #[cfg(fuzzing)]
            Stream::Memory(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            #[cfg(fuzzing)]
            Stream::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            #[cfg(fuzzing)]
            Stream::Memory(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            #[cfg(fuzzing)]
            Stream::Memory(stream) => stream.is_write_vectored(),
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
