//! buffstreams: a listener that is the stream of all peers' messages, and connections that are sinks.

use std::time::Duration;

use buffstreams::{Bytes, Closer, Config, Connection, Listener};
use futures::StreamExt;
use futures::future::{join_all, try_join_all};

use super::System;
use super::framed::{Framed, plays};
use super::runtime::AsyncStd;
use crate::Result;
use crate::check::{Inspector, Received};
use crate::child::{Parent, Waiting};
use crate::plan::Trial;

#[derive(Clone, Copy)]
pub(super) struct Buffstreams;

/// The defaults, except for messages that they do not allow.
pub(super) fn config(size: usize) -> Config {
    let config = Config::new();
    if size > 4096 { config.max_message_size(size) } else { config }
}

pub(super) async fn listen(trial: &Trial) -> Result<(Vec<Listener>, Vec<u16>)> {
    let bind = |_| Listener::bind("127.0.0.1:0", config(trial.size));
    let listeners = try_join_all((0..trial.addresses).map(bind)).await?;
    let ports = listeners.iter().map(|listener| listener.local_addr().port()).collect();
    Ok((listeners, ports))
}

/// Asks until every connection was accepted: the events of so many may be dropped, and nothing is measured meanwhile.
pub(super) async fn all_connected(trial: &Trial, counters: &Closer) {
    while counters.stats().connections < trial.connections {
        async_std::task::sleep(Duration::from_millis(10)).await;
    }
}

impl Framed for Buffstreams {
    type Runtime = AsyncStd;
    type Message = Bytes;
    type Error = buffstreams::Error;
    type Connection = Connection;
    type Acceptor = buffstreams::Connections;

    async fn connect(self, port: u16, size: usize) -> Result<Connection> {
        Ok(Connection::dial(format!("127.0.0.1:{port}"), config(size)).await?)
    }

    async fn listen(self, size: usize) -> Result<(u16, Self::Acceptor)> {
        let listener = Listener::bind("127.0.0.1:0", config(size)).await?;
        Ok((listener.local_addr().port(), listener.connections()))
    }

    async fn accept(self, connections: &mut Self::Acceptor) -> Result<Connection> {
        connections.next().await.ok_or_else(|| "the listener ended".into())
    }
}

impl System for Buffstreams {
    plays!(client send, client ping, client pace, client dial);

    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let (listeners, ports) = listen(trial).await?;
            parent.ready(&ports);
            let (waiting, share) = (Waiting::of(trial.addresses), trial.messages / trial.addresses as u64);
            let closers: Vec<_> = listeners.iter().map(Listener::closer).collect();
            let receive = |mut listener: Listener| {
                let mut inspector = Inspector::new(trial, share, &waiting);
                async_std::task::spawn(async move {
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
        async_std::task::block_on(async {
            let (mut listeners, ports) = listen(trial).await?;
            parent.ready(&ports);
            let (incoming, outgoing) = listeners.remove(0).split();
            let _echo = async_std::task::spawn(incoming.map(Ok).forward(outgoing));
            parent.closing().await;
            parent.received(Received::default());
            Ok(())
        })
    }

    /// The merged stream: one message, then none.
    fn stall(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let (mut listeners, ports) = listen(trial).await?;
            parent.ready(&ports);
            listeners[0].next().await;
            parent.received(Received::default());
            Ok(())
        })
    }

    fn hold(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let (mut listeners, ports) = listen(trial).await?;
            parent.ready(&ports);
            let listener = listeners.remove(0);
            let counters = listener.closer();
            let waiting = async_std::task::spawn(listener.for_each(|_| async {}));
            all_connected(trial, &counters).await;
            parent.received(Received::default());
            drop(waiting);
            Ok(())
        })
    }
}
