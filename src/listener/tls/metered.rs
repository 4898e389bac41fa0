//! A socket whose bytes are counted until its TLS handshake is done: the library keeps an unfinished handshake message of up to
//! 64 KiB for whoever sends one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A client's socket below TLS.
pub(in crate::listener) struct Metered {
    /// Bytes that the handshake may still take; none: it is done.
    left: Option<usize>,
    socket: TcpStream,
}

impl Metered {
    pub(super) fn new(socket: TcpStream, handshake_bytes_max: usize) -> Metered {
        Metered { left: Some(handshake_bytes_max), socket }
    }

    /// The handshake is done: from now on everything passes.
    pub(super) fn release(&mut self) {
        self.left = None;
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.left == Some(0)
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.socket
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(left) = this.left else { return Pin::new(&mut this.socket).poll_read(cx, buffer) };
        if left == 0 {
            return Poll::Ready(Err(io::Error::other("the handshake takes more bytes than one may")));
        }
        let mut some = buffer.take(left);
        std::task::ready!(Pin::new(&mut this.socket).poll_read(cx, &mut some))?;
        let read = some.filled().len();
        buffer.advance(read);
        this.left = Some(left - read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
