//! async-std, the default: its threads start by themselves.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use async_std::net::ToSocketAddrs;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::async_io::{AsyncIo, AsyncIoTimer};
use super::{Acceptor, OwnedSocket, Socket, SocketOptions, Timer, os, sealed};
use crate::endpoint::Endpoint;

/// The runtime async-std, whose threads start by themselves: the default, where the feature `async-std` is on.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsyncStd(());

impl AsyncStd {
    /// The one that the process has.
    pub fn new() -> Self {
        Self(())
    }
}

impl sealed::Runtime for AsyncStd {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        // Its handle detaches the task when it is dropped.
        drop(async_std::task::spawn(task));
    }

    fn random(&self, into: &mut [u8]) {
        super::random(into);
    }

    fn timer(&self, at: Instant) -> Pin<Box<dyn Timer>> {
        Box::pin(AsyncIoTimer::at(at))
    }

    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        async move { Ok((&*host, port).to_socket_addrs().await?.collect()) }.boxed()
    }

    fn connect(&self, to: Endpoint, options: SocketOptions) -> BoxFuture<'static, io::Result<Arc<dyn Socket>>> {
        os::connect(AsyncIo, to, options).boxed()
    }

    fn listen(&self, at: Endpoint, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        os::listen(AsyncIo, &at, options)
    }

    fn adopt(&self, socket: OwnedSocket, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        os::adopt(AsyncIo, socket, options)
    }
}
