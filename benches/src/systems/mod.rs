//! What is compared, a file each, behind one interface: the parts that a process can play.

mod asynchronous_codec;
mod buffstreams;
mod callback;
mod cut;
mod framed;
mod manager;
mod manual;
mod message_io;
mod pings;
mod raw;
mod raw_tls;
mod runtime;
mod tokio_util;
#[cfg(feature = "zmq")]
mod zmq;

use std::time::Duration;

pub(crate) use pings::WARM_UP;

use plotters::style::RGBColor;

use buffstreams::{Buffstreams, Takes};
use runtime::{AsyncStd, Smol, Tokio, TokioCurrent};
use tokio_util::TokioUtil;

use crate::child::Parent;
use crate::clock;
use crate::plan::Trial;
use crate::{Result, messages};

/// A system, as the tables and the plots have it.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// Of its line in the plots: apart in brightness as well as in hue. One without any is in the tables alone.
    pub(crate) color: Option<RGBColor>,
    pub(crate) system: &'static dyn System,
}

const fn plotted(name: &'static str, color: RGBColor, system: &'static dyn System) -> Entry {
    Entry { name, color: Some(color), system }
}

const fn entry(name: &'static str, system: &'static dyn System) -> Entry {
    Entry { name, color: None, system }
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

type OnAsyncStd = Buffstreams<AsyncStd>;
type OnTokio = Buffstreams<Tokio>;

/// Every system, in the order of the tables.
pub(crate) static TABLE: &[Entry] = &[
    plotted("raw", RGBColor(90, 90, 90), &raw::Raw),
    plotted("manual", RGBColor(0, 0, 0), &manual::Manual),
    plotted("tokio-util", RGBColor(30, 140, 70), &TokioUtil::<Tokio>::TUNED),
    entry("tokio-util-current", &TokioUtil::<TokioCurrent>::TUNED),
    entry("tokio-util-default", &TokioUtil::<Tokio>::DEFAULT),
    plotted("asynchronous-codec", RGBColor(130, 70, 170), &asynchronous_codec::AsynchronousCodec),
    plotted("message-io", RGBColor(150, 120, 60), &message_io::MessageIo),
    #[cfg(feature = "zmq")]
    plotted("zmq", RGBColor(110, 170, 230), &zmq::Zmq),
    #[cfg(not(feature = "zmq"))]
    plotted("zmq", RGBColor(110, 170, 230), &NotBuilt),
    plotted("buffstreams", RGBColor(200, 30, 30), &OnAsyncStd::PLAIN),
    plotted("buffstreams-tokio", RGBColor(120, 20, 70), &OnTokio::PLAIN),
    entry("buffstreams-tokio-current", &Buffstreams::<TokioCurrent>::PLAIN),
    entry("buffstreams-smol", &Buffstreams::<Smol>::PLAIN),
    entry("buffstreams-connections", &OnAsyncStd::taking(Takes::Connections)),
    entry("buffstreams-connections-tokio", &OnTokio::taking(Takes::Connections)),
    plotted("buffstreams-callback", RGBColor(240, 140, 20), &OnAsyncStd::taking(Takes::Callback)),
    entry("buffstreams-callback-tokio", &OnTokio::taking(Takes::Callback)),
    plotted("buffstreams-batches", RGBColor(230, 110, 160), &OnAsyncStd::taking(Takes::Batches).feeding_slices()),
    entry("buffstreams-batches-tokio", &OnTokio::taking(Takes::Batches).feeding_slices()),
    entry("buffstreams-decode", &OnAsyncStd::taking(Takes::Decoded)),
    entry("buffstreams-decode-tokio", &OnTokio::taking(Takes::Decoded)),
    entry("buffstreams-manager", &manager::Managed),
    plotted("buffstreams-session", RGBColor(20, 80, 180), &OnAsyncStd::SESSION),
    entry("buffstreams-session-256k", &OnAsyncStd::SESSION.in_session(256 * KIB)),
    entry("buffstreams-session-4m", &OnAsyncStd::SESSION.in_session(4 * MIB)),
    entry("buffstreams-session-deliveries", &OnAsyncStd::taking(Takes::Deliveries).in_session(MIB)),
    entry("buffstreams-session-tokio", &OnTokio::SESSION),
    entry("raw-tls", &raw_tls::RawTls),
    entry("buffstreams-tls", &OnAsyncStd::TLS),
    entry("buffstreams-tls-tokio", &OnTokio::TLS),
];

pub(crate) fn find(name: &str) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.name == name)
}

/// In the place of a system that was left out of this build.
#[cfg(not(feature = "zmq"))]
struct NotBuilt;

#[cfg(not(feature = "zmq"))]
impl System for NotBuilt {
    fn receive(&self, _: &Trial, _: &Parent) -> Result<()> {
        unsupported()
    }

    fn send(&self, _: &Trial, _: &[u16], _: &Parent) -> Result<()> {
        unsupported()
    }
}

/// The parts that a process can play in a trial. Each tells the parent how far it is.
pub(crate) trait System: Sync {
    /// Receives all messages of all connections until they end, and checks them.
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()>;
    /// Opens the connections of one process, and sends what is theirs.
    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()>;

    /// Sends everything back.
    fn echo(&self, _: &Trial, _: &Parent) -> Result<()> {
        unsupported()
    }
    /// Sends, waits for the reply, and sends again.
    fn ping(&self, _: &Trial, _: &[u16], _: &Parent) -> Result<()> {
        unsupported()
    }
    /// Sends at a fixed rate.
    fn pace(&self, _: &Trial, _: &[u16], _: &Parent) -> Result<()> {
        unsupported()
    }
    /// Sends what is lost on its way, has the connection cut, and goes on with the next one.
    fn resume(&self, _: &Trial, _: &[u16], _: &Parent) -> Result<()> {
        unsupported()
    }
    /// Takes one message of each connection, or of all, and then no more.
    fn stall(&self, _: &Trial, _: &Parent) -> Result<()> {
        unsupported()
    }
    /// Waits for messages on each connection.
    fn hold(&self, _: &Trial, _: &Parent) -> Result<()> {
        unsupported()
    }
    /// Opens the connections and sends nothing.
    fn dial(&self, _: &Trial, _: &[u16], _: &Parent) -> Result<()> {
        unsupported()
    }
}

fn unsupported() -> Result<()> {
    Err("this system does not play this part".into())
}

/// For `localhost`, signed by itself, and good until 2126: both ends have it.
const CERTIFICATE: &[u8] = include_bytes!("../../certificates/certificate.pem");
/// That of the certificate. It protects nothing.
const KEY: &[u8] = include_bytes!("../../certificates/key.pem");

/// How many connections may wait to be accepted, where a system's own limit is about a hundred. One too many costs its
/// client a second, before anything is measured.
const BACKLOG: i32 = 4096;

/// The clock of a sender with a fixed rate: bursts at fixed times, whatever became of the ones before.
struct Pace {
    start: u64,
    rate: u64,
    sent: u64,
    messages: u64,
}

impl Pace {
    /// Between two bursts. The system's own timers are about 50 us late, which is a part of what every system shows.
    const TICK: u64 = 250_000;

    fn new(trial: &Trial, start: u64) -> Self {
        Self { start, rate: trial.rate, sent: 0, messages: trial.messages }
    }

    /// Waits for the next burst that is not empty: when it is due, and its messages' numbers.
    fn next(&mut self) -> Option<(u64, std::ops::Range<u64>)> {
        let (mut due, mut end) = (self.start, self.sent);
        while end == self.sent {
            if self.sent == self.messages {
                return None;
            }
            // The tick by which the next message is due.
            let tick = ((self.sent + 1) * 1_000_000_000).div_ceil(self.rate).div_ceil(Self::TICK);
            due = self.start + tick * Self::TICK;
            end = (tick * Self::TICK * self.rate / 1_000_000_000).min(self.messages);
        }
        // This blocks the sender's own thread, in every system: nothing else runs on it.
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(clock::now())));
        let burst = self.sent..end;
        self.sent = end;
        Some((due, burst))
    }
}

/// A new message that says when it is due.
fn stamped(size: usize, number: u64, due: u64) -> Vec<u8> {
    let mut message = vec![b'.'; size];
    messages::stamp(&mut message, number, due);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Scenario;

    #[test]
    fn bursts_are_due_at_the_rate() {
        let trial = Trial { rate: 10_000_000, messages: 50_001, ..Trial::new(Scenario::OpenLoop, "raw", 110) };
        let (mut pace, mut sent) = (Pace::new(&trial, 0), 0);
        while let Some((due, burst)) = pace.next() {
            assert_eq!(burst.start, sent);
            sent = burst.end;
            assert!(due * 10 >= (burst.end - 1) * 1000, "{burst:?} at {due}");
            assert!(due <= burst.start * 100 + Pace::TICK, "{burst:?} at {due}");
        }
        assert_eq!(sent, 50_001);
    }
}
