//! Spans of `tracing` around tasks. Without that feature there is nothing around them.

use std::future::Future;
#[cfg(feature = "tracing")]
use std::pin::Pin;
#[cfg(feature = "tracing")]
use std::task::{Context, Poll};

#[cfg(feature = "tracing")]
use pin_project_lite::pin_project;

use crate::endpoint::Endpoint;
#[cfg(feature = "tracing")]
use crate::foreign;
use crate::peer::{Address, Peer};

/// The task of a peer, in a span.
pub(crate) fn in_peer_span<F: Future>(
    listener: &Endpoint,
    peer: Peer,
    task: F,
) -> impl Future<Output = F::Output> + use<F> {
    #[cfg(feature = "tracing")]
    let task = InSpan::new(task, || tracing::info_span!(target: "buffstreams", parent: None, "peer", %listener, %peer));
    #[cfg(not(feature = "tracing"))]
    let _ = (listener, peer);
    task
}

/// The task of the connection to an address, in a span.
pub(crate) fn in_link_span<F: Future>(address: &Address, task: F) -> impl Future<Output = F::Output> + use<F> {
    #[cfg(feature = "tracing")]
    let task = InSpan::new(task, || tracing::info_span!(target: "buffstreams", parent: None, "link", %address));
    #[cfg(not(feature = "tracing"))]
    let _ = address;
    task
}

#[cfg(feature = "tracing")]
pin_project! {
    /// A future that is in a span whenever it is polled. The subscriber is the program's: what panics there changes nothing
    /// here, which `tracing`'s own future of this kind does not promise.
    struct InSpan<F> {
        #[pin]
        future: F,
        span: tracing::Span,
    }
}

#[cfg(feature = "tracing")]
impl<F> InSpan<F> {
    fn new(future: F, span: impl FnOnce() -> tracing::Span) -> Self {
        Self { future, span: foreign::call(span).unwrap_or_else(|_| tracing::Span::none()) }
    }
}

#[cfg(feature = "tracing")]
impl<F: Future> Future for InSpan<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let entered = foreign::call(|| this.span.enter());
        let polled = this.future.poll(cx);
        let _ = foreign::dispose(entered);
        polled
    }
}
