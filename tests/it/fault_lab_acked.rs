//! Small runs of the fault lab's acknowledged forms, whose rules must hold; and runs that break them, which it must find.

use std::future;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::fault_lab::books::Id;
use crate::fault_lab::order::{Order, unless_it_stands};
use crate::fault_lab::senders::Fate;
use crate::fault_lab::{acked, kill, receiver, rolling};
use crate::peers::run;

/// The reports of runs that did well, with something that must not be.
fn find<R: Clone>(report: &R, broken_rules: impl Fn(&R) -> Vec<String>, breaks: &[fn(&mut R)]) {
    assert!(broken_rules(report).is_empty());
    for (at, break_it) in breaks.iter().enumerate() {
        let mut report = report.clone();
        break_it(&mut report);
        assert!(!broken_rules(&report).is_empty(), "the break at {at} was not found");
    }
}

/// Runs a test whose receivers are processes that run the same test; or, in one of those, is the receiver.
fn with_receivers(test: impl Future<Output = ()>) {
    match receiver::asked() {
        Some(port) => run(receiver::receive(port)).expect("a receiver"),
        None => run(test),
    }
}

fn acked(seed: u64) -> acked::Report {
    let settings = acked::Settings { seed, messages: 5_000, faults: 30 };
    let report = run(acked::run(settings, |_, _| {})).expect("a run");
    assert!(report.broken_rules().is_empty(), "{report}\n{:#?}", report.broken_rules());
    assert!(report.samples > 0, "nobody looked at the books");
    assert!(report.cuts() > 5 && report.happened.resumed > 5 && report.total.replayed > 0, "{report}");
    report
}

#[test]
fn every_message_of_seed_1_is_taken_once() {
    acked(1);
}

#[test]
fn every_message_of_seed_2_is_taken_once() {
    acked(2);
}

#[test]
fn what_must_not_be_in_sessions_is_found() {
    find(
        &acked(3),
        acked::Report::broken_rules,
        &[
            |report| report.sent -= 1,
            |report| report.total.acked -= 1,
            |report| report.total.dead_lettered += 1,
            |report| report.total.in_doubt += 1,
            |report| report.total.held += 1,
            |report| report.total.sessions += 1,
            |report| report.came_back += 1,
            |report| report.lost += 1,
            |report| report.received.received += 1,
            |report| report.received.twice += 1,
            |report| report.received.out_of_order += 1,
            |report| report.received.damaged += 1,
            |report| report.replies.received -= 1,
            |report| report.replies.twice += 1,
            |report| report.lost_replies += 1,
            |report| report.happened.undelivered += 1,
            |report| report.happened.failed += 1,
            |report| report.proxy.faults = Default::default(),
            |report| report.violations.push(String::new()),
        ],
    );
}

#[test]
fn receivers_are_killed_and_what_is_acknowledged_is_journaled() {
    with_receivers(async {
        let args: &[&str] = &[
            "--exact",
            "fault_lab_acked::receivers_are_killed_and_what_is_acknowledged_is_journaled",
            "--nocapture",
            "--test-threads=1",
        ];
        let settings = kill::Settings { seed: 1, messages: 5_000, kills: 5, args };
        let report = kill::run(settings, |_, _| {}).await.expect("a run");
        assert!(report.broken_rules().is_empty(), "{report}\n{:#?}", report.broken_rules());
        // One outage lasts for longer than the senders hold what they could not send.
        assert!(report.count(Fate::InDoubt) > 0 && report.count(Fate::NotSent) > 0, "{report}");
        find(
            &report,
            kill::Report::broken_rules,
            &[
                |report| report.kills -= 1,
                |report| report.unfounded += 1,
                |report| report.denied += 1,
                |report| report.outcomes.accepted[0] += 1,
                |report| _ = report.outcomes.back.pop_first(),
                |report| report.outcomes.back.values_mut().for_each(|fate| *fate = Fate::NotSent),
                |report| report.outcomes.stats.accepted += 1,
                |report| report.outcomes.stats.acked -= 1,
                |report| report.outcomes.stats.dead_lettered += 1,
                |report| report.outcomes.stats.in_doubt += 1,
                |report| report.outcomes.stats.refused += 1,
                |report| report.outcomes.stats.held += 1,
                |report| report.outcomes.stats.sessions = 1,
                |report| report.outcomes.violations.push(String::new()),
                |report| report.journal.twice += 1,
                |report| report.journal.out_of_order += 1,
                |report| report.journal.damaged += 1,
                |report| report.violations.push(String::new()),
            ],
        );
    });
}

#[test]
fn receivers_are_restarted_and_nothing_is_in_doubt() {
    with_receivers(async {
        let args: &[&str] = &[
            "--exact",
            "fault_lab_acked::receivers_are_restarted_and_nothing_is_in_doubt",
            "--nocapture",
            "--test-threads=1",
        ];
        let settings = rolling::Settings { seed: 1, messages: 5_000, restarts: 5, args };
        let report = rolling::run(settings, |_, _| {}).await.expect("a run");
        assert!(report.broken_rules().is_empty(), "{report}\n{:#?}", report.broken_rules());
        find(
            &report,
            rolling::Report::broken_rules,
            &[
                |report| report.restarts -= 1,
                |report| report.lost += 1,
                |report| report.outcomes.accepted[0] += 1,
                |report| report.outcomes.stats.acked -= 1,
                |report| report.outcomes.stats.in_doubt += 1,
                |report| report.outcomes.stats.dead_lettered += 1,
                |report| report.outcomes.stats.held += 1,
                |report| report.outcomes.stats.sessions = 1,
                |report| report.outcomes.violations.push(String::new()),
                |report| report.journal.received += 1,
                |report| report.journal.twice += 1,
                |report| report.journal.out_of_order += 1,
                |report| report.journal.damaged += 1,
            ],
        );
    });
}

#[test]
fn what_comes_twice_or_too_late_or_not_at_all_is_told_apart() {
    let order = |numbers: &[u64]| {
        let mut order = Order::default();
        numbers.iter().for_each(|&number| order.receive(Some(Id { producer: 0, number })));
        order
    };
    let told = |numbers: &[u64]| {
        let order = order(numbers);
        (order.twice, order.out_of_order, order.missing(0, 6).collect::<Vec<_>>())
    };
    assert_eq!(told(&[0, 1, 2, 3, 4, 5]), (0, 0, vec![]));
    assert_eq!(told(&[0, 1, 1, 2, 3, 4, 5]), (1, 0, vec![]));
    assert_eq!(told(&[0, 4]), (0, 0, vec![1, 2, 3, 5]));
    assert_eq!(told(&[4, 2, 5]), (0, 1, vec![0, 1, 3]));
    assert_eq!(told(&[4, 2, 2, 0, 3, 1, 5]), (1, 4, vec![]));
    let has = |number| order(&[1, 2, 5, 3]).has(Id { producer: 0, number });
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(has), [false, true, true, true, false, true, false]);
    assert_eq!(order(&[]).missing(1, 2).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_run_that_stands_is_given_up() {
    let (limit, progress) = (Duration::from_millis(10), AtomicU64::new(7));
    let stands = unless_it_stands::<()>(limit, &progress, future::pending());
    let error = run(stands).expect_err("it stands").to_string();
    assert!(error.contains("10ms, after 7"), "{error}");
}
