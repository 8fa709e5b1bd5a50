//! The sessions of a listener: who may come back to which, and who has to go when there are too many.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::handshake::{Hello, Positions, SessionId, Status};

/// A session is its peer's: the same id of another identity is another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key<I> {
    pub(crate) identity: I,
    pub(crate) id: SessionId,
}

/// The table. `I` is what the transport has verified of a peer: a digest of names, the number of a user, or nothing. `T` is a
/// session: it comes back to the caller, who has to end it, and is never dropped here.
#[derive(Debug)]
pub(crate) struct Sessions<I, T> {
    sessions: HashMap<Key<I>, Entry<T>>,
    max: usize,
    /// What sessions without a connection may hold in all, in bytes.
    max_held: u64,
    held: u64,
    /// The listener takes no new ones.
    closing: bool,
    /// Numbers each loss of a connection: the order in which the sessions are without one.
    breaks: u64,
    /// When sessions without a connection end.
    ends: BTreeMap<(u64, u64), Key<I>>,
    /// Those that are over, and are remembered only.
    tombstones: BTreeMap<u64, Key<I>>,
    /// Those that never received anything, and hold nothing.
    blank: BTreeMap<u64, Key<I>>,
    /// Those that hold messages for their peers.
    holders: BTreeMap<u64, Key<I>>,
}

#[derive(Debug)]
struct Entry<T> {
    /// Of the newest connection.
    epoch: u32,
    ttl: u64,
    what: What<T>,
    /// Without a connection.
    detached: Option<Detached>,
}

impl<T> Entry<T> {
    fn session(&self) -> Option<&T> {
        match &self.what {
            What::Session(session) => Some(session),
            What::Tombstone(_) => None,
        }
    }

    /// Whether this HELLO may have it; the error is the answer if not.
    fn admits(&self, hello: &Hello) -> Result<(), Status> {
        if hello.epoch <= self.epoch {
            return Err(Status::Fenced);
        }
        // Each attempt at a new session has an id of its own: this one would be of another holder.
        if hello.resume { Ok(()) } else { Err(Status::Unknown) }
    }
}

#[derive(Debug)]
enum What<T> {
    Session(T),
    Tombstone(Positions),
}

#[derive(Clone, Copy, Debug)]
struct Detached {
    number: u64,
    end: u64,
    received: u64,
    held: u64,
}

/// What is to be done about a HELLO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<'a, I, T> {
    /// Make a session, and [`insert`](Sessions::insert) it. The one that had to go for it, if any, is evicted.
    New { evicted: Option<Evicted<I, T>> },
    /// This session has a connection, of this epoch. Fence it, wait until its reader's turn is over,
    /// [`detach`](Sessions::detach) it, and ask again. Where that takes too long, the answer is [`Status::Busy`].
    Fence { session: Option<&'a mut T>, epoch: u32 },
    /// Attached. Compare the positions; if they cannot be, [`remove`](Sessions::remove) it.
    Resume(&'a mut T),
    /// The session is over but for its end. Attached: see [`End::tombstone`](super::end::End::tombstone).
    Tombstone(Positions),
    /// The answer is a WELCOME of this status, and the session, if there is one, is as it was.
    Refuse(Status),
}

/// A session that is over for want of room. Where it was more than a tombstone, it is here.
pub(crate) type Evicted<I, T> = (Key<I>, Option<T>);

impl<I: Clone + Eq + Hash, T> Sessions<I, T> {
    pub(crate) fn new(max: usize, max_held: u64) -> Self {
        Self {
            sessions: HashMap::new(),
            max,
            max_held,
            held: 0,
            closing: false,
            breaks: 0,
            ends: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            blank: BTreeMap::new(),
            holders: BTreeMap::new(),
        }
    }

    /// With and without a connection. What is over and waits for its peer is none of them.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len() - self.tombstones.len()
    }

    /// Those without a connection.
    pub(crate) fn detached(&self) -> usize {
        self.ends.len() - self.tombstones.len()
    }

    /// No new ones, but those that are may come back.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// A session; `None` where there is none, or no more than its end.
    pub(crate) fn find(&self, key: &Key<I>) -> Option<&T> {
        self.sessions.get(key)?.session()
    }

    /// The session that this HELLO comes back to, which stays as it is; the error is the answer where it does not get that.
    /// `None` as in [`find`](Self::find).
    pub(crate) fn known(&self, key: &Key<I>, hello: &Hello) -> Option<Result<&T, Status>> {
        let entry = self.sessions.get(key)?;
        Some(entry.admits(hello).and(Ok(entry.session()?)))
    }

    /// Judges a HELLO. Asking for a session that is not there, that is over, or that is somebody else's is the same.
    pub(crate) fn hello(&mut self, key: &Key<I>, hello: &Hello, now: u64) -> Verdict<'_, I, T> {
        let Some(entry) = self.sessions.get(key) else {
            return if hello.resume { Verdict::Refuse(Status::Unknown) } else { self.make_room() };
        };
        if let Err(status) = entry.admits(hello) {
            return Verdict::Refuse(status);
        }
        let Some(detached) = entry.detached else {
            let epoch = entry.epoch;
            let session = match &mut self.sessions.get_mut(key).expect("it was there").what {
                What::Session(session) => Some(session),
                What::Tombstone(_) => None,
            };
            return Verdict::Fence { session, epoch };
        };
        if detached.end <= now {
            return Verdict::Refuse(Status::Unknown);
        }
        self.forget(detached);
        let entry = self.sessions.get_mut(key).expect("it was there");
        entry.detached = None;
        entry.epoch = hello.epoch;
        match &mut entry.what {
            What::Session(session) => Verdict::Resume(session),
            What::Tombstone(positions) => Verdict::Tombstone(*positions),
        }
    }

    /// A newcomer never costs a session that has anything.
    fn make_room(&mut self) -> Verdict<'_, I, T> {
        if self.closing {
            return Verdict::Refuse(Status::Busy);
        }
        if self.sessions.len() < self.max {
            return Verdict::New { evicted: None };
        }
        let oldest = self.tombstones.values().next().or_else(|| self.blank.values().next()).cloned();
        match oldest {
            Some(key) => {
                let session = self.remove(&key);
                Verdict::New { evicted: Some((key, session)) }
            }
            None => Verdict::Refuse(Status::Busy),
        }
    }

    /// A new session, with the connection of this HELLO. `ttl` is the smaller of both ends', in ms.
    pub(crate) fn insert(&mut self, key: Key<I>, epoch: u32, ttl: u64, session: T) {
        debug_assert!(self.sessions.len() < self.max && !self.sessions.contains_key(&key));
        self.sessions.insert(key, Entry { epoch, ttl, what: What::Session(session), detached: None });
    }

    /// The connection of this epoch is gone, and its reader has ended: the session has received so many messages, and holds so
    /// many bytes. False where a newer connection has it, or none.
    pub(crate) fn detach(&mut self, key: &Key<I>, epoch: u32, now: u64, received: u64, held: u64) -> bool {
        let Some(entry) = self.sessions.get_mut(key).filter(|entry| entry.epoch == epoch && entry.detached.is_none())
        else {
            return false;
        };
        self.breaks += 1;
        let held = if matches!(entry.what, What::Session(_)) { held } else { 0 };
        let detached = Detached { number: self.breaks, end: now.saturating_add(entry.ttl), received, held };
        entry.detached = Some(detached);
        let tombstone = matches!(entry.what, What::Tombstone(_));
        self.ends.insert((detached.end, detached.number), key.clone());
        if tombstone {
            self.tombstones.insert(detached.number, key.clone());
        } else {
            self.index(key, detached);
        }
        true
    }

    /// A session without a connection holds so many bytes now. One with a connection is asked when it loses that.
    pub(crate) fn hold(&mut self, key: &Key<I>, held: u64) {
        let Some(Entry { what: What::Session(_), detached: Some(detached), .. }) = self.sessions.get_mut(key) else {
            return;
        };
        let old = *detached;
        detached.held = held;
        let new = *detached;
        self.unindex(old);
        self.index(key, new);
    }

    /// The one that has been without a connection for longest, of those that hold anything, while all together hold too much. It
    /// is over. Until there is none.
    pub(crate) fn evict(&mut self) -> Option<Evicted<I, T>> {
        if self.held <= self.max_held {
            return None;
        }
        let key = self.holders.values().next()?.clone();
        let session = self.remove(&key);
        Some((key, session))
    }

    /// The session is over in good order, but however its connection ended, the peer may not know: a FIN may also come from
    /// somebody on the way, or from a dialer that has missed the last ACK. Its
    /// positions are kept as long as the session would have been, and the session comes back to the caller.
    pub(crate) fn bury(&mut self, key: &Key<I>, epoch: u32, now: u64, positions: Positions) -> Option<T> {
        let entry = self.sessions.get_mut(key).filter(|entry| entry.epoch == epoch && entry.detached.is_none())?;
        let session = match std::mem::replace(&mut entry.what, What::Tombstone(positions)) {
            What::Session(session) => Some(session),
            What::Tombstone(_) => None,
        };
        self.detach(key, epoch, now, positions.received, 0);
        session
    }

    /// The session is over, and forgotten.
    pub(crate) fn remove(&mut self, key: &Key<I>) -> Option<T> {
        let entry = self.sessions.remove(key)?;
        if let Some(detached) = entry.detached {
            self.forget(detached);
        }
        match entry.what {
            What::Session(session) => Some(session),
            What::Tombstone(_) => None,
        }
    }

    /// The next that has been without a connection for its ttl. It is over. Until there is none.
    pub(crate) fn expire(&mut self, now: u64) -> Option<Evicted<I, T>> {
        let (&(end, _), key) = self.ends.first_key_value()?;
        if end > now {
            return None;
        }
        let key = key.clone();
        let session = self.remove(&key);
        Some((key, session))
    }

    /// When the next one expires.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn next_end(&self) -> Option<u64> {
        self.ends.first_key_value().map(|((end, _), _)| *end)
    }

    fn index(&mut self, key: &Key<I>, detached: Detached) {
        self.held += detached.held;
        if detached.held > 0 {
            self.holders.insert(detached.number, key.clone());
        } else if detached.received == 0 {
            self.blank.insert(detached.number, key.clone());
        }
    }

    fn unindex(&mut self, detached: Detached) {
        self.held -= detached.held;
        self.holders.remove(&detached.number);
        self.blank.remove(&detached.number);
    }

    /// It is not without a connection any more, or no more at all.
    fn forget(&mut self, detached: Detached) {
        self.unindex(detached);
        self.tombstones.remove(&detached.number);
        self.ends.remove(&(detached.end, detached.number));
    }
}
