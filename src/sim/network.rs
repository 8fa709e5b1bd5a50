//! Who listens where, the connections that were made, and the faults that they will have.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::Stream;
use super::cable::{Cable, Fault, Side};
use super::world::{trace, with};

/// The first port that the system chooses.
const FIRST_PORT: u16 = 40_000;

/// All there is of a network.
pub(super) struct Network {
    capacity: usize,
    last_port: u16,
    listening: BTreeMap<SocketAddr, Arc<Mutex<Backlog>>>,
    black_holes: HashSet<SocketAddr>,
    /// Every connection that was made, in order.
    cables: Vec<Arc<Mutex<Cable>>>,
    faults: Vec<Cut>,
}

/// A fault to come: of the connection with this number, counted from 0, when `side` has written `after` bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) connection: usize,
    pub(crate) side: Side,
    pub(crate) after: usize,
    pub(crate) fault: Fault,
}

/// Connections that were not accepted yet.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    queue: VecDeque<(Stream, SocketAddr)>,
    ended: bool,
    waiting: Vec<Waker>,
}

impl Network {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            last_port: FIRST_PORT,
            listening: BTreeMap::new(),
            black_holes: HashSet::new(),
            cables: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn port(&mut self) -> u16 {
        self.last_port += 1;
        self.last_port
    }

    pub(super) fn listen(&mut self, mut addr: SocketAddr) -> io::Result<(Arc<Mutex<Backlog>>, SocketAddr)> {
        if addr.port() == 0 {
            addr.set_port(self.port());
        }
        if self.listening.contains_key(&addr) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let backlog = Arc::new(Mutex::new(Backlog::default()));
        self.listening.insert(addr, backlog.clone());
        Ok((backlog, addr))
    }

    /// `None` when there will never be an answer.
    pub(super) fn connect(&mut self, to: SocketAddr) -> Option<io::Result<Stream>> {
        if self.black_holes.contains(&to) {
            return None;
        }
        let Some(backlog) = self.listening.get(&to).cloned() else {
            return Some(Err(io::ErrorKind::ConnectionRefused.into()));
        };
        let from = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()));
        let mut cable = Cable::new(self.capacity);
        let number = self.cables.len();
        for cut in self.faults.iter().filter(|cut| cut.connection == number) {
            cable.plan(cut.side, cut.after, cut.fault);
        }
        let cable = Arc::new(Mutex::new(cable));
        self.cables.push(cable.clone());
        let accepted = Stream::new(cable.clone(), Side::Acceptor, to, from);
        let mut backlog = backlog.lock().unwrap();
        backlog.queue.push_back((accepted, from));
        backlog.waiting.drain(..).for_each(Waker::wake);
        Some(Ok(Stream::new(cable, Side::Dialer, from, to)))
    }

    /// Nobody is accepted there any more.
    pub(super) fn forget(&mut self, backlog: &Arc<Mutex<Backlog>>) {
        self.listening.retain(|_, listening| !Arc::ptr_eq(listening, backlog));
    }
}

impl Backlog {
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, SocketAddr)>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        }
        if let Some(accepted) = self.queue.pop_front() {
            return Poll::Ready(Ok(accepted));
        }
        self.waiting.push(cx.waker().clone());
        Poll::Pending
    }

    /// Whoever was not accepted is reset.
    pub(super) fn end(&mut self) {
        self.ended = true;
        for (stream, _) in self.queue.drain(..) {
            stream.reset();
        }
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

/// Plans a fault of a connection to come.
pub(crate) fn plan(cut: Cut) {
    trace(|| format!("{cut:?}"));
    with(|world| world.network.faults.push(cut));
}

/// From now on, nobody there answers whoever dials.
pub(crate) fn black_hole(addr: SocketAddr) {
    with(|world| world.network.black_holes.insert(addr));
}

/// Shows the connections that were made so far, in order.
pub(crate) fn cables<T>(visit: impl FnOnce(&[Arc<Mutex<Cable>>]) -> T) -> T {
    let cables = with(|world| world.network.cables.clone()).unwrap_or_default();
    visit(&cables)
}
