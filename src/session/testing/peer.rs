//! One end in the trial: its program, its replay buffer, and the books of what became of each message.

use std::collections::VecDeque;

use super::super::end::End;
use super::super::gaps::Settled;
use super::super::handshake::{Positions, Terms};
use super::super::wire::{Control, Frame, HEADER, Side, Why};
use super::{MAX_MESSAGE, WINDOW};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Held,
    Acked,
    Refused,
    InDoubt,
    NotSent,
}

/// The messages of one direction, of all sessions, by number: what both programs know, and no end.
#[derive(Default)]
pub(super) struct Books {
    pub(super) fates: Vec<Fate>,
    /// In which session, and where in it, it was handed over.
    sent: Vec<Option<(u32, u64)>>,
    came: Vec<bool>,
    settled: Vec<Option<Settled>>,
}

/// A number, and the bytes of its frame.
pub(super) type Message = (usize, u32);

impl Books {
    pub(super) fn accept(&mut self, held: &mut VecDeque<Message>, size: u32) {
        held.push_back((self.fates.len(), HEADER as u32 + 4 + size));
        self.fates.push(Fate::Held);
        self.sent.push(None);
        self.came.push(false);
        self.settled.push(None);
    }

    /// I8.
    fn hand(&mut self, id: usize, session: u32, position: u64) {
        let place = (session, position);
        assert_eq!(*self.sent[id].get_or_insert(place), place, "I8: {id} is sent in another place");
    }

    /// I1, and half of I2.
    fn come(&mut self, id: usize, session: u32, position: u64) {
        assert_eq!(self.sent[id], Some((session, position)), "I1: {id} comes elsewhere");
        assert!(!std::mem::replace(&mut self.came[id], true), "I1: {id} comes twice");
        assert_ne!(self.fates[id], Fate::NotSent, "I2: {id} comes, and was called never sent");
    }

    /// The other half of I2.
    pub(super) fn end(&mut self, id: usize, fate: Fate) {
        assert_eq!(self.fates[id], Fate::Held, "{id} has two ends");
        match fate {
            Fate::Acked => assert_eq!(self.settled[id], Some(Settled::Taken), "I2: {id} is acknowledged"),
            Fate::Refused => assert_eq!(self.settled[id], Some(Settled::Refused), "I2: {id} is refused"),
            Fate::NotSent => assert!(!self.came[id], "I2: {id} is called never sent, and came"),
            Fate::InDoubt | Fate::Held => {}
        }
        self.fates[id] = fate;
    }

    /// I5: what has no end is held, by one.
    pub(super) fn check<'a>(&self, peers: impl Iterator<Item = &'a Peer>) {
        let held = peers.flat_map(|peer| &peer.held).filter(|(id, _)| self.fates[*id] == Fate::Held).count();
        assert_eq!(self.fates.iter().filter(|fate| **fate == Fate::Held).count(), held, "I5");
    }

    /// Whether any is in doubt that its program has not dropped.
    pub(super) fn in_doubt_unasked(&self) -> bool {
        let mut fates = self.fates.iter().zip(&self.settled);
        fates.any(|(fate, settled)| *fate == Fate::InDoubt && *settled != Some(Settled::Dropped))
    }
}

/// What has come and is not settled.
pub(super) struct Token {
    position: u64,
    id: usize,
    bytes: u64,
}

pub(super) struct Peer {
    pub(super) session: u32,
    pub(super) end: End,
    /// From `acked` on: what is sent, then what is unsent.
    pub(super) held: VecDeque<Message>,
    pub(super) inbox: Vec<Token>,
    /// That of sessions before.
    pub(super) old: Vec<Token>,
    pub(super) expects_welcome: bool,
    pub(super) finished: bool,
    pub(super) alive: bool,
}

impl Peer {
    pub(super) fn new(side: Side, session: u32, held: VecDeque<Message>) -> Self {
        let expects_welcome = side == Side::Dialer;
        let (inbox, old) = (Vec::new(), Vec::new());
        Self { session, end: End::new(side, WINDOW), held, inbox, old, expects_welcome, finished: false, alive: true }
    }

    /// How many of those that are held were sent.
    pub(super) fn sent(&self) -> usize {
        (self.end.sender.sent() - self.end.sender.acked()) as usize
    }

    /// How many of them went to this connection.
    fn cursor(&self) -> usize {
        self.sent() - self.end.sender.repetitions() as usize
    }

    pub(super) fn finish(&mut self) {
        self.finished = true;
        self.end.sender.finish();
    }

    pub(super) fn resume(&mut self, mine: &mut Books, theirs: &Positions, terms: &Terms) {
        let before = self.end.sender.acked();
        self.end.resume(theirs, terms).expect("positions of this code");
        self.let_go(mine, self.end.sender.acked() - before);
        let in_flight = self.held.iter().take(self.cursor()).map(|(_, bytes)| u64::from(*bytes)).sum();
        self.end.sender.rewound(in_flight);
        self.expects_welcome = false;
    }

    /// So many at the front are acknowledged.
    fn let_go(&mut self, mine: &mut Books, messages: u64) -> u64 {
        let mut freed = 0;
        for _ in 0..messages {
            let (id, bytes) = self.held.pop_front().expect("it was sent");
            freed += u64::from(bytes);
            if mine.fates[id] == Fate::Held {
                mine.end(id, Fate::Acked);
            }
        }
        freed
    }

    /// Controls first, then up to so many frames in one batch.
    pub(super) fn write(&mut self, mine: &mut Books, pipe: &mut VecDeque<u8>, frames: usize, now: u64) {
        if self.expects_welcome {
            return;
        }
        let (first, mut bytes) = (self.cursor(), 0);
        let mut n = 0;
        self.controls(pipe, now);
        for (id, frame) in self.held.iter().skip(first).take(frames) {
            if !self.end.sender.may_follow(n, bytes, (*frame).into()) {
                break;
            }
            pipe.extend((frame - HEADER as u32).to_be_bytes());
            pipe.extend((*id as u32).to_be_bytes());
            pipe.extend((0..*frame as usize - HEADER - 4).map(|_| 0x55));
            let anew = mine.sent[*id].is_none();
            assert!(!(anew && self.end.sender.is_draining()), "R15: {id} is new, and the peer drains");
            mine.hand(*id, self.session, self.end.sender.acked() + first as u64 + n);
            n += 1;
            bytes += u64::from(*frame);
        }
        if n > 0 {
            self.end.sender.offer(n, bytes);
            self.end.sender.handed();
        }
        self.controls(pipe, now);
    }

    fn controls(&mut self, pipe: &mut VecDeque<u8>, now: u64) {
        while let Some(control) = self.end.next(now, self.held.len() > self.sent()) {
            pipe.extend(&control.encode()[..]);
        }
    }

    /// Of the next frame, so many bytes: it is not sent.
    pub(super) fn write_part(&self, pipe: &mut VecDeque<u8>, bytes: usize) {
        if let Some((id, frame)) = self.held.get(self.cursor())
            && self.end.sender.may_send((*frame).into())
        {
            let head = (frame - HEADER as u32).to_be_bytes().into_iter().chain((*id as u32).to_be_bytes());
            pipe.extend(head.take(bytes.min(HEADER + 3)));
        }
    }

    /// All that is whole. Messages that come together count together.
    pub(super) fn read(&mut self, mine: &mut Books, theirs: &mut Books, input: &mut Vec<u8>, from: Side) {
        let mut batch = Vec::new();
        let mut at = 0;
        while let Some((frame, width)) = Frame::parse(&input[at..], MAX_MESSAGE, from).expect("frames of this code") {
            match frame {
                Frame::Data(len) => {
                    let end = at + width + len as usize;
                    let Some(message) = input.get(at + width..end) else { break };
                    let id = u32::from_be_bytes(message[..4].try_into().expect("its number"));
                    batch.push((id as usize, (end - at) as u64));
                    at = end;
                }
                Frame::Control(control) => {
                    at += width;
                    self.take_in(theirs, &mut batch);
                    self.obey(mine, control);
                }
            }
        }
        self.take_in(theirs, &mut batch);
        input.drain(..at);
    }

    fn take_in(&mut self, theirs: &mut Books, batch: &mut Vec<(usize, u64)>) {
        if batch.is_empty() {
            return;
        }
        let bytes = batch.iter().map(|(_, bytes)| bytes).sum();
        let first = self.end.receiver.frames(batch.len() as u64, bytes).expect("within the window");
        for (position, (id, bytes)) in (first..).zip(batch.drain(..)) {
            theirs.come(id, self.session, position);
            self.inbox.push(Token { position, id, bytes });
        }
    }

    fn obey(&mut self, mine: &mut Books, control: Control) {
        let End { sender, receiver } = &mut self.end;
        match control {
            Control::Ack(taken) => {
                let more = sender.ack(taken).expect("an ACK of this code");
                let freed = self.let_go(mine, more);
                self.end.sender.freed(freed);
            }
            Control::Refuse { first, count, why } => {
                let (acked, held) = (sender.acked(), &self.held);
                let told = |range: std::ops::Range<u64>| {
                    for position in range {
                        let (id, _) = held[(position - acked) as usize];
                        let dropped = why == Why::Dropped;
                        assert!(!dropped || mine.settled[id] == Some(Settled::Dropped), "{id} was not dropped");
                        mine.end(id, if dropped { Fate::InDoubt } else { Fate::Refused });
                    }
                };
                sender.refuse(first, count, told).expect("a REFUSE of this code");
            }
            Control::Heartbeat { sent, acked } => receiver.heartbeat(sent, acked).expect("a HEARTBEAT of this code"),
            Control::Close(end) => receiver.close(end).expect("a CLOSE of this code"),
            Control::Goaway { .. } => sender.drain(),
            Control::Error(code) => panic!("{code:?}"),
        }
    }

    /// The program settles one, or the first few together.
    pub(super) fn settle(&mut self, theirs: &mut Books, much: usize) {
        let how = match much % 16 {
            0..=11 => Settled::Taken,
            12..=14 => Settled::Refused,
            _ => Settled::Dropped,
        };
        if let Some(token) = self.old.pop() {
            theirs.settled[token.id] = Some(how);
        }
        let count = self.inbox.len().min(if much.is_multiple_of(3) { 1 + much / 64 } else { 1 });
        if count == 0 {
            return;
        }
        let at = if count > 1 { 0 } else { (much / 16) % self.inbox.len() };
        // A batch is a row: the program cannot hold on to one in the middle.
        let first = self.inbox[at].position;
        let row = self.inbox[at..].iter().zip(first..).take_while(|(token, next)| token.position == *next).count();
        let tokens: Vec<_> = self.inbox.drain(at..at + count.min(row)).collect();
        let bytes = tokens.iter().map(|token| token.bytes).sum();
        let told = self.end.receiver.settle(first, tokens.len() as u64, bytes, how);
        assert_eq!(told, self.alive, "a session that is over is told nothing, another each once");
        assert!(!self.end.receiver.settle(first, 1, 1, Settled::Taken), "R20: twice");
        for token in tokens {
            theirs.settled[token.id] = Some(how);
        }
    }

    pub(super) fn take_all(&mut self, theirs: &mut Books) {
        while !self.inbox.is_empty() {
            self.settle(theirs, 1);
        }
    }

    /// The session is over, and not in good order: what was sent and is not settled is in doubt. What is unsent ends with the
    /// session, or is kept for the next.
    pub(super) fn lose(&mut self, mine: &mut Books, unsent_too: bool) {
        let acked = self.end.sender.acked();
        let sent = self.sent();
        for position in self.end.sender.in_doubt().flatten() {
            mine.end(self.held[(position - acked) as usize].0, Fate::InDoubt);
        }
        self.held.drain(..sent);
        if unsent_too {
            for (id, _) in self.held.drain(..) {
                mine.end(id, Fate::NotSent);
            }
        }
        self.end.receiver.end();
        self.end.broke();
        self.alive = false;
    }

    /// I3: what is held is `[acked, sent)` and what is unsent, and what is in flight fits into the window.
    pub(super) fn check(&self) {
        if !self.alive {
            return assert!(self.held.is_empty());
        }
        assert!(self.held.len() >= self.sent(), "I3");
        let in_flight: u32 = self.held.iter().take(self.cursor()).map(|(_, bytes)| bytes).sum();
        assert!(in_flight <= WINDOW || self.cursor() == 1, "I3: {in_flight} bytes");
        let (messages, bytes) = self.end.receiver.untaken();
        assert!(bytes <= u64::from(WINDOW) || messages == 1);
    }

    /// I4, of what this end sends.
    pub(super) fn agrees_with(&self, peer: &Self) {
        let (acked, sent) = (self.end.sender.acked(), self.end.sender.sent());
        let received = peer.end.receiver.received();
        let taken = received - peer.end.receiver.untaken().0;
        assert!(acked <= taken && taken <= received && received <= sent, "I4: {acked} {taken} {received} {sent}");
    }
}
