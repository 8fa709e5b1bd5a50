//! A connection, as the readers and writers of frames take it: bytes in, bytes out.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::unread::Unread;
use crate::endpoint::Endpoint;
use crate::identity::Identity;
use crate::runtime::Socket;

/// A connection. A clone is the same socket, which closes with its last clone.
#[derive(Clone, Debug)]
pub(crate) struct Stream(pub(super) Arc<dyn Socket>);

impl Stream {
    pub(crate) fn new(socket: Arc<dyn Socket>) -> Self {
        Self(socket)
    }

    /// The same, which brings these bytes once more.
    pub(crate) fn unread(self, bytes: &[u8]) -> Self {
        Self(Arc::new(Unread::new(self.0, bytes)))
    }

    /// Whether a byte has come, which is taken: where none may, that is all there is to know of it.
    pub(crate) fn has_input(&self) -> bool {
        matches!(self.0.poll_read(&mut Context::from_waker(Waker::noop()), &mut [0]), Poll::Ready(Ok(1)))
    }

    /// Writes all of this, and waits until the kernel has it.
    pub(crate) async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }

    pub(crate) fn peer_addr(&self) -> io::Result<Endpoint> {
        self.0.remote()
    }

    pub(crate) fn local_addr(&self) -> io::Result<Endpoint> {
        self.0.local()
    }

    /// Who the other end is, if the transport has made sure.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.0.identity()
    }

    /// Ends both directions for every clone; what has been received can still be read.
    pub(crate) fn shut_down(&self) {
        self.0.shut_down();
    }

    /// Ends the sending direction for every clone.
    pub(crate) fn poll_half_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_half_close(cx)
    }

    /// Why it broke, if the system knows and has not told it yet.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        self.0.take_error()
    }

    /// Whether the other end has closed, or has ended its sending direction, which looks the same. It takes nothing of
    /// what has been received.
    pub(crate) fn is_closed_by_peer(&self) -> bool {
        self.0.is_closed_by_peer()
    }

    /// After a read that waits: whether there is something by now, or the end, of which the runtime may not have heard yet. It
    /// takes nothing of what has been received, nor, where the system can tell without it, the error of a reset.
    pub(crate) fn has_unread(&self) -> bool {
        self.0.has_unread()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    /// Half-closes.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_half_close(cx)
    }
}
