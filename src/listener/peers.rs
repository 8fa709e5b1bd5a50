//! What runs of a listener, how its peers come and go, and when it is gone.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt;

use super::member::{Entry, Member, Owner};
use super::place::Place;
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

/// Somebody who has connected.
pub(crate) struct Guest {
    pub(crate) place: Place,
    pub(crate) stream: transport::Stream,
    pub(crate) from: Endpoint,
}

/// A part in what runs, and a place: that of a peer without a session.
pub(crate) struct Seat {
    running: Running,
    place: Place,
}

impl Seat {
    pub(crate) fn new(running: Running, place: Place) -> Self {
        Self { running, place }
    }

    /// A peer is gone, by itself, and its socket is closed but for what is held here.
    pub(crate) fn leave(self, member: &Member, reason: Reason) {
        let Self { running, place } = self;
        let (entry, stopped) = {
            let mut members = running.members.lock();
            (members.connected.remove(&member.peer.id()), members.stopped)
        };
        if let Some(entry) = entry {
            // The end of its socket is what it saw of a stop, where it was just coming.
            let was_stopped = stopped && matches!(entry.owner, Owner::Task(None));
            let reason = if was_stopped { Reason::Stopped } else { reason };
            entry.let_go();
            // A program that hears of it finds room.
            drop(place);
            running.reporter.report(Event::Disconnected { peer: member.peer, reason });
        }
    }
}

impl Deref for Seat {
    type Target = Running;
    fn deref(&self) -> &Running {
        &self.running
    }
}

impl Running {
    /// A place for somebody who has connected, if there is room.
    pub(crate) fn take_place(&self, remote: &Endpoint) -> Option<Place> {
        let place = self.places.take();
        if place.is_none() {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            self.reporter.report(Event::Refused { addr: remote.clone(), max_connections: self.config.max_connections });
        }
        place
    }

    /// A name for somebody who is about to be a peer.
    pub(crate) fn next_peer(&self, remote: &Endpoint) -> Peer {
        let mut members = self.members.lock();
        members.last_id += 1;
        Peer::new(members.last_id, remote, self.number)
    }

    /// Takes a new peer in; `start` starts its task. `false` where the listener is gone.
    pub(crate) fn admit(&self, member: &Arc<Member>, stream: transport::Stream, start: impl FnOnce() -> Task) -> bool {
        let peer = member.peer;
        let identity = stream.identity();
        {
            let mut members = self.members.lock();
            if members.stopped {
                return false;
            }
            let entry = Entry { member: member.clone(), stream: Some(stream), owner: Owner::Task(None) };
            members.connected.insert(peer.id(), entry);
            self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        }
        self.reporter.report(Event::Connected { peer, identity });
        // Without the lock: the runtime logs that it starts a task, and the logger is the program's.
        match foreign::call(start) {
            Ok(task) => self.started(member, task),
            Err(panic) => self.failed(member, PanicSource::Logger, panic),
        }
        true
    }

    /// A session has another connection. `false` where the listener is gone.
    pub(crate) fn attach(&self, member: &Member, stream: transport::Stream) -> bool {
        let mut members = self.members.lock();
        if members.stopped {
            return false;
        }
        let Some(entry) = members.connected.get_mut(&member.peer.id()) else { return false };
        let before = entry.stream.replace(stream);
        drop(members);
        let _ = foreign::dispose(before);
        true
    }

    /// A session has no connection any more.
    pub(crate) fn detach(&self, member: &Member) {
        if let Some(stream) = self.take_stream(member) {
            stream.shut_down();
            let _ = foreign::dispose(stream);
        }
    }

    /// The same, where somebody else ends it.
    pub(crate) fn release(&self, member: &Member) {
        let _ = foreign::dispose(self.take_stream(member));
    }

    fn take_stream(&self, member: &Member) -> Option<transport::Stream> {
        let mut members = self.members.lock();
        members.connected.get_mut(&member.peer.id()).and_then(|entry| entry.stream.take())
    }

    /// A session is over.
    pub(crate) fn session_over(&self, member: &Member, reason: Reason) {
        let entry = self.members.lock().connected.remove(&member.peer.id());
        if let Some(entry) = entry {
            entry.let_go();
            self.reporter.report(Event::Disconnected { peer: member.peer, reason });
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
            self.cut_off(member.peer, Reason::Stopped);
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

    /// Ends one peer at once. That of a session is ended by its task, which tells the other end that it is over.
    pub(crate) fn expel(&self, peer: Peer, reason: Reason) {
        let Some(member) = self.member(peer) else { return };
        let Some(seating) = &member.session else { return self.cut_off(peer, reason) };
        let offer = seating.end(reason);
        drop(offer);
        member.outbox.call_driver();
    }

    /// The program has panicked on a message of this peer outside of the peer's task. As there, the peer ends, or the connection of
    /// its session, which goes on behind that message. Whether the peer ends.
    pub(crate) fn call_panicked_at(&self, peer: Peer, panic: Panic) -> bool {
        self.call_panicked(peer, panic);
        if let Some(member) = self.member(peer)
            && let Some(seating) = &member.session
        {
            seating.panicked.store(true, Ordering::Release);
            member.outbox.call_driver();
            return false;
        }
        self.expel(peer, Reason::CallbackPanicked);
        true
    }

    /// Ends one peer at once, and its task, which may have no thread to run on.
    fn cut_off(&self, peer: Peer, reason: Reason) {
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
            let coming = coming.filter_map(|entry| entry.stream.clone()).collect();
            let ours = members.connected.extract_if(|_, entry| matches!(entry.owner, Owner::Task(Some(_))));
            (ours.collect(), coming)
        };
        // The sockets come first, on this thread: what follows calls code of the program, and the tasks may have no thread
        // to run on.
        self.stop_accepting();
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
        if let Some(table) = &self.sessions {
            table.forget(&member, reason.clone());
        }
        let leaving = Leaving { running: self.clone(), member, reason: Some(reason) };
        let mut ending = Box::pin(async move {
            let Leaving { running, member, .. } = &leaving;
            if member.session.is_some() {
                running.lose_session(member).await;
            }
            running.end_replies(member).await;
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
