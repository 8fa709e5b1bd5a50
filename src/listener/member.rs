//! One connected peer, as a listener's tasks and handles know it.

use std::ops::Deref;
use std::sync::Arc;

use super::late_outbox::LateOutbox;
use super::read_on::Loan;
use super::seating::Seating;
use crate::connection::Line;
use crate::foreign;
use crate::framed::HIGH_WATER;
use crate::peer::{ById, Peer};
use crate::queue::{Outbox, Rules};
use crate::runtime::Task;
use crate::session::Side;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::transport;
use crate::wire::Codec;

/// One connected peer. It may be held longer than its socket should live, so it does not hold the socket.
pub(crate) struct Member {
    pub(crate) peer: Peer,
    /// The replies to it; its task is the driver.
    pub(crate) outbox: LateOutbox,
    /// Its batches that the consumer has not finished with: see [`InFlight`].
    in_flight: AtomicUsize,
    /// Its task ends the connection when there are none.
    waits_for_consumer: AtomicBool,
    /// The sink of replies was closed, and the socket did not take the end at once.
    pub(crate) half_closes: AtomicBool,
    /// A close took too long, and did not wait for it to end.
    pub(crate) is_cut: AtomicBool,
    /// The consumer has ended it, and wants none of its messages any more.
    pub(crate) is_expelled: AtomicBool,
    /// Its reader, when its task has lent it.
    pub(crate) loan: Loan,
    /// That of an acknowledged session, which has one connection after the other.
    pub(crate) session: Option<Box<Seating>>,
}

impl Member {
    pub(crate) fn new(
        peer: Peer,
        stream: transport::Stream,
        codec: Codec,
        rules: Arc<Rules<transport::Stream>>,
    ) -> Arc<Self> {
        Arc::new(Self::with(peer, LateOutbox::new(stream, codec, rules), None))
    }

    /// That of a session, which has no connection yet. `window` is what it accepts, in bytes.
    pub(crate) fn of_session(
        peer: Peer,
        codec: Codec,
        rules: Arc<Rules<transport::Stream>>,
        window: u32,
        seating: Seating,
    ) -> Arc<Self> {
        let outbox = Outbox::in_session(codec, rules, Side::Listener, window);
        Arc::new(Self::with(peer, outbox.into(), Some(Box::new(seating))))
    }

    fn with(peer: Peer, outbox: LateOutbox, session: Option<Box<Seating>>) -> Self {
        Self {
            peer,
            outbox,
            in_flight: AtomicUsize::new(0),
            waits_for_consumer: AtomicBool::new(false),
            half_closes: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            is_expelled: AtomicBool::new(false),
            loan: Loan::default(),
            session,
        }
    }

    /// Whether the consumer has finished with everything. If not, the peer's task is called when it has.
    pub(crate) fn is_taken(&self) -> bool {
        // In this order, and that of `InFlight`'s drop, one of the two sees the other.
        self.waits_for_consumer.store(true, Ordering::SeqCst);
        self.in_flight.load(Ordering::SeqCst) == 0
    }

    /// Whether it takes its replies: if not, it gets no more of them.
    pub(crate) fn may_be_read(&self) -> bool {
        self.outbox.made().is_none_or(|outbox| outbox.try_room(HIGH_WATER))
    }

    /// Gives up the socket, and the reader if it is lent.
    fn give_up(&self, stream: Option<transport::Stream>) {
        // The last of them drops the waker that the socket has kept, which may be the program's.
        let _ = foreign::dispose(self.loan.end());
        let _ = foreign::dispose(stream);
    }
}

/// Something of a peer that its consumer has not finished with.
pub(crate) struct InFlight(Arc<Member>);

impl InFlight {
    pub(crate) fn new(member: &Arc<Member>) -> Self {
        member.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(member.clone())
    }
}

impl Deref for InFlight {
    type Target = Arc<Member>;

    #[inline]
    fn deref(&self) -> &Arc<Member> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let last = self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.0.waits_for_consumer.load(Ordering::SeqCst) {
            self.0.outbox.call_driver();
        }
    }
}

impl Line for Member {
    fn outbox(&self) -> &Outbox<transport::Stream> {
        &self.outbox
    }

    fn stream(&self) -> Option<transport::Stream> {
        self.outbox.stream()
    }

    fn cut(&self) {
        // Its task ends it.
        self.outbox.end();
        self.outbox.call_driver();
    }
}

/// All who are connected.
#[derive(Default)]
pub(crate) struct Members {
    pub(crate) connected: ById<Entry>,
    pub(crate) last_id: u64,
    /// The listener is gone: nobody comes any more.
    pub(crate) stopped: bool,
}

pub(crate) struct Entry {
    pub(crate) member: Arc<Member>,
    /// A session may have none.
    pub(crate) stream: Option<transport::Stream>,
    pub(crate) owner: Owner,
}

/// Who has the connection.
pub(crate) enum Owner {
    /// A task of the listener's; `None` until it has been started, and its peer told of.
    Task(Option<Task>),
    /// The program.
    Program,
}

impl Entry {
    /// As its task, or its program, which ends by itself: gives up what is held of the socket here.
    pub(crate) fn let_go(self) -> Arc<Member> {
        let Self { member, stream, owner } = self;
        owner.let_go();
        member.give_up(stream);
        member
    }

    /// Ends the task, and the connection at once: the task may hold the socket until a thread has time for it.
    pub(crate) fn cut(self) -> Arc<Member> {
        let Self { member, stream, owner } = self;
        drop(owner);
        stream.iter().for_each(transport::Stream::shut_down);
        member.give_up(stream);
        member
    }
}

impl Owner {
    pub(crate) fn let_go(self) {
        if let Self::Task(Some(task)) = self {
            task.detach();
        }
    }
}
