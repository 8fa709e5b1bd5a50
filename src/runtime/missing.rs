//! What stands where there is no runtime: nothing is ever opened on it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};

use super::{Acceptor, Socket, SocketOptions, Timer, sealed};
use crate::endpoint::Endpoint;

#[derive(Debug)]
pub(super) struct Missing;

fn unsupported<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "there is no runtime"))
}

impl sealed::Runtime for Missing {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(task);
    }

    fn random(&self, into: &mut [u8]) {
        into.fill(0);
    }

    fn timer(&self, _: Instant) -> Pin<Box<dyn Timer>> {
        Box::pin(Never)
    }

    fn resolve(&self, _: String, _: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        ready(unsupported()).boxed()
    }

    fn connect(&self, _: Endpoint, _: SocketOptions) -> BoxFuture<'static, io::Result<Arc<dyn Socket>>> {
        ready(unsupported()).boxed()
    }

    fn listen(&self, _: Endpoint, _: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        unsupported()
    }
}

struct Never;

impl Future for Never {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Timer for Never {
    fn reset(self: Pin<&mut Self>, _: Instant) {}
}
