//! One run: producers -> manager -> faulty proxy -> listener, with somebody who looks at the books all the time.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use async_std::task;
use buffstreams::{
    Address, Backoff, BoxError, Config, DeadLetter, Error, Event, Events, LinkStats, Listener, Manager, ManagerEvent,
    Reason,
};
use fastrand::Rng;
use futures::task::AtomicWaker;
use futures::{SinkExt, StreamExt, future};

use crate::fault_lab::books::{Books, Ends, Id, Receipts, Tally};
use crate::fault_lab::messages::{MAX_MESSAGE, MEAN_FRAME, message, noise, parse};
use crate::fault_lab::proxy::{Plan, Proxy};

const PRODUCERS: u32 = 4;
/// How much of a run is over when its last fault comes: the end shows that all is well again. What is lost and what comes
/// back does not go through the proxy, so it is not nearer to 1.
const FAULTY: f64 = 0.45;
/// After how many messages, on the average, a producer waits until they are received, or the connection breaks. The kernel
/// takes megabytes ahead of the receiver: without this, most messages would be lost with the cuts.
const CONFIRM: u64 = 48;
/// How long a producer waits for that.
const PATIENCE: Duration = Duration::from_millis(20);
/// How many messages each producer sends without waiting again when it has waited in vain, and on which connections it does:
/// one in so many. So some stalls meet full queues, and the longer ones the manager's `write_timeout`; all that the kernel
/// has taken until then is lost, so not every stall does. A short run has shorter ones.
const BURST: u64 = 1_500;
const BURST_SHARE: u64 = 100;
const BURST_EVERY: u64 = 8;
/// How long a producer waits that was told that its messages came back, so that an outage is not spent on dead letters.
const PAUSE: Duration = Duration::from_millis(2);
/// How often the books are looked at.
const SAMPLE: Duration = Duration::from_millis(1);

/// What to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) messages: u64,
    pub(crate) faults: u64,
    /// Whether the manager dials again and again: then no message comes back.
    pub(crate) reconnect: bool,
}

/// The limits fit faults that last 100 ms at the most: where the queues are full, the manager gives most stalls up before
/// they end.
fn config(reconnect: bool) -> Config {
    let backoff = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(10));
    Config::new()
        .max_message_size(MAX_MESSAGE)
        .reconnect(reconnect.then_some(backoff))
        .write_timeout(Duration::from_millis(25))
        .dial_timeout(Duration::from_secs(1))
        .close_timeout(Duration::from_secs(20))
}

/// The manager's figures, by the names of the library.
fn tally(stats: &LinkStats) -> Tally {
    Tally {
        accepted: stats.accepted,
        written: stats.written,
        dead_lettered: stats.dead_lettered,
        held: stats.held,
        reconnects: stats.reconnects,
    }
}

/// Which message a dead letter brings back.
fn returned(letter: &DeadLetter) -> Option<Id> {
    parse(&letter.message)
}

/// Has everything delivered that was accepted.
async fn finish(manager: &Manager, address: &Address) -> Result<(), Error> {
    match manager.close(address).await {
        // They are dead letters, and the books must say so.
        Err(Error::NotSent { .. }) => Ok(()),
        closed => closed,
    }
}

/// Runs to the end. `progress` is told now and then how many messages were accepted, and how many faults there were.
pub(crate) async fn run(
    settings: Settings,
    progress: impl FnMut(u64, u64) + Send + 'static,
) -> Result<Books, BoxError> {
    let start = Instant::now();
    let Settings { seed, messages, faults, reconnect } = settings;
    let listener = Listener::bind("127.0.0.1:0", config(false)).await?;
    let spacing = (messages as f64 * MEAN_FRAME as f64 * FAULTY / faults.max(1) as f64) as u64;
    let proxy =
        Proxy::start(listener.local_addr().ip().unwrap(), faults, move |n| Plan::seeded(seed, n, spacing.max(1)))?;
    let proxy = Arc::new(proxy);
    let (address, closer) = (Address::from(proxy.addr), listener.closer());
    let manager = Manager::new(config(reconnect));
    let letters = task::spawn(manager.dead_letters().map(|letter| returned(&letter)).collect::<Vec<_>>());
    let ends = task::spawn(ends(listener.events()));
    let confirmed = Arc::new(Confirmed::default());
    let confirms = confirmed.clone();
    let received = task::spawn(listener.fold(Receipts::default(), move |mut receipts, (peer, message)| {
        let id = parse(&message);
        receipts.receive(peer.id(), id);
        if let Some(id) = id {
            confirms.confirm(id);
        }
        future::ready(receipts)
    }));
    let breaks = confirmed.clone();
    let mut happened = manager.events();
    let given_up = task::spawn(async move {
        let mut given_up = 0;
        while let Some(event) = happened.next().await {
            if let ManagerEvent::Broken { error, .. } = event {
                given_up += u64::from(matches!(error.as_deref(), Some(Error::Timeout { .. })));
                breaks.broken();
            }
        }
        given_up
    });
    manager.dial(&address).await?;

    let over = Arc::new(AtomicBool::new(false));
    let looking = {
        let (manager, proxy, over) = (manager.clone(), proxy.clone(), over.clone());
        std::thread::spawn(move || look(&manager, &proxy, &over, progress))
    };
    // The first one has the rest as well.
    let share = messages / u64::from(PRODUCERS);
    let producers = (0..PRODUCERS).map(|producer| {
        let count = if producer == 0 { messages - share * u64::from(PRODUCERS - 1) } else { share };
        task::spawn(produce(manager.clone(), address.clone(), confirmed.clone(), seed, producer, count))
    });
    let producers: Vec<_> = producers.collect();
    let mut sent = Vec::new();
    for producer in producers {
        sent.push(producer.await);
    }
    let finished = finish(&manager, &address).await;
    over.store(true, Ordering::Release);
    let (samples, mut violations) = looking.join().map_err(|_| "the books could not be looked at")?;

    let tally = tally(&manager.stats().total);
    drop(manager); // The dead letters end, and the events.
    let proxy = Arc::into_inner(proxy).ok_or("somebody has the proxy still")?.finish().await;
    closer.close().await?;
    let (mut receipts, letters) = future::join(received, letters).await;
    drop(closer);
    let (ends, given_up) = future::join(ends, given_up).await;

    violations.extend(finished.err().map(|error| format!("the close: {error:?}")));
    violations.extend(sent.iter().filter_map(|(_, error)| error.clone()));
    let sent: Vec<_> = sent.into_iter().map(|(count, _)| count).collect();
    let damaged = letters.iter().filter(|id| id.is_none()).count();
    if damaged > 0 {
        violations.push(format!("{damaged} dead letters are damaged"));
    }
    let dead: Vec<_> = letters.iter().copied().flatten().collect();
    if reconnect && !letters.is_empty() {
        violations.push(format!("{} messages came back, though the manager had not given up", letters.len()));
    }
    let losses = receipts.settle(&sent, dead, &proxy.connections);
    Ok(Books {
        seed,
        messages,
        faults,
        reconnect,
        sent: sent.iter().sum(),
        letters: letters.len() as u64,
        tally,
        samples,
        receipts,
        losses,
        ends,
        given_up,
        proxy,
        violations,
        took: start.elapsed(),
    })
}

/// Looks at the books until the run is over. They must balance at every moment.
fn look(manager: &Manager, proxy: &Proxy, over: &AtomicBool, mut progress: impl FnMut(u64, u64)) -> (u64, Vec<String>) {
    let (mut samples, mut violations) = (0, Vec::new());
    while !over.load(Ordering::Acquire) {
        let tally = tally(&manager.stats().total);
        if !tally.balances() && violations.is_empty() {
            violations.push(format!("the books did not balance at one moment: {tally:?}"));
        }
        samples += 1;
        progress(tally.accepted, proxy.faults());
        std::thread::sleep(SAMPLE);
    }
    (samples, violations)
}

/// What producers wait for: how far the receiver is with the messages of each, and how often the connection broke.
#[derive(Default)]
struct Confirmed {
    producers: [(AtomicU64, AtomicWaker); PRODUCERS as usize],
    breaks: AtomicU64,
}

impl Confirmed {
    fn confirm(&self, Id { producer, number }: Id) {
        let Some((next, waker)) = self.producers.get(producer as usize) else { return };
        next.fetch_max(number + 1, Ordering::AcqRel);
        waker.wake();
    }

    fn broken(&self) {
        self.breaks.fetch_add(1, Ordering::AcqRel);
        self.producers.iter().for_each(|(_, waker)| waker.wake());
    }

    /// Waits until this message was received, or the connection has broken since there were so many `breaks`. `false` if
    /// neither came in time.
    async fn wait(&self, Id { producer, number }: Id, breaks: u64) -> bool {
        let (next, waker) = &self.producers[producer as usize];
        let confirmed = poll_fn(|cx| {
            waker.register(cx.waker());
            let over = next.load(Ordering::Acquire) > number || self.breaks.load(Ordering::Acquire) > breaks;
            if over { Poll::Ready(()) } else { Poll::Pending }
        });
        async_std::future::timeout(PATIENCE, confirmed).await.is_ok()
    }
}

/// Sends `count` messages through a sink of its own. Returns how many were accepted, and what stopped it.
async fn produce(
    manager: Manager,
    address: Address,
    confirmed: Arc<Confirmed>,
    seed: u64,
    producer: u32,
    count: u64,
) -> (u64, Option<String>) {
    let mut rng = Rng::with_seed(seed ^ (u64::from(producer) + 1) << 32);
    let noise = noise(&mut rng, MAX_MESSAGE);
    let mut sink = manager.sink();
    let (mut breaks, mut burst) = (0, 0..0);
    for number in 0..count {
        let id = Id { producer, number };
        if let Err(error) = sink.feed((address.clone(), message(id, &mut rng, &noise))).await {
            return (number, Some(format!("producer {producer}, message {number}: {error:?}")));
        }
        if rng.u64(0..CONFIRM) == 0 && !burst.contains(&number) {
            match sink.flush().await {
                Ok(()) if confirmed.wait(id, breaks).await => {}
                Ok(()) if breaks % BURST_EVERY == 0 => burst = number..number + (count / BURST_SHARE).min(BURST),
                Ok(()) => {}
                Err(Error::NotSent { .. }) => task::sleep(PAUSE).await,
                Err(error) => return (number + 1, Some(format!("producer {producer}, a flush: {error:?}"))),
            }
            breaks = confirmed.breaks.load(Ordering::Acquire);
        }
    }
    loop {
        match sink.close().await {
            Ok(()) => return (count, None),
            Err(Error::NotSent { .. }) => task::sleep(PAUSE).await,
            Err(error) => return (count, Some(format!("producer {producer}, the end: {error:?}"))),
        }
    }
}

/// Counts how the receiver's connections end, until the listener is gone.
async fn ends(mut events: Events<Event>) -> Ends {
    let mut ends = Ends::default();
    while let Some(event) = events.next().await {
        match event {
            Event::Disconnected { reason, .. } => match reason {
                Reason::Closed | Reason::Stopped => ends.closed += 1,
                Reason::Truncated { .. } => ends.truncated += 1,
                Reason::Timeout { .. } => ends.timed_out += 1,
                Reason::Rejected => ends.rejected += 1,
                _ => ends.failed += 1,
            },
            Event::Missed { events, .. } => ends.missed += events,
            _ => {}
        }
    }
    ends
}
