//! buffstreams, on each of its runtimes: a listener that is the stream of all peers' messages, and connections that are sinks.

use std::marker::PhantomData;
use std::sync::LazyLock;
use std::time::Duration;

use buffstreams::{Bytes, Closer, Config, Connection, Listener, Tls};
use futures::StreamExt;
use futures::future::{join_all, try_join_all};

use super::System;
use super::framed::{Framed, plays};
use super::runtime::{AsyncStd, AsyncStdTls, Runtime, Smol, Tokio};
use super::{CERTIFICATE, KEY};
use crate::Result;
use crate::check::{Inspector, Received};
use crate::child::{Parent, Waiting};
use crate::plan::Trial;

/// On this runtime, as are the tasks of the benchmark.
pub(super) struct Buffstreams<R>(PhantomData<fn() -> R>);

impl<R> Buffstreams<R> {
    pub(super) const HERE: Self = Self(PhantomData);
}

impl<R> Clone for Buffstreams<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Buffstreams<R> {}

/// A runtime that buffstreams has as well.
pub(super) trait Home: Runtime + 'static {
    /// The defaults. Called where a future of this runtime is polled.
    fn config() -> Config;
}

impl Home for AsyncStd {
    fn config() -> Config {
        Config::new()
    }
}

impl Home for AsyncStdTls {
    fn config() -> Config {
        static TLS: LazyLock<Tls> = LazyLock::new(|| {
            let tls = Tls::new().server(CERTIFICATE, KEY).and_then(|tls| tls.roots(CERTIFICATE));
            tls.and_then(|tls| tls.server_name("localhost")).expect("the certificate is one")
        });
        Config::new().tls(TLS.clone())
    }
}

impl Home for Tokio {
    fn config() -> Config {
        Config::new().runtime(buffstreams::Tokio::current())
    }
}

impl Home for Smol {
    fn config() -> Config {
        static SMOL: LazyLock<buffstreams::Smol> = LazyLock::new(|| buffstreams::Smol::new().expect("a thread starts"));
        Config::new().runtime(SMOL.clone())
    }
}

/// The defaults, except for messages that they do not allow.
pub(super) fn config<R: Home>(size: usize) -> Config {
    let config = R::config();
    if size > 4096 { config.max_message_size(size) } else { config }
}

pub(super) async fn listen<R: Home>(trial: &Trial) -> Result<(Vec<Listener>, Vec<u16>)> {
    let bind = |_| Listener::bind("127.0.0.1:0", config::<R>(trial.size));
    let listeners = try_join_all((0..trial.addresses).map(bind)).await?;
    let ports = listeners.iter().map(|listener| listener.local_addr().port().unwrap()).collect();
    Ok((listeners, ports))
}

/// Asks until every connection was accepted: the events of so many may be dropped, and nothing is measured meanwhile.
pub(super) async fn all_connected(trial: &Trial, counters: &Closer) {
    while counters.stats().connections < trial.connections {
        async_std::task::sleep(Duration::from_millis(10)).await;
    }
}

impl<R: Home> Framed for Buffstreams<R> {
    type Runtime = R;
    type Message = Bytes;
    type Error = buffstreams::Error;
    type Connection = Connection;
    type Acceptor = buffstreams::Connections;

    async fn connect(self, port: u16, size: usize) -> Result<Connection> {
        Ok(Connection::dial(format!("127.0.0.1:{port}"), config::<R>(size)).await?)
    }

    async fn listen(self, size: usize) -> Result<(u16, Self::Acceptor)> {
        let listener = Listener::bind("127.0.0.1:0", config::<R>(size)).await?;
        Ok((listener.local_addr().port().unwrap(), listener.connections()))
    }

    async fn accept(self, connections: &mut Self::Acceptor) -> Result<Connection> {
        connections.next().await.ok_or_else(|| "the listener ended".into())
    }
}

impl<R: Home> System for Buffstreams<R> {
    plays!(client send, client ping, client pace, client dial);

    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        R::block_on(async {
            let (listeners, ports) = listen::<R>(trial).await?;
            parent.ready(&ports);
            let (waiting, share) = (Waiting::of(trial.addresses), trial.messages / trial.addresses as u64);
            let closers: Vec<_> = listeners.iter().map(Listener::closer).collect();
            let receive = |mut listener: Listener| {
                let mut inspector = Inspector::new(trial, share, &waiting);
                R::spawn(async move {
                    while let Some((_peer, message)) = listener.next().await {
                        inspector.take(&message);
                    }
                    inspector
                })
            };
            let tasks: Vec<_> = listeners.into_iter().map(receive).collect();
            // A listener that is closed ends when its peers have.
            parent.closing().await;
            try_join_all(closers.iter().map(|closer| closer.close())).await?;
            parent.received(Inspector::report(join_all(tasks).await));
            Ok(())
        })
    }

    fn echo(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        R::block_on(async {
            let (mut listeners, ports) = listen::<R>(trial).await?;
            parent.ready(&ports);
            let (incoming, outgoing) = listeners.remove(0).split();
            let _echo = R::spawn(incoming.map(Ok).forward(outgoing));
            parent.closing().await;
            parent.received(Received::default());
            Ok(())
        })
    }

    /// The merged stream: one message, then none.
    fn stall(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        R::block_on(async {
            let (mut listeners, ports) = listen::<R>(trial).await?;
            parent.ready(&ports);
            listeners[0].next().await;
            parent.received(Received::default());
            Ok(())
        })
    }

    fn hold(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        R::block_on(async {
            let (mut listeners, ports) = listen::<R>(trial).await?;
            parent.ready(&ports);
            let listener = listeners.remove(0);
            let counters = listener.closer();
            let waiting = R::spawn(listener.for_each(|_| async {}));
            all_connected(trial, &counters).await;
            parent.received(Received::default());
            drop(waiting);
            Ok(())
        })
    }
}
