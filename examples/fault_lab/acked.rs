//! The acknowledged form: a manager's session and one of a connection, through the faulty proxy. Here every message is
//! received, once and in order, whatever is done to the connections.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_std::task;
use buffstreams::{
    Address, Backoff, BoxError, Bytes, Config, Connection, Error, Event, Events, LinkStats, Listener, Manager, Session,
};
use fastrand::Rng;
use futures::{SinkExt, StreamExt, future};

use crate::fault_lab::books::{Id, peak_memory};
use crate::fault_lab::messages::{HEAD, MEAN_FRAME, message, noise, parse, with_body};
use crate::fault_lab::order::{Order, STALL, broken, line, unless_it_stands};
use crate::fault_lab::proxy::{Done, Fault, Plan, Proxy};
use crate::fault_lab::senders::dial;

/// The last one has a connection of its own, and its messages are answered. The others share the manager's session.
const PRODUCERS: u32 = 4;
const ANSWERED: u32 = PRODUCERS - 1;
/// One message in so many has up to 64 KiB: those are chained, and not copied together.
const LARGE_EVERY: u64 = 500;
const LARGE: usize = 64 * 1024;
const MEAN: u64 = MEAN_FRAME + LARGE as u64 / 2 / LARGE_EVERY;
/// How much of a run is over when its last fault comes: the end shows that all is well again.
const FAULTY: f64 = 0.8;
/// After how many messages, on the average, a producer waits until all that it has sent is acknowledged.
const WAIT_EVERY: u64 = 1_000;
/// An end that says nothing for three times as long is gone.
const HEARTBEAT: Duration = Duration::from_millis(150);
/// Longer than that, and on which connections it happens.
const SILENCE: Duration = Duration::from_millis(600);
const SILENT_EVERY: u64 = 200;
const SILENT: u64 = 7;
/// How often the books are looked at.
const SAMPLE: Duration = Duration::from_millis(1);

/// What to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) messages: u64,
    pub(crate) faults: u64,
}

/// All figures of a run.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) settings: Settings,
    /// What the manager said at the end.
    pub(crate) total: LinkStats,
    /// How many messages the sinks took, and how many the connection.
    pub(crate) sent: u64,
    pub(crate) conversed: u64,
    pub(crate) received: Order,
    pub(crate) lost: u64,
    pub(crate) replies: Order,
    pub(crate) lost_replies: u64,
    /// What the connection gave back.
    pub(crate) came_back: u64,
    pub(crate) happened: Happened,
    pub(crate) proxy: Done,
    /// How often the books were looked at.
    pub(crate) samples: u64,
    /// What else went wrong.
    pub(crate) violations: Vec<String>,
    pub(crate) took: Duration,
}

/// What the listener told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Happened {
    pub(crate) resumed: u64,
    pub(crate) undelivered: u64,
    /// Panics, and headers that make no sense.
    pub(crate) failed: u64,
    /// Events that came too fast to be seen.
    missed: u64,
}

fn config() -> Config {
    Config::new()
        .session(Session::new().heartbeat(HEARTBEAT))
        .max_message_size(HEAD + LARGE)
        .reconnect(Backoff::exponential(Duration::from_millis(1), Duration::from_millis(10)))
        .dial_timeout(Duration::from_secs(1))
        .close_timeout(Duration::from_secs(20))
}

/// What happens to a connection. One of many stands still for so long that the ends have to find out by themselves.
fn plan(seed: u64, connection: u64, spacing: u64) -> Plan {
    let Plan { up, down } = Plan::seeded(seed, connection, spacing);
    let is_silent = connection % SILENT_EVERY == SILENT;
    let up = up.enumerate().map(move |(at, mut step)| {
        if at == 0 && is_silent {
            step.fault = Fault::Stall { lasts: SILENCE, cleanly: false };
        }
        step
    });
    Plan { up: Box::new(up), down }
}

/// What was received, for whoever has just been told that a message is taken.
#[derive(Clone, Default)]
struct Received {
    order: Arc<Mutex<Order>>,
    count: Arc<AtomicU64>,
}

impl Received {
    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, id: Option<Id>) {
        self.order().receive(id);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The one before it is acknowledged, if there is one.
    fn check_before(&self, Id { producer, number }: Id) -> Result<(), String> {
        number.checked_sub(1).map_or(Ok(()), |number| self.check(Id { producer, number }))
    }

    /// What is acknowledged must be here.
    fn check(&self, id: Id) -> Result<(), String> {
        if self.order().has(id) { Ok(()) } else { Err(format!("{id:?} was acknowledged, and not received")) }
    }
}

/// Runs to the end. `progress` is told now and then how many messages were received, and how many faults there were.
pub(crate) async fn run(
    settings: Settings,
    progress: impl FnMut(u64, u64) + Send + 'static,
) -> Result<Report, BoxError> {
    let received = Received::default();
    let count = received.count.clone();
    unless_it_stands(STALL, &count, work(settings, received, progress)).await
}

async fn work(
    settings: Settings,
    received: Received,
    progress: impl FnMut(u64, u64) + Send + 'static,
) -> Result<Report, BoxError> {
    let start = Instant::now();
    let Settings { seed, messages, faults } = settings;
    let listener = Listener::bind("127.0.0.1:0", config()).await?;
    let spacing = (messages as f64 * MEAN as f64 * FAULTY / faults.max(1) as f64) as u64;
    let target = listener.local_addr().ip().ok_or("a listener without a port")?;
    let proxy = Arc::new(Proxy::start(target, faults, move |n| plan(seed, n, spacing.max(1)))?);
    let (address, closer) = (Address::from(proxy.addr), listener.closer());
    let happened = task::spawn(happened(listener.events()));
    let (incoming, outgoing) = listener.split();
    let taken = received.clone();
    let replies = incoming.filter_map(move |(peer, message)| {
        let id = parse(&message);
        taken.receive(id);
        let answered = id.filter(|id| id.producer == ANSWERED);
        future::ready(answered.map(|id| Ok((peer, with_body(id, &[])))))
    });
    let receiving = task::spawn(replies.forward(outgoing));

    let manager = Manager::new(config());
    dial(async || manager.dial(&address).await).await?;
    let connection = dial(async || Connection::dial(&address, config()).await).await?;
    let looking = Looking::start(manager.clone(), proxy.clone(), received.count.clone(), progress);
    // The first one has the rest as well.
    let share = messages / u64::from(PRODUCERS);
    let producers = (0..ANSWERED).map(|producer| {
        let count = if producer == 0 { messages - share * u64::from(PRODUCERS - 1) } else { share };
        task::spawn(produce(manager.clone(), address.clone(), received.clone(), seed, producer, count))
    });
    let producers: Vec<_> = producers.collect();
    let conversing = task::spawn(converse(connection, received.clone(), seed, share));
    let mut violations: Vec<String> = future::join_all(producers).await.into_iter().filter_map(Result::err).collect();
    let (replies, came_back) = conversing.await.unwrap_or_else(|error| {
        violations.push(error);
        Default::default()
    });
    violations.extend(manager.close(&address).await.err().map(|error| format!("the close: {error:?}")));
    let (samples, unbalanced) = looking.finish()?;
    violations.extend(unbalanced);

    let total = manager.stats().total;
    drop(manager);
    closer.close().await?;
    receiving.await?;
    let proxy = Arc::into_inner(proxy).ok_or("somebody has the proxy still")?.finish().await;
    drop(closer);
    let received = received.order().clone();
    let missing = |producer, sent| received.missing(producer, sent).count() as u64;
    let lost =
        (0..ANSWERED).map(|producer| missing(producer, if producer == 0 { messages - 3 * share } else { share }));
    Ok(Report {
        settings,
        total,
        sent: messages - share,
        conversed: share,
        lost: lost.sum::<u64>() + missing(ANSWERED, share),
        lost_replies: replies.missing(ANSWERED, share).count() as u64,
        received,
        replies,
        came_back,
        happened: happened.await,
        proxy,
        samples,
        violations,
        took: start.elapsed(),
    })
}

fn next_message(id: Id, rng: &mut Rng, noise: &[u8]) -> Bytes {
    match rng.u64(0..LARGE_EVERY) {
        0 => with_body(id, &noise[..rng.usize(0..=LARGE)]),
        _ => message(id, rng, noise),
    }
}

fn rng(seed: u64, producer: u32) -> Rng {
    Rng::with_seed(seed ^ (u64::from(producer) + 1) << 32)
}

/// Sends `count` messages through a sink of its own, and now and then one for which it waits.
async fn produce(
    manager: Manager,
    address: Address,
    received: Received,
    seed: u64,
    producer: u32,
    count: u64,
) -> Result<(), String> {
    let mut rng = rng(seed, producer);
    let noise = noise(&mut rng, LARGE);
    let mut sink = manager.sink();
    for number in 0..count {
        let id = Id { producer, number };
        let failed = |error: Error| format!("{id:?}: {error:?}");
        let message = next_message(id, &mut rng, &noise);
        if rng.u64(0..WAIT_EVERY) == 0 {
            // What the sink has collected goes first.
            sink.barrier().await.map_err(failed)?;
            received.check_before(id)?;
            manager.write(&address, message).await.map_err(failed)?;
            received.check(id)?;
        } else {
            sink.feed((address.clone(), message)).await.map_err(failed)?;
        }
    }
    sink.close().await.map_err(|error| format!("producer {producer}, the end: {error:?}"))?;
    received.check_before(Id { producer, number: count })
}

/// Sends `count` messages that are answered. Returns the replies, and how many messages came back.
async fn converse(connection: Connection, received: Received, seed: u64, count: u64) -> Result<(Order, u64), String> {
    let (mut read, mut write) = connection.split();
    let send = async {
        let mut rng = rng(seed, ANSWERED);
        let noise = noise(&mut rng, LARGE);
        for number in 0..count {
            let id = Id { producer: ANSWERED, number };
            let failed = |error: Error| format!("{id:?}: {error:?}");
            write.feed(next_message(id, &mut rng, &noise)).await.map_err(failed)?;
            if rng.u64(0..WAIT_EVERY) == 0 {
                write.barrier().await.map_err(failed)?;
                received.check(id)?;
            }
        }
        write.close().await.map_err(|error| format!("the end of the connection: {error:?}"))?;
        Ok::<_, String>((write.take_in_doubt().len() + write.take_unsent().len()) as u64)
    };
    let receive = async {
        let mut replies = Order::default();
        while let Some(reply) = read.next().await {
            replies.receive(parse(&reply.map_err(|error| format!("the replies: {error:?}"))?));
        }
        Ok(replies)
    };
    let (came_back, replies) = future::try_join(send, receive).await?;
    Ok((replies, came_back))
}

/// A thread that looks at the books until the run is over. They must balance at every moment.
struct Looking {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<(u64, Option<String>)>>,
}

impl Looking {
    fn start(
        manager: Manager,
        proxy: Arc<Proxy>,
        received: Arc<AtomicU64>,
        mut progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let look = move || {
            let (mut samples, mut violation) = (0, None);
            while !is_over.load(Ordering::Acquire) {
                let total = manager.stats().total;
                if total.accepted != total.acked + total.dead_lettered + total.held {
                    violation.get_or_insert_with(|| format!("the books did not balance at one moment: {total:?}"));
                }
                samples += 1;
                progress(received.load(Ordering::Relaxed), proxy.faults());
                std::thread::sleep(SAMPLE);
            }
            (samples, violation)
        };
        Self { over, thread: Some(std::thread::spawn(look)) }
    }

    fn finish(mut self) -> Result<(u64, Option<String>), BoxError> {
        self.over.store(true, Ordering::Release);
        let thread = self.thread.take().ok_or("nobody looks")?;
        thread.join().map_err(|_| "the books could not be looked at".into())
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

async fn happened(mut events: Events<Event>) -> Happened {
    let mut happened = Happened::default();
    while let Some(event) = events.next().await {
        match event {
            Event::Resumed { .. } => happened.resumed += 1,
            Event::Undelivered { messages, .. } => happened.undelivered += messages as u64,
            Event::Missed { events, .. } => happened.missed += events,
            Event::Panicked { .. } | Event::Rejected { .. } => happened.failed += 1,
            _ => {}
        }
    }
    happened
}

impl Report {
    /// How many connections were cut.
    pub(crate) fn cuts(&self) -> usize {
        self.proxy.connections.iter().filter(|passed| passed.cut).count()
    }

    /// The rules that are broken; none, if all is well.
    pub(crate) fn broken_rules(&self) -> Vec<String> {
        let Self { settings, total, received, replies, happened, .. } = self;
        let is_whole = |order: &Order| order.twice == 0 && order.out_of_order == 0 && order.damaged == 0;
        let rules = [
            ("sent = accepted", self.sent == total.accepted),
            ("accepted = acked", total.accepted == total.acked),
            ("dead-lettered = 0, and nothing came back", total.dead_lettered + self.came_back == 0),
            ("in doubt = 0", total.in_doubt == 0),
            ("held = 0", total.held == 0),
            ("the manager had one session", total.sessions == 1),
            ("received = sent", received.received == settings.messages),
            ("lost = 0", self.lost == 0),
            ("nothing came twice, out of order or damaged", is_whole(received)),
            ("every reply came", replies.received == self.conversed && self.lost_replies == 0),
            ("no reply came twice, out of order or damaged", is_whole(replies)),
            ("nothing was undelivered", happened.undelivered == 0),
            ("nothing panicked, and no header made no sense", happened.failed == 0),
            ("there were about as many faults as asked for", self.proxy.total() * 10 >= settings.faults * 8),
        ];
        broken(&rules, &self.violations)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings: Settings { seed, messages, faults }, total, received, replies, happened, proxy, .. } =
            self;
        writeln!(f, "acknowledged: seed {seed}, {messages} messages, {faults} faults")?;
        let Self { conversed, came_back, samples, .. } = self;
        let by = format!("({conversed} of them by the connection; the books were looked at {samples} times)");
        line(f, "accepted", total.accepted + conversed, &by)?;
        line(f, "acked", total.acked + conversed - came_back, "")?;
        line(f, "in doubt", total.in_doubt + self.came_back, "")?;
        line(f, "received", received.received, "")?;
        line(f, "lost", self.lost, "")?;
        line(f, "twice", received.twice, "")?;
        line(f, "out of order", received.out_of_order, "")?;
        line(f, "damaged", received.damaged, "")?;
        let bad = replies.twice + replies.out_of_order + replies.damaged;
        line(
            f,
            "replies",
            replies.received,
            &format!("({} lost, {bad} twice, out of order or damaged)", self.lost_replies),
        )?;
        let Happened { resumed, missed, .. } = happened;
        let sessions =
            format!("({} sessions; the listener saw {resumed} resumed, and missed {missed})", total.sessions);
        line(f, "reconnects", total.reconnects, &sessions)?;
        line(f, "replayed", total.replayed, "(by the manager)")?;
        let up: u64 = proxy.connections.iter().map(|passed| passed.up).sum();
        let cut = format!("({} cut; {up} bytes went through)", self.cuts());
        line(f, "connections", proxy.connections.len() as u64, &cut)?;
        let kinds = Fault::NAMES.iter().zip(proxy.faults).map(|(name, n)| format!("{name} {n}"));
        line(f, "faults", proxy.total(), &format!("({})", kinds.collect::<Vec<_>>().join(", ")))?;
        match peak_memory() {
            Some(kib) => line(f, "peak memory", kib, "KiB")?,
            None => writeln!(f, "  peak memory      unknown")?,
        }
        write!(f, "  time           {:>9.1} s", self.took.as_secs_f64())
    }
}
