//! Sinks of typed messages, each encoded in the batch that it will be sent from, or in a buffer before that.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::io::AsyncWrite;
use futures::sink::{Sink, SinkExt};

use super::Typed;
use super::codec::{self, Codec};
use crate::connection::{Connection, WriteHalf};
use crate::error::Error;
use crate::framed::Writer;
use crate::listener::Outgoing;
use crate::manager::{Manager, ManagerSink, RouteSink};
use crate::peer::{Address, Peer};

/// What all sinks have in common: they wait, flush and close as what they stand on.
macro_rules! sink {
    ($([$($generics:tt)*] $on:ty, $item:ty, |$sink:ident, $codec:ident, $message:ident| $push:expr;)*) => { $(
        impl<$($generics)* C: Codec<T> + Unpin, T> Sink<$item> for Typed<$on, C, T> {
            type Error = Error;

            #[inline]
            fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
                self.get_mut().inner.poll_ready_unpin(cx)
            }

            #[inline]
            fn start_send(self: Pin<&mut Self>, $message: $item) -> Result<(), Error> {
                let Self { inner: $sink, codec: $codec, .. } = self.get_mut();
                $push
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
                self.get_mut().inner.poll_flush_unpin(cx)
            }

            fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
                self.get_mut().inner.poll_close_unpin(cx)
            }
        }
    )* };
}

sink! {
    [] Connection, T, |sink, codec, message| sink.halves().1.push_with(|output| codec::encode(codec, &message, output));
    [] WriteHalf, T, |sink, codec, message| sink.push_with(|output| codec::encode(codec, &message, output));
    [W: AsyncWrite + Unpin,] Writer<W>, T, |sink, codec, message| {
        sink.push_with(|output| codec::encode(codec, &message, output))
    };
    [] ManagerSink, (Address, T), |sink, codec, message| {
        let (address, message) = message;
        sink.push_with(&address, |output| codec::encode(codec, &message, output))
    };
    [] RouteSink, T, |sink, codec, message| sink.push_with(|output| codec::encode(codec, &message, output));
    [] Outgoing, (Peer, T), |sink, codec, message| {
        let (peer, message) = message;
        sink.push_with(peer, |output| codec::encode(codec, &message, output))
    };
}

impl<C: Codec<T>, T> Typed<Connection, C, T> {
    /// Waits until [`try_feed`](Self::try_feed) accepts a message, or has an error to return: see [`Connection::ready`].
    pub fn ready(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.inner.ready()
    }

    /// Flushes, and waits until all that was accepted is acknowledged: see [`Connection::barrier`].
    pub fn barrier(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.inner.barrier()
    }

    /// Accepts a message that stays with the program, without waiting: see [`Connection::try_feed`]. Where it is not encoded, the
    /// error is [`Error::Encode`].
    #[inline]
    pub fn try_feed(&mut self, message: &T) -> Result<bool, Error> {
        try_feed(self.inner.halves().1, &self.codec, message)
    }
}

impl<C: Codec<T>, T> Typed<WriteHalf, C, T> {
    /// Waits until [`try_feed`](Self::try_feed) accepts a message, or has an error to return: see [`WriteHalf::ready`].
    pub fn ready(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.inner.ready()
    }

    /// Flushes, and waits until all that was accepted is acknowledged: see [`WriteHalf::barrier`].
    pub fn barrier(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.inner.barrier()
    }

    /// Accepts a message that stays with the program, without waiting: see [`WriteHalf::try_feed`]. Where it is not encoded, the
    /// error is [`Error::Encode`].
    #[inline]
    pub fn try_feed(&mut self, message: &T) -> Result<bool, Error> {
        try_feed(&mut self.inner, &self.codec, message)
    }
}

#[inline]
fn try_feed<T, C: Codec<T>>(sink: &mut WriteHalf, codec: &C, message: &T) -> Result<bool, Error> {
    if sink.must_wait() {
        return Ok(false);
    }
    sink.push_with(|output| codec::encode(codec, message, output)).map(|()| true)
}

impl<W: AsyncWrite + Unpin, C: Codec<T>, T> Typed<Writer<W>, C, T> {
    /// Waits until [`try_feed`](Self::try_feed) accepts a message, or has an error to return: see [`Writer::ready`].
    pub fn ready(&mut self) -> impl Future<Output = Result<(), Error>> + Unpin {
        self.inner.ready()
    }

    /// Accepts a message that stays with the program, without waiting: see [`Writer::try_feed`]. Where it is not encoded, the
    /// error is [`Error::Encode`].
    pub fn try_feed(&mut self, message: &T) -> Result<bool, Error> {
        if self.inner.must_wait() {
            return Ok(false);
        }
        self.inner.push_with(|output| codec::encode(&self.codec, message, output)).map(|()| true)
    }
}

impl<C: Codec<T>, T> Typed<ManagerSink, C, T> {
    /// Waits until [`try_feed`](Self::try_feed) accepts a message, or has an error to return: see [`ManagerSink::ready`].
    pub fn ready(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.inner.ready()
    }

    /// Flushes, and waits until all that came through this sink is acknowledged: see [`ManagerSink::barrier`].
    pub fn barrier(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.inner.barrier()
    }

    /// Accepts a message that stays with the program, without waiting: see [`ManagerSink::try_feed`]. Where it is not encoded, the
    /// error is [`Error::Encode`].
    pub fn try_feed(&mut self, address: &Address, message: &T) -> Result<bool, Error> {
        if self.inner.must_wait() {
            return Ok(false);
        }
        self.inner.push_with(address, |output| codec::encode(&self.codec, message, output)).map(|()| true)
    }
}

impl<C: Codec<T>, T> Typed<Manager, C, T> {
    /// Sends one message, and waits as [`Manager::write`] does. Where it is not encoded, the error is [`Error::Encode`].
    ///
    /// The message stays with the program, so that it can be sent again, or to another address. The errors have its bytes.
    pub async fn write(&self, address: impl Into<Address>, message: &T) -> Result<(), Error> {
        let message = self.inner.message_of(|output| codec::encode(&self.codec, message, output))?;
        self.inner.write(address, message).await
    }
}
