//! What is compared, a file each, behind one interface: the parts that a process can play.

mod asynchronous_codec;
mod buffstreams;
mod callback;
mod framed;
mod manager;
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

use crate::child::Parent;
use crate::clock;
use crate::plan::Trial;
use crate::{Result, messages};

/// Every system, in the order of the tables.
pub(crate) const NAMES: &[&str] = &[
    "raw",
    "buffstreams",
    "buffstreams-callback",
    "buffstreams-manager",
    "buffstreams-tokio",
    "buffstreams-smol",
    "raw-tls",
    "buffstreams-tls",
    "tokio-util",
    "tokio-util-default",
    "asynchronous-codec",
    "zmq",
    "message-io",
];

pub(crate) fn find(name: &str) -> Option<&'static dyn System> {
    Some(match name {
        "raw" => &raw::Raw,
        "buffstreams" => &buffstreams::Buffstreams::<runtime::AsyncStd>::HERE,
        "buffstreams-tokio" => &buffstreams::Buffstreams::<runtime::Tokio>::HERE,
        "buffstreams-smol" => &buffstreams::Buffstreams::<runtime::Smol>::HERE,
        "buffstreams-tls" => &buffstreams::Buffstreams::<runtime::AsyncStdTls>::HERE,
        "raw-tls" => &raw_tls::RawTls,
        "buffstreams-callback" => &callback::Callback,
        "buffstreams-manager" => &manager::Managed,
        "tokio-util" => &tokio_util::Tuned,
        "tokio-util-default" => &tokio_util::Default,
        "asynchronous-codec" => &asynchronous_codec::AsynchronousCodec,
        #[cfg(feature = "zmq")]
        "zmq" => &zmq::Zmq,
        "message-io" => &message_io::MessageIo,
        _ => return None,
    })
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
