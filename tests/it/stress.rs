//! Short runs of the stress, each in a process of its own, whose logger, panic hook and books it takes; and books that are
//! wrong, which it must find.

// To print is what it is for. What it can leave out is for whoever looks for a fault.
#[allow(clippy::print_stdout, clippy::print_stderr, clippy::duplicate_mod, dead_code, unused_imports)]
#[path = "../../examples/stress/mod.rs"]
mod program;

use buffstreams::Bytes;
use fastrand::Rng;
use program::Settings;
use program::books::{Books, Producer, Receiver, violations};

use crate::net::alone;

fn holds(settings: Settings) {
    let report = program::run(settings);
    assert!(report.broken.is_empty(), "{settings}\n{report}\n{:#?}", report.broken);
}

#[test]
fn panics_drops_closes_and_dials_at_once_do_no_harm() {
    alone("stress::panics_drops_closes_and_dials_at_once_do_no_harm", "", || {
        holds(Settings { seed: 1, seconds: 4, soak: false });
    });
}

#[test]
fn a_mixed_load_leaves_nothing_behind() {
    alone("stress::a_mixed_load_leaves_nothing_behind", "", || {
        holds(Settings { seed: 2, seconds: 4, soak: true });
    });
}

/// How many rules are broken when this is done with two messages of one producer.
fn broken(act: impl FnOnce(&Books, &Producer, &mut Receiver, [&Bytes; 2])) -> usize {
    let (before, books, mut rng) = (violations().len(), Books::default(), Rng::with_seed(1));
    let producer = books.producer(1);
    let [(0, first), (1, second)] = [(); 2].map(|()| producer.next(&books, &mut rng)) else { panic!("not in order") };
    act(&books, &producer, &mut Receiver::default(), [&first, &second]);
    violations().len() - before
}

#[test]
fn a_message_with_two_ends_is_found() {
    alone("stress::a_message_with_two_ends_is_found", "", || {
        let none = broken(|books, producer, receiver, [first, second]| {
            receiver.receive(books, 1, second);
            producer.unsent(0, "a test");
            receiver.look(books, 2, first);
        });
        assert_eq!(none, 0);
        // Twice, on one connection, where it is out of order as well, and on two; not in order.
        let twice = |connection| {
            broken(|books, _, receiver, [first, _]| {
                receiver.receive(books, 1, first);
                receiver.receive(books, connection, first);
            })
        };
        assert_eq!((twice(1), twice(2)), (2, 1));
        let disorder = broken(|books, _, receiver, [first, second]| {
            receiver.receive(books, 1, second);
            receiver.receive(books, 1, first);
        });
        assert_eq!(disorder, 1);
        // Received, and came back; the other way round; came back twice.
        let received = broken(|books, producer, receiver, [first, _]| {
            receiver.receive(books, 1, first);
            producer.unsent(0, "a test");
        });
        let unsent = broken(|books, producer, receiver, [first, _]| {
            producer.unsent(0, "a test");
            receiver.receive(books, 1, first);
        });
        let back = broken(|_, producer, _, [_, second]| {
            producer.unsent(1, "a test");
            producer.came_back(second, "a test");
        });
        assert_eq!((received, unsent, back), (1, 1, 1));
        // Damaged, and cut.
        let damaged = broken(|books, _, receiver, [first, _]| {
            let mut damaged = first.to_vec();
            *damaged.last_mut().unwrap() ^= 1;
            receiver.receive(books, 1, &damaged);
            receiver.receive(books, 1, &first[..first.len() - 1]);
            receiver.receive(books, 1, b"");
        });
        assert_eq!(damaged, 3);
    });
}
