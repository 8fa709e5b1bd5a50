//! Small runs of the fault lab, whose books must balance; and books that do not balance, which it must find.

#[path = "../../examples/fault_lab/acked.rs"]
pub(crate) mod acked;
#[path = "../../examples/fault_lab/books.rs"]
pub(crate) mod books;
#[path = "../../examples/fault_lab/kill.rs"]
pub(crate) mod kill;
#[path = "../../examples/fault_lab/lab.rs"]
pub(crate) mod lab;
#[path = "../../examples/fault_lab/messages.rs"]
pub(crate) mod messages;
#[path = "../../examples/fault_lab/order.rs"]
pub(crate) mod order;
// The stress has it as well.
#[allow(clippy::duplicate_mod)]
#[path = "../../examples/fault_lab/proxy.rs"]
pub(crate) mod proxy;
#[path = "../../examples/fault_lab/receiver.rs"]
pub(crate) mod receiver;
#[path = "../../examples/fault_lab/rolling.rs"]
pub(crate) mod rolling;
#[path = "../../examples/fault_lab/senders.rs"]
pub(crate) mod senders;

use books::{Books, Id, Losses, Receipts, Tally};
use lab::Settings;
use proxy::Passed;

use crate::peers::run;

fn balances(seed: u64, reconnect: bool) {
    let settings = Settings { seed, messages: 40_000, faults: 50, reconnect };
    let books = run(lab::run(settings, |_, _| {})).expect("a run");
    assert!(books.broken_rules().is_empty(), "{books}\n{:#?}", books.broken_rules());
    assert!(books.samples > 0, "nobody looked at the books");
    assert!(books.tally.reconnects > 10, "{books}");
    assert!(books.receipts.received > 10_000, "{books}");
}

#[test]
fn the_books_of_seed_1_balance() {
    balances(1, false);
}

#[test]
fn the_books_of_seed_2_balance() {
    balances(2, false);
}

#[test]
fn the_books_of_seed_3_balance() {
    balances(3, false);
}

#[test]
fn the_books_of_a_manager_that_reconnects_balance_and_nothing_comes_back() {
    balances(4, true);
}

/// What two connections brought of one producer's messages.
fn receipts(first: &[u64], second: &[u64]) -> Receipts {
    let mut receipts = Receipts::default();
    for (connection, numbers) in [(1, first), (2, second)] {
        for &number in numbers {
            receipts.receive(connection, Some(Id { producer: 0, number }));
        }
    }
    receipts
}

fn settle(mut receipts: Receipts, dead: &[u64], cut: &[bool]) -> (Losses, usize) {
    let dead = dead.iter().map(|&number| Id { producer: 0, number }).collect();
    let connections: Vec<_> = cut.iter().map(|&cut| Passed { cut, ..Passed::default() }).collect();
    let losses = receipts.settle(&[6], dead, &connections);
    (losses, receipts.violations.len())
}

#[test]
fn every_message_needs_an_end() {
    let whole = || receipts(&[0, 1, 2], &[3, 4, 5]);
    assert_eq!(settle(whole(), &[], &[false, false]), (Losses::default(), 0));
    // The first connection lost two, of which one came back.
    let lost = |messages| Losses { messages, places: 1, largest: messages };
    assert_eq!(settle(receipts(&[0], &[3, 4, 5]), &[2], &[true, false]), (lost(1), 0));
    assert_eq!(settle(receipts(&[0], &[3, 4, 5]), &[1, 2], &[false, false]), (Losses::default(), 0));
    // Missing at the end, and from the start.
    assert_eq!(settle(receipts(&[0, 1], &[2, 3]), &[], &[false, true]), (lost(2), 0));
    assert_eq!(settle(receipts(&[], &[2, 3, 4, 5]), &[], &[true, false]), (lost(2), 0));
}

#[test]
fn what_must_not_happen_is_found() {
    let violations = |receipts, dead: &[u64], cut: &[bool]| settle(receipts, dead, cut).1;
    let quiet = [false, false];
    // Missing, without a cut where it was sent.
    assert_eq!(violations(receipts(&[0], &[3, 4, 5]), &[], &[false, true]), 1);
    assert_eq!(violations(receipts(&[0, 1], &[2, 3]), &[], &[true, false]), 1);
    assert_eq!(violations(receipts(&[], &[2, 3, 4, 5]), &[], &quiet), 1);
    // Twice on one connection; on two; out of order; with a gap.
    assert_eq!(violations(receipts(&[0, 1, 1, 2], &[3, 4, 5]), &[], &quiet), 1);
    assert_eq!(violations(receipts(&[0, 1, 2], &[2, 3, 4, 5]), &[], &quiet), 1);
    assert!(violations(receipts(&[3, 4, 5], &[0, 1, 2]), &[], &[true, true]) > 0);
    assert!(violations(receipts(&[0, 2], &[3, 4, 5]), &[], &[true, true]) > 0);
    // Received, and came back; came back twice.
    assert_eq!(violations(receipts(&[0, 1, 2], &[3, 4, 5]), &[2], &quiet), 1);
    assert_eq!(violations(receipts(&[0, 1, 2], &[4, 5]), &[3, 3], &quiet), 1);
    // Damaged.
    let mut receipts = receipts(&[0, 1, 2], &[3, 4, 5]);
    receipts.receive(2, None);
    assert_eq!(violations(receipts, &[], &quiet), 1);
}

#[test]
fn each_rule_is_held() {
    let tally = Tally { accepted: 10, written: 8, dead_lettered: 2, held: 0, reconnects: 1 };
    let good = || {
        let mut books = Books { messages: 10, sent: 10, letters: 2, tally, ..Books::default() };
        (books.receipts.received, books.losses.messages) = (7, 1);
        books
    };
    assert!(good().broken_rules().is_empty());
    let breaks: [fn(&mut Books); 9] = [
        |books| books.messages += 1,
        |books| books.sent -= 1,
        |books| (books.tally.held, books.tally.written) = (1, 7),
        |books| books.tally.written -= 1,
        |books| books.receipts.received -= 1,
        |books| books.letters -= 1,
        |books| books.ends.rejected += 1,
        |books| books.faults = 1,
        |books| books.violations.push(String::new()),
    ];
    for (at, break_it) in breaks.iter().enumerate() {
        let mut books = good();
        break_it(&mut books);
        assert!(!books.broken_rules().is_empty(), "the break at {at} was not found");
    }
}
