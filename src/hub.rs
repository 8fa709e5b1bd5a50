//! What a listener, its handles and its tasks share: who is connected, what becomes of the messages, and how it ends.

use std::any::Any;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{BoxFuture, Shared};

use crate::config::Config;
use crate::connection::Connection;
use crate::error::{BoxError, Error};
use crate::events::{Event, Reason, Reporter};
use crate::foreign::PanicHook;
use crate::ledger::Verdict;
use crate::loan::{Lent, Loan};
use crate::net::{self, Task};
use crate::outbox::{Outbox, Rules};
use crate::peer::Peer;
use crate::wire::{Codec, Frames};
use crate::writer::HIGH_WATER;

/// What the peers' tasks do with what they receive. Chosen once, by what the program does with its listener.
#[derive(Clone)]
pub(crate) enum Delivery {
    /// Batches into the inbox.
    Inbox,
    /// A callback on each message where it lies, in the peer's own task.
    Callback(Arc<Callback>),
    /// A future for each message, awaited in the peer's own task.
    AsyncCallback(Arc<AsyncCallback>),
    /// The connection itself, unread, into the inbox.
    Connections,
}

pub(crate) type Callback = dyn Fn(Peer, &[u8]) -> Result<(), BoxError> + Send + Sync;
pub(crate) type AsyncCallback = dyn Fn(Peer, Bytes) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync;

/// What the inbox carries.
pub(crate) enum Arrival {
    Batch(Received),
    Connection(Box<Connection>),
}

/// A batch, and whose it is.
pub(crate) struct Received {
    pub(crate) member: Arc<Member>,
    pub(crate) frames: Frames,
    /// With these, the reader was lent.
    pub(crate) lent: Option<Lent>,
}

impl Received {
    pub(crate) fn new(member: &Arc<Member>, frames: Frames) -> Self {
        member.in_flight.fetch_add(1, Ordering::SeqCst);
        Self { member: member.clone(), frames, lent: None }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let last = self.member.in_flight.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.member.waits_for_consumer.load(Ordering::SeqCst) {
            self.member.outbox.call_driver();
        }
    }
}

/// One connected peer. It may be held longer than its socket should live, so it does not hold the socket.
pub(crate) struct Member {
    pub(crate) peer: Peer,
    /// The replies to it; its task is the driver.
    pub(crate) outbox: Outbox<net::Stream>,
    /// Its batches that the consumer has not finished with.
    pub(crate) in_flight: AtomicUsize,
    /// Its task ends the connection when there are none.
    pub(crate) waits_for_consumer: AtomicBool,
    /// Its reader, when its task has lent it.
    pub(crate) loan: Loan,
}

impl Member {
    /// Whether the consumer has finished with everything. If not, the peer's task is called when it has.
    pub(crate) fn is_taken(&self) -> bool {
        // In this order, and that of `Received`'s drop, one of the two sees the other.
        self.waits_for_consumer.store(true, Ordering::SeqCst);
        self.in_flight.load(Ordering::SeqCst) == 0
    }

    /// Whether it takes its replies: if not, it gets no more of them.
    pub(crate) fn may_be_read(&self) -> bool {
        self.outbox.try_room(HIGH_WATER)
    }
}

/// A signal that many can wait for.
pub(crate) type Signal<T> = Shared<oneshot::Receiver<T>>;

/// What a listener, its handles and its tasks share.
pub(crate) struct Hub {
    pub(crate) config: Config,
    pub(crate) codec: Codec,
    pub(crate) local_addr: SocketAddr,
    pub(crate) reporter: Arc<Reporter<Event>>,
    /// Tells of wakers that panic.
    pub(crate) panicked: PanicHook,
    pub(crate) counters: Counters,
    /// Whether there is a sink of replies.
    pub(crate) replies: AtomicBool,
    /// Whose batch came last.
    last: AtomicU64,
    members: Mutex<Members>,
    choose: Mutex<Option<oneshot::Sender<Delivery>>>,
    chosen: Signal<Delivery>,
    is_closing: AtomicBool,
    close: Mutex<Option<oneshot::Sender<()>>>,
    closing: Signal<()>,
    closed: Signal<()>,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

struct Members {
    connected: HashMap<u64, Entry>,
    last_id: u64,
    stopped: bool,
}

struct Entry {
    member: Arc<Member>,
    stream: net::Stream,
    /// `None` when the connection is the program's.
    task: Option<Task>,
}

impl Hub {
    /// A hub without members. What is to be told when accepting has ended comes with it.
    pub(crate) fn new(local_addr: SocketAddr, config: Config, codec: Codec) -> (Arc<Self>, oneshot::Sender<()>) {
        let (choose, chosen) = oneshot::channel();
        let (close, closing) = oneshot::channel();
        let (ended, closed) = oneshot::channel();
        let members = Members { connected: HashMap::new(), last_id: 0, stopped: false };
        let reporter = Arc::new(Reporter::new());
        let hub = Arc::new(Self {
            config,
            codec,
            local_addr,
            panicked: reporter.panic_hook(),
            reporter,
            counters: Counters::default(),
            replies: AtomicBool::new(false),
            last: AtomicU64::new(0),
            members: Mutex::new(members),
            choose: Mutex::new(Some(choose)),
            chosen: chosen.shared(),
            is_closing: AtomicBool::new(false),
            close: Mutex::new(Some(close)),
            closing: closing.shared(),
            closed: closed.shared(),
        });
        (hub, ended)
    }

    /// Chooses what becomes of the messages. The first choice stays.
    pub(crate) fn choose(&self, delivery: Delivery) {
        if let Some(choose) = lock(&self.choose).take() {
            // A peer's task may have gone meanwhile; the choice is kept for the next.
            let _ = choose.send(delivery);
        }
    }

    pub(crate) async fn chosen(&self) -> Option<Delivery> {
        self.chosen.clone().await.ok()
    }

    /// The signal that the listener is being closed.
    pub(crate) fn closing(&self) -> Signal<()> {
        self.closing.clone()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// The peer, unless it is gone, or of another listener: that may have the same number there.
    pub(crate) fn member(&self, peer: Peer) -> Option<Arc<Member>> {
        let members = lock(&self.members);
        let member = &members.connected.get(&peer.id())?.member;
        (member.peer == peer).then(|| member.clone())
    }

    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        lock(&self.members).connected.values().map(|entry| entry.member.clone()).collect()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.members).stopped
    }

    pub(crate) fn connections(&self) -> usize {
        lock(&self.members).connected.len()
    }

    /// Stops accepting, after what the system holds already, and waits until every peer's task has written its replies
    /// and ended that direction. What the peers send until they close is still received.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        // Peers that nobody has asked for are received as well, for whoever reads the listener to its end.
        self.choose(Delivery::Inbox);
        self.is_closing.store(true, Ordering::Release);
        if let Some(close) = lock(&self.close).take() {
            // The accept loop listens to it, unless it is gone.
            let _ = close.send(());
        }
        let all_closed = async {
            let _ = self.closed.clone().await;
            for member in self.members() {
                member.outbox.closed().await;
            }
        };
        match (net::within(self.config.close_timeout, all_closed).await, self.config.close_timeout) {
            (None, Some(after)) => Err(Error::Timeout { what: "close_timeout", after }),
            _ => Ok(()),
        }
    }

    /// Ends everything at once, except connections that the program has been given.
    pub(crate) fn stop(self: &Arc<Self>) {
        let stopped: Vec<_> = {
            let mut members = lock(&self.members);
            members.stopped = true;
            members.connected.extract_if(|_, entry| entry.task.is_some()).collect()
        };
        for (_, entry) in stopped {
            self.end(entry, Reason::Stopped);
        }
    }

    /// Ends one peer at once.
    pub(crate) fn expel(self: &Arc<Self>, peer: Peer, reason: Reason) {
        let entry = lock(&self.members).connected.remove(&peer.id());
        if let Some(entry) = entry {
            self.end(entry, reason);
        }
    }

    /// Ends a peer that has been removed.
    fn end(self: &Arc<Self>, Entry { member, stream, task }: Entry, reason: Reason) {
        drop(task);
        // It holds the socket.
        drop(member.loan.revoke());
        stream.shut_down();
        let hub = self.clone();
        let mut ending = Box::pin(async move {
            hub.end_replies(&member).await;
            hub.reporter.report(Event::Disconnected { peer: member.peer, reason });
        });
        if ending.as_mut().now_or_never().is_none() {
            // The sink of replies is writing at this moment.
            net::spawn(ending).detach();
        }
    }

    /// Counts what was received.
    pub(crate) fn count(&self, messages: usize, bytes: usize) {
        self.counters.messages.fetch_add(messages as u64, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether the batch before this one came from this peer as well.
    pub(crate) fn was_last(&self, peer: Peer) -> bool {
        self.last.swap(peer.id(), Ordering::Relaxed) == peer.id()
    }

    /// A callback returned an error.
    pub(crate) fn call_failed(&self, peer: Peer, error: BoxError) {
        self.reporter.report(Event::CallbackFailed { peer, error: Arc::new(error) });
    }

    /// A callback panicked.
    pub(crate) fn call_panicked(&self, peer: Peer, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        self.reporter.report(Event::CallbackPanicked { peer, message });
    }

    /// Ends the sending direction to every peer.
    pub(crate) fn half_close_all(&self) {
        for entry in lock(&self.members).connected.values().filter(|entry| entry.task.is_some()) {
            entry.member.outbox.close();
            // A peer that is gone has no use for it.
            let _ = entry.stream.half_close();
        }
    }

    /// The connection is the program's now, not its task's.
    pub(crate) fn hand_over(&self, member: &Member) {
        // Nobody replies to it here, and a close does not wait for it.
        member.outbox.close();
        if let Some(entry) = lock(&self.members).connected.get_mut(&member.peer.id())
            && let Some(task) = entry.task.take()
        {
            task.detach();
        }
    }

    /// Accepts no more replies to a peer. Those that it will not get are counted, and nobody waits for them.
    pub(crate) async fn end_replies(&self, member: &Member) {
        member.outbox.close();
        member.outbox.lose().await;
        let messages = member.outbox.give_back(&Verdict::closed()).len();
        if messages > 0 {
            self.reporter.report(Event::Undelivered { peer: member.peer, messages });
        }
    }

    /// A peer's task is about to end.
    pub(crate) fn leave(&self, member: &Member, reason: Reason) {
        let Some(Entry { task, stream, .. }) = lock(&self.members).connected.remove(&member.peer.id()) else { return };
        if let Some(task) = task {
            // Others may hold a clone of the socket for a while.
            stream.shut_down();
            task.detach();
        }
        drop(member.loan.revoke());
        self.reporter.report(Event::Disconnected { peer: member.peer, reason });
    }

    /// Takes a new connection in, if there is room; `spawn` starts its task.
    pub(crate) fn enter(
        &self,
        stream: net::Stream,
        addr: SocketAddr,
        spawn: impl FnOnce(Arc<Member>, net::Stream) -> Task,
    ) {
        let id = {
            let mut members = lock(&self.members);
            if members.stopped {
                return;
            }
            let room = members.connected.len() < self.config.max_connections;
            room.then(|| {
                members.last_id += 1;
                members.last_id
            })
        };
        // Only the accept loop comes here, so there is room still when it is taken.
        let Some(id) = id else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            self.reporter.report(Event::Refused { addr, max_connections: self.config.max_connections });
            return;
        };
        let peer = Peer::new(id, addr);
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        self.reporter.report(Event::Connected { peer });
        let rules = Rules { panicked: Some(self.panicked.clone()), ..Rules::default() };
        let outbox = Outbox::new(stream.clone(), self.codec, rules);
        let (in_flight, waits_for_consumer) = (AtomicUsize::new(0), AtomicBool::new(false));
        let member = Arc::new(Member { peer, outbox, in_flight, waits_for_consumer, loan: Loan::default() });
        let mut members = lock(&self.members);
        if members.stopped {
            drop(members);
            self.reporter.report(Event::Disconnected { peer, reason: Reason::Stopped });
            return;
        }
        // The task needs the lock to leave, so it finds itself here however short it lives.
        let task = spawn(member.clone(), stream.clone());
        members.connected.insert(id, Entry { member, stream, task: Some(task) });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code of the program runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
