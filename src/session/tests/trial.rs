//! Any sequence of what can happen to a session.

use proptest::prelude::*;

use super::super::testing::{Reached, run};

/// What a seed makes happen. A test that fails prints its seed.
fn of(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(2 * len).collect()
}

fn add(all: &mut Reached, one: Reached) {
    all.acked += one.acked;
    all.refused += one.refused;
    all.in_doubt += one.in_doubt;
    all.not_sent += one.not_sent;
    all.connections += one.connections;
    all.sessions += one.sessions;
    all.tombstones += one.tombstones;
    all.closed += one.closed;
    all.unexcused += one.unexcused;
}

/// I1 to I10, at each step. `BUFFSTREAMS_SEEDS` sets how many.
#[test]
fn nothing_is_lost_or_comes_twice_whatever_happens() {
    let seeds = std::env::var("BUFFSTREAMS_SEEDS").map_or(2000, |seeds| seeds.parse::<u64>().unwrap());
    let mut all = Reached::default();
    for seed in 0..seeds {
        let result = std::panic::catch_unwind(|| run(&of(seed, 200)));
        add(&mut all, result.unwrap_or_else(|_| panic!("seed {seed}")));
    }
    // It reaches what it is for.
    let Reached { acked, refused, in_doubt, not_sent, connections, sessions, tombstones, closed, unexcused } = all;
    let reached = [acked, refused, in_doubt, not_sent, connections, sessions, tombstones, closed, unexcused];
    assert!(reached.iter().all(|times| *times > seeds as usize / 50), "{all:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The same, where a failure is made as short as it can be.
    #[test]
    fn any_sequence_keeps_the_invariants(ops in proptest::collection::vec(any::<u8>(), 0..300)) {
        run(&ops);
    }
}
