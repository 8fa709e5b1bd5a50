//! Where messages go that were accepted and could not be sent.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::Stream;

use crate::error::Error;
use crate::events::{ManagerEvent, Reporter};
use crate::inbox::{self, Disconnected, ITEM, Receiver, Sender};
use crate::ledger::{Outcome, Verdict};
use crate::peer::Address;

/// A message that a manager had accepted and did not send.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Where it should have gone, as it was given to the manager.
    pub address: Address,
    /// The message.
    pub message: Bytes,
    /// What became of it.
    pub outcome: Outcome,
    /// How often the address had been dialed in the outage that it is a victim of; 0 where that was not the reason.
    pub attempts: u32,
    /// Why.
    pub error: Arc<Error>,
}

impl DeadLetter {
    pub(crate) fn new(address: &Address, message: Bytes, verdict: &Verdict) -> Self {
        let Verdict { outcome, attempts, error } = verdict.clone();
        Self { address: address.clone(), message, outcome, attempts, error }
    }
}

/// The dead letters of a manager, from the moment this was made: an endless `Stream` for the program's own failover.
///
/// It holds `queue_bytes`. When it is full, an address whose letters do not fit is still dialed and written to, but nothing
/// more of it comes back until they are taken: it holds its messages, and its producers wait when its queue is full. Where
/// it would have given up, it is dialed once a second. Other addresses go on. So whoever takes the letters may send them to
/// their own address again. With [`Config::message_ttl`](crate::Config::message_ttl) they should not wait for that: what is
/// too old is not written, and is held, with all that is behind it, until the letters before it are taken.
///
/// What a close, or a producer that has gone, leaves behind
/// waits for nobody: up to `queue_bytes` of it, all addresses together, wait for room in the background; more is lost, with
/// a [`ManagerEvent::Lost`](crate::ManagerEvent::Lost). Dropping a future that waits for the next letter loses nothing;
/// dropping the stream loses what is in it, with a [`ManagerEvent::Lost`](crate::ManagerEvent::Lost) as well.
pub struct DeadLetters {
    receiver: Receiver<DeadLetter>,
    /// Nobody takes them any more. Held while a letter is put in, so that none comes after the end.
    ended: Arc<Mutex<bool>>,
    letters: Weak<DeadLetterBox>,
}

/// Where a manager puts its dead letters.
pub(crate) struct DeadLetterBox {
    bytes: usize,
    taker: Mutex<Option<Taker>>,
    reporter: Arc<Reporter<ManagerEvent>>,
    lost: AtomicU64,
    /// How many bytes of letters are on their way to it.
    on_their_way: AtomicUsize,
}

/// The way to whoever takes them.
#[derive(Clone)]
struct Taker {
    sender: Sender<DeadLetter>,
    ended: Arc<Mutex<bool>>,
}

/// A place for letters on their way, until it is dropped.
pub(crate) struct Place {
    letters: Arc<DeadLetterBox>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.letters.on_their_way.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl DeadLetterBox {
    pub(crate) fn new(bytes: usize, reporter: Arc<Reporter<ManagerEvent>>) -> Self {
        let (lost, on_their_way) = (AtomicU64::new(0), AtomicUsize::new(0));
        Self { bytes, taker: Mutex::new(None), reporter, lost, on_their_way }
    }

    /// From now on they go to this one.
    pub(crate) fn subscribe(self: &Arc<Self>) -> DeadLetters {
        let (sender, receiver) = inbox::inbox(self.bytes);
        let ended = Arc::new(Mutex::new(false));
        *lock(&self.taker) = Some(Taker { sender, ended: ended.clone() });
        DeadLetters { receiver, ended, letters: Arc::downgrade(self) }
    }

    /// Nobody takes these.
    pub(crate) fn lose(&self, address: Address, messages: usize) {
        self.lost.fetch_add(messages as u64, Ordering::Relaxed);
        self.reporter.report(ManagerEvent::Lost { address, messages });
    }

    /// How many nobody took.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// A place for these messages on their way here, if they fit beside the others that are; alone they always do.
    pub(crate) fn place(self: &Arc<Self>, messages: &[Bytes]) -> Option<Place> {
        let bytes = messages.iter().map(|message| message.len() + ITEM).sum();
        let fits = |others: usize| (others == 0 || others + bytes <= self.bytes).then_some(others + bytes);
        self.on_their_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Place { letters: self.clone(), bytes })
    }

    /// Waits for room. The letter is lost if nobody has asked for it, or they are gone.
    pub(crate) async fn send(&self, letter: DeadLetter) -> Result<(), Disconnected> {
        let Some(mut taker) = lock(&self.taker).clone() else { return Err(Disconnected) };
        let bytes = letter.message.len() + ITEM;
        let share = poll_fn(|cx| taker.sender.poll_reserve(bytes, cx)).await;
        let ended = lock(&taker.ended);
        if *ended { Err(Disconnected) } else { taker.sender.send(letter, share) }
    }
}

impl Stream for DeadLetters {
    type Item = DeadLetter;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<DeadLetter>> {
        Pin::new(&mut self.receiver).poll_next(cx).map(|parcel| parcel.map(|parcel| parcel.item))
    }
}

impl Drop for DeadLetters {
    fn drop(&mut self) {
        *lock(&self.ended) = true;
        // Without a manager there is nobody to tell.
        let Some(letters) = self.letters.upgrade() else { return };
        let mut lost = BTreeMap::new();
        while let Poll::Ready(Some(letter)) = self.poll_next_unpin(&mut Context::from_waker(Waker::noop())) {
            *lost.entry(letter.address).or_default() += 1;
        }
        lost.into_iter().for_each(|(address, messages)| letters.lose(address, messages));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters").finish_non_exhaustive()
    }
}
