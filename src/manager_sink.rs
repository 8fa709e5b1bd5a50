//! One producer of a manager: a `Sink` of messages, each to the address that it names.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt;
use futures::sink::Sink;

use crate::directory::Directory;
use crate::error::Error;
use crate::ledger::{Ticket, Verdict};
use crate::link::Link;
use crate::peer::Address;
use crate::wire::Output;
use crate::writer::HIGH_WATER;

/// A producer: a `Sink` of `(Address, Bytes)` into a [`Manager`](crate::Manager).
///
/// - `start_send` never waits. A message over the limit comes back in [`Error::MessageTooLarge`], one to an address that is
///   not open in [`Error::NotOpen`]; the sink works on.
/// - `poll_ready` waits while the queue of the last address written to is full: 64 KiB are pending there, and here as much,
///   or what a flush that was not waited for has handed over.
/// - `poll_flush` is ready when the kernel has taken everything that came through this sink. [`Error::NotSent`] tells,
///   once for each address, that messages were not sent: they are dead letters.
/// - `poll_close` flushes and ends this sink, not the connections.
///
/// Small messages are put together here, without a lock, and handed over 64 KiB at a time; a flush hands over what there
/// is. Dropping a future loses nothing that was accepted; dropping the sink leaves what is pending to the background. So a
/// sink is made once for each producer: one that is made for each message, and dropped, never waits for room.
pub struct ManagerSink {
    directory: Arc<Directory>,
    producers: Vec<Producer>,
    /// Which of them an address has.
    by_address: HashMap<Address, usize>,
    /// The one that was written to last: mostly the next one, too.
    last: usize,
    /// An address was closed while this sink had messages for it: for the next flush to tell.
    shut: Option<Error>,
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
    /// Why earlier ones were not sent, for the next flush to tell.
    failed: Option<Arc<Error>>,
}

impl ManagerSink {
    pub(crate) fn new(directory: Arc<Directory>) -> Self {
        Self { directory, producers: Vec::new(), by_address: HashMap::new(), last: 0, shut: None, closed: false }
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
                self.forget(at);
                self.add(address)?
            }
            Some(at) => at,
            None => self.add(address)?,
        };
        self.last = at;
        Some(&mut self.producers[at])
    }

    fn add(&mut self, address: &Address) -> Option<usize> {
        let link = self.directory.open(address)?;
        let codec = self.directory.common.config.codec().ok()?;
        let at = self.producers.len();
        self.by_address.insert(address.clone(), at);
        self.producers.push(Producer { link, local: Output::new(codec), messages: 0, ticket: None, failed: None });
        Some(at)
    }

    /// The address was closed under this sink: what it had accepted is a dead letter.
    fn forget(&mut self, at: usize) -> Error {
        let mut producer = self.producers.swap_remove(at);
        let address = producer.link.address.clone();
        self.by_address.remove(&address);
        if let Some(moved) = self.producers.get(at) {
            self.by_address.insert(moved.link.address.clone(), at);
        }
        if producer.messages > 0 {
            self.directory.never_handed_over(producer.messages);
            let (common, address) = (self.directory.common.clone(), address.clone());
            let messages = producer.local.take_messages();
            // Where the letters wait for room, they go on in the background.
            let _ = common.bury(address, messages, Verdict::closed()).now_or_never();
        }
        Error::NotOpen { address, message: None }
    }

    /// Waits until what came through the producer is written.
    fn poll_flush_one(&mut self, at: usize, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let producer = &mut self.producers[at];
        if producer.hand_over().is_err() {
            return Poll::Ready(Err(self.forget(at)));
        }
        let written = match producer.ticket {
            Some(ticket) => ready!(producer.link.outbox.poll_written(ticket, cx)),
            None => Ok(()),
        };
        producer.ticket = None;
        let written = producer.failed.take().map_or(written, Err);
        let address = &producer.link.address;
        let not_sent = |source| Error::NotSent { address: address.clone(), message: None, source };
        Poll::Ready(written.map_err(not_sent))
    }
}

impl Producer {
    fn hand_over(&mut self) -> Result<(), Error> {
        if self.messages > 0 {
            // The ticket before is forgotten with this one.
            self.failed = self.failed.take().or_else(|| self.link.outbox.failure(self.ticket?));
            self.ticket = Some(self.link.outbox.append(&mut self.local, self.messages)?);
            self.messages = 0;
        }
        Ok(())
    }
}

impl Sink<(Address, Bytes)> for ManagerSink {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(Error::Closed { message: None }));
        }
        match this.producers.get_mut(this.last) {
            // No other can be full: it was the last when its last message came.
            Some(producer) if producer.local.len() >= HIGH_WATER => {
                ready!(producer.link.outbox.poll_room(HIGH_WATER, cx));
                if producer.hand_over().is_err() {
                    // The next message may be for another address.
                    this.shut = Some(this.forget(this.last));
                }
                Poll::Ready(Ok(()))
            }
            // A flush that nobody waited for has handed over less than that: or flush by flush the queue would grow without
            // end. To ask once for each hand-over is enough, and costs no lock for the other messages.
            Some(producer) if producer.messages <= 1 && producer.ticket.is_some() => {
                producer.link.outbox.poll_room(HIGH_WATER, cx).map(Ok)
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
        if let Some(error) = this.shut.take() {
            return Poll::Ready(Err(error));
        }
        let mut flushed = Poll::Ready(Ok(()));
        // From the last, since one that is forgotten gives its place to the last.
        for at in (0..this.producers.len()).rev() {
            match this.poll_flush_one(at, cx) {
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
        for at in (0..self.producers.len()).rev() {
            match self.producers[at].hand_over() {
                Ok(()) => self.producers[at].link.outbox.leave_to_driver(),
                Err(_) => drop(self.forget(at)),
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
