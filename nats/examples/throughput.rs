//! How many messages a second come from a TCP connection into a stream, against a publisher of `async_nats` that has them already.
//!
//! ```sh
//! nats-server -js -sd /tmp/throughput -a 127.0.0.1 &
//! cargo run --release -p buffstreams-nats --example throughput -- nats://127.0.0.1:4222
//! ```
//!
//! Both wait for every acknowledgement, and both give each message an id. They take turns. The first round is not counted; the
//! figures are the medians of the others, and the ratio is the median of theirs, as machines are not equally fast at all times.
//! Beside it is what either takes of the processors, which other processes change less. The client of the ingress is a process of
//! its own. On other systems than Linux these are zero.
#![allow(clippy::print_stdout)] // To print is what it is for.

use std::env::args;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, message::PublishMessage, stream};
use buffstreams::{BoxError, Bytes, Config, Connection, Listener, Tokio};
use buffstreams_nats::{Ingress, async_nats};
use futures::{SinkExt, StreamExt, TryStreamExt};

const MESSAGES: u32 = 100_000;
const ROUNDS: u32 = 5;
/// How many messages the publisher has in flight.
const ACKS: usize = 256;
const LEN: usize = 110;

/// What a round has come to.
struct Measured {
    per_second: f64,
    /// Processor time of this process for each message, in microseconds.
    micros: f64,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = args().skip(1);
    let server = args.next().unwrap_or_else(|| "nats://127.0.0.1:4222".to_owned());
    if let (Some(address), Some(round)) = (args.next(), args.next()) {
        return client(address, round.parse()?).await;
    }
    let jetstream = jetstream::new(async_nats::connect(&server).await?);
    let config = stream::Config { name: "throughput".to_owned(), ..Default::default() };
    let mut stream = jetstream.get_or_create_stream(config).await?;

    let (mut bare, mut through, mut first) = (Vec::new(), Vec::new(), 0);
    for round in 0..=ROUNDS {
        let publisher = publish(&jetstream, round).await?;
        check(&mut stream).await?;
        let ingress = ingress(&jetstream, &server, round).await?;
        check(&mut stream).await?;
        let show = |measured: &Measured| format!("{:.0}/s, {:.1} us each", measured.per_second, measured.micros);
        println!("async_nats with {ACKS} in flight: {}    ingress: {}", show(&publisher), show(&ingress));
        if round > 0 {
            bare.push(publisher);
            through.push(ingress);
        } else {
            first = memory();
        }
    }
    let pairs = || bare.iter().zip(&through);
    let ratio = median(pairs().map(|(bare, through)| through.per_second / bare.per_second));
    let micros = median(pairs().map(|(bare, through)| through.micros / bare.micros));
    let per_second = |of: &[Measured]| median(of.iter().map(|measured| measured.per_second));
    println!("medians: {:.0}/s and {:.0}/s; the ratio is {ratio:.2}", per_second(&bare), per_second(&through));
    let each = |of: &[Measured]| median(of.iter().map(|measured| measured.micros));
    println!("processor time each: {:.1} us and {:.1} us; the ratio is {micros:.2}", each(&bare), each(&through));
    println!("memory after the first round: {first} KiB; at the end: {} KiB", memory());
    jetstream.delete_stream("throughput").await?;
    Ok(())
}

/// All are there, and make room for the next.
async fn check(stream: &mut stream::Stream) -> Result<(), BoxError> {
    assert_eq!(stream.info().await?.state.messages, u64::from(MESSAGES));
    stream.purge().await?;
    Ok(())
}

fn message(who: &str, round: u32, number: u32) -> Bytes {
    format!("{:LEN$}", format!("{who}.{round}.{number}")).into()
}

fn id(message: &[u8]) -> String {
    String::from_utf8_lossy(message).trim_end().to_owned()
}

async fn publish(jetstream: &jetstream::Context, round: u32) -> Result<Measured, BoxError> {
    let start = Start::now();
    let acks = futures::stream::iter(0..MESSAGES).map(|number| async move {
        let message = message("bare", round, number);
        let publish = PublishMessage::build().message_id(id(&message)).payload(message);
        jetstream.send_publish("throughput", publish).await?.await
    });
    acks.buffer_unordered(ACKS).try_for_each(|_ack| async { Ok(()) }).await?;
    Ok(start.measured())
}

async fn ingress(jetstream: &jetstream::Context, server: &str, round: u32) -> Result<Measured, BoxError> {
    let listener = Listener::bind("127.0.0.1:0", Config::new().runtime(Tokio::current())).await?;
    let (address, closer) = (listener.local_addr(), listener.closer());
    let ingress = Ingress::new(jetstream.clone(), "throughput").message_id(|_peer, message| id(message));
    let running = tokio::spawn(async move { ingress.run(listener).await });

    let start = Start::now();
    let mut client = Command::new(std::env::current_exe()?);
    let client = client.arg(server).arg(address.to_string()).arg(round.to_string()).spawn()?;
    let ended = tokio::task::spawn_blocking(move || client.wait_with_output()).await??;
    assert!(ended.status.success());
    closer.close().await?;
    running.await?;
    Ok(start.measured())
}

/// The client of an ingress: another process.
async fn client(address: String, round: u32) -> Result<(), BoxError> {
    let mut connection = Connection::dial(address, Config::new().runtime(Tokio::current())).await?;
    for number in 0..MESSAGES {
        connection.feed(message("through", round, number)).await?;
    }
    connection.close().await?;
    Ok(())
}

struct Start(Instant, Duration);

impl Start {
    fn now() -> Self {
        Self(Instant::now(), processor_time())
    }

    fn measured(self) -> Measured {
        let each = |time: Duration| time.as_secs_f64() / f64::from(MESSAGES);
        Measured { per_second: 1.0 / each(self.0.elapsed()), micros: each(processor_time() - self.1) * 1e6 }
    }
}

/// Of all threads of this process.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, in parentheses: the 12th and 13th, in hundredths of a second.
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = behind.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

/// What this process has in memory, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    size.and_then(|size| size.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
