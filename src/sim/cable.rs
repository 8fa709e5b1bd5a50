//! A TCP connection in memory: two bounded lanes, what each end may still do, and the fault that is to come.
//!
//! A lane remembers every byte that it took. So a test can hold what the library says it wrote, and what came of it,
//! against what really went over the wire.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};

/// What happens to a lane when it has taken so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Somebody on the way closes the connection, in both directions.
    Fin,
    /// Somebody on the way resets it: what is in flight is gone, in both directions.
    Rst,
    /// Nothing more arrives, not even the end; the lane takes what it has room for.
    Stall,
}

/// Where a defect of the library is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    Read,
    Write,
}

/// An end of a connection, and the lane that it writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Dialer,
    Acceptor,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Dialer => Self::Acceptor,
            Self::Acceptor => Self::Dialer,
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Cable {
    capacity: usize,
    ends: [End; 2],
}

/// One end, and the lane that it writes to.
#[derive(Debug, Default)]
struct End {
    /// Every byte that this end has written.
    taken: Vec<u8>,
    /// How many of them the other end has read.
    read: usize,
    fault: Option<(usize, Fault)>,
    /// Nothing behind this byte arrives.
    stalled_at: Option<usize>,
    /// The lane ends here.
    fin_at: Option<usize>,
    /// Nobody reads the lane any more: the next write is taken and answered with a reset.
    deaf: bool,
    /// This end has ended its sending direction.
    half_closed: bool,
    /// This end takes nothing more.
    shut: bool,
    /// This end has been reset.
    reset: bool,
    /// A defect of the library: whoever does this at this end panics.
    bug: Option<Bug>,
    /// Those who wait at this end, to read and to write.
    waiting: Vec<Waker>,
}

impl Cable {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, ends: Default::default() }
    }

    /// Plans the fault of the lane that `side` writes to.
    pub(crate) fn plan(&mut self, side: Side, after: usize, fault: Fault) {
        self.ends[side as usize].fault = Some((after, fault));
        self.fail_if_due(side);
    }

    /// Plants a defect at this end, and calls whoever waits there.
    pub(crate) fn plant(&mut self, side: Side, bug: Bug) {
        self.ends[side as usize].bug = Some(bug);
        self.wake(side);
    }

    pub(crate) fn has(&self, side: Side, bug: Bug) -> bool {
        self.ends[side as usize].bug == Some(bug)
    }

    /// Every byte that `side` has written, and how many of them have been read.
    pub(crate) fn lane(&self, side: Side) -> (&[u8], usize) {
        let end = &self.ends[side as usize];
        (&end.taken, end.read)
    }

    /// What `side` can read at this moment.
    fn readable(&self, side: Side) -> &[u8] {
        let lane = &self.ends[side.other() as usize];
        let ends = [lane.stalled_at, lane.fin_at].into_iter().flatten().min().unwrap_or(lane.taken.len());
        &lane.taken[lane.read..ends.min(lane.taken.len()).max(lane.read)]
    }

    /// Whether there is nothing more to come for `side` than what is readable.
    fn is_at_end(&self, side: Side) -> bool {
        let lane = &self.ends[side.other() as usize];
        self.ends[side as usize].shut || (lane.fin_at.is_some() && lane.stalled_at.is_none())
    }

    pub(crate) fn poll_read(&mut self, side: Side, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.ends[side as usize].reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let readable = self.readable(side);
        let n = readable.len().min(buf.len());
        if n > 0 {
            buf[..n].copy_from_slice(&readable[..n]);
            self.ends[side.other() as usize].read += n;
            self.wake(side.other());
            return Poll::Ready(Ok(n));
        }
        if self.is_at_end(side) {
            return Poll::Ready(Ok(0));
        }
        self.wait(side, cx)
    }

    pub(crate) fn poll_write(
        &mut self,
        side: Side,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let capacity = self.capacity;
        // Where nothing arrives, or no answer, the writer is left in the dark.
        let is_answered = self.ends.iter().all(|end| end.stalled_at.is_none());
        let end = &mut self.ends[side as usize];
        if end.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if end.half_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if end.deaf && is_answered {
            let n = end.take(bufs, capacity);
            end.reset = true;
            self.wake(side);
            return Poll::Ready(Ok(n));
        }
        let mut room = capacity.saturating_sub(end.taken.len() - end.read);
        if let Some((after, _)) = end.fault {
            room = room.min(after - end.taken.len());
        }
        let n = end.take(bufs, room);
        if n == 0 && bufs.iter().any(|buf| !buf.is_empty()) {
            return self.wait(side, cx);
        }
        self.wake(side.other());
        self.fail_if_due(side);
        Poll::Ready(Ok(n))
    }

    /// Whether the other end has closed, although there may be something to read yet.
    pub(crate) fn is_closed_by_peer(&self, side: Side) -> bool {
        self.is_reset(side) || self.is_at_end(side)
    }

    pub(crate) fn is_reset(&self, side: Side) -> bool {
        self.ends[side as usize].reset
    }

    /// `side` sends nothing more.
    pub(crate) fn half_close(&mut self, side: Side) {
        let end = &mut self.ends[side as usize];
        end.half_closed = true;
        end.fin_at.get_or_insert(end.taken.len());
        self.wake(Side::Dialer);
        self.wake(Side::Acceptor);
    }

    /// `side` sends nothing more, and takes nothing that is sent from now on.
    pub(crate) fn shut_down(&mut self, side: Side) {
        self.ends[side as usize].shut = true;
        self.ends[side.other() as usize].deaf = true;
        self.half_close(side);
    }

    /// `side` is gone. If it leaves something unread, the other end is told by a reset.
    pub(crate) fn close(&mut self, side: Side) {
        let leaves_unread = !self.readable(side).is_empty();
        if leaves_unread && self.ends[side as usize].stalled_at.is_none() {
            self.ends[side.other() as usize].reset = true;
        }
        self.shut_down(side);
    }

    /// Both ends are reset at once.
    pub(crate) fn reset(&mut self) {
        for side in [Side::Dialer, Side::Acceptor] {
            self.ends[side as usize].reset = true;
            self.wake(side);
        }
    }

    fn fail_if_due(&mut self, side: Side) {
        let end = &mut self.ends[side as usize];
        let Some((_, fault)) = end.fault.take_if(|(after, _)| *after <= end.taken.len()) else { return };
        match fault {
            Fault::Rst => self.reset(),
            Fault::Stall => end.stalled_at = Some(end.taken.len()),
            Fault::Fin => {
                for end in &mut self.ends {
                    end.fin_at.get_or_insert(end.taken.len());
                    end.deaf = true;
                }
                self.wake(Side::Dialer);
                self.wake(Side::Acceptor);
            }
        }
    }

    fn wait<T>(&mut self, side: Side, cx: &mut Context<'_>) -> Poll<T> {
        let waiting = &mut self.ends[side as usize].waiting;
        if !waiting.iter().any(|waiting| waiting.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn wake(&mut self, side: Side) {
        self.ends[side as usize].waiting.drain(..).for_each(Waker::wake);
    }
}

impl End {
    /// Takes at most `room` bytes, and says how many.
    fn take(&mut self, bufs: &[IoSlice<'_>], room: usize) -> usize {
        let mut left = room;
        for buf in bufs {
            let n = buf.len().min(left);
            self.taken.extend_from_slice(&buf[..n]);
            left -= n;
        }
        room - left
    }
}
