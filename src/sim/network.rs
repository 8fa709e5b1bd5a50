//! Who listens where, the connections that were made, and the faults that they will have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::cable::{Cable, Fault, Side, Wire};
use crate::endpoint::Endpoint;
use crate::sync::Lock;

/// The first port that the system chooses.
const FIRST_PORT: u16 = 40_000;

/// All there is of a network.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) usual: Wire,
    last_port: u16,
    listening: BTreeMap<Endpoint, Arc<Lock<Backlog>>>,
    pub(super) names: BTreeMap<String, IpAddr>,
    /// How bytes travel to and from these.
    pub(super) wires: BTreeMap<Endpoint, Wire>,
    pub(super) black_holes: BTreeSet<Endpoint>,
    pub(super) parted: BTreeSet<Endpoint>,
    /// Every connection that was made, in order, and where to.
    pub(super) cables: Vec<(Endpoint, Arc<Lock<Cable>>)>,
    pub(super) faults: Vec<Cut>,
    /// Those who dial where nobody answers now.
    pub(super) dialing: Vec<Waker>,
}

/// A fault to come, when `side` has written `after` bytes.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    pub(crate) connection: Which,
    pub(crate) side: Side,
    pub(crate) after: usize,
    pub(crate) fault: Fault,
}

/// Of which connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one with this number, counted from 0.
    #[cfg(test)]
    Number(usize),
    /// The next one to there.
    NextTo(Endpoint),
}

/// Connections that were not accepted yet.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    queue: VecDeque<(Arc<Lock<Cable>>, Endpoint)>,
    ended: bool,
    waiting: Vec<Waker>,
}

/// One end of a connection that was made.
pub(super) struct Made {
    pub(super) cable: Arc<Lock<Cable>>,
    pub(super) local: Endpoint,
    /// Those who wait to accept it.
    pub(super) calls: Vec<Waker>,
}

impl Network {
    pub(super) fn new(capacity: usize) -> Self {
        let usual = Wire { capacity, latency: Duration::ZERO, bandwidth: None, segment: usize::MAX };
        Self {
            usual,
            last_port: FIRST_PORT,
            listening: BTreeMap::new(),
            names: BTreeMap::new(),
            wires: BTreeMap::new(),
            black_holes: BTreeSet::new(),
            parted: BTreeSet::new(),
            cables: Vec::new(),
            faults: Vec::new(),
            dialing: Vec::new(),
        }
    }

    /// The next port at which nobody listens, of those that the system chooses from.
    fn port(&mut self) -> io::Result<u16> {
        let taken: BTreeSet<_> = self.listening.keys().filter_map(|at| Some(at.ip()?.port())).collect();
        for _ in FIRST_PORT..=u16::MAX {
            self.last_port = self.last_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !taken.contains(&self.last_port) {
                return Ok(self.last_port);
            }
        }
        Err(io::ErrorKind::AddrNotAvailable.into())
    }

    pub(super) fn listen(&mut self, mut at: Endpoint) -> io::Result<(Arc<Lock<Backlog>>, Endpoint)> {
        if let Endpoint::Ip(addr) = &mut at
            && addr.port() == 0
        {
            addr.set_port(self.port()?);
        }
        if self.listening.contains_key(&at) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let backlog = Arc::<Lock<Backlog>>::default();
        self.listening.insert(at.clone(), backlog.clone());
        Ok((backlog, at))
    }

    /// Who listens there, or at all addresses.
    fn listening_at(&self, to: &Endpoint) -> Option<Arc<Lock<Backlog>>> {
        let at_all = |ip: IpAddr| Some(Endpoint::Ip(SocketAddr::new(ip, to.ip()?.port())));
        let places = [Some(to.clone()), at_all(Ipv6Addr::UNSPECIFIED.into()), at_all(Ipv4Addr::UNSPECIFIED.into())];
        places.into_iter().flatten().find_map(|place| self.listening.get(&place).cloned())
    }

    /// `None` while there is no answer.
    pub(super) fn connect(&mut self, to: &Endpoint) -> Option<io::Result<Made>> {
        if self.black_holes.contains(to) || self.parted.contains(to) {
            return None;
        }
        let Some(backlog) = self.listening_at(to) else {
            let kind = if to.path().is_some() { io::ErrorKind::NotFound } else { io::ErrorKind::ConnectionRefused };
            return Some(Err(kind.into()));
        };
        let local = match to {
            Endpoint::Ip(_) => match self.port() {
                Ok(port) => Endpoint::Ip((Ipv4Addr::LOCALHOST, port).into()),
                Err(error) => return Some(Err(error)),
            },
            Endpoint::Unix(_) => Endpoint::Unix(Default::default()),
        };
        let number = self.cables.len();
        let mut cable = Cable::new(number, self.wires.get(to).copied().unwrap_or(self.usual));
        self.faults.retain(|cut| {
            let is_due = match &cut.connection {
                #[cfg(test)]
                Which::Number(due) => *due == number,
                Which::NextTo(due) => due == to,
            };
            if is_due {
                cable.plan(cut.side, cut.after, cut.fault);
            }
            !is_due
        });
        let cable = Arc::new(Lock::new(cable));
        self.cables.push((to.clone(), cable.clone()));
        let mut backlog = backlog.lock();
        backlog.queue.push_back((cable.clone(), local.clone()));
        Some(Ok(Made { cable, local, calls: std::mem::take(&mut backlog.waiting) }))
    }

    /// Nobody is accepted there any more.
    pub(super) fn forget(&mut self, backlog: &Arc<Lock<Backlog>>) {
        self.listening.retain(|_, listening| !Arc::ptr_eq(listening, backlog));
    }
}

impl Backlog {
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Arc<Lock<Cable>>, Endpoint)>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        }
        if let Some(accepted) = self.queue.pop_front() {
            return Poll::Ready(Ok(accepted));
        }
        self.waiting.push(cx.waker().clone());
        Poll::Pending
    }

    /// Those that were not accepted are to be reset, and those that wait are to be woken.
    pub(super) fn end(&mut self) -> (Vec<Arc<Lock<Cable>>>, Vec<Waker>) {
        self.ended = true;
        let refused = self.queue.drain(..).map(|(cable, _)| cable).collect();
        (refused, std::mem::take(&mut self.waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Endpoint {
        Endpoint::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    #[test]
    fn a_port_at_which_somebody_listens_is_not_chosen_and_there_are_only_so_many() {
        let mut network = Network::new(1);
        network.listen(at(FIRST_PORT + 2)).unwrap();
        let chosen: Vec<_> = (0..2).map(|_| network.listen(at(0)).unwrap().1).collect();
        assert_eq!(chosen, [at(FIRST_PORT + 1), at(FIRST_PORT + 3)]);

        // Those of connections come again.
        let connect = |network: &mut Network| network.connect(&at(FIRST_PORT + 1)).unwrap().map(|made| made.local);
        network.last_port = u16::MAX;
        assert_eq!(connect(&mut network).unwrap(), at(FIRST_PORT));
        assert_eq!(connect(&mut network).unwrap(), at(FIRST_PORT + 4));

        for port in FIRST_PORT..=u16::MAX {
            let _ = network.listen(at(port));
        }
        assert_eq!(network.listen(at(0)).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
        assert_eq!(connect(&mut network).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
}
