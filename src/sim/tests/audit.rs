//! Holds what came of a session against what the network saw.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::session::{CLOSE_TIMEOUT, Client, FLUSH_EVERY, FRAME_TIMEOUT, IDLE_TIMEOUT, Outcome, Server, WRITE_TIMEOUT};
use crate::observe::Reason;
use crate::sim::testing::{Cable, Fault, Side};
use crate::sim::testing::{Cut, cables};
use crate::sync::Lock;
use crate::wire::{Decoder, Encoder};
use crate::{Error, Limit, LinkStats, Manager, WireFormat};

/// How much each direction of a connection holds, in bytes: small, so that cuts find data on both sides.
pub(super) const CAPACITY: usize = 2048;

/// What is sent in a session, and how that looks on the wire.
pub(super) struct Script {
    pub(super) format: WireFormat,
    pub(super) messages: Vec<Bytes>,
    /// Where each frame starts, and the last one ends.
    pub(super) bounds: Vec<usize>,
    decoder: Decoder,
}

/// How far the books were followed on each connection: bytes, and the whole frames in them.
#[derive(Default)]
pub(super) struct Totals(Vec<(usize, u64)>);

/// How many messages came back.
pub(super) fn dead_lettered(stats: &LinkStats) -> u64 {
    stats.dead_lettered
}

impl Totals {
    /// The books balance, and name as written exactly what the connections have taken whole.
    pub(super) fn check(&mut self, manager: &Manager, script: &Script) {
        let stats = manager.stats().total;
        assert_eq!(stats.accepted, stats.written + dead_lettered(&stats) + stats.held);
        let taken: u64 = cables(|cables| {
            self.0.resize(cables.len(), (0, 0));
            self.0.iter_mut().zip(cables).map(|(followed, cable)| script.follow(cable, followed)).sum()
        });
        if stats.accepted > 0 {
            assert_eq!(stats.written, taken, "what is written is what the connections have taken whole");
        }
    }
}

impl Script {
    pub(super) fn new(format: WireFormat, messages: Vec<Bytes>) -> Self {
        let encoder = Encoder::new(format, 16 * 1024).unwrap();
        let (mut wire, mut bounds) = (Vec::new(), vec![0]);
        for message in &messages {
            encoder.encode(message, &mut wire).unwrap();
            bounds.push(wire.len());
        }
        Self { format, messages, bounds, decoder: Decoder::new(format, 16 * 1024).unwrap() }
    }

    pub(super) fn len(&self) -> usize {
        self.bounds[self.messages.len()]
    }

    fn follow(&self, cable: &Arc<Lock<Cable>>, (at, frames): &mut (usize, u64)) -> u64 {
        let cable = cable.lock();
        let (taken, _) = cable.lane(Side::Dialer);
        if *at < taken.len() {
            let scan = self.decoder.scan(&taken[*at..], |_| {});
            *at += scan.end;
            *frames += scan.messages as u64;
        }
        *frames
    }

    fn frames(&self, bytes: &[u8]) -> Vec<Bytes> {
        let mut bytes = Bytes::copy_from_slice(bytes);
        std::iter::from_fn(|| self.decoder.decode(&mut bytes).unwrap()).collect()
    }

    /// Where the frame starts that a cut at `at` falls into, and how long it is said to be; `None` between two frames.
    fn inside(&self, at: usize) -> Option<(usize, usize)> {
        let frame = self.bounds.partition_point(|bound| *bound <= at) - 1;
        let (start, end) = (self.bounds[frame], *self.bounds.get(frame + 1)?);
        let whole_header = self.decoder.header(&self.bytes(frame)[..at - start]).unwrap().is_some();
        let header = end - start - self.messages[frame].len();
        (start < at).then_some((at - start, if whole_header { end - start } else { header }))
    }

    /// Whether a flush ends here, or nothing was written yet.
    fn is_flushed_at(&self, at: usize) -> bool {
        self.bounds.binary_search(&at).is_ok_and(|messages| messages.is_multiple_of(FLUSH_EVERY))
    }

    fn bytes(&self, frame: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        Encoder::new(self.format, 16 * 1024).unwrap().encode(&self.messages[frame], &mut wire).unwrap();
        wire
    }

    /// Everything that must hold, whatever was cut.
    pub(super) fn check(&self, (client, server): (Client, Server), cut: Cut, outcome: &Outcome) {
        let (mut taken, mut answered) = (Vec::new(), Vec::new());
        cables(|cables| {
            assert!(cables.len() <= 3, "{} connections for one cut", cables.len());
            for (i, cable) in cables.iter().enumerate() {
                let cable = cable.lock();
                let (out, read) = cable.lane(Side::Dialer);
                let (back, read_back) = cable.lane(Side::Acceptor);
                taken.extend(self.frames(out));
                // Every frame that arrived whole was received, once, in order, and nothing else was.
                let arrived = self.frames(&out[..read]);
                let received = outcome.received.get(&(i as u64 + 1)).map_or(&[][..], |received| received);
                assert_eq!(received, arrived, "of connection {i}");
                // What is answered is answered in order, and not twice.
                let answers = self.frames(back);
                assert!(arrived.starts_with(&answers), "the replies on connection {i}");
                answered.extend(self.frames(&back[..read_back]));
                if i == cut.connection {
                    check_loss(cut, cut.side == Side::Dialer, out, read);
                    check_loss(cut, cut.side == Side::Acceptor, back, read_back);
                } else {
                    assert_eq!(read, out.len(), "all of connection {i} arrives");
                }
            }
        });
        // Every message was handed over whole, once, in order: none is lost before, none is sent twice.
        assert_eq!(taken, self.messages);
        if matches!(client, Client::Halves | Client::Patient) {
            assert_eq!(outcome.replies, answered);
        }
        if cut.side == Side::Dialer {
            self.check_receiver(server, cut, outcome);
            self.check_sender(client, cut, outcome);
        }
    }

    /// How the cut looked to who received.
    fn check_receiver(&self, server: Server, cut: Cut, outcome: &Outcome) {
        let read = cables(|cables| cables[cut.connection].lock().lane(Side::Dialer).1);
        if cut.fault == Fault::Stall || (cut.fault == Fault::Fin && server != Server::Echo) {
            // A reply would be answered with a reset, which discards what is unread.
            assert_eq!(read, cut.after, "all that came before the cut arrives");
        }
        let (at, reason) = &outcome.ends[&1];
        match (cut.fault, self.inside(cut.after), reason) {
            (Fault::Rst, _, Reason::Failed(_)) => {}
            (Fault::Fin, None, Reason::Closed) => {}
            (Fault::Fin, Some(expected), Reason::Truncated { got, want, .. }) => assert_eq!((*got, *want), expected),
            // It may meet the cut with a reply.
            (Fault::Fin, _, Reason::Failed(_)) if server == Server::Echo => {}
            (Fault::Stall, Some(_), Reason::Timeout { what: Limit::FrameTimeout, .. }) => {
                assert_eq!(*at, FRAME_TIMEOUT)
            }
            (Fault::Stall, None, Reason::Timeout { what: Limit::IdleTimeout, .. }) if server == Server::Connections => {
                assert_eq!(*at, IDLE_TIMEOUT);
            }
            (Fault::Stall, None, Reason::Timeout { what: Limit::CloseTimeout, .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    /// And to who sent.
    fn check_sender(&self, client: Client, cut: Cut, outcome: &Outcome) {
        let fits = self.len() - cut.after <= CAPACITY;
        let stalls = cut.fault == Fault::Stall;
        match client {
            Client::Sink | Client::Write => {
                // What fits is with the kernel, and the peer never closes.
                let timed_out = matches!(outcome.closed, Some(Error::Timeout { after: CLOSE_TIMEOUT, .. }));
                assert_eq!(timed_out, stalls && fits);
                assert!(timed_out || outcome.closed.is_none(), "{:?}", outcome.closed);
                if stalls && !fits {
                    let ends_at = if self.inside(cut.after).is_some() { FRAME_TIMEOUT } else { WRITE_TIMEOUT };
                    assert_eq!(outcome.breaks[0].0, ends_at);
                }
            }
            Client::Connection | Client::Halves | Client::Patient => {
                assert!(outcome.errors.len() <= 1, "{:?}", outcome.errors);
                if cut.fault == Fault::Fin && self.is_flushed_at(cut.after) {
                    let taken = cables(|cables| cables[cut.connection].lock().lane(Side::Dialer).0.len());
                    assert_eq!(taken, cut.after, "a close is noticed before the first write after a rest");
                }
                let timed_out = |(at, error): &(Duration, Error)| match error {
                    Error::Timeout { what: Limit::WriteTimeout, .. } => {
                        *at == WRITE_TIMEOUT && client != Client::Patient
                    }
                    // The last few do not fit: it is the close that waits for them.
                    Error::Timeout { what: Limit::CloseTimeout, .. } => *at == CLOSE_TIMEOUT,
                    // The peer was the first to lose patience, and closed in the middle of a write.
                    Error::Write(error) if error.kind() == ErrorKind::BrokenPipe => {
                        *at == if self.inside(cut.after).is_some() { FRAME_TIMEOUT } else { IDLE_TIMEOUT }
                    }
                    _ => false,
                };
                let told = outcome.errors.iter().any(timed_out);
                if client == Client::Patient {
                    // It goes on without a word, unless the close is what waits.
                    assert_eq!(told, !outcome.errors.is_empty(), "{:?}", outcome.errors);
                } else {
                    assert_eq!(told, stalls && !fits, "{:?}", outcome.errors);
                }
            }
        }
    }
}

/// Only what was in flight is lost. All that came before a FIN or a stall arrives; after a FIN, one write is taken in
/// vain.
fn check_loss(cut: Cut, is_cut: bool, taken: &[u8], read: usize) {
    match cut.fault {
        Fault::Rst => assert!(taken.len() - read <= CAPACITY),
        Fault::Fin if is_cut => assert!(read <= cut.after && taken.len() - cut.after <= CAPACITY),
        Fault::Stall if is_cut => assert!(read <= cut.after && taken.len() - read <= CAPACITY),
        Fault::Fin | Fault::Stall => {}
    }
}
