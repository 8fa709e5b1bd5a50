//! What is counted: each case passes a number of messages through one part of the library, and does nothing else.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use buffstreams::wire::{Decoder, Encoder};
use buffstreams::{Address, Bytes, Config, Connection, Error, Listener, Manager, Reader, Session, WireFormat, Writer};
use futures::executor::block_on;
use futures::future::poll_fn;
use futures::task::AtomicWaker;
use futures::{SinkExt, StreamExt};

use crate::memory::{Sink, Source};

pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// How many messages are counted. Half as many pass before them: the start, and the first growth of every buffer, fall
    /// out of the difference.
    pub(crate) messages: u64,
    /// How often it is counted, for the middle one of the counts: where threads wait for each other, how often they do is
    /// a matter of luck.
    pub(crate) counts: usize,
    /// How much the instructions may grow.
    pub(crate) growth: f64,
    /// How many more allocations a message may cost than was recorded.
    pub(crate) slack: f64,
    run: fn(u64) -> Result<(), Error>,
}

impl Case {
    /// Passes this many messages.
    pub(crate) fn run(&self, messages: u64) -> Result<(), Error> {
        (self.run)(messages)
    }
}

const SMALL: usize = 16;
/// The message of the Go library's own benchmark.
const USUAL: usize = 110;
const LARGE: usize = 64 * 1024;
/// A large message that, with its header, is still one segment of the loopback device. What is larger comes in one read or
/// in two, as the threads happen to run, and costs half an allocation or three of them.
const SEGMENT: usize = 60_000;

pub(crate) const CASES: &[Case] = &[
    in_memory("Encoder, 16 B", 40_000, |n| encode(SMALL, n)),
    in_memory("Encoder, 110 B", 40_000, |n| encode(USUAL, n)),
    in_memory("Encoder, 64 KiB", 1_000, |n| encode(LARGE, n)),
    in_memory("Decoder, 16 B", 40_000, |n| decode(SMALL, n)),
    in_memory("Decoder, 110 B", 40_000, |n| decode(USUAL, n)),
    in_memory("Decoder, 64 KiB", 1_000, |n| decode(LARGE, n)),
    in_memory("Writer, 16 B", 40_000, |n| write(SMALL, n)),
    in_memory("Writer, 110 B", 40_000, |n| write(USUAL, n)),
    in_memory("Writer, 64 KiB", 1_000, |n| write(LARGE, n)),
    in_memory("Reader, 16 B", 40_000, |n| read(SMALL, n)),
    in_memory("Reader, 110 B", 40_000, |n| read(USUAL, n)),
    in_memory("Reader, 64 KiB", 1_000, |n| read(LARGE, n)),
    over_sockets("Connection to Listener, 110 B", |n| connection_to_listener(Config::new(), n)),
    over_sockets("try_feed to Batches, 110 B", |n| try_feed_to_batches(Config::new(), n)),
    over_sockets("Connection to callback, 110 B", connection_to_callback),
    over_sockets("ManagerSink to Listener, 110 B", manager_sink_to_listener),
    by_time("session, Connection to Listener, 110 B", 200 * ROUND, |n| connection_to_listener(in_session(), n)),
    by_time("session, try_feed to Batches, 110 B", 200 * ROUND, |n| try_feed_to_batches(in_session(), n)),
    by_time("session, Connection to Deliveries, 110 B", 200 * ROUND, connection_to_deliveries),
    one_by_one("Connection to Listener, 60 kB", 1_000, |n| one_at_a_time(Config::new(), SEGMENT, n)),
    by_time("session, Connection to Listener, 60 kB", 1_000, |n| one_at_a_time(in_session(), SEGMENT, n)),
    one_by_one("request and reply, 110 B", 4_000, ping_pong),
];

/// Less than a change that matters, more than a compiler's whims.
const GROWTH: f64 = 0.05;

const fn in_memory(name: &'static str, messages: u64, run: fn(u64) -> Result<(), Error>) -> Case {
    Case { name, messages, counts: 1, growth: GROWTH, slack: 0.001, run }
}

/// Both ends are in this process, so the figures are those of the client, the server and the runtime together. The
/// kernel's part is not among them.
const fn over_sockets(name: &'static str, run: fn(u64) -> Result<(), Error>) -> Case {
    // Half an allocation a round more or less is the runtime's, which lists who waits: it depends on who came first. One
    // more in each round is 0.002.
    Case { name, messages: 200 * ROUND, counts: 5, growth: GROWTH, slack: 0.0015, run }
}

/// Each message is waited for, so it pays for all the waking by itself. Whether a thread waits or finds the message there is
/// a matter of luck, and costs some hundredths of the instructions and of an allocation; one more for each message is 1.
const fn one_by_one(name: &'static str, messages: u64, run: fn(u64) -> Result<(), Error>) -> Case {
    Case { name, messages, counts: 5, growth: 0.1, slack: 0.1, run }
}

fn in_session() -> Config {
    Config::new().session(Session::new()).linger(LINGER)
}

/// What is acknowledged is acknowledged once in a millisecond at most, and a message under callgrind takes fifty times as long as
/// otherwise: there are more acknowledgements for a message, and how many is a matter of luck. One more instruction for each
/// message is not seen here; a copy is, or a buffer for each. Of long messages, the figure that is recorded is the most there can be:
/// each is acknowledged by itself, as on a machine where it takes a millisecond under callgrind. A request and its reply are not
/// counted at all: there it is all luck.
const fn by_time(name: &'static str, messages: u64, run: fn(u64) -> Result<(), Error>) -> Case {
    Case { name, messages, counts: 5, growth: 0.25, slack: 1.0, run }
}

/// The default limit where it is large enough: it sets the width of the header.
fn limit(len: usize) -> usize {
    len.max(4096)
}

fn message(len: usize) -> Bytes {
    Bytes::from_static(&[7; LARGE][..len])
}

/// Whole frames of about 64 KiB together.
fn frames(len: usize) -> Result<Vec<u8>, Error> {
    let encoder = Encoder::new(WireFormat::buffstreams(), limit(len))?;
    let mut wire = Vec::new();
    while wire.len() < LARGE {
        encoder.encode(&message(len), &mut wire)?;
    }
    Ok(wire)
}

fn encode(len: usize, messages: u64) -> Result<(), Error> {
    let encoder = Encoder::new(WireFormat::buffstreams(), limit(len))?;
    let message = message(len);
    let mut out = Vec::new();
    for _ in 0..messages {
        if out.len() >= LARGE {
            out.clear();
        }
        encoder.encode(black_box(&message), &mut out)?;
    }
    Ok(())
}

fn decode(len: usize, messages: u64) -> Result<(), Error> {
    let decoder = Decoder::new(WireFormat::buffstreams(), limit(len))?;
    let wire = Bytes::from(frames(len)?);
    let mut input = wire.clone();
    for _ in 0..messages {
        if input.is_empty() {
            input = wire.clone();
        }
        black_box(decoder.decode(&mut input)?);
    }
    Ok(())
}

fn write(len: usize, messages: u64) -> Result<(), Error> {
    let config = Config::new().max_message_size(limit(len));
    let mut writer = Writer::new(Sink, &config)?;
    // A message that needs no counting of references: that is the producer's cost.
    let message = message(len);
    block_on(async {
        for _ in 0..messages {
            writer.feed(message.clone()).await?;
        }
        Ok(())
    })
}

fn read(len: usize, messages: u64) -> Result<(), Error> {
    let config = Config::new().max_message_size(limit(len));
    let mut reader = Reader::new(Source::new(frames(len)?), &config)?;
    block_on(async {
        for _ in 0..messages {
            black_box(reader.next().await.transpose()?);
        }
        Ok(())
    })
}

/// How many messages are on their way at once over sockets. The next are sent when these have come, and they fit in one
/// segment of the loopback device, so that each round is one write and one read: how a stream falls into reads is
/// otherwise a matter of timing, and so is the number of buffers.
const ROUND: u64 = 500;

fn connection_to_listener(config: Config, messages: u64) -> Result<(), Error> {
    block_on(async {
        let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await?;
        let mut connection = Connection::dial(listener.local_addr(), config).await?;
        let message = message(USUAL);
        for _ in 0..messages / ROUND {
            for _ in 0..ROUND {
                connection.feed(message.clone()).await?;
            }
            connection.flush().await?;
            for _ in 0..ROUND {
                black_box(listener.next().await);
            }
        }
        Ok(())
    })
}

/// As above, and no message has a `Bytes` of its own.
fn try_feed_to_batches(config: Config, messages: u64) -> Result<(), Error> {
    block_on(async {
        let mut batches = Listener::bind("127.0.0.1:0", config.clone()).await?.batches();
        let mut connection = Connection::dial(batches.local_addr(), config).await?;
        let message = message(USUAL);
        for _ in 0..messages / ROUND {
            for _ in 0..ROUND {
                while !connection.try_feed(&message)? {
                    connection.ready().await?;
                }
            }
            connection.flush().await?;
            let mut taken = 0;
            while taken < ROUND
                && let Some((_peer, batch)) = batches.next().await
            {
                taken += batch.iter().map(black_box).count() as u64;
            }
        }
        Ok(())
    })
}

/// As `connection_to_listener`, and each message is acknowledged by itself.
fn connection_to_deliveries(messages: u64) -> Result<(), Error> {
    block_on(async {
        let mut listener = Listener::bind("127.0.0.1:0", in_session()).await?.deliveries();
        let mut connection = Connection::dial(listener.local_addr(), in_session()).await?;
        let message = message(USUAL);
        for _ in 0..messages / ROUND {
            for _ in 0..ROUND {
                connection.feed(message.clone()).await?;
            }
            connection.flush().await?;
            for _ in 0..ROUND {
                let Some(delivery) = listener.next().await else { break };
                black_box(&delivery);
                delivery.ack();
            }
        }
        Ok(())
    })
}

fn one_at_a_time(config: Config, len: usize, messages: u64) -> Result<(), Error> {
    block_on(async {
        let config = config.max_message_size(limit(len));
        let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await?;
        let mut connection = Connection::dial(listener.local_addr(), config).await?;
        let message = message(len);
        for _ in 0..messages {
            connection.send(message.clone()).await?;
            black_box(listener.next().await);
        }
        Ok(())
    })
}

/// A `Connection` that asks, and a `Listener` that sends back what it takes.
fn ping_pong(messages: u64) -> Result<(), Error> {
    block_on(async {
        let (mut incoming, mut outgoing) = Listener::bind("127.0.0.1:0", Config::new()).await?.split();
        let mut connection = Connection::dial(incoming.local_addr(), Config::new()).await?;
        let message = message(USUAL);
        for _ in 0..messages {
            connection.send(message.clone()).await?;
            let Some(request) = incoming.next().await else { break };
            outgoing.send(request).await?;
            black_box(connection.next().await.transpose()?);
        }
        Ok(())
    })
}

fn connection_to_callback(messages: u64) -> Result<(), Error> {
    // How many have come, and who waits for the end of a round.
    let seen = Arc::new((AtomicU64::new(0), AtomicWaker::new()));
    block_on(async {
        let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
        let mut connection = Connection::dial(listener.local_addr(), Config::new()).await?;
        let shared = seen.clone();
        let _serving = listener.serve_in_background(move |_peer, message: &[u8]| {
            black_box(message);
            if (shared.0.fetch_add(1, SeqCst) + 1).is_multiple_of(ROUND) {
                shared.1.wake();
            }
            Ok(())
        });
        let message = message(USUAL);
        for round in 1..=messages / ROUND {
            for _ in 0..ROUND {
                connection.feed(message.clone()).await?;
            }
            connection.flush().await?;
            poll_fn(|cx| {
                seen.1.register(cx.waker());
                if seen.0.load(SeqCst) == round * ROUND { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        Ok(())
    })
}

/// The default, as much longer as a program is slower under callgrind: as many messages are fed in it as at other times. With the
/// default itself a timer fires in each round there, which costs the runtime an allocation, and otherwise in one of fifty.
const LINGER: Duration = Duration::from_millis(50 * 5);

fn manager_sink_to_listener(messages: u64) -> Result<(), Error> {
    block_on(async {
        let mut listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
        let manager = Manager::new(Config::new().linger(LINGER));
        let address = Address::from(listener.local_addr());
        manager.dial(&address).await?;
        let mut sink = manager.sink();
        let message = message(USUAL);
        for _ in 0..messages / ROUND {
            for _ in 0..ROUND {
                sink.feed((address.clone(), message.clone())).await?;
            }
            sink.flush().await?;
            for _ in 0..ROUND {
                black_box(listener.next().await);
            }
        }
        Ok(())
    })
}
