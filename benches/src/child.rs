//! One end of a trial, in a process of its own.
//!
//! It talks with its parent in lines of JSON: an order comes in on standard input, then "go" and "close"; out on standard
//! output go `Line`s. It tells its processor time whenever it is asked. It ends when standard input does: so it outlives no parent, whatever that one ended by.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Relaxed},
};
use std::thread;

use async_std::channel::{Receiver, unbounded};
use futures::executor::block_on;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::check::{Latency, Received, Tally};
use crate::plan::{Scenario, Trial};
use crate::{Result, clock, sockets, systems};

/// What a child is to do.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) trial: Trial,
    /// Of the listeners. A child without any is the server.
    pub(crate) ports: Vec<u16>,
}

/// What a child tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// The server listens.
    Ready { ports: Vec<u16> },
    /// The client has its connections, and waits for "go".
    Connected,
    /// The client has sent everything, or has all its replies, and waits for "close".
    Sent(Sent),
    /// The server has as many messages as were sent; the last of them came at this time.
    Complete { end: u64 },
    /// All that came until the connections ended.
    Received(Received),
    /// The answer to "processor": the time until now, in nanoseconds.
    Processor { time: u64 },
    /// Something went wrong.
    Failed { error: String },
}

/// A client's report.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// When "go" came.
    pub(crate) start: u64,
    /// Of the replies.
    pub(crate) replies: Option<Tally>,
    pub(crate) latency: Option<Latency>,
    /// When the handshake was over by which the session went on.
    pub(crate) resumed: Option<u64>,
}

/// The order to tell the processor time.
pub(crate) const PROCESSOR: &str = "processor";

/// The process that started this one.
pub(crate) struct Parent {
    orders: Receiver<String>,
    /// What all sockets of this process are to have, or 0.
    socket_buffers: AtomicUsize,
}

impl Parent {
    /// Reads standard input in a thread of its own, which ends the process together with it.
    fn new() -> Self {
        let (sender, orders) = unbounded();
        thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(std::io::Result::ok) {
                if line == PROCESSOR {
                    tell(&Line::Processor { time: clock::processor() });
                } else {
                    let _ = sender.try_send(line);
                }
            }
            std::process::exit(0);
        });
        Self { orders, socket_buffers: AtomicUsize::new(0) }
    }

    fn set_buffers(&self) {
        let bytes = self.socket_buffers.load(Relaxed);
        if bytes > 0
            && let Err(error) = sockets::set_buffers(bytes)
        {
            tell(&Line::Failed { error: format!("the sockets' buffers cannot be set: {error}") });
        }
    }

    fn order(&self) -> Result<String> {
        Ok(block_on(self.orders.recv())?)
    }

    /// The connections that will be accepted inherit the listener's buffers.
    pub(crate) fn ready(&self, ports: &[u16]) {
        self.set_buffers();
        tell(&Line::Ready { ports: ports.to_vec() });
    }

    /// Waits for "go", and returns when it came.
    pub(crate) fn go(&self) -> u64 {
        self.set_buffers();
        tell(&Line::Connected);
        let _ = self.order();
        clock::now()
    }

    /// Reports, and keeps the connections as they are until everything was received: to close is not what is measured.
    pub(crate) fn sent(&self, sent: Sent) {
        tell(&Line::Sent(sent));
        let _ = self.order();
    }

    /// Waits until the clients are gone, for a server that has to be told to end.
    pub(crate) async fn closing(&self) {
        let _ = self.orders.recv().await;
    }

    /// Reports, and keeps what there is as it is until the parent has no more use for it.
    pub(crate) fn received(&self, received: Received) {
        tell(&Line::Received(received));
        let _ = self.order();
    }
}

fn tell(line: &Line) {
    let mut out = std::io::stdout().lock();
    let text = serde_json::to_string(line).expect("a line has no maps with odd keys");
    // A parent that is gone has closed standard input as well: that ends this process.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// The receivers that do not have their share of the messages yet. The last one to have it stops the clock, and they all
/// read on, to the end of their connections: a message too many would come there.
#[derive(Clone)]
pub(crate) struct Waiting(Arc<AtomicU64>);

impl Waiting {
    pub(crate) fn of(receivers: usize) -> Self {
        Self(Arc::new(AtomicU64::new(receivers as u64)))
    }

    /// One of them has its share.
    #[cold]
    pub(crate) fn arrived(&self) {
        if self.0.fetch_sub(1, AcqRel) == 1 {
            tell(&Line::Complete { end: clock::now() });
        }
    }
}

pub(crate) fn main() -> Result<()> {
    raise_descriptors();
    let parent = Parent::new();
    let order: Order = serde_json::from_str(&parent.order()?)?;
    parent.socket_buffers.store(order.trial.socket_buffers, Relaxed);
    if let Err(error) = play(&order, &parent) {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        let error = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        tell(&Line::Failed { error });
    }
    Ok(())
}

/// Lets this process have as many descriptors as it may: the usual limit of 1,024 is for programs that use `select`.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where this is refused, it shows in the cases that need more.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn play(Order { trial, ports }: &Order, parent: &Parent) -> Result<()> {
    let system = systems::find(&trial.system).ok_or("this system is not built in")?.system;
    let server = ports.is_empty();
    match trial.scenario {
        Scenario::PingPong if server => system.echo(trial, parent),
        Scenario::PingPong => system.ping(trial, ports, parent),
        Scenario::SlowConsumer if server => system.stall(trial, parent),
        Scenario::Idle if server => system.hold(trial, parent),
        Scenario::Idle => system.dial(trial, ports, parent),
        Scenario::OpenLoop if !server => system.pace(trial, ports, parent),
        Scenario::Resume if !server => system.resume(trial, ports, parent),
        _ if server => system.receive(trial, parent),
        _ => system.send(trial, ports, parent),
    }
}
