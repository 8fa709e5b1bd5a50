//! What three of the systems have in common: a connection that is a `Sink` and a `Stream` of messages, on a runtime.

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{Sink, SinkExt, Stream, StreamExt};

use super::{Pace, WARM_UP, stamped};
use crate::check::{Check, Inspector, Latency, Received, Tally, histogram};
use crate::child::{Parent, Sent};
use crate::messages::Messages;
use crate::plan::Trial;
use crate::{Error, Result, clock};

/// A library whose connections are sinks and streams.
pub(super) trait Framed: Copy + Send + Sync + 'static {
    /// A message as it is received.
    type Message: AsRef<[u8]> + Into<Bytes> + Send;
    type Error: Into<Error> + Send;
    type Connection: Sink<Bytes, Error = Self::Error>
        + Stream<Item = std::result::Result<Self::Message, Self::Error>>
        + Unpin
        + Send
        + 'static;
    /// A socket that accepts them.
    type Acceptor: Send + 'static;

    fn block_on<F: Future>(future: F) -> F::Output;
    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send
    where
        F: Future<Output: Send> + Send + 'static;
    fn connect(self, port: u16, size: usize) -> impl Future<Output = Result<Self::Connection>> + Send;
    fn listen(self, size: usize) -> impl Future<Output = Result<(u16, Self::Acceptor)>> + Send;
    fn accept(self, acceptor: &mut Self::Acceptor) -> impl Future<Output = Result<Self::Connection>> + Send;
}

/// The connections of one client process. One after the other: a listen backlog that runs over costs a second.
async fn connect_all<L: Framed>(library: L, trial: &Trial, ports: &[u16]) -> Result<Vec<L::Connection>> {
    let mut connections = Vec::new();
    for _ in 0..trial.connections / trial.processes {
        connections.push(library.connect(ports[0], trial.size).await?);
    }
    Ok(connections)
}

/// Sends with a task for each connection.
pub(super) fn send<L: Framed>(library: L, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
    L::block_on(async {
        let (messages, share) = (Messages::of(trial), trial.share());
        let connections = connect_all(library, trial, ports).await?;
        let start = parent.go();
        let send = |mut connection: L::Connection| {
            L::spawn(async move {
                for number in 0..share {
                    connection.feed(messages.bytes(number)).await?;
                }
                connection.flush().await?;
                Ok::<_, L::Error>(connection)
            })
        };
        let sending: Vec<_> = connections.into_iter().map(send).collect();
        let _open = try_join_all(sending).await.map_err(Into::into)?;
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    })
}

/// Receives with a task for each connection.
pub(super) fn receive<L: Framed>(library: L, trial: &Trial, parent: &Parent) -> Result<()> {
    L::block_on(async {
        let (port, mut acceptor) = library.listen(trial.size).await?;
        parent.ready(&[port]);
        let mut tasks = Vec::new();
        for _ in 0..trial.connections {
            let mut connection = library.accept(&mut acceptor).await?;
            let (mut inspector, share) = (Inspector::new(trial), trial.share());
            tasks.push(L::spawn(async move {
                while inspector.messages() < share {
                    let message = connection.next().await.ok_or("a connection ended early")?.map_err(Into::into)?;
                    inspector.take(message.as_ref());
                }
                Ok::<_, Error>((inspector, connection))
            }));
        }
        let (inspectors, _open): (Vec<_>, Vec<_>) = try_join_all(tasks).await?.into_iter().unzip();
        parent.received(Inspector::report(inspectors));
        Ok(())
    })
}

pub(super) fn echo<L: Framed>(library: L, trial: &Trial, parent: &Parent) -> Result<()> {
    L::block_on(async {
        let (port, mut acceptor) = library.listen(trial.size).await?;
        parent.ready(&[port]);
        let mut connection = library.accept(&mut acceptor).await?;
        let echo = L::spawn(async move {
            while let Some(Ok(message)) = connection.next().await {
                if connection.send(message.into()).await.is_err() {
                    break;
                }
            }
        });
        echo.await;
        Ok(())
    })
}

pub(super) fn ping<L: Framed>(library: L, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
    let (messages, check, millis) = (Messages::of(trial), Check::of(trial), trial.millis);
    L::block_on(async {
        let mut connection = library.connect(ports[0], trial.size).await?;
        let start = parent.go();
        let client = L::spawn(async move {
            let (mut sent, mut times, mut tally) = (0, histogram(), Tally::default());
            let mut before = start;
            while sent < WARM_UP || before < start + millis * 1_000_000 {
                before = clock::now();
                connection.send(messages.bytes(sent)).await.map_err(Into::into)?;
                let reply = connection.next().await.ok_or("the connection ended early")?.map_err(Into::into)?;
                if sent >= WARM_UP {
                    times.saturating_record(clock::now() - before);
                }
                tally.take(&check, reply.as_ref());
                sent += 1;
            }
            Ok::<_, Error>(Sent { start, replies: Some((tally, sent)), latency: Some(Latency::of(&times)) })
        });
        let sent = client.await?;
        parent.sent(sent);
        Ok(())
    })
}

/// Sends at a fixed rate, on this thread: between the bursts it sleeps, which no task of a runtime should do.
pub(super) fn pace<L: Framed>(library: L, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
    L::block_on(async {
        let mut connection = library.connect(ports[0], trial.size).await?;
        let start = parent.go();
        let mut pace = Pace::new(trial, start);
        while let Some((due, burst)) = pace.next() {
            for number in burst {
                let message = stamped(trial.size, number, due).into();
                connection.feed(message).await.map_err(Into::into)?;
            }
            connection.flush().await.map_err(Into::into)?;
        }
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    })
}

/// Takes one message of each connection.
pub(super) fn stall<L: Framed>(library: L, trial: &Trial, parent: &Parent) -> Result<()> {
    L::block_on(async {
        let (port, mut acceptor) = library.listen(trial.size).await?;
        parent.ready(&[port]);
        let mut tasks = Vec::new();
        for _ in 0..trial.connections {
            let mut connection = library.accept(&mut acceptor).await?;
            tasks.push(L::spawn(async move { (connection.next().await.is_some(), connection) }));
        }
        let _open = futures::future::join_all(tasks).await;
        parent.received(Received::default());
        Ok(())
    })
}

pub(super) fn hold<L: Framed>(library: L, trial: &Trial, parent: &Parent) -> Result<()> {
    L::block_on(async {
        let (port, mut acceptor) = library.listen(trial.size).await?;
        parent.ready(&[port]);
        let mut tasks = Vec::new();
        for _ in 0..trial.connections {
            let mut connection = library.accept(&mut acceptor).await?;
            tasks.push(L::spawn(async move { while let Some(Ok(_)) = connection.next().await {} }));
        }
        parent.received(Received::default());
        drop(tasks);
        Ok(())
    })
}

pub(super) fn dial<L: Framed>(library: L, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
    L::block_on(async {
        let _open = connect_all(library, trial, ports).await?;
        let start = parent.go();
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    })
}

/// Every part of a system, played as above.
macro_rules! plays_as_framed {
    ($library:ty) => {
        impl $crate::systems::System for $library {
            $crate::systems::framed::plays!(
                server receive, client send, server echo, client ping,
                client pace, server stall, server hold, client dial
            );
        }
    };
}

/// Single parts, for a system that plays others in its own way.
macro_rules! plays {
    ($($end:ident $part:ident),*) => { $($crate::systems::framed::plays!(@$end $part);)* };
    (@server $part:ident) => {
        fn $part(&self, trial: &$crate::plan::Trial, parent: &$crate::child::Parent) -> $crate::Result<()> {
            $crate::systems::framed::$part(*self, trial, parent)
        }
    };
    (@client $part:ident) => {
        fn $part(
            &self,
            trial: &$crate::plan::Trial,
            ports: &[u16],
            parent: &$crate::child::Parent,
        ) -> $crate::Result<()> {
            $crate::systems::framed::$part(*self, trial, ports, parent)
        }
    };
}
pub(super) use {plays, plays_as_framed};
