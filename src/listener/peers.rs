//! What runs of a listener, how its peers come and go, and when it is gone.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt;

use super::member::{Entry, Member, Owner};
use super::shared::Shared;
use crate::endpoint::Endpoint;
use crate::foreign::{self, Panic, PanicSource};
use crate::observe::{Event, Reason};
use crate::peer::Peer;
use crate::runtime::Task;
use crate::transport;

/// A part in what runs of a listener: its tasks have one each, what the program has of it to receive with, and the
/// connections that it was given. With the last the listener is gone, and its events end. A handle to close it has none, nor
/// has the sink of replies.
pub(crate) struct Running(Arc<Shared>);

impl Running {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.running.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Clone for Running {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Deref for Running {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.reporter.end();
        }
    }
}

/// A place among `max_connections`: whoever has the socket has it, and drops it later.
pub(crate) struct Seat(Running);

impl Seat {
    /// Only the accept loop takes seats, so there is room still when one is taken.
    fn take(running: &Running) -> Option<Self> {
        let room = running.seats.load(Ordering::Acquire) < running.config.max_connections;
        room.then(|| {
            running.seats.fetch_add(1, Ordering::AcqRel);
            Self(running.clone())
        })
    }

    /// A peer is gone, by itself, and its socket is closed but for what is held here.
    pub(crate) fn leave(self, member: &Member, reason: Reason) {
        let running = self.0.clone();
        let (entry, stopped) = {
            let mut members = running.members.lock();
            (members.connected.remove(&member.peer.id()), members.stopped)
        };
        if let Some(entry) = entry {
            // The end of its socket is what it saw of a stop, where it was just coming.
            let was_stopped = stopped && matches!(entry.owner, Owner::Task(None));
            let reason = if was_stopped { Reason::Stopped } else { reason };
            entry.let_go();
            // Whoever hears of it finds room.
            drop(self);
            running.reporter.report(Event::Disconnected { peer: member.peer, reason });
        }
    }
}

impl Deref for Seat {
    type Target = Running;
    fn deref(&self) -> &Running {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Running {
    /// A place for somebody who has connected, if there is room.
    pub(crate) fn take_seat(&self, remote: &Endpoint) -> Option<Seat> {
        let seat = Seat::take(self);
        if seat.is_none() {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            self.reporter.report(Event::Refused { addr: remote.clone(), max_connections: self.config.max_connections });
        }
        seat
    }

    /// Takes a new connection in; `start` starts its task.
    pub(crate) fn admit(
        &self,
        seat: Seat,
        stream: transport::Stream,
        remote: Endpoint,
        start: impl FnOnce(Seat, Arc<Member>, transport::Stream) -> Task,
    ) {
        let (peer, member) = {
            let mut members = self.members.lock();
            if members.stopped {
                return;
            }
            members.last_id += 1;
            let peer = Peer::new(members.last_id, &remote, self.number);
            let member = Member::new(peer, stream.clone(), self.codec, self.rules.clone());
            let entry = Entry { member: member.clone(), stream: stream.clone(), owner: Owner::Task(None) };
            members.connected.insert(peer.id(), entry);
            self.counters.accepted.fetch_add(1, Ordering::Relaxed);
            (peer, member)
        };
        self.reporter.report(Event::Connected { peer, identity: stream.identity() });
        // Without the lock: the runtime logs that it starts a task, and the logger is the program's.
        match foreign::call(|| start(seat, member.clone(), stream)) {
            Ok(task) => self.started(&member, task),
            Err(panic) => self.failed(&member, PanicSource::Logger, panic),
        }
    }

    /// The task of a peer runs, or has ended already, or has handed the connection over.
    fn started(&self, member: &Member, task: Task) {
        let (unused, stopped) = {
            let mut members = self.members.lock();
            let stopped = members.stopped;
            match members.connected.get_mut(&member.peer.id()).map(|entry| &mut entry.owner) {
                Some(owner @ Owner::Task(_)) => {
                    *owner = Owner::Task(Some(task));
                    (None, stopped)
                }
                Some(Owner::Program) => (Some(task), false),
                None => (None, false),
            }
        };
        if let Some(task) = unused {
            task.detach();
        }
        if stopped {
            self.expel(member.peer, Reason::Stopped);
        }
    }

    /// The connection is the program's now, not its task's.
    pub(crate) async fn hand_over(&self, member: &Member) {
        // Nobody replies to it here, and a close does not wait for it.
        self.end_replies(member).await;
        let before = {
            let mut members = self.members.lock();
            let entry = members.connected.get_mut(&member.peer.id());
            entry.map(|entry| std::mem::replace(&mut entry.owner, Owner::Program))
        };
        before.into_iter().for_each(Owner::let_go);
    }

    /// Something panicked that ends the task of this peer.
    pub(crate) fn failed(&self, member: &Arc<Member>, source: PanicSource, panic: Panic) {
        self.panicked(Some(member.peer), source, panic);
        let entry = self.members.lock().connected.remove(&member.peer.id());
        if let Some(entry) = entry {
            self.forget(entry.let_go(), Reason::Panicked);
        }
    }

    /// Ends one peer at once.
    pub(crate) fn expel(&self, peer: Peer, reason: Reason) {
        let entry = self.members.lock().connected.remove(&peer.id());
        if let Some(entry) = entry {
            self.forget(entry.cut(), reason);
        }
    }

    /// Ends everything at once, except connections that the program has been given.
    pub(crate) fn stop(&self) {
        let (stopped, coming): (Vec<_>, Vec<_>) = {
            let mut members = self.members.lock();
            members.stopped = true;
            // Who is just coming is ended there, but for the socket: its task may run already, and have brought messages.
            let coming = members.connected.values().filter(|entry| matches!(entry.owner, Owner::Task(None)));
            let coming = coming.map(|entry| entry.stream.clone()).collect();
            let ours = members.connected.extract_if(|_, entry| matches!(entry.owner, Owner::Task(Some(_))));
            (ours.collect(), coming)
        };
        // The sockets come first, by whoever is here: what follows calls code of the program, and the tasks may have no thread
        // to run on.
        self.stop_accepting();
        #[cfg(feature = "tls")]
        self.handshakes.end();
        for stream in coming {
            stream.shut_down();
            // It may be the last: see `give_up`.
            let _ = foreign::dispose(stream);
        }
        let gone: Vec<_> = stopped.into_iter().map(|(_, entry)| entry.cut()).collect();
        self.forget_choice();
        for member in gone {
            self.forget(member, Reason::Stopped);
        }
        self.closed.give(());
    }

    /// A peer is gone. Its replies come back, in the background where the sink of replies is writing to it at this moment.
    fn forget(&self, member: Arc<Member>, reason: Reason) {
        let leaving = Leaving { running: self.clone(), member, reason: Some(reason) };
        let mut ending = Box::pin(async move {
            leaving.running.end_replies(&leaving.member).await;
            drop(leaving);
        });
        let _ = foreign::call(|| {
            if ending.as_mut().now_or_never().is_none() {
                self.config.runtime.spawn(ending).detach();
            }
        });
    }
}

/// Tells that a peer is gone when its replies have come back, or whatever else becomes of that.
struct Leaving {
    running: Running,
    member: Arc<Member>,
    reason: Option<Reason>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(reason) = self.reason.take() {
            self.running.reporter.report(Event::Disconnected { peer: self.member.peer, reason });
        }
    }
}
