//! Where messages go that were accepted and could not be sent.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::Stream;

use super::letters::{DeadLetter, Put, Queue, Turn, cost};
use crate::config::Config;
use crate::foreign::{self, Panic, PanicSource};
use crate::observe::{ManagerEvent, Reporter};
use crate::peer::Address;
#[cfg(feature = "metrics")]
use crate::queue::Outcome;
use crate::queue::Verdict;
use crate::runtime::Handle;
use crate::sync::Lock;

/// The dead letters of a manager, from the moment this was made: a `Stream` for the program's own failover. It
/// ends when the manager has: after [`Manager::shutdown`](crate::Manager::shutdown), and when the last of it is dropped.
///
/// It holds `queue_bytes`. When it is full, an address whose letters do not fit is still dialed and written to, but
/// nothing more of it comes back until they are taken: it holds its messages, and its producers wait when its queue is
/// full. Where it would have given up, it is dialed once a second. Other addresses go on. So the task that takes the
/// letters may send them to the same address again. With [`Config::message_ttl`](crate::Config::message_ttl) it should
/// not wait until they are written: a message that is too old is not written, and is held, with all that is behind it,
/// until the letters before it are taken.
///
/// In a session what the other end has refused, or will not know of any more, comes back all the same, so that its acknowledgements
/// are read. What waits for room then counts as if it were held: when that and what is held are `queue_bytes`, the producers of
/// that address wait until letters are taken. So an address has at most twice that waiting in front of this stream, where a letter
/// counts 512 bytes more than its message. A task that sends refused letters to the same address again should not wait for that.
///
/// A close does not wait for what it leaves behind, and nor does a producer that has gone: up to `queue_bytes` of it,
/// all addresses together, wait for room in the background; more is lost, with a
/// [`ManagerEvent::Lost`](crate::ManagerEvent::Lost). Dropping a future that waits for the next letter loses nothing;
/// dropping the stream loses what is in it, with a [`ManagerEvent::Lost`](crate::ManagerEvent::Lost) as well.
pub struct DeadLetters {
    queue: Arc<Queue>,
    letters: Weak<DeadLetterBox>,
}

/// Where a manager puts its dead letters.
pub(crate) struct DeadLetterBox {
    bytes: usize,
    taker: Lock<Option<Arc<Queue>>>,
    reporter: Arc<Reporter<ManagerEvent>>,
    lost: AtomicU64,
    /// How many bytes of letters are on their way to it.
    on_their_way: AtomicUsize,
    /// When none is, no more come.
    ended: AtomicBool,
    runtime: Handle,
}

/// A place for letters on their way, until it is dropped.
struct Way {
    letters: Arc<DeadLetterBox>,
    bytes: usize,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.letters.on_their_way.fetch_sub(self.bytes, Ordering::SeqCst);
        self.letters.look();
    }
}

/// Messages on their way to the one who takes the dead letters.
struct Burial {
    letters: Arc<DeadLetterBox>,
    address: Address,
    messages: VecDeque<Bytes>,
    verdict: Verdict,
    tried: Option<Arc<[Address]>>,
}

/// One that goes on in the background when it is dropped.
struct InTurn(Option<Burial>);

impl InTurn {
    /// If nobody takes them, that is counted when this is dropped.
    async fn send(mut self) {
        if let Some(burial) = &mut self.0 {
            // What comes back is not the last of its message.
            let _ = burial.send().await;
        }
    }
}

impl DeadLetterBox {
    /// Of what is not taken yet, it holds as much as the queue of an address does.
    pub(crate) fn new(config: &Config, reporter: Arc<Reporter<ManagerEvent>>) -> Self {
        let (lost, on_their_way) = (AtomicU64::new(0), AtomicUsize::new(0));
        let (bytes, runtime) = (config.queue_bytes, config.runtime.clone());
        let ended = AtomicBool::new(false);
        Self { bytes, taker: Lock::new(None), reporter, lost, on_their_way, ended, runtime }
    }

    /// From now on they go to this one, and so do those that wait for room in the one before.
    pub(crate) fn subscribe(self: &Arc<Self>) -> DeadLetters {
        let queue = Arc::new(Queue::default());
        let replaced = self.taker.lock().replace(queue.clone());
        if let Some(replaced) = replaced {
            replaced.close();
        }
        self.look();
        DeadLetters { queue, letters: Arc::downgrade(self) }
    }

    /// How many nobody took.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Hands the messages to the one who has asked for dead letters, as fast as those are taken; without anybody, when they
    /// are gone, or when too many are on their way already, says how many were lost. When this is dropped, it goes on in
    /// the background.
    pub(crate) async fn bury(self: Arc<Self>, address: Address, messages: Vec<Bytes>, verdict: Verdict) {
        Burial::new(self, address, messages, verdict, None).go().await;
    }

    /// As [`bury`](Self::bury), of a route that has `tried` these.
    pub(crate) async fn bury_tried(
        self: Arc<Self>,
        address: Address,
        message: Bytes,
        verdict: Verdict,
        tried: Arc<[Address]>,
    ) {
        Burial::new(self, address, [message], verdict, Some(tried)).go().await;
    }

    /// As [`bury_in_turn`](Self::bury_in_turn), of a route that has `tried` these.
    pub(crate) fn bury_tried_in_turn(
        self: Arc<Self>,
        address: Address,
        message: Bytes,
        verdict: Verdict,
        tried: Arc<[Address]>,
    ) -> impl Future<Output = ()> + Send + use<> {
        InTurn(Some(Burial::new(self, address, [message], verdict, Some(tried)))).send()
    }

    /// No more letters come but those on their way: then the stream of them ends.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.look();
    }

    /// There may be no more letters to come.
    fn look(&self) {
        if self.on_their_way.load(Ordering::SeqCst) > 0 {
            return;
        }
        let taker = match self.ended.load(Ordering::SeqCst) {
            true => self.taker.lock().take(),
            false => None,
        };
        match taker {
            Some(queue) => queue.close(),
            None => self.taker().iter().for_each(|queue| queue.wake_watchers()),
        }
    }

    /// Waits until all letters so far are taken, and their taker asks for the next; or nobody takes them.
    pub(crate) async fn taken(&self) {
        if let Some(queue) = self.taker() {
            queue.taken(|| self.on_their_way.load(Ordering::SeqCst) == 0).await;
        }
    }

    /// As [`bury`](Self::bury).
    async fn start(self: Arc<Self>, mut burial: Burial) {
        if burial.messages.is_empty() {
            return;
        }
        let (letters, to) = (self, burial.address.clone());
        let Some(way) = letters.way(&burial.messages) else { return burial.lose_all() };
        let mut burying = Box::pin(async move {
            let _way = way;
            burial.send_or_lose().await;
        });
        // Mostly there is room, and no task is needed.
        if futures::poll!(&mut burying).is_pending() {
            match letters.runtime.finish(burying) {
                Ok(finishing) => finishing.await,
                Err(panic) => letters.panicked(&to, PanicSource::Logger, panic),
            }
        }
    }

    /// As [`bury`](Self::bury), for an address that buries no more until these are taken, however many others do: its queue is
    /// the bound. When this is dropped, also before it was polled, what is left goes the other way.
    pub(crate) fn bury_in_turn(
        self: Arc<Self>,
        address: Address,
        messages: Vec<Bytes>,
        verdict: Verdict,
    ) -> impl Future<Output = ()> + Send + use<> {
        InTurn(Some(Burial::new(self, address, messages, verdict, None))).send()
    }

    /// A place for these messages on their way here, if they fit beside the others that are; alone they always do.
    fn way<'a>(self: &Arc<Self>, messages: impl IntoIterator<Item = &'a Bytes>) -> Option<Way> {
        let bytes = messages.into_iter().map(cost).sum();
        let fits = |others: usize| (others == 0 || others + bytes <= self.bytes).then_some(others + bytes);
        self.on_their_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Way { letters: self.clone(), bytes })
    }

    /// Waits for room. Where nobody takes it, or will, it comes back.
    async fn send(&self, letter: DeadLetter) -> Result<(), DeadLetter> {
        let (address, mut letter) = (letter.address.clone(), Some(letter));
        while let Some(queue) = self.taker() {
            let mut turn = Turn { queue, place: None };
            let (put, panics) = poll_fn(|cx| turn.poll_put(&mut letter, self.bytes, cx)).await;
            for panic in panics {
                self.panicked(&address, PanicSource::Waker, panic);
            }
            match put {
                Put::Done => return Ok(()),
                Put::Closed => {}
                Put::Left => break,
            }
        }
        letter.map_or(Ok(()), Err)
    }

    fn taker(&self) -> Option<Arc<Queue>> {
        self.taker.lock().clone()
    }

    /// Nobody takes these.
    fn lose(&self, address: &Address, messages: usize) {
        if messages > 0 {
            self.lost.fetch_add(messages as u64, Ordering::Relaxed);
            #[cfg(feature = "metrics")]
            crate::metrics::lost(address, messages);
            self.reporter.report(ManagerEvent::Lost { address: address.clone(), messages });
        }
    }

    /// What is dropped here may be the last of a message, and what the program made it of.
    fn dispose<T>(&self, address: &Address, of_a_message: T) {
        if let Err(panic) = foreign::dispose(of_a_message) {
            self.panicked(address, PanicSource::Drop, panic);
        }
    }

    fn panicked(&self, address: &Address, source: PanicSource, Panic { message }: Panic) {
        self.reporter.report(ManagerEvent::Panicked { address: Some(address.clone()), source, message });
    }
}

impl Drop for DeadLetterBox {
    fn drop(&mut self) {
        if let Some(queue) = self.taker.get_mut().take() {
            queue.close();
        }
    }
}

impl Burial {
    /// Each letter begins here, and is counted once.
    fn new(
        letters: Arc<DeadLetterBox>,
        address: Address,
        messages: impl Into<VecDeque<Bytes>>,
        verdict: Verdict,
        tried: Option<Arc<[Address]>>,
    ) -> Self {
        let messages = messages.into();
        #[cfg(feature = "metrics")]
        crate::metrics::buried(&address, label(verdict.outcome), messages.len());
        Self { letters, address, messages, verdict, tried }
    }

    /// As [`DeadLetterBox::bury`].
    async fn go(self) {
        self.letters.clone().start(self).await;
    }

    /// Hands them over; the error is that nobody takes them.
    async fn send(&mut self) -> Result<(), DeadLetter> {
        while let Some(message) = self.messages.front() {
            let letter = DeadLetter::new(&self.address, message.clone(), &self.verdict);
            self.letters.send(DeadLetter { tried: self.tried.clone(), ..letter }).await?;
            self.letters.dispose(&self.address, self.messages.pop_front());
        }
        Ok(())
    }

    /// Hands them over, as far as somebody takes them.
    async fn send_or_lose(&mut self) {
        let mut lost = 0;
        while self.send().await.is_err() {
            self.letters.dispose(&self.address, self.messages.pop_front());
            lost += 1;
        }
        self.letters.lose(&self.address, lost);
    }

    fn lose_all(&mut self) {
        let messages = mem::take(&mut self.messages);
        self.letters.lose(&self.address, messages.len());
        for message in messages {
            self.letters.dispose(&self.address, message);
        }
    }
}

impl Drop for Burial {
    /// The task that should have gone on with it has ended: the runtime, or a logger that panicked when that was to start the task.
    fn drop(&mut self) {
        self.lose_all();
    }
}

impl Drop for InTurn {
    fn drop(&mut self) {
        if let Some(burial) = self.0.take() {
            let _ = burial.go().now_or_never();
        }
    }
}

/// An outcome as a label.
#[cfg(feature = "metrics")]
fn label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotSent => "not_sent",
        Outcome::Expired => "expired",
        Outcome::GaveUp => "gave_up",
        Outcome::Closed => "closed",
        Outcome::QueueFull => "queue_full",
        Outcome::InDoubt => "in_doubt",
        Outcome::Refused => "refused",
    }
}

impl Stream for DeadLetters {
    type Item = DeadLetter;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<DeadLetter>> {
        let mut state = self.queue.0.lock();
        let Some(letter) = state.letters.pop_front() else {
            if state.closed {
                return Poll::Ready(None);
            }
            let replaced = state.taker.replace(cx.waker().clone());
            drop(state);
            let _ = foreign::dispose(replaced);
            self.queue.wake_watchers();
            return Poll::Pending;
        };
        state.bytes -= cost(&letter.message);
        let first = state.senders.take_first();
        drop(state);
        // Whose executor is gone does not wait.
        let _ = first.map(foreign::wake);
        Poll::Ready(Some(letter))
    }
}

impl Drop for DeadLetters {
    fn drop(&mut self) {
        let mut state = self.queue.0.lock();
        state.left = true;
        let left = mem::take(&mut state.letters);
        let (mut senders, taker) = (state.senders.take_all(), state.taker.take());
        senders.extend(state.watchers.take_all());
        drop(state);
        let _ = foreign::dispose(taker);
        for sender in senders {
            // Whose executor is gone does not wait.
            let _ = foreign::wake(sender);
        }
        // Without a manager there is nobody to tell.
        let letters = self.letters.upgrade();
        let mut lost = BTreeMap::<Address, usize>::new();
        for letter in left {
            let address = letter.address.clone();
            match &letters {
                Some(letters) => letters.dispose(&address, letter),
                None => drop(foreign::dispose(letter)),
            }
            *lost.entry(address).or_default() += 1;
        }
        if let Some(letters) = letters {
            lost.iter().for_each(|(address, messages)| letters.lose(address, *messages));
        }
    }
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;

    use super::*;
    use crate::queue::ITEM;
    use crate::sim::testing::{self, Sim};

    /// What it has room for are two letters, or one large one.
    const SMALL: usize = 1000;
    const LARGE: usize = 2 * SMALL + ITEM;

    fn letters() -> (Arc<DeadLetterBox>, DeadLetters) {
        let config = Config::new().queue_bytes(LARGE + ITEM);
        let letters = Arc::new(DeadLetterBox::new(&config, Arc::new(Reporter::new(config.runtime.clone()))));
        let taken = letters.subscribe();
        (letters, taken)
    }

    fn letter(len: usize) -> DeadLetter {
        DeadLetter::new(&"there:1".into(), vec![7; len].into(), &Verdict::closed())
    }

    fn send(letters: &Arc<DeadLetterBox>, len: usize) -> testing::Task {
        let letters = letters.clone();
        testing::spawn(async move { drop(letters.send(letter(len)).await) })
    }

    fn waiting(taken: &DeadLetters) -> Vec<usize> {
        taken.queue.0.lock().letters.iter().map(|letter| letter.message.len()).collect()
    }

    /// Kept here because who takes the letters lets in the next each time, and hides whether those before it do.
    #[test]
    fn letters_are_let_in_as_far_as_there_is_room() {
        Sim::default().run(async {
            let (letters, mut taken) = letters();
            let _sends = [LARGE, SMALL, SMALL, SMALL].map(|len| send(&letters, len));
            testing::sleep(Duration::from_secs(1)).await;
            assert_eq!(waiting(&taken), [LARGE]);
            taken.next().await.unwrap();
            testing::sleep(Duration::from_secs(1)).await;
            assert_eq!(waiting(&taken), [SMALL; 2], "two fit, to the byte");
        });
    }

    #[test]
    fn a_large_letter_that_waits_no_longer_lets_in_the_small_one_behind_it() {
        Sim::default().run(async {
            let (letters, taken) = letters();
            let _first = send(&letters, SMALL);
            testing::sleep(Duration::from_secs(1)).await;
            let mut large = Box::pin(letters.send(letter(LARGE)));
            assert!(futures::poll!(&mut large).is_pending());
            let _small = send(&letters, SMALL);
            testing::sleep(Duration::from_secs(1)).await;
            assert_eq!(waiting(&taken), [SMALL]);
            drop(large);
            testing::sleep(Duration::from_secs(1)).await;
            assert_eq!(waiting(&taken), [SMALL; 2]);
        });
    }

    /// Kept here because it takes many addresses, that are closed in one moment, to fill it.
    #[test]
    fn what_is_on_its_way_has_room_to_the_byte_and_gives_it_back() {
        let (letters, _taken) = letters();
        let small = [Bytes::from_static(&[7; SMALL])];
        for _ in 0..3 {
            let (first, second) = (letters.way(&small), letters.way(&small));
            assert!(first.is_some() && second.is_some());
            assert!(letters.way(&small).is_none());
        }
        // Alone it always fits.
        assert!(letters.way(&[Bytes::from_static(&[7; 3 * LARGE])]).is_some());
    }
}
