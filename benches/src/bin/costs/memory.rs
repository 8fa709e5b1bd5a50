//! Transports in memory, for the costs and for the micro-benchmarks: what is left is the library's own work.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::io::{AsyncRead, AsyncWrite};

/// Yields the same frames without end, and fills the buffer at every read, as a fast peer's socket does. The copy into
/// that buffer is the kernel's part of the work, and is counted.
pub(crate) struct Source {
    wire: Vec<u8>,
    at: usize,
}

impl Source {
    /// `wire` is whole frames.
    pub(crate) fn new(wire: Vec<u8>) -> Self {
        Self { wire, at: 0 }
    }
}

impl AsyncRead for Source {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut filled = 0;
        while filled < buf.len() {
            let len = (buf.len() - filled).min(this.wire.len() - this.at);
            buf[filled..filled + len].copy_from_slice(&this.wire[this.at..this.at + len]);
            filled += len;
            this.at = (this.at + len) % this.wire.len();
        }
        Poll::Ready(Ok(filled))
    }
}

/// Takes whatever it is given, and looks at none of it.
pub(crate) struct Sink;

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
