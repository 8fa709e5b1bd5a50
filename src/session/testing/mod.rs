//! Two ends of a session over connections that break at any byte, told by a list of bytes what happens next. After each step
//! what must always hold is asserted. For the tests and for the fuzzer.

mod listener;
mod peer;

use std::collections::VecDeque;

use super::end::{End, next_epoch};
use super::handshake::{Answer, HANDSHAKE, Hello, SessionId, Status, Terms};
use super::table::{Key, Sessions};
use super::wire::Side;
use peer::{Books, Fate, Peer};

pub(super) const MAX_MESSAGE: u32 = 32;
/// A few messages, and less than the longest.
pub(super) const WINDOW: u32 = 30;
const TTL: u64 = 1000;
const TERMS: Terms = Terms { max_message: MAX_MESSAGE, window: WINDOW, heartbeat: 0, ttl: TTL as u32 };

/// Both directions of one connection, as bytes that are on their way.
struct Link {
    hello: Hello,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    /// What each end has received of a frame that is not whole.
    at_listener: Vec<u8>,
    at_dialer: Vec<u8>,
    /// The dialer still has it.
    dialer: bool,
    seat: Seat,
}

/// What a connection is to the listener.
enum Seat {
    Waiting,
    Session(usize),
    Tombstone(Box<End>),
    Gone,
}

struct World {
    now: u64,
    /// No connection is away for long, and no end dies or gives up.
    gentle: bool,
    ttl: u64,
    dialer: Peer,
    epoch: u32,
    welcomed: bool,
    /// The program has closed the dialer.
    closing: bool,
    over: bool,
    link: Option<usize>,
    links: Vec<Link>,
    table: Sessions<u8, Option<usize>>,
    listener_closing: bool,
    /// Those of the table, and those that are over.
    peers: Vec<Peer>,
    up: Books,
    down: Books,
    /// Something happened for which messages may be in doubt.
    excused: bool,
    strangers: u8,
}

/// What was reached: a test that reaches nothing proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reached {
    pub(crate) acked: usize,
    pub(crate) refused: usize,
    pub(crate) in_doubt: usize,
    pub(crate) not_sent: usize,
    pub(crate) connections: usize,
    pub(crate) sessions: usize,
    pub(crate) tombstones: usize,
    pub(crate) closed: usize,
    /// Runs in which nothing happened for which a message may be in doubt.
    pub(crate) unexcused: usize,
}

/// Two bytes a step: what, and how much. The first decides whether anything may happen for which messages are in doubt. Then both ends stay up, and all that is left is done.
pub(crate) fn run(ops: &[u8]) -> Reached {
    let mut world = World::new(ops.first().is_some_and(|first| first % 2 == 0));
    let mut reached = Reached::default();
    for op in ops.chunks_exact(2).take(400) {
        world.step(op[0], op[1]);
        world.check();
        reached.tombstones += world.links.iter().filter(|link| matches!(link.seat, Seat::Tombstone(_))).count();
    }
    world.settle_all();
    for fate in world.up.fates.iter().chain(&world.down.fates) {
        match fate {
            Fate::Acked => reached.acked += 1,
            Fate::Refused => reached.refused += 1,
            Fate::InDoubt => reached.in_doubt += 1,
            Fate::NotSent => reached.not_sent += 1,
            Fate::Held => panic!("both ends are up, and something is left to do"),
        }
    }
    reached.connections = world.links.len();
    reached.sessions = world.dialer.session as usize + 1;
    reached.unexcused = usize::from(!world.excused);
    reached.closed = usize::from(world.over && world.closing);
    reached
}

impl World {
    fn new(gentle: bool) -> Self {
        Self {
            now: 0,
            gentle,
            ttl: if gentle { 1 << 40 } else { TTL },
            dialer: Peer::new(Side::Dialer, 0, VecDeque::new()),
            epoch: 0,
            welcomed: false,
            closing: false,
            over: false,
            link: None,
            links: Vec::new(),
            table: Sessions::new(4, if gentle { u64::MAX } else { 64 }),
            listener_closing: false,
            peers: Vec::new(),
            up: Books::default(),
            down: Books::default(),
            excused: false,
            strangers: 0,
        }
    }

    fn step(&mut self, what: u8, much: u8) {
        let (much, size) = (usize::from(much), u32::from(much) % (MAX_MESSAGE - 3));
        // Mostly the newest.
        let some = self.links.len().checked_sub(1 + (much % 8).saturating_sub(5));
        let bytes = if much < 128 { much } else { 4 * much };
        match what % 40 {
            0..=4 if !self.closing => self.up.accept(&mut self.dialer.held, size),
            5..=7 => {
                if let Some(peer) = self.peers.last_mut().filter(|peer| peer.alive && !peer.finished) {
                    self.down.accept(&mut peer.held, size);
                }
            }
            8..=10 => self.dial(),
            11..=14 => self.dialer_writes(1 + much % 4),
            15..=18 => self.listener_writes(1 + much % 4),
            19..=22 => self.reach_listener(some, bytes),
            23..=26 => self.reach_dialer(bytes),
            27 => self.dialer_breaks(much),
            28 => self.listener_breaks(some),
            29..=31 => self.dialer.settle(&mut self.down, much),
            32..=34 => {
                if let Some(peer) = some.and_then(|_| self.peers.len().checked_sub(1 + much % 2)) {
                    self.peers[peer].settle(&mut self.up, much);
                }
            }
            35 => self.wait(much as u64),
            36 => self.round(),
            37 if much < 128 => self.dialer.take_all(&mut self.down),
            37 => self.peers.iter_mut().for_each(|peer| peer.take_all(&mut self.up)),
            38 if much < 24 => self.close(),
            38 => self.listener_breaks(some),
            _ => self.rarely(much),
        }
    }

    /// What would end everything if it came as often as the rest.
    fn rarely(&mut self, much: usize) {
        match much {
            8..16 | 50..90 if self.gentle => {}
            0..8 => self.listener_goes_away(),
            8..12 => self.replace_listener(),
            12..16 if !self.over => {
                self.excused = true;
                self.lose_session();
            }
            16..40 => {
                // message_ttl: the oldest that was never sent.
                let sent = self.dialer.sent();
                if let Some((id, _)) = self.dialer.held.remove(sent) {
                    self.up.end(id, Fate::NotSent);
                }
            }
            40..50 => self.close(),
            50..60 => self.wait(self.ttl / 2),
            60..90 => self.stranger(),
            _ => {}
        }
    }

    fn close(&mut self) {
        self.closing = true;
        self.dialer.finish();
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        while let Some(expired) = self.table.expire(self.now) {
            self.listener_loses(expired);
        }
    }

    fn key(&self) -> Key<u8> {
        Key { identity: 0, id: id(self.dialer.session) }
    }

    fn dial(&mut self) {
        if self.link.is_some() || self.over {
            return;
        }
        // Nothing was sent in a session that has not had its WELCOME.
        if !self.welcomed && self.epoch > 0 {
            self.dialer.session += 1;
            self.epoch = 0;
        }
        self.epoch = next_epoch(self.epoch).expect("a few");
        let positions = self.dialer.end.positions();
        let hello = Hello { resume: self.welcomed, id: self.key().id, epoch: self.epoch, terms: TERMS, positions };
        self.link = Some(self.links.len());
        self.links.push(Link {
            hello,
            up: hello.encode().into(),
            down: VecDeque::new(),
            at_listener: Vec::new(),
            at_dialer: Vec::new(),
            dialer: true,
            seat: Seat::Waiting,
        });
    }

    fn dialer_writes(&mut self, frames: usize) {
        let Some(link) = self.link else { return };
        self.dialer.write(&mut self.up, &mut self.links[link].up, frames, self.now);
        if self.dialer.end.is_over() {
            self.dialer_leaves();
            self.dialer.end.receiver.end();
            // Where the listener drained it, there may be more for the next session.
            if self.closing && self.dialer.held.is_empty() {
                self.over = true;
            } else {
                self.next_session();
            }
        }
    }

    fn reach_dialer(&mut self, bytes: usize) {
        let Some(at) = self.link else { return };
        let link = &mut self.links[at];
        let n = bytes.min(link.down.len());
        link.at_dialer.extend(link.down.drain(..n));
        let ended = matches!(link.seat, Seat::Gone) && link.down.is_empty();
        let expects_welcome = self.dialer.expects_welcome;
        if expects_welcome
            && let Some(answer) = Answer::parse(&link.at_dialer, &link.hello).expect("a listener of this code")
        {
            link.at_dialer.drain(..HANDSHAKE);
            let Answer::Welcome(welcome) = answer else { panic!("{answer:?}") };
            match welcome.status {
                Status::New | Status::Resumed => {
                    self.welcomed = true;
                    self.dialer.resume(&mut self.up, &welcome.positions, &welcome.terms);
                }
                Status::Unknown => return self.lose_session(),
                Status::Busy => return self.dialer_leaves(),
                status => panic!("the only holder, at its newest epoch: {status:?}"),
            }
        }
        if !self.dialer.expects_welcome {
            let link = &mut self.links[at];
            self.dialer.read(&mut self.up, &mut self.down, &mut link.at_dialer, Side::Listener);
        }
        if ended {
            self.dialer_leaves();
        }
    }

    /// The dialer's end of the connection breaks. A part of what is on its way is lost, and of the next frame a part is sent.
    fn dialer_breaks(&mut self, lost: usize) {
        let Some(at) = self.link else { return };
        let up = &mut self.links[at].up;
        if !self.dialer.expects_welcome {
            self.dialer.write_part(up, lost % 8);
        }
        up.truncate(up.len().saturating_sub(lost.saturating_sub(8)));
        self.dialer_leaves();
    }

    fn dialer_leaves(&mut self) {
        if let Some(at) = self.link.take() {
            self.links[at].dialer = false;
            self.links[at].down.clear();
        }
        self.dialer.end.broke();
        self.dialer.expects_welcome = true;
    }

    /// The dialer is told that its session is gone, or gives it up.
    fn lose_session(&mut self) {
        self.dialer_leaves();
        assert!(self.excused || self.dialer.sent() == 0, "in doubt without a reason");
        self.dialer.lose(&mut self.up, false);
        self.next_session();
    }

    fn next_session(&mut self) {
        let unsent = std::mem::take(&mut self.dialer.held);
        let inbox = std::mem::take(&mut self.dialer.inbox);
        self.dialer = Peer::new(Side::Dialer, self.dialer.session + 1, unsent);
        self.dialer.old = inbox;
        (self.epoch, self.welcomed) = (0, false);
        if self.closing {
            self.dialer.finish();
        }
    }

    /// Nothing more happens to either end: what is left to do is done.
    fn settle_all(&mut self) {
        for round in 0..300 {
            if self.listener_closing && self.table.len() == 0 {
                self.replace_listener();
            }
            self.round();
            self.peers.iter_mut().for_each(|peer| peer.take_all(&mut self.up));
            self.dialer.take_all(&mut self.down);
            // Sessions that nobody comes back to make room.
            self.wait(if self.link.is_some() { 1 } else { self.ttl });
            self.check();
            let mine = |peer: &&Peer| peer.session == self.dialer.session && !peer.held.is_empty();
            let done = !self.up.fates.contains(&Fate::Held) && !self.peers.iter().any(|peer| mine(&peer));
            if round > 5 && done && (self.over || !self.closing) {
                break;
            }
        }
        assert!(!self.closing || self.over, "it was closed, and is not over");
        // What nobody comes back to ends with its time.
        self.reach_listeners();
        self.wait(2 * self.ttl);
    }

    /// All that is on its way arrives.
    fn round(&mut self) {
        self.dial();
        self.dialer_writes(9);
        self.reach_listeners();
        self.listener_writes(9);
        self.reach_dialer(10_000);
    }

    fn reach_listeners(&mut self) {
        for at in 0..self.links.len() {
            self.reach_listener(Some(at), 10_000);
        }
    }

    fn check(&self) {
        self.up.check(std::iter::once(&self.dialer));
        self.down.check(self.peers.iter());
        for peer in self.peers.iter().chain([&self.dialer]) {
            peer.check();
        }
        let doubt = |books: &Books| books.in_doubt_unasked();
        assert!(self.excused || !(doubt(&self.up) || doubt(&self.down)), "I9: in doubt without a reason");
        if let Some(peer) = self.peers.iter().find(|peer| peer.session == self.dialer.session && peer.alive) {
            self.dialer.agrees_with(peer);
            peer.agrees_with(&self.dialer);
        }
        for (at, link) in self.links.iter().enumerate() {
            let Seat::Session(session) = link.seat else { continue };
            let other =
                self.links[..at].iter().any(|link| matches!(link.seat, Seat::Session(other) if other == session));
            assert!(!other, "I7: two connections have one session");
        }
    }
}

fn id(session: u32) -> SessionId {
    let mut bytes = [0xaa; 16];
    bytes[..4].copy_from_slice(&session.to_be_bytes());
    SessionId::new(bytes).expect("not 0")
}
