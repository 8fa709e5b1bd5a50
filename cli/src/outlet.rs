//! Where a relay sends to: one address, or several of which one at a time has the messages.

use std::mem;
use std::pin::pin;
use std::time::{Duration, Instant};

use buffstreams::{Address, Bytes, DeadLetters, Error, Events, Manager, ManagerEvent, ManagerSink, Outcome};
use futures::{FutureExt, SinkExt, StreamExt, select_biased};
use smol::Timer;

use crate::failure::{Code, Failure, chain};
use crate::settings::{Settings, Side};
use crate::terminal::say;
use crate::units::Delays;

/// How much is collected before it is written, in messages and in bytes.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 1 << 20;

/// One destination. Its messages are written in their order, and each is either written or counted as not sent.
///
/// What the kernel has taken counts as written, and is never written again: when a connection breaks, the last of it may be lost,
/// which is said. What the kernel has not taken whole cannot have been read as a message, and may go to the next address.
///
/// In a session, what the other end has taken counts, and the session sends again what a connection has not carried. What is in doubt at
/// the end of it counts as not sent, and goes nowhere else.
pub(crate) struct Outlet {
    manager: Manager,
    sink: ManagerSink,
    letters: DeadLetters,
    events: Events<ManagerEvent>,
    /// Each with whether it was dialed.
    addresses: Vec<(Address, bool)>,
    current: usize,
    /// The delays between two rounds through all addresses that were in vain.
    rounds: Option<(Delays, Option<Duration>)>,
    settings: Settings,
    verbose: bool,
    pending: Vec<Bytes>,
    bytes: usize,
    /// How many messages were not sent.
    lost: u64,
    /// Those of them that nobody has asked for.
    untold: Vec<Bytes>,
}

impl Outlet {
    /// A destination with these addresses, the first of which is tried first.
    pub(crate) fn new(addresses: &[String], settings: &Settings, verbose: bool) -> Result<Self, Failure> {
        let addresses: Vec<_> = addresses.iter().map(|address| (Address::from(address), false)).collect();
        let (mut settings, limit) = (settings.clone(), settings.reconnect_limit());
        // With another address to go to, a broken connection is tried once.
        let delays = if addresses.len() > 1 { settings.reconnect.take() } else { None };
        let manager = Manager::new(settings.config(Side::Dial)?);
        Ok(Self {
            sink: manager.sink(),
            letters: manager.dead_letters(),
            events: manager.events(),
            manager,
            addresses,
            current: 0,
            rounds: delays.map(|delays| (delays, limit)),
            settings,
            verbose,
            pending: Vec::new(),
            bytes: 0,
            lost: 0,
            untold: Vec::new(),
        })
    }

    /// Connects to the first address that answers.
    pub(crate) async fn open(&mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for at in 0..self.addresses.len() {
            self.current = at;
            outcome = self.dial().await;
            match &outcome {
                Ok(()) => break,
                Err(error) if self.addresses.len() > 1 => say(format_args!("warning: {}", chain(error))),
                Err(_) => {}
            }
        }
        self.tell();
        outcome.map_err(|error| Failure::of(&error, &self.settings))
    }

    /// Takes a message. `true` once there are many, which should be written then.
    pub(crate) fn add(&mut self, message: Bytes) -> bool {
        self.bytes += message.len();
        self.pending.push(message);
        self.pending.len() >= BATCH || self.bytes >= BATCH_BYTES
    }

    /// Writes what there is, and waits until the kernel has all of it. After an error, it is gone, and counted as not sent.
    pub(crate) async fn flush(&mut self) -> Result<(), Failure> {
        let (mut in_vain, mut delays) = (0, Rounds::new(self.rounds));
        let mut outcome = Ok(());
        while !self.pending.is_empty() {
            let before = self.pending.len();
            let error = match self.write().await {
                Ok(()) => continue,
                Err(error) => error,
            };
            // Another address would not have them either.
            if self.pending.is_empty() || matches!(error, Error::MessageTooLarge { .. }) {
                outcome = Err(Failure::of(&error, &self.settings));
                continue;
            }
            self.tell();
            in_vain = if self.pending.len() < before { 1 } else { in_vain + 1 };
            if in_vain >= self.addresses.len() {
                let Some(delay) = delays.next() else {
                    outcome = Err(Failure::of(&error, &self.settings));
                    let pending = mem::take(&mut self.pending);
                    self.lose(pending);
                    break;
                };
                Timer::after(delay).await;
                in_vain = 0;
            }
            self.turn(&error);
        }
        self.bytes = 0;
        self.tell();
        outcome.map_err(|failure| {
            let message = self.settings.not_sent(self.lost);
            failure.into_reason_of(Code::Undelivered, &message)
        })
    }

    /// What a flush has lost since the last call.
    pub(crate) fn take_lost(&mut self) -> Vec<Bytes> {
        mem::take(&mut self.untold)
    }

    fn lose(&mut self, messages: impl IntoIterator<Item = Bytes>) {
        let before = self.untold.len();
        self.untold.extend(messages);
        self.lost += (self.untold.len() - before) as u64;
    }

    /// Writes what there is to the current address. What was not written stays, but for messages that are too large.
    async fn write(&mut self) -> Result<(), Error> {
        if !self.addresses[self.current].1 {
            self.dial().await?;
        }
        let (address, batch) = (&self.addresses[self.current].0, mem::take(&mut self.pending));
        let before = self.manager.stats().total.dead_lettered;
        let mut back = Vec::new();
        let Given { outcome, too_long, mut unfed } = {
            let mut letters = (&mut self.letters).fuse();
            let mut give = pin!(give(&mut self.sink, address, batch).fuse());
            // What comes back is taken meanwhile: it may be in the way of what is still to come back.
            loop {
                select_biased! {
                    given = give => break given,
                    letter = letters.next() => back.extend(letter),
                }
            }
        };
        // The flush has ended, so each message is either written or one of these, in their order.
        let count = self.manager.stats().total.dead_lettered - before;
        while (back.len() as u64) < count
            && let Some(letter) = self.letters.next().await
        {
            back.push(letter);
        }
        for letter in back {
            match letter.outcome {
                // What is too old for one address is for all; and what was sent in a session goes nowhere else, or it may be
                // taken twice.
                Outcome::Expired | Outcome::InDoubt | Outcome::Refused => self.lose([letter.message]),
                _ => self.pending.push(letter.message),
            }
        }
        self.pending.append(&mut unfed);
        let (too_long, mut errors): (Vec<_>, Vec<_>) = too_long.into_iter().unzip();
        self.lose(too_long);
        outcome.and(errors.pop().map_or(Ok(()), Err))
    }

    async fn dial(&mut self) -> Result<(), Error> {
        let (address, is_dialed) = &mut self.addresses[self.current];
        self.manager.dial(address.clone()).await?;
        *is_dialed = true;
        Ok(())
    }

    /// Goes to the next address.
    fn turn(&mut self, error: &Error) {
        let (from, messages) = (self.addresses[self.current].0.clone(), self.pending.len());
        self.current = (self.current + 1) % self.addresses.len();
        let to = &self.addresses[self.current].0;
        say(format_args!("warning: {}", chain(error)));
        say(format_args!("{messages} messages that {from} has not been given go to {to}"));
    }

    /// Says what happens to the connections, without an end. Dropping the future loses nothing.
    pub(crate) async fn watch(&mut self) {
        while let Some(event) = self.events.next().await {
            self.say(&event);
        }
        futures::future::pending().await
    }

    fn tell(&mut self) {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.say(&event);
        }
    }

    fn say(&self, event: &ManagerEvent) {
        match event {
            ManagerEvent::Opened { address, .. } if self.verbose => say(format_args!("connected to {address}")),
            ManagerEvent::DialFailed { error, .. } if self.verbose => say(chain(error)),
            // What comes of it is told where it does.
            ManagerEvent::Opened { .. } | ManagerEvent::DialFailed { .. } => {}
            ManagerEvent::Broken { address, error, .. } => {
                let why = error.as_ref().map_or("it was closed".to_owned(), |error| chain(error));
                say(format_args!("warning: the connection to {address} is gone: {why}"));
                if self.settings.has_session() {
                    // What comes of it is told by the session, and where messages come back.
                    return;
                }
                let written = self.manager.stats().addresses.get(address).map_or(0, |link| link.written);
                say(format_args!(
                    "{written} messages were given to {address}; those that it had not read are lost, and are not sent again"
                ));
            }
            ManagerEvent::Resumed { .. } => say(event),
            other => say(format_args!("warning: {other}")),
        }
    }

    /// Closes all connections, and says how many messages were written. An error if that is not all of them.
    pub(crate) async fn close(mut self, quiet: bool) -> Result<(), Failure> {
        let deadline = self.settings.close_limit();
        // Each flush has waited until they are taken, or have come back.
        let taken = self.manager.stats().addresses;
        let endings = self.manager.shutdown(deadline).await;
        self.tell();
        let mut cut = Vec::new();
        for (address, ending) in &endings {
            if !quiet {
                match taken.get(address).filter(|_| self.settings.has_session()) {
                    Some(link) => say(format_args!("{} messages taken by {address}", link.acked)),
                    None => say(format_args!("{} messages written to {address}", ending.written)),
                }
            }
            if ending.cut {
                cut.push(address.to_string());
            }
        }
        if self.lost > 0 {
            return Err(Failure::new(Code::Undelivered, self.settings.not_sent(self.lost)));
        }
        if cut.is_empty() {
            return Ok(());
        }
        let message = format!("{} has not closed: whether it read everything is not known", cut.join(", "));
        Err(Failure::new(Code::Undelivered, message).with_hint("wait longer: --close-timeout TIME".to_owned()))
    }
}

/// What has become of messages that were given to a sink.
struct Given {
    outcome: Result<(), Error>,
    /// Those that are too large for the format, or the limit.
    too_long: Vec<(Bytes, Error)>,
    /// Those that the sink did not take.
    unfed: Vec<Bytes>,
}

/// Gives messages to an address, and waits until each is either written, in a session taken, or on its way back.
async fn give(sink: &mut ManagerSink, address: &Address, batch: Vec<Bytes>) -> Given {
    let mut given = Given { outcome: Ok(()), too_long: Vec::new(), unfed: Vec::new() };
    let mut batch = batch.into_iter();
    while let Some(message) = batch.next() {
        match sink.feed((address.clone(), message.clone())).await {
            Ok(()) => {}
            Err(error @ Error::MessageTooLarge { .. }) => given.too_long.push((message, error)),
            Err(error) => {
                given.unfed.push(message);
                given.unfed.extend(batch.by_ref());
                given.outcome = Err(error);
            }
        }
    }
    let flushed = match sink.barrier().await {
        Err(Error::NoSession) => sink.flush().await,
        taken => taken,
    };
    given.outcome = flushed.and(given.outcome);
    given
}

/// The delays between rounds, each twice as long as the one before it.
struct Rounds {
    delays: Option<(Delays, Option<Duration>)>,
    start: Instant,
    next: Duration,
}

impl Rounds {
    fn new(delays: Option<(Delays, Option<Duration>)>) -> Self {
        let next = delays.map_or(Duration::ZERO, |(delays, _)| delays.first);
        Self { delays, start: Instant::now(), next }
    }
}

impl Iterator for Rounds {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let (delays, limit) = self.delays?;
        if limit.is_some_and(|limit| self.start.elapsed() >= limit) {
            return None;
        }
        let delay = self.next.min(delays.longest);
        self.next = delay.saturating_mul(2);
        Some(delay)
    }
}
