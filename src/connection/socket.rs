//! The socket that the two halves of a connection share, off the way of the messages: where one of them breaks or replaces it,
//! the other finds out.

use std::sync::Arc;

use futures::AsyncReadExt;

use crate::config::Config;
use crate::foreign;
use crate::observe::Reason;
use crate::peer::{Address, Peer};
use crate::sync::{Lock, MutexGuard};
use crate::transport;
use crate::wire::Codec;

/// What the halves have in common. Off the data path: it is locked when a socket breaks, ends or is replaced.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) codec: Codec,
    socket: Lock<Socket>,
    /// Behind the socket, which is closed when the listener is told.
    pub(crate) origin: Origin,
}

/// How the connection came about.
pub(crate) enum Origin {
    /// It can be dialed again.
    Dialed { address: Address },
    /// It cannot.
    Accepted { peer: Peer, on_end: Option<OnEnd> },
}

/// Tells, when it is dropped, how a connection has ended: when the socket is closed, which may be after the halves are gone.
pub(crate) struct OnEnd {
    tell: Option<Box<dyn FnOnce(Reason) + Send + Sync>>,
    reason: Option<Reason>,
}

impl OnEnd {
    pub(crate) fn new(tell: impl FnOnce(Reason) + Send + Sync + 'static) -> Self {
        Self { tell: Some(Box::new(tell)), reason: None }
    }
}

impl Drop for OnEnd {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(self.reason.take().unwrap_or(Reason::Stopped));
        }
    }
}

pub(crate) struct Socket {
    pub(crate) stream: transport::Stream,
    /// How often it has been opened again.
    pub(crate) generation: u64,
    /// How it ended.
    pub(crate) end: Option<Reason>,
    pub(crate) half_closed: bool,
}

impl Socket {
    /// Returns the old one, to be dropped without the lock: it may have kept a waker of the program.
    #[must_use]
    pub(crate) fn replace(&mut self, stream: transport::Stream) -> Self {
        let new = Self { stream, generation: self.generation + 1, end: None, half_closed: false };
        std::mem::replace(self, new)
    }
}

impl Shared {
    pub(crate) fn new(stream: transport::Stream, config: Config, codec: Codec, origin: Origin) -> Arc<Self> {
        let socket = Lock::new(Socket { stream, generation: 0, end: None, half_closed: false });
        Arc::new(Self { config, codec, origin, socket })
    }

    /// The other end.
    pub(crate) fn address(&self) -> Address {
        match &self.origin {
            Origin::Dialed { address } => address.clone(),
            // The end that dials a Unix socket has no address: then it has a name, as a peer.
            Origin::Accepted { peer, .. } => match peer.addr() {
                Some(addr) => addr.into(),
                None => peer.to_string().into(),
            },
        }
    }

    /// Who has connected, if somebody has.
    pub(crate) fn peer(&self) -> Option<Peer> {
        match self.origin {
            Origin::Accepted { peer, .. } => Some(peer),
            Origin::Dialed { .. } => None,
        }
    }

    /// The socket.
    pub(crate) fn stream(&self) -> transport::Stream {
        self.socket().stream.clone()
    }

    pub(crate) fn is_dialed(&self) -> bool {
        matches!(self.origin, Origin::Dialed { .. })
    }

    /// Whether it is opened again without a word.
    pub(crate) fn reconnects(&self) -> bool {
        self.is_dialed() && self.config.reconnect.is_some()
    }

    pub(crate) fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let limit = self.config.close_timeout;
        let socket = self.socket.get_mut();
        let discards = socket.half_closed && socket.end.is_none();
        let on_end = match &mut self.origin {
            Origin::Accepted { on_end, .. } => {
                if let Some(on_end) = on_end {
                    on_end.reason = socket.end.take();
                }
                discards.then(|| on_end.take()).flatten()
            }
            Origin::Dialed { .. } => None,
        };
        if discards {
            let (mut stream, runtime) = (socket.stream.clone(), self.config.runtime.clone());
            let discarding = async move {
                runtime.within(limit, discard(&mut stream)).await;
                drop(stream);
                drop(on_end);
            };
            // The runtime may log that it starts a task.
            let _ = foreign::call(|| self.config.runtime.spawn(discarding).detach());
        }
    }
}

/// Reads and forgets what still comes.
pub(crate) async fn discard(stream: &mut transport::Stream) {
    let mut buf = [0; 1024];
    while let Ok(1..) = stream.read(&mut buf).await {}
}
