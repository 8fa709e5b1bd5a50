//! buffstreams: a listener that is the stream of all peers' messages, and connections that are sinks.

use std::time::Duration;

use buffstreams::{Bytes, Config, Connection, Listener};
use futures::StreamExt;
use futures::future::try_join_all;

use super::System;
use super::framed::{Framed, plays};
use crate::check::{Inspector, Received};
use crate::child::Parent;
use crate::plan::Trial;
use crate::{Error, Result};

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

impl Framed for Buffstreams {
    type Message = Bytes;
    type Error = buffstreams::Error;
    type Connection = Connection;
    type Acceptor = buffstreams::Connections;

    fn block_on<F: Future>(future: F) -> F::Output {
        async_std::task::block_on(future)
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send
    where
        F: Future<Output: Send> + Send + 'static,
    {
        async_std::task::spawn(future)
    }

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
            let share = trial.messages / trial.addresses as u64;
            let receive = |mut listener: Listener| {
                let mut inspector = Inspector::new(trial);
                async_std::task::spawn(async move {
                    while inspector.messages() < share {
                        let (_peer, message) = listener.next().await.ok_or("the listener ended early")?;
                        inspector.take(&message);
                    }
                    Ok::<_, Error>((inspector, listener))
                })
            };
            let tasks: Vec<_> = listeners.into_iter().map(receive).collect();
            let (inspectors, _open): (Vec<_>, Vec<_>) = try_join_all(tasks).await?.into_iter().unzip();
            parent.received(Inspector::report(inspectors));
            Ok(())
        })
    }

    fn echo(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let (mut listeners, ports) = listen(trial).await?;
            parent.ready(&ports);
            let (incoming, outgoing) = listeners.remove(0).split();
            async_std::task::spawn(incoming.map(Ok).forward(outgoing)).await?;
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
            while counters.stats().connections < trial.connections {
                async_std::task::sleep(Duration::from_millis(10)).await;
            }
            parent.received(Received::default());
            drop(waiting);
            Ok(())
        })
    }
}
