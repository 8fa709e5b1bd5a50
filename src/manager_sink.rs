//! One producer of a manager: a `Sink` of messages, each to the address that it names.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt;
use futures::sink::Sink;

use crate::directory::Directory;
use crate::error::Error;
use crate::ledger::{Fate, Outcome, Ticket, Verdict};
use crate::link::Link;
use crate::peer::Address;
use crate::wire::Output;
use crate::writer::HIGH_WATER;

/// From how many addresses on a sink forgets those that were closed. Never more often than they double.
const PRUNE_FROM: usize = 64;

/// A producer: a `Sink` of `(Address, Bytes)` into a [`Manager`](crate::Manager).
///
/// - `start_send` never waits. A message over the limit comes back in [`Error::MessageTooLarge`], one to an address that is
///   not open in [`Error::NotOpen`]; the sink works on.
/// - `poll_ready` waits while the queue of the last address written to is full, and as much as a hand-over is collected here.
///   It is full when 60 KiB are pending, or, while the connection is down and is opened again by
///   [`Config::reconnect`](crate::Config::reconnect), when `queue_bytes` are held.
/// - `poll_flush` waits for room in the same way, and is ready when the kernel has taken everything that came through this
///   sink. If messages that did since the last flush were not sent, it tells, once for each address: [`Error::NotSent`], or
///   [`Error::NotOpen`] where the address was closed before they were handed over, and not dialed again. They are dead
///   letters.
/// - `poll_close` flushes and ends this sink, not the connections.
///
/// Small messages are put together here, without a lock, and handed over 60 KiB at a time, or `queue_bytes` with
/// `reconnect` if that is less; a flush hands over what there is. Dropping a future loses nothing that was accepted.
///
/// Dropping the sink leaves what is pending to the background. It cannot wait: where `queue_bytes` are held already, what
/// was not handed over becomes dead letters, with [`Outcome::QueueFull`](crate::Outcome::QueueFull).
pub struct ManagerSink {
    directory: Arc<Directory>,
    /// How many bytes are collected for an address before they are handed over.
    batch: usize,
    producers: Vec<Producer>,
    /// Which of them an address has.
    by_address: HashMap<Address, usize>,
    /// The one that was written to last: mostly the next one, too.
    last: usize,
    /// From so many producers on, those are forgotten that are of no use any more.
    prune_at: usize,
    closed: bool,
}

/// One sink's messages to one address.
struct Producer {
    link: Arc<Link>,
    /// Accepted, and not handed over.
    local: Output,
    messages: usize,
    /// The last that was handed over and not flushed.
    ticket: Option<Ticket>,
    /// Whether any were given back, for the next flush to tell.
    fate: Fate,
    /// The address was closed while there were messages here, for the next flush to tell.
    shut: bool,
}

impl ManagerSink {
    pub(crate) fn new(directory: Arc<Directory>) -> Self {
        let batch = directory.common.config.room_while_down().map_or(HIGH_WATER, |room| room.min(HIGH_WATER));
        let (producers, by_address) = (Vec::new(), HashMap::new());
        Self { directory, batch, producers, by_address, last: 0, prune_at: PRUNE_FROM, closed: false }
    }

    /// The address's producer, if the address is open.
    fn producer(&mut self, address: &Address) -> Option<&mut Producer> {
        let known = match self.producers.get(self.last) {
            Some(producer) if producer.link.address == *address => Some(self.last),
            _ => self.by_address.get(address).copied(),
        };
        let at = match known {
            // Once for each batch: the address may have been closed, and opened again.
            Some(at) if self.producers[at].messages == 0 && self.producers[at].link.outbox.is_closed() => {
                self.producers[at].follow(&self.directory).then_some(at)?
            }
            Some(at) => at,
            None => self.add(address)?,
        };
        self.last = at;
        Some(&mut self.producers[at])
    }

    fn add(&mut self, address: &Address) -> Option<usize> {
        let link = self.directory.open(address)?;
        let local = Output::new(self.directory.common.config.codec().ok()?);
        if self.producers.len() >= self.prune_at {
            self.producers.retain(|producer| !producer.is_over());
            let kept = self.producers.iter().enumerate();
            self.by_address = kept.map(|(at, producer)| (producer.link.address.clone(), at)).collect();
            self.prune_at = PRUNE_FROM.max(2 * self.producers.len());
        }
        let at = self.producers.len();
        self.by_address.insert(address.clone(), at);
        self.producers.push(Producer { link, local, messages: 0, ticket: None, fate: Fate::default(), shut: false });
        Some(at)
    }
}

impl Producer {
    /// Waits for room, and hands over what there is. If the address was closed, and not dialed again, it becomes dead letters.
    fn poll_hand_over(&mut self, directory: &Directory, cx: &mut Context<'_>) -> Poll<()> {
        if self.messages == 0 {
            return Poll::Ready(());
        }
        loop {
            let batch = (&mut self.local, self.messages, &self.fate);
            match ready!(self.link.outbox.poll_append(batch, HIGH_WATER, cx)) {
                Some(ticket) => {
                    self.messages = 0;
                    self.ticket = Some(ticket);
                }
                None if self.follow(directory) => continue,
                None => {
                    self.shut = true;
                    self.bury(directory, Verdict::closed());
                }
            }
            return Poll::Ready(());
        }
    }

    /// The address was closed. If it has been dialed again since, what comes through here goes there from now on, and so does
    /// what is here.
    fn follow(&mut self, directory: &Directory) -> bool {
        let Some(link) = directory.open(&self.link.address).filter(|link| !Arc::ptr_eq(link, &self.link)) else {
            return false;
        };
        self.link = link;
        // Everything is over that went through the link before, and written down in the fate.
        self.ticket = None;
        true
    }

    /// Waits until what came through here is written.
    fn poll_flush(&mut self, directory: &Directory, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_hand_over(directory, cx));
        let address = &self.link.address;
        if mem::take(&mut self.shut) {
            return Poll::Ready(Err(Error::NotOpen { address: address.clone(), message: None }));
        }
        if let Some(ticket) = self.ticket {
            // Its fate says how it ended, and those before it.
            let _ = ready!(self.link.outbox.poll_written(ticket, cx));
            self.ticket = None;
        }
        Poll::Ready(match self.fate.take() {
            Some(source) => Err(Error::NotSent { address: address.clone(), message: None, source }),
            None => Ok(()),
        })
    }

    /// The address was closed, and there is nothing left to tell of it.
    fn is_over(&self) -> bool {
        let outbox = &self.link.outbox;
        let handed_over = self.messages == 0 && !self.shut && outbox.is_closed();
        handed_over && self.ticket.is_none_or(|ticket| outbox.is_over(ticket)) && self.fate.is_clear()
    }

    /// What was not handed over has nowhere to go.
    fn bury(&mut self, directory: &Directory, verdict: Verdict) {
        directory.never_handed_over(mem::take(&mut self.messages));
        let (common, address) = (directory.common.clone(), self.link.address.clone());
        // Where the letters wait for room, they go on in the background.
        let _ = common.bury(address, self.local.take_messages(), verdict).now_or_never();
    }
}

impl Sink<(Address, Bytes)> for ManagerSink {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        match this.producers.get_mut(this.last) {
            // `start_send` gives the message back.
            _ if this.closed => Poll::Ready(Ok(())),
            // No other can be full: it was the last when its last message came.
            Some(producer) if producer.local.len() >= this.batch => {
                producer.poll_hand_over(&this.directory, cx).map(Ok)
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    fn start_send(self: Pin<&mut Self>, (address, message): (Address, Bytes)) -> Result<(), Error> {
        let this = self.get_mut();
        if this.closed {
            return Err(Error::Closed { message: Some(message.into()) });
        }
        let Some(producer) = this.producer(&address) else {
            return Err(Error::NotOpen { address, message: Some(message.into()) });
        };
        producer.local.push(message)?;
        producer.messages += 1;
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        let mut flushed = Poll::Ready(Ok(()));
        for producer in &mut this.producers {
            match producer.poll_flush(&this.directory, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => flushed = Poll::Pending,
            }
        }
        flushed
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.closed = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for ManagerSink {
    fn drop(&mut self) {
        let max = self.directory.common.config.queue_bytes;
        for producer in &mut self.producers {
            while let Err(verdict) = producer.link.outbox.leave(&mut producer.local, producer.messages, max) {
                if verdict.outcome != Outcome::Closed || !producer.follow(&self.directory) {
                    producer.bury(&self.directory, verdict);
                    break;
                }
            }
        }
    }
}

impl fmt::Debug for ManagerSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending: usize = self.producers.iter().map(|producer| producer.local.len()).sum();
        f.debug_struct("ManagerSink").field("pending", &pending).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Acceptor;
    use crate::net::world::Sim;
    use crate::{Config, Manager};
    use futures::SinkExt;

    /// Kept here because only the memory of a sink that outlives its addresses shows it.
    #[test]
    fn a_sink_forgets_addresses_that_were_closed() {
        Sim::default().run(async {
            let manager = Manager::new(Config::new());
            let mut sink = manager.sink();
            for _ in 0..10 * PRUNE_FROM {
                let (acceptor, addr) = Acceptor::bind(&"127.0.0.1:0".into()).await.unwrap();
                manager.dial(addr).await.unwrap();
                sink.send((addr.into(), Bytes::from_static(b"one"))).await.unwrap();
                drop(acceptor.accept(&Config::new()).await);
                manager.close(addr).await.unwrap();
            }
            assert!(sink.producers.len() <= PRUNE_FROM, "{}", sink.producers.len());
            assert!(sink.by_address.iter().all(|(address, at)| sink.producers[*at].link.address == *address));
        });
    }
}
