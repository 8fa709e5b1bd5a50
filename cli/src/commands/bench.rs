//! `buffstreams bench`: how long an echo takes to answer, at a given rate.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use buffstreams::{Bytes, Connection, ReadHalf, WriteHalf};
use clap::Args;
use futures::channel::oneshot;
use futures::future::{join_all, try_join};
use futures::{FutureExt, SinkExt, StreamExt, select_biased};
use hdrhistogram::Histogram;
use smol::Timer;
use smol::future::yield_now;

use super::Common;
use crate::failure::{Code, Failure};
use crate::plot;
use crate::progress::Progress;
use crate::settings::{Settings, Side};
use crate::stop::Stop;
use crate::terminal::written;
use crate::units::{Size, Time};

/// The longest time that is told apart from longer ones, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;
/// How exact the times are, in decimal digits.
const DIGITS: u8 = 3;
/// How long the number is that a message begins with, in bytes.
const NUMBER: usize = 8;
/// After how many messages that are due it looks for replies.
const LOOK: u64 = 64;
/// What is printed.
const PERCENTILES: [f64; 6] = [50.0, 90.0, 99.0, 99.9, 99.99, 100.0];

/// Send messages at a steady rate to an echo, and measure how long each reply takes
///
/// The loop is open: each message has a time at which it is due, whatever became of those before it, and its reply is measured from
/// then. So a pause of the other end counts for every message that it holds up, and not for one (coordinated omission).
/// `buffstreams listen --echo` is an echo.
#[derive(Args, Debug)]
pub(super) struct Bench {
    /// Where the echo is: HOST:PORT, :PORT for this machine, or unix:PATH
    address: String,
    /// How many messages a second
    #[arg(long, value_name = "NUMBER", default_value_t = 1000.0)]
    rate: f64,
    /// For how long
    #[arg(long = "for", value_name = "TIME", default_value = "10s")]
    time: Time,
    /// How long a message is, from 8 bytes
    #[arg(long, value_name = "SIZE", default_value = "100")]
    size: Size,
    /// Over how many connections, which take turns
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    connections: u64,
    /// A file to draw the percentiles to, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// The messages, when each is due, and what has become of them. All connections run in one task.
struct Load<'a> {
    settings: &'a Settings,
    start: Instant,
    rate: f64,
    total: u64,
    connections: u64,
    size: usize,
    sent: Cell<u64>,
    /// From when a message was due to its reply, in nanoseconds.
    times: RefCell<Histogram<u64>>,
    progress: RefCell<Progress>,
}

impl Bench {
    pub(super) async fn run(self, stop: Stop) -> Result<(), Failure> {
        let settings = self.common.clone().settings()?;
        let mut connections = Vec::new();
        self.check(&settings)?;
        for _ in 0..self.connections {
            let connection = Connection::dial(&self.address, settings.config(Side::Dial)?).await;
            connections.push(connection.map_err(|error| Failure::of(&error, &settings))?);
        }
        let times = Histogram::new_with_bounds(1, LONGEST, DIGITS);
        let times = times.map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
        let total = (self.rate * self.time.0.as_secs_f64()).round().max(1.0) as u64;
        let load = Load {
            settings: &settings,
            start: Instant::now(),
            rate: self.rate,
            total,
            connections: self.connections,
            size: self.size.0,
            sent: Cell::new(0),
            times: times.into(),
            progress: Progress::messages(Some(total)).into(),
        };
        let runs =
            connections.into_iter().zip(0..).map(|(connection, first)| load.run(connection, first, stop.clone()));
        let outcome: Result<(), Failure> = join_all(runs).await.into_iter().collect();
        let Load { start, sent, times, progress, .. } = load;
        let (sent, times, time) = (sent.get(), times.into_inner(), start.elapsed());
        drop(progress);

        written(self.report(sent, &times, time))?;
        if let Some(path) = &self.svg {
            plot::percentiles(path, &times)?;
        }
        outcome?;
        if times.len() < sent {
            let message = format!("{} messages were not answered", sent - times.len());
            return Err(Failure::new(Code::Undelivered, message));
        }
        if sent < total {
            return Err(Failure::interrupted("interrupted; what had been sent was answered"));
        }
        Ok(())
    }

    fn check(&self, settings: &Settings) -> Result<(), Failure> {
        if !(0.001..=1e9).contains(&self.rate) {
            return Err(Failure::new(Code::Usage, "--rate is a number of messages a second, from 0.001 to 1000000000"));
        }
        if !(NUMBER..=settings.max()).contains(&self.size.0) {
            let message = format!("--size is from {NUMBER} bytes to the longest message, which has {}", settings.max());
            return Err(Failure::new(Code::Usage, message).with_hint("allow longer messages: --max SIZE".to_owned()));
        }
        Ok(())
    }

    fn report(&self, sent: u64, times: &Histogram<u64>, time: Duration) -> io::Result<()> {
        let (replies, seconds) = (times.len(), time.as_secs_f64());
        let mut out = io::stdout().lock();
        writeln!(out, "{replies} replies to {sent} messages of {} bytes, in {seconds:.3} s", self.size.0)?;
        writeln!(out, "{:.1} a second, of {} asked for", replies as f64 / seconds, self.rate)?;
        writeln!(out, "from when a message was due to its reply:")?;
        for percentile in PERCENTILES {
            let millis = times.value_at_percentile(percentile) as f64 / 1e6;
            writeln!(out, "{percentile:>8}% {millis:>11.3} ms")?;
        }
        out.flush()
    }
}

impl Load<'_> {
    /// Sends what goes by this connection, and measures the replies.
    async fn run(&self, connection: Connection, first: u64, mut stop: Stop) -> Result<(), Failure> {
        let (mut read, mut write) = connection.split();
        let (sent, (done, is_done)) = (Cell::new(0), oneshot::channel());
        let send = async {
            let mut sending = pin!(self.send(&mut write, first, &sent).fuse());
            let outcome = select_biased! {
                _ = stop => Ok(()),
                outcome = sending => outcome,
            };
            let _ = done.send(());
            outcome
        };
        try_join(send, self.receive(&mut read, first, is_done, &sent)).await?;
        write.close().await.map_err(|error| Failure::of(&error, self.settings))
    }

    async fn send(&self, write: &mut WriteHalf, first: u64, sent: &Cell<u64>) -> Result<(), Failure> {
        let of = |error| Failure::of(&error, self.settings);
        let mut number = first;
        while number < self.total {
            let due = self.due(number);
            if due > Instant::now() {
                write.flush().await.map_err(of)?;
                Timer::at(due).await;
            } else if sent.get().is_multiple_of(LOOK) {
                yield_now().await;
            }
            write.feed(self.message(number)).await.map_err(of)?;
            sent.set(sent.get() + 1);
            self.sent.set(self.sent.get() + 1);
            self.progress.borrow_mut().add(1);
            number += self.connections;
        }
        write.flush().await.map_err(of)
    }

    /// Takes the replies, in the order of the messages, until all that were sent are answered.
    async fn receive(
        &self,
        read: &mut ReadHalf,
        first: u64,
        mut is_done: oneshot::Receiver<()>,
        sent: &Cell<u64>,
    ) -> Result<(), Failure> {
        let grace = self.settings.close_limit();
        let (mut received, mut over) = (0, pin!(FutureExt::fuse(Timer::never())));
        let mut is_sending = true;
        while is_sending || received < sent.get() {
            select_biased! {
                reply = read.next().fuse() => {
                    let Some(reply) = reply else {
                        return Err(Failure::new(Code::Undelivered, "the other end has closed before it had answered all"));
                    };
                    let reply = reply.map_err(|error| Failure::of(&error, self.settings))?;
                    let number = first + received * self.connections;
                    if reply.get(..NUMBER) != Some(&number.to_be_bytes()) || reply.len() != self.size {
                        let failure = Failure::new(Code::Format, "a reply is not what was sent: this is no echo");
                        return Err(failure.with_hint("`buffstreams listen --echo` is one".to_owned()));
                    }
                    let time = self.due(number).elapsed().as_nanos();
                    self.times.borrow_mut().saturating_record(u64::try_from(time).unwrap_or(LONGEST).max(1));
                    received += 1;
                }
                _ = is_done => {
                    is_sending = false;
                    over.set(FutureExt::fuse(Timer::after(grace)));
                }
                _ = over => return Ok(()),
            }
        }
        Ok(())
    }

    fn due(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.rate)
    }

    /// A message with its number in front.
    fn message(&self, number: u64) -> Bytes {
        let mut message = vec![b'.'; self.size];
        message[..NUMBER].copy_from_slice(&number.to_be_bytes());
        message.into()
    }
}
