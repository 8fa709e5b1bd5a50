//! A session is cut at every byte, in both directions, in every way that a connection ends.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::audit::{CAPACITY, Script, Totals};
use super::session::{self, Client, Server};
use crate::sim::testing::Cut;
use crate::sim::testing::Sim;
use crate::sim::testing::{Fault, Side};
use crate::{Manager, WireFormat};

/// Of the middle of a large message, where each byte is like the next, one byte in so many is enough for each day.
const STRIDE: usize = 97;
/// How far from the ends of a large message its middle begins, in bytes.
const EDGE: usize = 12;

const OUT: &[Side] = &[Side::Dialer];
const BOTH: &[Side] = &[Side::Dialer, Side::Acceptor];

/// Cuts at every byte, but for the middle of large messages; there at every `stride`.
fn cut_everywhere(ends: (Client, Server), sides: &[Side], stride: usize) {
    for format in [WireFormat::buffstreams(), WireFormat::u32_be()] {
        let script = Script::new(format, session::messages());
        let worth = |after: &usize| {
            let next = script.bounds.partition_point(|bound| bound < after);
            let (last, next) = (script.bounds[next.saturating_sub(1)], script.bounds[next]);
            next - last <= 512 || after - last <= EDGE || next - after <= EDGE || after.is_multiple_of(stride)
        };
        for after in (0..=script.len()).filter(worth) {
            for fault in [Fault::Fin, Fault::Rst, Fault::Stall] {
                for side in sides.iter().copied() {
                    let cut = Cut { connection: 0, side, after, fault };
                    named(format_args!("{ends:?}, {format}, {cut:?}"), || one_cut(&script, ends, cut, None));
                }
            }
        }
    }
}

/// Says which case it was that failed.
pub(super) fn named(name: impl std::fmt::Display, case: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(case)) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        match text.or_else(|| panic.downcast_ref::<&str>().copied()) {
            Some(text) => panic!("{name}: {text}"),
            None => resume_unwind(panic),
        }
    }
}

fn one_cut(script: &Script, ends: (Client, Server), cut: Cut, seed: Option<u64>) {
    let manager = Manager::new(session::config(script.format));
    let mut books = Totals::default();
    let sim = Sim { capacity: CAPACITY, seed, traced: false };
    let session = async {
        let outcome = session::run(&manager, ends, script.format, &script.messages, cut).await;
        script.check(ends, cut, &outcome);
    };
    match ends.0 {
        Client::Sink | Client::Write => sim.run_watched(session, || books.check(&manager, script)),
        Client::Connection | Client::Halves | Client::Patient => sim.run(session),
    }
}

#[test]
fn a_managers_sink_to_a_stream() {
    cut_everywhere((Client::Sink, Server::Stream), OUT, STRIDE);
}

#[test]
fn a_managers_sink_to_an_echo() {
    cut_everywhere((Client::Sink, Server::Echo), BOTH, STRIDE);
}

#[test]
fn a_managers_writes_to_a_stream() {
    cut_everywhere((Client::Write, Server::Stream), OUT, STRIDE);
}

#[test]
fn a_connection_to_a_stream() {
    cut_everywhere((Client::Connection, Server::Stream), OUT, STRIDE);
}

#[test]
fn the_halves_of_a_connection_to_an_echo() {
    cut_everywhere((Client::Halves, Server::Echo), BOTH, STRIDE);
}

#[test]
fn a_connection_that_reconnects_to_an_echo() {
    cut_everywhere((Client::Patient, Server::Echo), BOTH, STRIDE);
}

#[test]
fn a_connection_to_a_listeners_connections() {
    cut_everywhere((Client::Connection, Server::Connections), OUT, STRIDE);
}

/// Every pair but one: a connection that nobody reads is no partner for an echo.
const PAIRS: [(Client, Server); 14] = [
    (Client::Sink, Server::Stream),
    (Client::Sink, Server::Echo),
    (Client::Sink, Server::Connections),
    (Client::Write, Server::Stream),
    (Client::Write, Server::Echo),
    (Client::Write, Server::Connections),
    (Client::Connection, Server::Stream),
    (Client::Connection, Server::Connections),
    (Client::Halves, Server::Stream),
    (Client::Halves, Server::Echo),
    (Client::Halves, Server::Connections),
    (Client::Patient, Server::Stream),
    (Client::Patient, Server::Echo),
    (Client::Patient, Server::Connections),
];

/// Without leaving anything out: some minutes in a debug build.
#[test]
#[ignore = "takes minutes"]
fn every_byte_of_every_session() {
    for ends in PAIRS {
        let sides = if ends.1 == Server::Echo { BOTH } else { OUT };
        cut_everywhere(ends, sides, 1);
    }
}

/// The order in which tasks run is not ours to choose: races show in some of them.
#[test]
fn whatever_the_order_in_which_tasks_run() {
    let script = Script::new(WireFormat::buffstreams(), session::messages());
    for seed in 0..1_500 {
        let ends = PAIRS[seed % PAIRS.len()];
        let fault = [Fault::Fin, Fault::Rst, Fault::Stall][seed / PAIRS.len() % 3];
        let side = if ends.1 == Server::Echo { BOTH[seed / (3 * PAIRS.len()) % 2] } else { Side::Dialer };
        // 7919 is a prime: the cuts are spread over the session.
        let cut = Cut { connection: 0, side, after: seed * 7919 % script.len(), fault };
        named(format_args!("seed {seed}, {ends:?}, {cut:?}"), || one_cut(&script, ends, cut, Some(seed as u64)));
    }
}
