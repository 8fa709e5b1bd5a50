//! A connection in memory: two bounded lanes, what each end may still do, how long bytes are on their way, and the fault
//! that is to come.
//!
//! A lane remembers every byte that it took. So a test can hold what the library says it wrote, and what came of it,
//! against what really went over the wire.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::mem;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What happens to a lane when it has taken so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Somebody on the way closes the connection, in both directions.
    Fin,
    /// Somebody on the way resets it: what is in flight is gone, in both directions.
    Rst,
    /// Nothing more arrives, not even the end; the lane takes what it has room for.
    Stall,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fin => "closed on the way",
            Self::Rst => "reset on the way",
            Self::Stall => "stalled on the way",
        })
    }
}

/// An end of a connection, and the lane that it writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that has dialed.
    Dialer,
    /// The end that was accepted.
    Acceptor,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dialer => "the dialer",
            Self::Acceptor => "the acceptor",
        })
    }
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Dialer => Self::Acceptor,
            Self::Acceptor => Self::Dialer,
        }
    }
}

/// How bytes travel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    /// How many bytes a lane holds that were not read.
    pub(super) capacity: usize,
    /// How long each byte is on its way.
    pub(super) latency: Duration,
    /// How many bytes a second a lane carries; `None` for any number.
    pub(super) bandwidth: Option<u64>,
    /// How many bytes one read brings at the most.
    pub(super) segment: usize,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Cable {
    /// Which one it is, counted from 0.
    pub(super) number: usize,
    wire: Wire,
    ends: [End; 2],
    /// Nothing arrives in either direction until that is over.
    pub(super) parted: bool,
    /// Who is to be woken when the cable is not borrowed any more.
    calls: Vec<Waker>,
}

/// One end, and the lane that it writes to.
#[derive(Debug, Default)]
struct End {
    /// Every byte that this end has written.
    taken: Vec<u8>,
    /// How many of them the other end has read.
    read: usize,
    /// Up to which byte the lane has arrived when; what is behind the last is there.
    arrivals: VecDeque<(usize, Duration)>,
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
    /// Who waits at this end to read.
    reading: Option<Waker>,
    /// Who waits at this end to write.
    writing: Option<Waker>,
}

impl Cable {
    pub(super) fn new(number: usize, wire: Wire) -> Self {
        Self { number, wire, ends: Default::default(), parted: false, calls: Vec::new() }
    }

    /// Those who are to be woken, when the cable is not borrowed any more.
    pub(super) fn take_calls(&mut self) -> Vec<Waker> {
        mem::take(&mut self.calls)
    }

    /// What has ended: the lane of the dialer and that of the acceptor, and which of the two was reset.
    pub(super) fn ended(&self) -> [bool; 4] {
        let [dialer, acceptor] = &self.ends;
        [dialer.fin_at.is_some(), acceptor.fin_at.is_some(), dialer.reset, acceptor.reset]
    }

    /// Plans the fault of the lane that `side` writes to.
    pub(crate) fn plan(&mut self, side: Side, after: usize, fault: Fault) {
        self.ends[side as usize].fault = Some((after, fault));
        self.fail_if_due(side);
    }

    /// Every byte that `side` has written, and how many of them have been read.
    pub(crate) fn lane(&self, side: Side) -> (&[u8], usize) {
        let end = &self.ends[side as usize];
        (&end.taken, end.read)
    }

    /// Up to where the lane to `side` has arrived, and when more of it does.
    fn arrived(&self, side: Side, now: Duration) -> (usize, Option<Duration>) {
        let lane = &self.ends[side.other() as usize];
        if self.parted {
            return (lane.read, None);
        }
        match lane.arrivals.iter().find(|(_, at)| *at > now) {
            None => (lane.taken.len(), None),
            Some((_, at)) => {
                let before = lane.arrivals.iter().take_while(|(_, at)| *at <= now).last();
                // What is in front of the first has arrived before it was on its way.
                (before.map_or(lane.read, |(upto, _)| *upto).max(lane.read), Some(*at))
            }
        }
    }

    /// What `side` can read at this moment.
    fn readable(&self, side: Side, now: Duration) -> &[u8] {
        let lane = &self.ends[side.other() as usize];
        let (arrived, _) = self.arrived(side, now);
        let ends = [lane.stalled_at, lane.fin_at].into_iter().flatten().min().unwrap_or(lane.taken.len());
        &lane.taken[lane.read..ends.min(arrived).max(lane.read)]
    }

    /// Whether there is nothing more to come for `side` than what is readable.
    fn is_at_end(&self, side: Side, now: Duration) -> bool {
        let lane = &self.ends[side.other() as usize];
        let told = lane.fin_at.is_some_and(|fin_at| self.arrived(side, now).0 >= fin_at && !self.parted);
        self.ends[side as usize].shut || (told && lane.stalled_at.is_none())
    }

    /// When something arrives for `side` that is on its way now.
    pub(super) fn next_arrival(&self, side: Side, now: Duration) -> Option<Duration> {
        self.arrived(side, now).1
    }

    pub(super) fn poll_read(
        &mut self,
        side: Side,
        now: Duration,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.ends[side as usize].reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let readable = self.readable(side, now);
        let n = readable.len().min(buf.len()).min(self.wire.segment);
        if n > 0 {
            buf[..n].copy_from_slice(&readable[..n]);
            let lane = &mut self.ends[side.other() as usize];
            lane.read += n;
            while lane.arrivals.front().is_some_and(|(upto, at)| *upto <= lane.read && *at <= now) {
                lane.arrivals.pop_front();
            }
            // There is room, which is nothing to those who read there.
            self.calls.extend(self.ends[side.other() as usize].writing.take());
            return Poll::Ready(Ok(n));
        }
        if self.is_at_end(side, now) {
            return Poll::Ready(Ok(0));
        }
        self.calls.extend(wait(&mut self.ends[side as usize].reading, cx));
        Poll::Pending
    }

    pub(super) fn poll_write(
        &mut self,
        side: Side,
        now: Duration,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.wire;
        // Where nothing arrives, or no answer, the writer is left in the dark.
        let is_answered = !self.parted && self.ends.iter().all(|end| end.stalled_at.is_none());
        let end = &mut self.ends[side as usize];
        if end.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if end.half_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if end.deaf && is_answered {
            let n = end.take(bufs, wire.capacity, wire, now);
            end.reset = true;
            self.wake(side);
            return Poll::Ready(Ok(n));
        }
        let mut room = wire.capacity.saturating_sub(end.taken.len() - end.read);
        if let Some((after, _)) = end.fault {
            room = room.min(after - end.taken.len());
        }
        let n = end.take(bufs, room, wire, now);
        if n == 0 && bufs.iter().any(|buf| !buf.is_empty()) {
            self.calls.extend(wait(&mut end.writing, cx));
            return Poll::Pending;
        }
        self.calls.extend(self.ends[side.other() as usize].reading.take());
        self.fail_if_due(side);
        Poll::Ready(Ok(n))
    }

    /// Whether the other end has closed, although there may be something to read yet.
    pub(super) fn is_closed_by_peer(&self, side: Side, now: Duration) -> bool {
        self.is_reset(side) || self.is_at_end(side, now)
    }

    /// Whether a read would bring something, if only the end.
    pub(super) fn has_unread(&self, side: Side, now: Duration) -> bool {
        self.is_closed_by_peer(side, now) || !self.readable(side, now).is_empty()
    }

    pub(super) fn is_reset(&self, side: Side) -> bool {
        self.ends[side as usize].reset
    }

    /// `side` sends nothing more.
    pub(super) fn half_close(&mut self, side: Side) {
        let end = &mut self.ends[side as usize];
        end.half_closed = true;
        end.fin_at.get_or_insert(end.taken.len());
        self.wake_both();
    }

    /// `side` sends nothing more, and takes nothing that is sent from now on.
    pub(super) fn shut_down(&mut self, side: Side) {
        self.ends[side as usize].shut = true;
        self.ends[side.other() as usize].deaf = true;
        self.half_close(side);
    }

    /// `side` is gone. If it leaves something unread, the other end is told by a reset.
    pub(super) fn close(&mut self, side: Side, now: Duration) {
        let leaves_unread = !self.readable(side, now).is_empty();
        if leaves_unread && self.ends[side as usize].stalled_at.is_none() && !self.parted {
            self.ends[side.other() as usize].reset = true;
        }
        self.shut_down(side);
    }

    /// Both ends are reset at once.
    pub(super) fn reset(&mut self) {
        for side in [Side::Dialer, Side::Acceptor] {
            self.ends[side as usize].reset = true;
            self.wake(side);
        }
    }

    /// Nothing arrives in either direction, or all of it does again.
    pub(super) fn part(&mut self, parted: bool) {
        self.parted = parted;
        self.wake_both();
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
                self.wake_both();
            }
        }
    }

    pub(super) fn wake(&mut self, side: Side) {
        let End { reading, writing, .. } = &mut self.ends[side as usize];
        self.calls.extend(reading.take().into_iter().chain(writing.take()));
    }

    fn wake_both(&mut self) {
        self.wake(Side::Dialer);
        self.wake(Side::Acceptor);
    }
}

/// Waits in one direction, as at a socket of the system: in place of who waited before, who is to be woken to look again. One
/// that wakes nobody takes nobody's place.
fn wait(waiting: &mut Option<Waker>, cx: &mut Context<'_>) -> Option<Waker> {
    if cx.waker().will_wake(Waker::noop()) || waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
        return None;
    }
    waiting.replace(cx.waker().clone())
}

impl End {
    /// Takes at most `room` bytes, and says how many.
    fn take(&mut self, bufs: &[IoSlice<'_>], room: usize, wire: Wire, now: Duration) -> usize {
        let mut left = room;
        for buf in bufs {
            let n = buf.len().min(left);
            self.taken.extend_from_slice(&buf[..n]);
            left -= n;
        }
        let n = room - left;
        if n > 0 && (!wire.latency.is_zero() || wire.bandwidth.is_some()) {
            let sending = wire.bandwidth.map_or(Duration::ZERO, |rate| {
                Duration::from_nanos((n as u128 * 1_000_000_000 / u128::from(rate.max(1))) as u64)
            });
            // Behind what is on its way already.
            let free = self.arrivals.back().map_or(now, |(_, at)| at.saturating_sub(wire.latency).max(now));
            self.arrivals.push_back((self.taken.len(), free.saturating_add(sending).saturating_add(wire.latency)));
        }
        n
    }
}
