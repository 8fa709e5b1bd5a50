//! Where a relay sends to: one address, or several of which one at a time has the messages.

use std::mem;
use std::time::{Duration, Instant};

use buffstreams::{Address, Bytes, Error, Events, Manager, ManagerEvent};
use futures::future::join_all;
use futures::{FutureExt, StreamExt};
use smol::Timer;

use crate::failure::{Code, Failure, chain};
use crate::settings::{Settings, Side};
use crate::terminal::say;
use crate::units::Delays;

/// How much is collected before it is written, in messages and in bytes.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 1 << 20;
/// How long the end may take where `close_timeout` has no limit.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// One destination. Its messages are written in their order, and each is either written or counted as not sent.
///
/// What the kernel has taken counts as written, and is never written again: when a connection breaks, the last of it may be lost,
/// which is said. What the kernel has not taken whole cannot have been read as a message, and may go to the next address.
pub(crate) struct Outlet {
    manager: Manager,
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
            if let Error::MessageTooLarge { .. } = error {
                outcome = Err(Failure::of(&error, &self.settings));
                continue;
            }
            self.tell();
            in_vain = if self.pending.len() < before { 1 } else { in_vain + 1 };
            if in_vain >= self.addresses.len() {
                let Some(delay) = delays.next() else {
                    outcome = Err(Failure::of(&error, &self.settings));
                    self.lost += self.pending.len() as u64;
                    self.pending.clear();
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
            let message = format!("{} messages were not sent", self.lost);
            failure.into_reason_of(Code::Undelivered, &message)
        })
    }

    /// Writes what there is to the current address. What was not written stays, but for messages that are too large.
    async fn write(&mut self) -> Result<(), Error> {
        if !self.addresses[self.current].1 {
            self.dial().await?;
        }
        let (address, batch) = (&self.addresses[self.current].0, mem::take(&mut self.pending));
        let writes = batch.iter().map(|message| self.manager.write(address.clone(), message.clone()));
        let outcomes = join_all(writes).await;
        let mut first = Ok(());
        for (message, outcome) in batch.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => continue,
                // No other address would take it.
                Err(error @ Error::MessageTooLarge { .. }) => {
                    self.lost += 1;
                    first = first.and(Err(error));
                }
                Err(error) => {
                    self.pending.push(message);
                    first = match first {
                        Ok(()) | Err(Error::MessageTooLarge { .. }) => Err(error),
                        earlier => earlier,
                    };
                }
            }
        }
        first
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
                let written = self.manager.stats().addresses.get(address).map_or(0, |link| link.written);
                let why = error.as_ref().map_or("it was closed".to_owned(), |error| chain(error));
                say(format_args!("warning: the connection to {address} is gone: {why}"));
                say(format_args!(
                    "{written} messages were given to {address}; those that it had not read are lost, and are not sent again"
                ));
            }
            other => say(format_args!("warning: {other:?}")),
        }
    }

    /// Closes all connections, and says how many messages were written. An error if that is not all of them.
    pub(crate) async fn close(mut self, quiet: bool) -> Result<(), Failure> {
        let deadline = self.settings.close_timeout.map_or(Duration::from_secs(5), |limit| limit.0.unwrap_or(LONG));
        let endings = self.manager.shutdown(deadline).await;
        self.tell();
        let mut cut = Vec::new();
        for (address, ending) in &endings {
            if !quiet {
                say(format_args!("{} messages written to {address}", ending.written));
            }
            if ending.cut {
                cut.push(address.to_string());
            }
        }
        if self.lost > 0 {
            return Err(Failure::new(Code::Undelivered, format!("{} messages were not sent", self.lost)));
        }
        if cut.is_empty() {
            return Ok(());
        }
        let message = format!("{} has not closed: whether it read everything is not known", cut.join(", "));
        Err(Failure::new(Code::Undelivered, message).with_hint("wait longer: --close-timeout TIME".to_owned()))
    }
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
