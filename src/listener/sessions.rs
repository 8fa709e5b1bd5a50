//! The acknowledged sessions of a listener: which there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::member::Member;
use super::principal::Principal;
use super::seating::Seating;
use crate::config::Config;
use crate::observe::Reason;
use crate::runtime::Handle;
use crate::session::{ErrorCode, Evicted, Hello, Key, Positions, Session, Sessions, Status, Terms, Verdict, Welcome};
use crate::sync::Lock;

/// After how long a peer that is not let in, or not yet, may come again.
pub(crate) const BUSY: Duration = Duration::from_millis(250);

/// All sessions of a listener.
pub(crate) struct SessionTable {
    pub(crate) settings: Session,
    /// What this end says of itself.
    pub(crate) terms: Terms,
    /// Another listener has another, and knows none of these sessions.
    pub(crate) incarnation: u32,
    began: Instant,
    runtime: Handle,
    state: Lock<Sessions<Principal, Arc<Member>>>,
}

/// What is to be done with somebody who has said HELLO.
pub(crate) enum Judged {
    /// It is a new session.
    New,
    /// It comes back to this one, whose task decides.
    Known(Arc<Member>),
    /// What it comes back to is over, but for its end.
    Tombstone(Positions),
    /// This is the answer.
    Refused(Status),
}

impl SessionTable {
    pub(crate) fn new(settings: &Session, config: &Config, max_message: usize) -> Self {
        let runtime = config.runtime.clone();
        Self {
            terms: settings.terms(max_message),
            incarnation: runtime.random() as u32,
            began: runtime.now(),
            state: Lock::new(Sessions::new(settings.max_sessions, settings.detached_bytes as u64)),
            settings: settings.clone(),
            runtime,
        }
    }

    fn now(&self) -> u64 {
        self.runtime.now().saturating_duration_since(self.began).as_millis() as u64
    }

    /// The smaller of both ends' time to live.
    pub(crate) fn ttl(&self, theirs: &Terms) -> Duration {
        Duration::from_millis(self.terms.ttl.min(theirs.ttl).into())
    }

    /// How many there are, and how many of them are without a connection.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.len(), state.detached())
    }

    /// No new ones any more.
    pub(crate) fn close(&self) {
        self.state.lock().close();
    }

    /// Judges a HELLO. What is new is not there before it is [inserted](Self::insert).
    pub(crate) fn judge(&self, key: &Key<Principal>, hello: &Hello) -> Judged {
        self.expire();
        let (judged, gone) = judge(&mut self.state.lock(), key, hello, self.now());
        gone.into_iter().for_each(|gone| end(gone, Reason::Session(ErrorCode::Evicted)));
        judged
    }

    /// Enters a new session, with the connection of this HELLO; if somebody else was first, what is to be done instead.
    pub(crate) fn insert(&self, member: &Arc<Member>, hello: &Hello) -> Result<(), Judged> {
        let Some(seating) = &member.session else { return Err(Judged::Refused(Status::Busy)) };
        let (judged, gone) = {
            let mut state = self.state.lock();
            let (judged, gone) = judge(&mut state, &seating.key, hello, self.now());
            if let Judged::New = judged {
                let ttl = self.ttl(&hello.terms).as_millis() as u64;
                state.insert(seating.key.clone(), hello.epoch, ttl, member.clone());
            }
            (judged, gone)
        };
        gone.into_iter().for_each(|gone| end(gone, Reason::Session(ErrorCode::Evicted)));
        if let Judged::New = judged { Ok(()) } else { Err(judged) }
    }

    /// As the session's task, which has ended its connection, if it had one: it goes on with that of this HELLO. The error is
    /// the answer if it does not.
    pub(crate) fn attach(&self, seating: &Seating, hello: &Hello) -> Result<(), Status> {
        let mut state = self.state.lock();
        match state.hello(&seating.key, hello, self.now()) {
            Verdict::Resume(_) => Ok(()),
            Verdict::Refuse(status) => Err(status),
            Verdict::New { .. } | Verdict::Tombstone(_) => Err(Status::Unknown),
            Verdict::Fence { .. } => Err(Status::Busy),
        }
    }

    /// As the session's task: the connection of this epoch is gone. The session has received so many messages, and holds so many
    /// bytes.
    pub(crate) fn detach(&self, key: &Key<Principal>, epoch: u32, received: u64, held: u64) {
        let gone = {
            let mut state = self.state.lock();
            state.detach(key, epoch, self.now(), received, held);
            std::iter::from_fn(|| state.evict()).collect::<Vec<_>>()
        };
        gone.into_iter().for_each(|gone| end(gone, Reason::Session(ErrorCode::Evicted)));
    }

    /// As the session's task: without a connection, it holds so many bytes now.
    pub(crate) fn hold(&self, key: &Key<Principal>, held: u64) {
        let gone = {
            let mut state = self.state.lock();
            state.hold(key, held);
            std::iter::from_fn(|| state.evict()).collect::<Vec<_>>()
        };
        gone.into_iter().for_each(|gone| end(gone, Reason::Session(ErrorCode::Evicted)));
    }

    /// The session is over in order, but its peer may not know.
    pub(crate) fn bury(&self, key: &Key<Principal>, epoch: u32, positions: Positions) {
        let member = self.state.lock().bury(key, epoch, self.now(), positions);
        drop(member);
    }

    /// The session of this member is over, whatever its task has done about that.
    pub(crate) fn forget(&self, member: &Arc<Member>, why: Reason) {
        let Some(seating) = &member.session else { return };
        let offer = seating.end(why);
        let forgotten = {
            let mut state = self.state.lock();
            // What is remembered of its end stays, and so does another session that has come by this name.
            let is_its = state.find(&seating.key).is_some_and(|known| Arc::ptr_eq(known, member));
            is_its.then(|| state.remove(&seating.key))
        };
        drop((offer, forgotten));
    }

    /// The session is over.
    pub(crate) fn remove(&self, key: &Key<Principal>) {
        let member = self.state.lock().remove(key);
        drop(member);
    }

    /// The answer to a HELLO that cannot be.
    pub(crate) fn refusal(&self, status: Status, hello: &[u8]) -> Welcome {
        let (id, epoch) = Hello::echo(hello);
        let (incarnation, positions) = (self.incarnation, Positions::default());
        Welcome { status, id, epoch, terms: self.terms, incarnation, positions }
    }

    /// The answer to this HELLO.
    pub(crate) fn welcome(&self, hello: &Hello, status: Status, positions: Positions) -> Welcome {
        let (id, epoch) = Hello::echo(&hello.encode());
        let retry = Terms { ttl: BUSY.as_millis() as u32, ..self.terms };
        let terms = if status == Status::Busy { retry } else { self.terms };
        Welcome { status, id, epoch, terms, incarnation: self.incarnation, positions }
    }

    /// A session without a connection, and what it holds, are over for want of time.
    fn expire(&self) {
        let now = self.now();
        loop {
            let expired = self.state.lock().expire(now);
            match expired {
                Some(expired) => end(expired, Reason::SessionExpired),
                None => return,
            }
        }
    }
}

type Table = Sessions<Principal, Arc<Member>>;

/// What is to be done, and what had to go for it.
fn judge(
    state: &mut Table,
    key: &Key<Principal>,
    hello: &Hello,
    now: u64,
) -> (Judged, Option<Evicted<Principal, Arc<Member>>>) {
    // The task of a session that there is lets a connection in, when its turn is over.
    match state.known(key, hello) {
        Some(Ok(member)) => return (Judged::Known(member.clone()), None),
        Some(Err(status)) => return (Judged::Refused(status), None),
        None => {}
    }
    match state.hello(key, hello, now) {
        Verdict::New { evicted } => (Judged::New, evicted),
        Verdict::Tombstone(positions) => (Judged::Tombstone(positions), None),
        Verdict::Refuse(status) => (Judged::Refused(status), None),
        // Somebody is at its end at this moment.
        Verdict::Fence { .. } | Verdict::Resume(_) => (Judged::Refused(Status::Busy), None),
    }
}

/// It has lost its place: its task finds out.
fn end((_, member): Evicted<Principal, Arc<Member>>, why: Reason) {
    if let Some(member) = member
        && let Some(seating) = &member.session
    {
        let offer = seating.end(why);
        drop(offer);
        member.outbox.call_driver();
    }
}
