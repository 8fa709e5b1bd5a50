//! What is received: the messages of all who connect to some addresses, until somebody asks to end.

use std::collections::HashSet;

use buffstreams::{Bytes, Closer, Deliveries, Delivery, Error, Event, Events, Listener, Outgoing, Peer, Reason};
use futures::future::try_join_all;
use futures::stream::{BoxStream, FusedStream, SelectAll, Stream, StreamExt};
use futures::{FutureExt, select_biased};
use smol::Task;

use crate::failure::Failure;
use crate::hint;
use crate::settings::{Settings, Side};
use crate::stop::Stop;
use crate::terminal::say;

/// After how many messages it looks for a signal, and for events, though more messages are there.
const LOOK: u64 = 1024;

/// A message. In a session it is to be acknowledged.
type Received = (Peer, Bytes, Option<Delivery>);

/// The messages of one or more listeners. In a session, what it has given is acknowledged when the command says that this is safe, and
/// what never is, is in doubt for its sender.
///
/// It says on standard error where it listens, and what goes wrong. When somebody asks to end, the peers may finish.
pub(crate) struct Inlet {
    messages: SelectAll<BoxStream<'static, Received>>,
    /// What was given, where its sender waits to hear that it is taken. [`LOOK`] messages at the most, if they are acknowledged before
    /// each [`next`](Self::next), and no more than there is room for in the inbox.
    given: Vec<Delivery>,
    events: SelectAll<Events<Event>>,
    closers: Vec<Closer>,
    closing: Option<Task<Result<(), Error>>>,
    stop: Stop,
    settings: Settings,
    verbose: bool,
    received: u64,
    looked: u64,
}

fn plain(messages: impl Stream<Item = (Peer, Bytes)> + Send + 'static) -> BoxStream<'static, Received> {
    messages.map(|(peer, message)| (peer, message, None)).boxed()
}

fn acknowledged(deliveries: Deliveries) -> BoxStream<'static, Received> {
    deliveries.map(|delivery| (delivery.peer(), delivery.message().clone(), Some(delivery))).boxed()
}

impl Inlet {
    /// Listens on all addresses. With `verbose` it says who comes and goes as well.
    pub(crate) async fn bind(
        addresses: &[String],
        settings: &Settings,
        verbose: bool,
        stop: Stop,
    ) -> Result<Self, Failure> {
        let mut inlet = Self::new(settings, verbose, stop);
        for address in addresses {
            let listener = inlet.listen(address).await?;
            inlet.messages.push(match settings.has_session() {
                true => acknowledged(listener.deliveries()),
                false => plain(listener),
            });
        }
        Ok(inlet)
    }

    /// The same of one address, for a command that replies.
    pub(crate) async fn bind_to_reply(
        address: &str,
        settings: &Settings,
        verbose: bool,
        stop: Stop,
    ) -> Result<(Self, Outgoing), Failure> {
        let mut inlet = Self::new(settings, verbose, stop);
        let (incoming, outgoing) = inlet.listen(address).await?.split();
        inlet.messages.push(match settings.has_session() {
            true => acknowledged(incoming.deliveries()),
            false => plain(incoming),
        });
        Ok((inlet, outgoing))
    }

    fn new(settings: &Settings, verbose: bool, stop: Stop) -> Self {
        let (messages, events, closers) = (SelectAll::new(), SelectAll::new(), Vec::new());
        let settings = settings.clone();
        Self {
            messages,
            given: Vec::new(),
            events,
            closers,
            closing: None,
            stop,
            settings,
            verbose,
            received: 0,
            looked: 0,
        }
    }

    async fn listen(&mut self, address: &str) -> Result<Listener, Failure> {
        let listener = Listener::bind(address, self.settings.config(Side::Listen)?).await;
        let listener = listener.map_err(|error| Failure::of(&error, &self.settings))?;
        // Before it is said: who reads that may connect at once, and events are those from now on.
        self.events.push(listener.events());
        self.closers.push(listener.closer());
        say(format_args!("listening on {}", listener.local_addr()));
        Ok(listener)
    }

    fn give(&mut self, next: Option<Received>) -> Option<(Peer, Bytes)> {
        let (peer, message, delivery) = next?;
        self.given.extend(delivery);
        self.received += 1;
        Some((peer, message))
    }

    /// All that was given is where it should be. Before the next is waited for: their senders may wait for this.
    pub(crate) fn acknowledge(&mut self) {
        self.given.drain(..).for_each(Delivery::ack);
    }

    /// The last that was given is never taken.
    pub(crate) fn refuse_last(&mut self) {
        self.given.pop().into_iter().for_each(Delivery::refuse);
    }

    /// As [`acknowledge`](Self::acknowledge) but for these, and for those that cannot be told from them: they are in doubt for their senders.
    pub(crate) fn acknowledge_but(&mut self, lost: &HashSet<Bytes>) {
        for delivery in self.given.drain(..) {
            if !lost.contains(delivery.message()) {
                delivery.ack();
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn closer(&self) -> Closer {
        self.closers[0].clone()
    }

    /// How many messages it has given.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The next message, if it is there already; now and then none is, so that [`next`](Self::next) looks at what else there is.
    pub(crate) fn at_once(&mut self) -> Option<(Peer, Bytes)> {
        if self.looked == self.received {
            return None;
        }
        let next = self.messages.next().now_or_never().flatten();
        self.give(next)
    }

    /// Waits for the next message. `None` at the end: somebody has asked for it, and all peers have finished.
    pub(crate) async fn next(&mut self) -> Option<(Peer, Bytes)> {
        let next = loop {
            if self.messages.is_terminated() {
                break None;
            }
            let event = select_biased! {
                _ = &mut self.stop => None,
                event = self.events.select_next_some() => Some(event),
                next = self.messages.next() => break next,
            };
            match event {
                Some(event) => self.tell(&event),
                None => self.close(),
            }
        };
        if self.received == self.looked {
            self.looked += LOOK;
        }
        self.give(next)
    }

    fn close(&mut self) {
        let closers = self.closers.clone();
        self.closing = Some(smol::spawn(async move {
            try_join_all(closers.iter().map(Closer::close)).await?;
            Ok(())
        }));
    }

    /// Says what is still to be said, and waits for the close, if somebody has asked for it.
    pub(crate) async fn end(mut self) -> Result<(), Failure> {
        // Whose acknowledgement nobody waits for any more.
        self.given.clear();
        if self.settings.has_session() {
            // The senders hear what was taken before this ends. What comes all the same is not taken, which they hear too.
            if self.closing.is_none() {
                self.close();
            }
            while let Some((_, _, delivery)) = self.messages.next().await {
                delivery.into_iter().for_each(Delivery::refuse);
            }
        }
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.tell(&event);
        }
        match self.closing.take() {
            Some(closing) => closing.await.map_err(|error| Failure::of(&error, &self.settings)),
            None => Ok(()),
        }
    }

    /// Says what has happened, where somebody should know or wants to.
    fn tell(&self, event: &Event) {
        let settings = &self.settings;
        let hint = match event {
            Event::Rejected { error, .. } => hint::of_header(&error.kind, error.looks_like, settings),
            Event::HandshakeFailed { error, .. } => hint::of_tls(error, settings),
            Event::SessionRefused { kind, .. } => hint::of_handshake(kind, settings),
            Event::Disconnected { reason: Reason::Truncated { looks_like: Some(looks_like), .. }, .. } => {
                hint::of_look(*looks_like, settings)
            }
            Event::Disconnected { reason: Reason::Timeout { what, .. }, .. } => hint::of_limit(*what),
            _ => None,
        };
        match describe(event) {
            Told::Always(text) => say(format_args!("warning: {text}")),
            Told::Verbosely(text) if self.verbose => say(text),
            Told::Verbosely(_) => return,
        }
        if let Some(hint) = hint {
            say(format_args!(" hint: {hint}"));
        }
    }
}

enum Told {
    Always(String),
    Verbosely(String),
}

fn describe(event: &Event) -> Told {
    Told::Always(match event {
        Event::Connected { peer, .. } => return Told::Verbosely(format!("{peer} has connected")),
        Event::Disconnected { peer, reason, .. } => match reason {
            // Told by the event of its own.
            Reason::Closed | Reason::Stopped | Reason::Rejected => return Told::Verbosely(format!("{peer} is gone")),
            Reason::Truncated { got, want, .. } => {
                format!("{peer} ended inside a message: {got} of {want} bytes received")
            }
            Reason::Failed(error) => format!("{peer} is gone: {error}"),
            Reason::Timeout { what, after, .. } => format!("{peer} is disconnected: {what} of {after:?} is over"),
            other => format!("{peer} is gone: {other:?}"),
        },
        Event::Rejected { peer, error, .. } => format!("{peer} is disconnected: {error}"),
        Event::Refused { addr, max_connections, .. } => {
            format!("{addr} is turned away: --max-connections is {max_connections}")
        }
        Event::HandshakeFailed { from, error, .. } => format!("no TLS session with {from}: {error}"),
        Event::SessionRefused { from, kind, .. } => format!("no session with {from}: {kind}"),
        Event::Detached { peer, reason, .. } => {
            return Told::Verbosely(format!("{peer} is without a connection: {reason}"));
        }
        Event::Resumed { peer, from, .. } => return Told::Verbosely(format!("{peer} is back from {from}")),
        Event::AcceptFailed { error, .. } => format!("cannot accept connections: {error}"),
        Event::Undelivered { peer, messages, .. } => format!("{messages} replies were not delivered to {peer}"),
        other => format!("{other:?}"),
    })
}
