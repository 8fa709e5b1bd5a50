//! A connection of which some has been read already, and is to be read once more.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::endpoint::Endpoint;
use crate::identity::Identity;
use crate::runtime::Socket;
use crate::sync::Lock;

/// A socket that brings these bytes first.
#[derive(Debug)]
pub(super) struct Unread {
    socket: Arc<dyn Socket>,
    /// The last come first.
    bytes: Lock<Vec<u8>>,
}

impl Unread {
    pub(super) fn new(socket: Arc<dyn Socket>, bytes: &[u8]) -> Self {
        Self { socket, bytes: Lock::new(bytes.iter().rev().copied().collect()) }
    }
}

impl Socket for Unread {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let n = {
            let mut bytes = self.bytes.lock();
            buf.iter_mut().map_while(|to| bytes.pop().map(|byte| *to = byte)).count()
        };
        if n > 0 { Poll::Ready(Ok(n)) } else { self.socket.poll_read(cx, buf) }
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, bufs)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush(cx)
    }

    fn poll_half_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_half_close(cx)
    }

    fn shut_down(&self) {
        self.socket.shut_down();
    }

    fn take_error(&self) -> Option<io::Error> {
        self.socket.take_error()
    }

    fn is_closed_by_peer(&self) -> bool {
        self.socket.is_closed_by_peer()
    }

    fn has_unread(&self) -> bool {
        self.socket.has_unread()
    }

    fn local(&self) -> io::Result<Endpoint> {
        self.socket.local()
    }

    fn remote(&self) -> io::Result<Endpoint> {
        self.socket.remote()
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        self.socket.identity()
    }
}
