//! The messages of all peers, decoded in the tasks of their connections.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::stream::{FusedStream, Stream};

use crate::endpoint::Endpoint;
use crate::error::BoxError;
use crate::listener::{Closer, Decoding, Incoming, Listener, ListenerStats, Spare, Values};
use crate::observe::{Event, Events};
use crate::peer::Peer;

/// The messages of a [`Listener`], decoded in the tasks of their connections: a `Stream` of `(Peer, T)`. Dropping it ends the
/// listener.
///
/// It is what [`Listener::decode`] returns. It waits, ends and takes turns as the stream of bytes does, and the messages of each
/// peer come in order. Dropping a future of `next` loses nothing.
pub struct Decoded<T> {
    incoming: Incoming,
    decoding: Decoding,
    spare: Arc<Spare<T>>,
    /// Those that have been received together and not been yielded, and whose they are.
    values: Option<(Peer, Box<Values<T>>)>,
}

impl Listener {
    /// Decodes the messages of each peer in the task of its connection, and yields what comes of that: see
    /// [`typed`](crate::typed) for when that is the fastest way.
    ///
    /// A message for which `decode` returns an error is left out. The error goes to [`events`](Self::events), as
    /// [`Event::DecodeFailed`](crate::Event::DecodeFailed), and the peer goes on, unless the stream is
    /// [`strict`](Decoded::strict). If `decode` panics, that is caught and goes to the events too, as the panic of a
    /// callback; that peer is disconnected, behind its messages before that. In a session, its connection ends and the session goes
    /// on behind that message, which is in doubt. `decode` must not block: see [`serve`](Self::serve).
    ///
    /// What was decoded counts towards `inbox_bytes` until it is taken, with what it was decoded from, or with the memory of a list of
    /// `T`, if that is more. What a `T` has allocated beyond that is not known here.
    ///
    /// The messages are decoded in the tasks from the first poll on. Where the listener has been polled as a stream of bytes
    /// before, or was closed, the messages of the peers that were there before are decoded where this stream is polled. Those of peers
    /// that connect afterwards are decoded in their tasks. For replies, [`split`](Self::split) it first, and take
    /// [`Incoming::decode`], of a half that has not been polled.
    ///
    /// ```
    /// use buffstreams::{Config, Connection, Listener};
    /// use futures::{SinkExt, StreamExt};
    ///
    /// # async_std::task::block_on(async {
    /// let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    /// let mut connection = Connection::dial(listener.local_addr(), Config::new()).await?;
    /// connection.send(42_u64.to_be_bytes().to_vec().into()).await?;
    ///
    /// let mut numbers = listener.decode(|message| message.try_into().map(u64::from_be_bytes));
    /// let (_peer, number) = numbers.next().await.unwrap();
    /// assert_eq!(number, 42);
    /// # Ok::<(), buffstreams::Error>(()) }).unwrap();
    /// ```
    pub fn decode<T, E, F>(self, decode: F) -> Decoded<T>
    where
        T: Send + 'static,
        E: Into<BoxError>,
        F: Fn(&[u8]) -> Result<T, E> + Send + Sync + 'static,
    {
        self.into_incoming().decode(decode)
    }
}

impl Incoming {
    /// Decodes the messages of each peer in the task of its connection: see [`Listener::decode`].
    pub fn decode<T, E, F>(self, decode: F) -> Decoded<T>
    where
        T: Send + 'static,
        E: Into<BoxError>,
        F: Fn(&[u8]) -> Result<T, E> + Send + Sync + 'static,
    {
        let (decoding, spare) = Decoding::new(decode, self.shared().panic_hook.clone());
        Decoded { incoming: self, decoding, spare, values: None }
    }
}

impl<T: Send + 'static> Decoded<T> {
    /// Disconnects a peer whose message does not decode. Its messages before that are yielded, those behind it are gone; the reason
    /// is [`Reason::DecodeFailed`](crate::Reason::DecodeFailed).
    ///
    /// A session ends once the program has taken the values in front, which is when it asks for more. The other end hears that they
    /// are taken and has the message itself back as refused; those behind it are in doubt. If its connection is lost before it has
    /// heard so, those in front are in doubt as well, and to send them again may deliver them twice.
    ///
    /// It counts from the first poll on: what is called later changes nothing.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.decoding.strict = true;
        self
    }

    /// The address that the listener listens on.
    pub fn local_addr(&self) -> Endpoint {
        self.incoming.local_addr()
    }

    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<Event> {
        self.incoming.events()
    }

    /// What the listener has counted so far.
    pub fn stats(&self) -> ListenerStats {
        self.incoming.stats()
    }

    /// A handle to close the listener from elsewhere.
    pub fn closer(&self) -> Closer {
        self.incoming.closer()
    }

    /// Waits for more values; `false` when none come any more.
    #[inline(never)]
    fn poll_values(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if let Some((_, values)) = self.values.take() {
            self.spare.keep(values);
        }
        let received = ready!(self.incoming.poll_values(&self.decoding, cx));
        self.values = received.and_then(|(peer, values)| Some((peer, values.of()?)));
        Poll::Ready(self.values.is_some())
    }
}

impl<T: Send + 'static> Stream for Decoded<T> {
    type Item = (Peer, T);

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<(Peer, T)>> {
        let this = self.get_mut();
        loop {
            if let Some((peer, values)) = &mut this.values
                && let Some(value) = values.pop_front()
            {
                return Poll::Ready(Some((*peer, value)));
            }
            if !ready!(this.poll_values(cx)) {
                return Poll::Ready(None);
            }
        }
    }
}

impl<T: Send + 'static> FusedStream for Decoded<T> {
    fn is_terminated(&self) -> bool {
        self.values.is_none() && self.incoming.is_terminated()
    }
}

impl<T> fmt::Debug for Decoded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Decoded").field(&self.incoming).finish()
    }
}
