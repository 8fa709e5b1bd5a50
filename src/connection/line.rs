//! The session of a connection, as its halves know it.

use crate::link::Link;
use crate::queue::Outbox;
use crate::transport;

/// The session of a connection, at either end.
pub(crate) trait Line: Send + Sync + 'static {
    fn outbox(&self) -> &Outbox<transport::Stream>;
    /// The connection that it has now, if it has one.
    fn stream(&self) -> Option<transport::Stream>;
    /// Ends it at once.
    fn cut(&self);
}

impl Line for Link {
    fn outbox(&self) -> &Outbox<transport::Stream> {
        &self.outbox
    }

    fn stream(&self) -> Option<transport::Stream> {
        self.socket.stream()
    }

    fn cut(&self) {
        self.outbox.end();
        self.socket.shut();
    }
}
