//! One producer of a manager: a `Sink` of messages, each to the address that it names.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::sink::Sink;

use crate::dead_letters::Outcome;
use crate::directory::Directory;
use crate::error::Error;
use crate::link::Link;
use crate::net;
use crate::outbox::Ticket;
use crate::peer::Address;
use crate::wire::Output;
use crate::writer::HIGH_WATER;

/// A producer: a `Sink` of `(Address, Bytes)` into a [`Manager`](crate::Manager).
///
/// - `start_send` never waits. A message over the limit comes back in [`Error::MessageTooLarge`], one to an address that is
///   not open in [`Error::NotOpen`]; the sink works on.
/// - `poll_ready` waits while 64 KiB are pending here and as much in the queue of the last address written to.
/// - `poll_flush` is ready when the kernel has taken everything that came through this sink. [`Error::NotSent`] tells,
///   once for each address, that messages were not sent: they are dead letters.
/// - `poll_close` flushes and ends this sink, not the connections.
///
/// Small messages are put together here, without a lock, and handed over 64 KiB at a time; a flush hands over what there
/// is. Dropping a future loses nothing that was accepted; dropping the sink leaves what is pending to the background.
pub struct ManagerSink {
    directory: Arc<Directory>,
    producers: HashMap<Address, Producer>,
    /// The address that was written to last.
    last: Option<Address>,
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
}

impl ManagerSink {
    pub(crate) fn new(directory: Arc<Directory>) -> Self {
        Self { directory, producers: HashMap::new(), last: None, closed: false }
    }

    fn producer(&mut self, address: &Address) -> Option<&mut Producer> {
        if !self.producers.contains_key(address) {
            let link = self.directory.open(address)?;
            let codec = self.directory.common.config.codec().ok()?;
            let producer = Producer { link, local: Output::new(codec), messages: 0, ticket: None };
            self.producers.insert(address.clone(), producer);
        }
        self.producers.get_mut(address)
    }

    /// The address was closed under this sink: what it had accepted is a dead letter.
    fn forget(&mut self, address: &Address) -> Error {
        if let Some(mut producer) = self.producers.remove(address) {
            let (common, address) = (self.directory.common.clone(), address.clone());
            let messages = producer.local.take_messages();
            net::spawn(async move {
                let closed = Arc::new(Error::Closed { message: None });
                common.bury(&address, messages, Outcome::Closed, &closed).await;
            })
            .detach();
        }
        Error::NotOpen { address: address.clone(), message: None }
    }
}

impl Producer {
    fn hand_over(&mut self) -> Result<(), Error> {
        if self.messages > 0 {
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
        let Some(last) = &this.last else { return Poll::Ready(Ok(())) };
        let Some(producer) = this.producers.get_mut(last) else { return Poll::Ready(Ok(())) };
        if producer.local.len() < HIGH_WATER {
            return Poll::Ready(Ok(()));
        }
        ready!(producer.link.outbox.poll_room(HIGH_WATER, cx));
        if producer.hand_over().is_err() {
            let last = last.clone();
            return Poll::Ready(Err(this.forget(&last)));
        }
        Poll::Ready(Ok(()))
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
        this.last = Some(address);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        let mut pending = false;
        let mut failed = None;
        for (address, producer) in &mut this.producers {
            if producer.hand_over().is_err() {
                failed = Some((address.clone(), None));
                break;
            }
            let Some(ticket) = producer.ticket else { continue };
            match producer.link.outbox.poll_written(ticket, cx) {
                Poll::Pending => pending = true,
                Poll::Ready(written) => {
                    producer.ticket = None;
                    if let Err(source) = written {
                        failed = Some((address.clone(), Some(source)));
                        break;
                    }
                }
            }
        }
        match failed {
            Some((address, Some(source))) => Poll::Ready(Err(Error::NotSent { address, message: None, source })),
            Some((address, None)) => Poll::Ready(Err(this.forget(&address))),
            None if pending => Poll::Pending,
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.closed = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for ManagerSink {
    fn drop(&mut self) {
        let addresses: Vec<_> = self.producers.keys().cloned().collect();
        for address in addresses {
            if let Some(producer) = self.producers.get_mut(&address) {
                match producer.hand_over() {
                    Ok(()) => producer.link.outbox.leave_to_driver(),
                    Err(_) => drop(self.forget(&address)),
                }
            }
        }
    }
}

impl fmt::Debug for ManagerSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending: usize = self.producers.values().map(|producer| producer.local.len()).sum();
        f.debug_struct("ManagerSink").field("pending", &pending).finish_non_exhaustive()
    }
}
