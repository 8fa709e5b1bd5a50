//! Streams of typed messages, each decoded where it lies.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::io::AsyncRead;
use futures::stream::{FusedStream, Stream};

use super::Typed;
use super::codec::Codec;
use crate::connection::{Connection, ReadHalf};
use crate::error::Error;
use crate::framed::Reader;
use crate::listener::{Incoming, Listener};
use crate::peer::Peer;

/// How many messages that do not decode one poll passes over before it lets other tasks run.
const FAILURES_PER_POLL: usize = 64;

/// Those of one peer: what does not decode is an item.
macro_rules! stream {
    ($([$($generics:tt)*] $on:ty, |$stream:ident| $half:expr;)*) => { $(
        impl<$($generics)* C: Codec<T> + Unpin, T> Stream for Typed<$on, C, T> {
            type Item = Result<T, Error>;

            #[inline]
            fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
                let Self { inner: $stream, codec, .. } = self.get_mut();
                loop {
                    let frames = $half.frames();
                    if let Some(len) = frames.find() {
                        let decoded = frames.show(len, |message| codec.decode(message));
                        return Poll::Ready(Some(decoded.map_err(|error| {
                            $half.refuse_last();
                            Error::Decode { source: error.into() }
                        })));
                    }
                    if !ready!($half.poll_frames(cx))? {
                        return Poll::Ready(None);
                    }
                }
            }
        }
    )* };
}

stream! {
    [] Connection, |stream| stream.halves().0;
    [] ReadHalf, |stream| stream;
    [R: AsyncRead + Unpin,] Reader<R>, |stream| stream;
}

/// Those of a listener: what does not decode is an event.
macro_rules! incoming {
    ($($on:ty, |$stream:ident| $incoming:expr;)*) => { $(
        impl<C: Codec<T>, T> Typed<$on, C, T> {
            /// Disconnects a peer whose message does not decode. Its messages before that have been yielded, those behind it are
            /// gone; the reason is [`Reason::DecodeFailed`](crate::Reason::DecodeFailed).
            #[must_use]
            pub fn strict(mut self) -> Self {
                self.strict = true;
                self
            }
        }

        impl<C: Codec<T> + Unpin, T> Stream for Typed<$on, C, T> {
            type Item = (Peer, T);

            #[inline]
            fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<(Peer, T)>> {
                let Self { inner: $stream, codec, strict, .. } = self.get_mut();
                let incoming = $incoming;
                for _ in 0..FAILURES_PER_POLL {
                    match ready!(incoming.poll_shown(|message| codec.decode(message), cx)) {
                        Some((peer, Ok(message))) => return Poll::Ready(Some((peer, message))),
                        Some((peer, Err(error))) => incoming.decode_failed(peer, error.into(), *strict),
                        None => return Poll::Ready(None),
                    }
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }

        impl<C: Codec<T> + Unpin, T> FusedStream for Typed<$on, C, T> {
            fn is_terminated(&self) -> bool {
                self.inner.is_terminated()
            }
        }
    )* };
}

incoming! {
    Listener, |stream| stream.incoming_mut();
    Incoming, |stream| stream;
}
