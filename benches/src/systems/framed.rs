//! What several of the systems have in common: a connection that is a `Sink` and a `Stream` of messages, on a runtime.

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use futures::{Sink, SinkExt, Stream, StreamExt};

use super::pings::Pings;
use super::runtime::Runtime;
use super::{Pace, stamped};
use crate::check::{Inspector, Received};
use crate::child::{Parent, Sent, Waiting};
use crate::messages::Messages;
use crate::plan::Trial;
use crate::{Error, Result};

/// A library whose connections are sinks and streams.
pub(super) trait Framed: Copy + Send + Sync + 'static {
    type Runtime: Runtime;
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

    fn connect(self, port: u16, size: usize) -> impl Future<Output = Result<Self::Connection>> + Send;
    fn listen(self, size: usize) -> impl Future<Output = Result<(u16, Self::Acceptor)>> + Send;
    fn accept(self, acceptor: &mut Self::Acceptor) -> impl Future<Output = Result<Self::Connection>> + Send;
    /// Hands over the first messages, so many, without a flush.
    fn feed_all(
        self,
        connection: &mut Self::Connection,
        messages: Messages,
        share: u64,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            for number in 0..share {
                connection.feed(messages.bytes(number)).await.map_err(Into::into)?;
            }
            Ok(())
        }
    }
    /// What there is to do with a connection whose messages have all been received, before its process ends.
    fn finish(self, connection: Self::Connection) -> impl Future<Output = Result<()>> + Send {
        drop(connection);
        async { Ok(()) }
    }
    /// Ends the sending direction: the replies can still be read.
    fn half_close(connection: &mut Self::Connection) -> impl Future<Output = Result<()>> + Send {
        async { connection.close().await.map_err(Into::into) }
    }
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
    L::Runtime::block_on(async {
        let (messages, share) = (Messages::of(trial), trial.share());
        let connections = connect_all(library, trial, ports).await?;
        let start = parent.go();
        let send = |mut connection: L::Connection| {
            L::Runtime::spawn(async move {
                library.feed_all(&mut connection, messages, share).await?;
                connection.flush().await.map_err(Into::into)?;
                Ok::<_, Error>(connection)
            })
        };
        let sending: Vec<_> = connections.into_iter().map(send).collect();
        let open = try_join_all(sending).await?;
        parent.sent(Sent { start, ..Sent::default() });
        try_join_all(open.into_iter().map(|connection| library.finish(connection))).await?;
        Ok(())
    })
}

/// Listens, and plays all connections, each in a task of its own.
async fn accept_all<L: Framed, F>(
    library: L,
    trial: &Trial,
    parent: &Parent,
    play: impl Fn(L::Connection) -> F,
) -> Result<Vec<impl Future<Output = F::Output> + Send>>
where
    F: Future<Output: Send> + Send + 'static,
{
    let (port, mut acceptor) = library.listen(trial.size).await?;
    parent.ready(&[port]);
    let mut tasks = Vec::new();
    for _ in 0..trial.connections {
        tasks.push(L::Runtime::spawn(play(library.accept(&mut acceptor).await?)));
    }
    Ok(tasks)
}

pub(super) fn receive<L: Framed>(library: L, trial: &Trial, parent: &Parent) -> Result<()> {
    let waiting = Waiting::of(trial.connections);
    let take_all = |mut connection: L::Connection| {
        let mut inspector = Inspector::new(trial, trial.share(), &waiting);
        async move {
            while let Some(message) = connection.next().await {
                inspector.take(message.map_err(Into::into)?.as_ref());
            }
            Ok::<_, Error>(inspector)
        }
    };
    L::Runtime::block_on(async {
        let tasks = accept_all(library, trial, parent, take_all).await?;
        parent.received(Inspector::report(try_join_all(tasks).await?));
        Ok(())
    })
}

pub(super) fn echo<L: Framed>(library: L, trial: &Trial, parent: &Parent) -> Result<()> {
    let reply = |mut connection: L::Connection| async move {
        while let Some(message) = connection.next().await {
            connection.send(message.map_err(Into::into)?.into()).await.map_err(Into::into)?;
        }
        Ok::<_, Error>(())
    };
    L::Runtime::block_on(async {
        try_join_all(accept_all(library, trial, parent, reply).await?).await?;
        parent.closing().await;
        parent.received(Received::default());
        Ok(())
    })
}

pub(super) fn ping<L: Framed>(library: L, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
    L::Runtime::block_on(async {
        let (mut connection, mut pings) = (library.connect(ports[0], trial.size).await?, Pings::new(trial));
        let start = parent.go();
        let client = L::Runtime::spawn(async move {
            while let Some(request) = pings.request() {
                connection.send(Bytes::from_static(request)).await.map_err(Into::into)?;
                let reply = connection.next().await.ok_or("the connection ended early")?.map_err(Into::into)?;
                pings.reply(reply.as_ref());
            }
            L::half_close(&mut connection).await?;
            while let Some(reply) = connection.next().await {
                pings.reply(reply.map_err(Into::into)?.as_ref());
            }
            Ok::<_, Error>((pings, connection))
        });
        let (pings, connection) = client.await?;
        parent.sent(pings.report(start));
        library.finish(connection).await
    })
}

/// Sends at a fixed rate, on this thread: between the bursts it sleeps, which no task of a runtime should do.
pub(super) fn pace<L: Framed>(library: L, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
    L::Runtime::block_on(async {
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
        library.finish(connection).await
    })
}

/// Takes one message of each connection.
pub(super) fn stall<L: Framed>(library: L, trial: &Trial, parent: &Parent) -> Result<()> {
    let take_one = |mut connection: L::Connection| async move { (connection.next().await.is_some(), connection) };
    L::Runtime::block_on(async {
        let _open = join_all(accept_all(library, trial, parent, take_one).await?).await;
        parent.received(Received::default());
        Ok(())
    })
}

pub(super) fn hold<L: Framed>(library: L, trial: &Trial, parent: &Parent) -> Result<()> {
    let wait = |mut connection: L::Connection| async move { while let Some(Ok(_)) = connection.next().await {} };
    L::Runtime::block_on(async {
        let _waiting = accept_all(library, trial, parent, wait).await?;
        parent.received(Received::default());
        Ok(())
    })
}

pub(super) fn dial<L: Framed>(library: L, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
    L::Runtime::block_on(async {
        let _open = connect_all(library, trial, ports).await?;
        let start = parent.go();
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    })
}

/// Every part of a system, played as above.
macro_rules! plays_as_framed {
    ([$($parameters:tt)*] $library:ty) => {
        impl<$($parameters)*> $crate::systems::System for $library {
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
