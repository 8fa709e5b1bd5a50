//! Typed messages: streams and sinks of a program's own types, instead of bytes.
//!
//! A [`Codec`] turns a type into bytes and back: [`Prost`], [`Postcard`] or [`Json`], each behind the feature of its name, or one's
//! own. `.typed(codec)` puts it on a [`Connection`] or one of its halves, on a [`Reader`] or [`Writer`], on a [`Manager`] and its
//! sinks, and on a [`Listener`] and its halves. What comes of that is a stream and a sink of messages, as before.
//!
//! ```
//! use buffstreams::{Config, Connection, Listener};
//! use futures::{SinkExt, StreamExt};
//! # #[cfg(feature = "prost")] {
//! use buffstreams::typed::Prost;
//!
//! #[derive(Clone, PartialEq, prost::Message)]
//! struct Reading {
//!     #[prost(string, tag = "1")]
//!     sensor: String,
//!     #[prost(double, tag = "2")]
//!     celsius: f64,
//! }
//!
//! # async_std::task::block_on(async {
//! let mut readings = Listener::bind("127.0.0.1:0", Config::new()).await?.typed(Prost::<Reading>::new());
//! let address = readings.get_ref().local_addr();
//!
//! let mut sensor = Connection::dial(address, Config::new()).await?.typed(Prost::<Reading>::new());
//! sensor.send(Reading { sensor: "roof".into(), celsius: 21.5 }).await?;
//!
//! let (_peer, reading) = readings.next().await.unwrap();
//! assert_eq!((&*reading.sensor, reading.celsius), ("roof", 21.5));
//! # Ok::<(), buffstreams::Error>(()) }).unwrap();
//! # }
//! ```
//!
//! # What it costs
//!
//! A [`Connection`] without a session, and a [`Writer`], encode a message straight into the batch that is sent. A
//! [`ManagerSink`](crate::ManagerSink), and a [`Connection`] in a session, encode it into a buffer of their own and put that behind
//! the batch: below 4 KiB it is copied, and the buffer is used again; from there on it is not copied, and the next message may need
//! a new buffer. A message is decoded where it lies in the buffer that it was read into. So nothing is allocated for a small
//! message but what the type itself holds.
//!
//! Four ways to send take memory for each message: a [`RouteSink`](crate::RouteSink), whose message may go to one address after
//! another, the replies of an [`Outgoing`](crate::Outgoing), `write` of a manager, and a [`Connection`] without a session that
//! [lingers](crate::Config::linger).
//!
//! # Where the messages of a listener are decoded
//!
//! | | decodes in | it is the way to go |
//! |---|---|---|
//! | [`Listener::typed`] | the task that polls the stream | with few peers, or where decoding is not what takes the time |
//! | [`Listener::decode`] | the task of each connection | with many peers and one consumer of all of them, which is busy |
//! | [`Listener::connections`], each [`Connection`] typed | the task that has the connection | where each peer can be served by itself |
//! | [`Listener::serve`], decoding in the callback | the task of each connection | the same, where a callback that does not wait is enough |
//!
//! With `decode`, one consumer gets about half as much again of messages that have no memory of their own, such as a few numbers.
//! Of messages that hold strings it gets no more than with `typed`, or a little less: what one thread has allocated another
//! frees, which costs as much as the decoding that it saves. The last two ways hand nothing from task to task, and are faster
//! than both where the work on the messages can be done by many tasks.
//!
//! # What cannot be encoded or decoded
//!
//! A message that its codec cannot encode, or that is over `max_message_size`, is [`Error::Encode`]; none of it is sent, and the sink
//! works on. The limit holds while it is encoded, so a codec that writes on is stopped there. A codec that panics does so in the
//! task that sends, and leaves as little behind.
//!
//! A message that does not decode is left out, and what comes behind it is not affected. On one connection it is an item,
//! [`Error::Decode`]. At a listener it is an [`Event::DecodeFailed`](crate::Event::DecodeFailed), and with
//! `strict` its peer is disconnected: see [`Typed::strict`] and [`Decoded::strict`].
//!
//! What a peer can make a message cost is bounded by `max_message_size`, times what the type itself makes of a byte: a list of
//! structs of which each may be empty on the wire takes many times its bytes. The three codecs here reserve no memory for what is
//! only announced, and refuse what is nested too deep.
//!
//! A sink takes a message that it may not accept. Where a sink of bytes gives it back in its error, this one gives its bytes back, as
//! they were encoded: see [`Error::into_unsent`]. [`try_feed`](Typed::try_feed) and [`write`](Typed::write) leave the message with the
//! program.

mod codec;
mod decoded;
#[cfg(feature = "json")]
mod json;
#[cfg(feature = "postcard")]
mod nesting;
#[cfg(feature = "postcard")]
mod postcard;
#[cfg(feature = "prost")]
mod prost;
mod sinks;
mod streams;

use std::fmt;
use std::marker::PhantomData;

pub use crate::wire::{Buffer, BufferFull};
pub use codec::Codec;
pub use decoded::Decoded;
#[cfg(feature = "json")]
pub use json::Json;
#[cfg(feature = "postcard")]
pub use postcard::{Postcard, PostcardError};
#[cfg(feature = "prost")]
pub use prost::{Prost, ProstError};

#[cfg(doc)]
use crate::{Connection, Error, Listener, Manager, Reader, Writer};

/// A stream or a sink of messages of type `T`, which the codec `C` turns into those of `S`.
///
/// `S` is a [`Connection`], [`ReadHalf`](crate::ReadHalf), [`WriteHalf`](crate::WriteHalf), [`Reader`], [`Writer`],
/// [`ManagerSink`](crate::ManagerSink), [`RouteSink`](crate::RouteSink), [`Listener`], [`Incoming`](crate::Incoming) or
/// [`Outgoing`](crate::Outgoing). It waits, ends, and is dropped and cancelled as that is. Nothing but `S` is held here, so the
/// bytes can be taken up again at any message. That of a [`Manager`] is neither, and has [`write`](Typed::write).
pub struct Typed<S, C, T> {
    inner: S,
    codec: C,
    /// Whether a peer of a listener ends whose message does not decode.
    strict: bool,
    message: PhantomData<fn(T) -> T>,
}

impl<S, C: Codec<T>, T> Typed<S, C, T> {
    fn new(inner: S, codec: C) -> Self {
        Self { inner, codec, strict: false, message: PhantomData }
    }

    /// What it stands on.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// What it stands on. Bytes and typed messages can be sent, and received, in turn.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// What it stands on, and nothing is lost.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

/// Takes messages of another type from the same bytes: `.typed(codec)`.
macro_rules! typed {
    ($([$($generics:tt)*] $on:ty),* $(,)?) => { $(
        impl<$($generics)*> $on {
            /// The same, of messages of type `T`: see [`typed`](crate::typed).
            pub fn typed<T, C: Codec<T>>(self, codec: C) -> Typed<Self, C, T> {
                Typed::new(self, codec)
            }
        }
    )* };
}

typed! {
    [] crate::Connection,
    [] crate::ReadHalf,
    [] crate::WriteHalf,
    [R: futures::AsyncRead + Unpin] crate::Reader<R>,
    [W: futures::AsyncWrite + Unpin] crate::Writer<W>,
    [] crate::Manager,
    [] crate::ManagerSink,
    [] crate::RouteSink,
    [] crate::Listener,
    [] crate::Incoming,
    [] crate::Outgoing,
}

impl<S: fmt::Debug, C, T> fmt::Debug for Typed<S, C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Typed").field(&self.inner).finish()
    }
}
