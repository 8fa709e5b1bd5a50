//! The listener in the trial: its table, and the connections as it sees them.

use std::collections::VecDeque;

use super::super::end::End;
use super::super::handshake::{HANDSHAKE, Hello, Positions, SessionId, Status, Welcome};
use super::super::table::{Evicted, Key, Sessions, Verdict};
use super::super::wire::{Control, Side};
use super::peer::Peer;
use super::{Link, Seat, TERMS, World};

impl World {
    /// A session, or what was left of it, is over for want of time or room.
    pub(super) fn listener_loses(&mut self, (key, session): Evicted<u8, Option<usize>>) {
        if key.identity == 0 {
            self.excused = true;
        }
        if let Some(session) = session.flatten() {
            self.peers[session].lose(&mut self.down, true);
        }
    }

    /// Somebody else comes, and goes at once.
    pub(super) fn stranger(&mut self) {
        self.strangers = self.strangers.wrapping_add(1);
        let id = SessionId::new([self.strangers.max(1); 16]).expect("not 0");
        let key = Key { identity: 1, id };
        let hello = Hello { resume: false, id, epoch: 1, terms: TERMS, positions: Positions::default() };
        if let Verdict::New { evicted } = self.table.hello(&key, &hello, self.now) {
            self.table.insert(key, 1, self.ttl, None);
            assert!(self.table.detach(&key, 1, self.now, 0, 0));
            evicted.into_iter().for_each(|evicted| self.listener_loses(evicted));
        }
    }

    pub(super) fn listener_writes(&mut self, frames: usize) {
        for link in &mut self.links {
            match &mut link.seat {
                Seat::Session(session) => {
                    let peer = &mut self.peers[*session];
                    if peer.end.receiver.is_told() {
                        peer.finish();
                    }
                    peer.write(&mut self.down, &mut link.down, frames, self.now);
                }
                Seat::Tombstone(end) => {
                    while let Some(control) = end.next(self.now, false) {
                        link.down.extend(&control.encode()[..]);
                    }
                }
                Seat::Waiting | Seat::Gone => {}
            }
        }
    }

    /// Bytes of this connection reach the listener; where there are none, perhaps its end.
    pub(super) fn reach_listener(&mut self, link: Option<usize>, bytes: usize) {
        let Some(at) = link else { return };
        let link = &mut self.links[at];
        let n = bytes.min(link.up.len());
        let arrived: Vec<u8> = link.up.drain(..n).collect();
        if matches!(link.seat, Seat::Gone) {
            return;
        }
        link.at_listener.extend(arrived);
        let ended = !link.dialer && link.up.is_empty();
        if matches!(link.seat, Seat::Waiting)
            && let Some(hello) = Hello::parse(&link.at_listener).expect("a dialer of this code")
        {
            link.at_listener.drain(..HANDSHAKE);
            let answer = self.judge(at, &hello);
            self.links[at].down.extend(answer.encode());
            if self.listener_closing && !matches!(self.links[at].seat, Seat::Gone) {
                self.links[at].down.extend(&Control::Goaway { retry: 250 }.encode()[..]);
            }
        }
        let link = &mut self.links[at];
        match &mut link.seat {
            Seat::Session(session) => {
                let peer = &mut self.peers[*session];
                peer.read(&mut self.down, &mut self.up, &mut link.at_listener, Side::Dialer);
            }
            Seat::Tombstone(end) => {
                let mut peer = Peer::new(Side::Listener, u32::MAX, VecDeque::new());
                std::mem::swap(&mut peer.end, end);
                peer.read(&mut self.down, &mut self.up, &mut link.at_listener, Side::Dialer);
                std::mem::swap(&mut peer.end, end);
            }
            Seat::Waiting | Seat::Gone => {}
        }
        if ended {
            self.listener_breaks(Some(at));
        }
    }

    /// R5 to R8.
    pub(super) fn judge(&mut self, at: usize, hello: &Hello) -> Welcome {
        let key = Key { identity: 0, id: hello.id };
        let (echo, epoch) = Hello::echo(&hello.encode());
        let refused = Welcome {
            status: Status::Busy,
            id: echo,
            epoch,
            terms: TERMS,
            incarnation: 1,
            positions: Positions::default(),
        };
        loop {
            let (status, session) = match self.table.hello(&key, hello, self.now) {
                Verdict::Refuse(status) => {
                    self.links[at].seat = Seat::Gone;
                    return Welcome { status, ..refused };
                }
                Verdict::Fence { epoch, .. } => {
                    let old = self.links.iter().position(|link| link.hello.epoch == epoch && link.hello.id == hello.id);
                    self.listener_breaks(old);
                    continue;
                }
                Verdict::Tombstone(positions) => {
                    let mut end = End::tombstone(&positions);
                    end.resume(&hello.positions, &hello.terms).expect("positions of this code");
                    end.sender.rewound(0);
                    self.links[at].seat = Seat::Tombstone(Box::new(end));
                    return Welcome { status: Status::Resumed, positions, ..refused };
                }
                Verdict::New { evicted } => {
                    evicted.into_iter().for_each(|evicted| self.listener_loses(evicted));
                    self.peers.push(Peer::new(Side::Listener, number(hello.id), VecDeque::new()));
                    let session = self.peers.len() - 1;
                    self.table.insert(key, hello.epoch, self.ttl, Some(session));
                    (Status::New, session)
                }
                Verdict::Resume(session) => (Status::Resumed, session.expect("no stranger's")),
            };
            self.links[at].seat = Seat::Session(session);
            self.peers[session].resume(&mut self.down, &hello.positions, &hello.terms);
            return Welcome { status, positions: self.peers[session].end.positions(), ..refused };
        }
    }

    /// The listener's end of this connection is gone: fenced, reset, or at its end.
    pub(super) fn listener_breaks(&mut self, link: Option<usize>) {
        let Some(at) = link else { return };
        let link = &mut self.links[at];
        let key = Key { identity: 0, id: link.hello.id };
        let epoch = link.hello.epoch;
        link.at_listener.clear();
        match std::mem::replace(&mut link.seat, Seat::Gone) {
            Seat::Session(session) => {
                let peer = &mut self.peers[session];
                let over = peer.end.is_over();
                peer.end.broke();
                let positions = peer.end.positions();
                if over {
                    peer.end.receiver.end();
                    peer.alive = false;
                    assert!(peer.held.is_empty(), "over with messages held");
                    assert_eq!(self.table.bury(&key, epoch, self.now, positions), Some(Some(session)));
                } else {
                    let held = peer.held.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
                    assert!(self.table.detach(&key, epoch, self.now, positions.received, held));
                    while let Some(evicted) = self.table.evict() {
                        self.listener_loses(evicted);
                    }
                }
            }
            Seat::Tombstone(end) => {
                assert!(self.table.detach(&key, epoch, self.now, end.positions().received, 0));
            }
            Seat::Waiting | Seat::Gone => {}
        }
    }

    pub(super) fn listener_goes_away(&mut self) {
        self.listener_closing = true;
        self.table.close();
        for link in self.links.iter_mut().filter(|link| !matches!(link.seat, Seat::Waiting | Seat::Gone)) {
            link.down.extend(&Control::Goaway { retry: 250 }.encode()[..]);
        }
    }

    /// The process of the listener dies, and another one takes its place.
    pub(super) fn replace_listener(&mut self) {
        self.excused |= self.table.len() > 0;
        self.table = Sessions::new(4, if self.gentle { u64::MAX } else { 64 });
        self.listener_closing = false;
        // A HELLO that is still on its way reaches the new one.
        let is_late = |link: &Link| matches!(link.seat, Seat::Waiting) && link.at_listener.is_empty();
        for link in self.links.iter_mut().filter(|link| !is_late(link)) {
            link.seat = Seat::Gone;
        }
        for peer in self.peers.iter_mut().filter(|peer| peer.alive) {
            peer.inbox.clear();
            peer.lose(&mut self.down, true);
        }
    }
}

fn number(id: SessionId) -> u32 {
    let hello = Hello { resume: false, id, epoch: 1, terms: TERMS, positions: Positions::default() };
    let (bytes, _) = Hello::echo(&hello.encode());
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
