//! The simulator as the unit tests of this crate use it: there is one at a time on a thread, and it is the runtime of each
//! configuration that was given none. So the whole library runs in it unchanged.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::network::Which;
use crate::config::Config;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::peer::Address;
use crate::runtime::{Handle, default};
use crate::sync::Lock;
use crate::transport;

pub(crate) use super::cable::{Cable, Fault, Side};
pub(crate) use crate::runtime::{Task, yield_now};
pub(crate) use crate::transport::{Stream, dial};

thread_local! {
    static HERE: RefCell<Option<super::Sim>> = const { RefCell::new(None) };
}

/// How a world is made.
#[derive(Clone, Debug)]
pub(crate) struct Sim {
    /// How many bytes each direction of a connection holds.
    pub(crate) capacity: usize,
    /// Shuffles the order in which tasks run; without it, first come, first served.
    pub(crate) seed: Option<u64>,
    /// Whether to keep a record of what happens.
    pub(crate) traced: bool,
}

impl Default for Sim {
    fn default() -> Self {
        Self { capacity: 64 * 1024, seed: None, traced: false }
    }
}

impl Sim {
    /// Runs `main` to its end in a world of its own, which ends with it.
    pub(crate) fn run<F: Future>(self, main: F) -> F::Output {
        self.run_watched(main, || {})
    }

    /// Calls `watch` after each poll of a task.
    pub(crate) fn run_watched<F: Future>(self, main: F, watch: impl FnMut()) -> F::Output {
        self.enter(|sim| sim.run_watched(|_| main, watch))
    }

    /// Makes the world, for something that runs in it.
    pub(super) fn enter<T>(self, run: impl FnOnce(&super::Sim) -> T) -> T {
        let mut sim = super::Sim::new().capacity(self.capacity);
        if let Some(seed) = self.seed {
            sim = sim.seed(seed);
        }
        if self.traced {
            sim = sim.traced();
        }
        let before = HERE.replace(Some(sim.clone()));
        assert!(before.is_none(), "there is one world at a time");
        default::set(Some(Arc::new(sim.clone())));
        let _end = End;
        run(&sim)
    }
}

struct End;

impl Drop for End {
    fn drop(&mut self) {
        default::set(None);
        HERE.take();
    }
}

fn here() -> super::Sim {
    HERE.with_borrow(Clone::clone).expect("there is a world on this thread")
}

/// What time it is.
pub(crate) fn now() -> Instant {
    here().instant()
}

/// How long the world has existed.
pub(crate) fn elapsed() -> Duration {
    here().now()
}

pub(crate) fn sleep(duration: Duration) -> impl Future<Output = ()> + Send + Sync {
    Handle::default().sleep(duration)
}

/// Waits for `future`, at most for `limit`: `None` if that is over.
pub(crate) async fn within<F: Future>(limit: Option<Duration>, future: F) -> Option<F::Output> {
    Handle::default().within(limit, future).await
}

pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Task {
    Handle::default().spawn(future)
}

/// A listening socket.
pub(crate) struct Acceptor(transport::Acceptor);

impl Acceptor {
    pub(crate) async fn bind(address: &Address) -> Result<(Self, SocketAddr), Error> {
        let (acceptor, addr) = transport::Acceptor::bind(address, &Config::new()).await?;
        Ok((Self(acceptor), addr.ip().expect("tests in here listen at IP addresses")))
    }

    pub(crate) async fn accept(&self, _: &Config) -> io::Result<(Stream, Endpoint)> {
        self.0.accept().await
    }
}

/// Keeps the only thread busy for so long: nothing else can run meanwhile.
pub(crate) fn block(duration: Duration) {
    here().0.block(duration);
}

/// A defect: the next time that the library does this, it panics.
pub(crate) fn plant(what: &'static str) {
    here().0.plant(what, None);
}

/// A defect: the next time that the library does this at that end of the connection with this number, it panics. Whoever waits
/// there is called.
pub(crate) fn plant_at(connection: usize, side: Side, what: &'static str) {
    let cable = cables(|cables| cables[connection].clone());
    here().0.plant(what, Some((cable.clone(), side)));
    super::with(&here().0, &cable, |cable| cable.wake(side));
}

pub(crate) fn take_trace() -> Vec<String> {
    here().take_trace()
}

/// A fault to come: of the connection with this number, counted from 0, when `side` has written `after` bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) connection: usize,
    pub(crate) side: Side,
    pub(crate) after: usize,
    pub(crate) fault: Fault,
}

/// Plans a fault of a connection to come.
pub(crate) fn plan(cut: Cut) {
    let Cut { connection, side, after, fault } = cut;
    let cut = super::network::Cut { connection: Which::Number(connection), side, after, fault };
    here().0.network(|network| network.faults.push(cut));
}

/// From now on, nobody there answers whoever dials.
pub(crate) fn black_hole(addr: SocketAddr) {
    here().link(addr).black_hole();
}

/// Nothing arrives there any more, nor does anything come from there, until it is [healed](heal).
pub(crate) fn part_all(addr: SocketAddr) {
    here().link(addr).part();
}

/// From now on, whoever dials there is answered again, and what is on its way arrives.
pub(crate) fn heal(addr: SocketAddr) {
    here().link(addr).heal();
}

/// What the name service answers from now on.
pub(crate) fn name(name: &str, addr: IpAddr) {
    here().name(name, addr);
}

/// Nothing arrives on the connection with this number until it is called with `false`; then what was on its way does.
pub(crate) fn part(connection: usize, parted: bool) {
    let cable = cables(|cables| cables[connection].clone());
    super::with(&here().0, &cable, |cable| cable.part(parted));
}

/// Shows the connections that were made so far, in order.
pub(crate) fn cables<T>(visit: impl FnOnce(&[Arc<Lock<Cable>>]) -> T) -> T {
    let cables: Vec<_> = here().0.network(|network| network.cables.iter().map(|(_, cable)| cable.clone()).collect());
    visit(&cables)
}

/// Resets the connection that was made last.
pub(crate) fn reset_newest() {
    let newest = cables(|cables| cables.last().cloned()).expect("one was made");
    super::with(&here().0, &newest, Cable::reset);
}
