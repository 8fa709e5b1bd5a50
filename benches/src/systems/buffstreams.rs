//! buffstreams: on each of its runtimes, plain, with TLS or in acknowledged sessions, and with each way to take messages.

use std::marker::PhantomData;
use std::sync::LazyLock;
use std::time::Duration;

use buffstreams::{Bytes, Closer, Config, Connection, Listener, Session, Tls};
use futures::future::{join_all, try_join_all};
use futures::{SinkExt, StreamExt};

use super::framed::{self, Framed, plays};
use super::runtime::{AsyncStd, Runtime, Smol, Tokio, TokioCurrent};
use super::{CERTIFICATE, KEY, System, callback, cut};
use crate::Result;
use crate::check::{Check, Inspector, Received};
use crate::child::{Parent, Sent, Waiting};
use crate::messages::Messages;
use crate::plan::Trial;

/// On this runtime, as are the tasks of the benchmark.
#[derive(Clone, Copy)]
pub(super) struct Buffstreams<R> {
    takes: Takes,
    /// The sender hands over slices, with `try_feed`, instead of `Bytes`.
    feeds_slices: bool,
    has_tls: bool,
    /// The window of its acknowledged sessions.
    window: Option<usize>,
    runtime: PhantomData<R>,
}

/// How the listener's messages are taken.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Takes {
    Stream,
    Connections,
    Callback,
    Batches,
    Decoded,
    Deliveries,
}

impl<R> Buffstreams<R> {
    /// The defaults of the library.
    pub(super) const PLAIN: Self = Self::taking(Takes::Stream);
    /// A window of 1 MiB is the default as well.
    pub(super) const SESSION: Self = Self { window: Some(1 << 20), ..Self::PLAIN };
    pub(super) const TLS: Self = Self { has_tls: true, ..Self::PLAIN };

    pub(super) const fn taking(takes: Takes) -> Self {
        Self { takes, feeds_slices: false, has_tls: false, window: None, runtime: PhantomData }
    }

    pub(super) const fn feeding_slices(self) -> Self {
        Self { feeds_slices: true, ..self }
    }

    pub(super) const fn in_session(self, window: usize) -> Self {
        Self { window: Some(window), ..self }
    }
}

/// What a message has before it in a session, in bytes.
const SESSION_HEADER: usize = 4;

/// A runtime that buffstreams has as well.
pub(super) trait Home: Runtime {
    /// The defaults. Called where a future of this runtime is polled.
    fn config() -> Config;
}

impl Home for AsyncStd {
    fn config() -> Config {
        Config::new()
    }
}

impl Home for Tokio {
    fn config() -> Config {
        Config::new().runtime(buffstreams::Tokio::current())
    }
}

impl Home for TokioCurrent {
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

impl<R: Home> Buffstreams<R> {
    /// The defaults, except for messages that they do not allow.
    pub(super) fn config(self, size: usize) -> Config {
        static TLS: LazyLock<Tls> = LazyLock::new(|| {
            let tls = Tls::new().server(CERTIFICATE, KEY).and_then(|tls| tls.roots(CERTIFICATE));
            tls.and_then(|tls| tls.server_name("localhost")).expect("the certificate is one")
        });
        let config = if size > 4096 { R::config().max_message_size(size) } else { R::config() };
        let config = if self.has_tls { config.tls(TLS.clone()) } else { config };
        match self.window {
            Some(window) => config.session(Session::new().window_bytes(window)),
            None => config,
        }
    }

    pub(super) async fn listen(self, trial: &Trial) -> Result<(Vec<Listener>, Vec<u16>)> {
        let bind = |_| Listener::bind("127.0.0.1:0", self.config(trial.size));
        let listeners = try_join_all((0..trial.addresses).map(bind)).await?;
        let ports = listeners.iter().map(|listener| listener.local_addr().port().unwrap()).collect();
        Ok((listeners, ports))
    }

    /// Takes all messages of a listener until it ends.
    async fn take_all(self, mut listener: Listener, check: Check, mut inspector: Inspector) -> Inspector {
        match self.takes {
            Takes::Batches => {
                let mut batches = listener.batches();
                while let Some((_peer, batch)) = batches.next().await {
                    batch.into_iter().for_each(|message| inspector.take(message));
                }
            }
            Takes::Decoded => {
                // What is wrong with a message is for the inspector to count.
                let mut decoded = listener.decode(move |message| Ok::<_, std::io::Error>(check.decode(message)));
                while let Some((_peer, message)) = decoded.next().await {
                    inspector.count(&message);
                }
            }
            Takes::Deliveries => {
                let mut deliveries = listener.deliveries();
                while let Some(delivery) = deliveries.next().await {
                    inspector.take(delivery.message());
                    delivery.ack();
                }
            }
            Takes::Stream | Takes::Connections | Takes::Callback => {
                while let Some((_peer, message)) = listener.next().await {
                    inspector.take(&message);
                }
            }
        }
        inspector
    }
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
        Ok(Connection::dial(format!("127.0.0.1:{port}"), self.config(size)).await?)
    }

    async fn listen(self, size: usize) -> Result<(u16, Self::Acceptor)> {
        let listener = Listener::bind("127.0.0.1:0", self.config(size)).await?;
        Ok((listener.local_addr().port().unwrap(), listener.connections()))
    }

    async fn accept(self, connections: &mut Self::Acceptor) -> Result<Connection> {
        connections.next().await.ok_or_else(|| "the listener ended".into())
    }

    async fn feed_all(self, connection: &mut Connection, messages: Messages, share: u64) -> Result<()> {
        for number in 0..share {
            if !self.feeds_slices {
                connection.feed(messages.bytes(number)).await?;
                continue;
            }
            while !connection.try_feed(messages.slice(number))? {
                connection.ready().await?;
            }
        }
        Ok(())
    }

    /// A session has to be told that it is over: else the listener waits for its next connection.
    async fn finish(self, mut connection: Connection) -> Result<()> {
        if self.window.is_some() {
            connection.close().await?;
            while connection.next().await.transpose()?.is_some() {}
        }
        Ok(())
    }
}

impl<R: Home> System for Buffstreams<R> {
    plays!(client send, client ping, client pace, client dial);

    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        match self.takes {
            Takes::Connections => return framed::receive(*self, trial, parent),
            Takes::Callback => return callback::receive(*self, trial, parent),
            _ => {}
        }
        R::block_on(async {
            let (listeners, ports) = self.listen(trial).await?;
            parent.ready(&ports);
            let (waiting, share) = (Waiting::of(trial.addresses), trial.messages / trial.addresses as u64);
            let closers: Vec<_> = listeners.iter().map(Listener::closer).collect();
            let receive = |listener: Listener| {
                R::spawn(self.take_all(listener, Check::of(trial), Inspector::new(trial, share, &waiting)))
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
        if self.takes == Takes::Connections {
            return framed::echo(*self, trial, parent);
        }
        R::block_on(async {
            let (mut listeners, ports) = self.listen(trial).await?;
            parent.ready(&ports);
            let (incoming, outgoing) = listeners.remove(0).split();
            let _echo = R::spawn(incoming.map(Ok).forward(outgoing));
            parent.closing().await;
            parent.received(Received::default());
            Ok(())
        })
    }

    /// The messages of one window are lost, and come again with the next connection.
    fn resume(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        R::block_on(async {
            let lost = trial.messages * (trial.size + SESSION_HEADER) as u64;
            let (port, resumed) = cut::line(ports[0], lost)?;
            let (library, messages, share) = (*self, Messages::of(trial), trial.share());
            let mut connection = self.connect(port, trial.size).await?;
            let start = parent.go();
            let sending = R::spawn(async move {
                library.feed_all(&mut connection, messages, share).await?;
                // Until all of it has been acknowledged.
                connection.barrier().await?;
                Ok::<_, crate::Error>(connection)
            });
            let connection = sending.await?;
            let resumed = Some(resumed.recv()??);
            parent.sent(Sent { start, resumed, ..Sent::default() });
            self.finish(connection).await
        })
    }

    /// The merged stream: one message, then none.
    fn stall(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        match self.takes {
            Takes::Connections => return framed::stall(*self, trial, parent),
            Takes::Callback => return callback::stall(*self, trial, parent),
            _ => {}
        }
        R::block_on(async {
            let (mut listeners, ports) = self.listen(trial).await?;
            parent.ready(&ports);
            listeners[0].next().await;
            parent.received(Received::default());
            Ok(())
        })
    }

    fn hold(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        match self.takes {
            Takes::Connections => return framed::hold(*self, trial, parent),
            Takes::Callback => return callback::hold(*self, trial, parent),
            _ => {}
        }
        R::block_on(async {
            let (listeners, ports) = self.listen(trial).await?;
            parent.ready(&ports);
            let closers: Vec<_> = listeners.iter().map(Listener::closer).collect();
            let hold = |listener| {
                let inspector = Inspector::new(trial, trial.messages, &Waiting::of(1));
                R::spawn(self.take_all(listener, Check::of(trial), inspector))
            };
            let _waiting: Vec<_> = listeners.into_iter().map(hold).collect();
            all_connected(trial, &closers[0]).await;
            parent.received(Received::default());
            Ok(())
        })
    }
}
