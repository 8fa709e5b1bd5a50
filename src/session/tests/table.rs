//! The rules of the table.

use super::super::end::{End, next_epoch};
use super::super::handshake::{Hello, Positions, SessionId, Status};
use super::super::table::{Key, Sessions, Verdict};
use super::super::wire::Side;
use super::hello;

type Table = Sessions<u32, &'static str>;

fn key(identity: u32, id: u8) -> Key<u32> {
    Key { identity, id: SessionId::new([id; 16]).unwrap() }
}

fn new(key: &Key<u32>) -> Hello {
    Hello { id: key.id, ..hello() }
}

fn resume(key: &Key<u32>, epoch: u32) -> Hello {
    Hello { resume: true, epoch, ..new(key) }
}

/// A table of three, in which so many are, each with a connection.
fn table(sessions: u8) -> Table {
    let mut table = Sessions::new(3, 100);
    for id in 1..=sessions {
        add(&mut table, id);
    }
    table
}

fn add(table: &mut Table, id: u8) {
    let key = key(0, id);
    assert!(matches!(table.hello(&key, &new(&key), 0), Verdict::New { .. }));
    table.insert(key, 1, 1000, "it");
}

fn ends(table: &mut Table, now: u64) -> Vec<Key<u32>> {
    std::iter::from_fn(|| table.expire(now).map(|(key, _)| key)).collect()
}

/// R7; 22 of the hostile bytes.
#[test]
fn a_session_that_is_not_there_cannot_be_resumed() {
    let mut table = table(0);
    assert_eq!(table.hello(&key(0, 1), &resume(&key(0, 1), 2), 0), Verdict::Refuse(Status::Unknown));
    assert_eq!(table.len(), 0);
}

/// 23 of the hostile bytes: the answer tells nothing.
#[test]
fn the_session_of_another_identity_is_unknown() {
    let mut table = table(1);
    assert!(table.detach(&key(0, 1), 1, 0, 5, 0));
    assert_eq!(table.hello(&key(7, 1), &resume(&key(7, 1), 2), 0), Verdict::Refuse(Status::Unknown));
    assert_eq!(table.hello(&key(0, 1), &resume(&key(0, 1), 2), 0), Verdict::Resume(&mut "it"));
}

/// R5: the old connection is fenced, and until it is detached nobody gets the session.
#[test]
fn a_newer_connection_fences_the_older_before_it_gets_the_session() {
    let mut table = table(1);
    let key = key(0, 1);
    for _ in 0..2 {
        assert_eq!(table.hello(&key, &resume(&key, 3), 0), Verdict::Fence { session: Some(&mut "it"), epoch: 1 });
    }
    assert!(!table.detach(&key, 3, 0, 0, 0), "it has not got it");
    assert!(table.detach(&key, 1, 0, 5, 0));
    assert_eq!(table.hello(&key, &resume(&key, 3), 0), Verdict::Resume(&mut "it"));
    assert!(!table.detach(&key, 1, 0, 9, 0), "the old one has lost it already");
    assert_eq!(table.detached(), 0);
}

/// R6; 24 and 25 of the hostile bytes.
#[test]
fn an_epoch_that_is_not_newer_is_fenced_and_the_session_goes_on() {
    let mut table = table(1);
    let key = key(0, 1);
    assert!(table.detach(&key, 1, 0, 5, 0));
    assert_eq!(table.hello(&key, &resume(&key, 5), 0), Verdict::Resume(&mut "it"));
    for epoch in [1, 4, 5] {
        assert_eq!(table.hello(&key, &resume(&key, epoch), 0), Verdict::Refuse(Status::Fenced), "{epoch}");
    }
    assert!(table.detach(&key, 5, 0, 5, 0), "it is attached as it was");
    assert_eq!(table.hello(&key, &resume(&key, 5), 0), Verdict::Refuse(Status::Fenced), "nor without a connection");
    assert_eq!((next_epoch(5), next_epoch(u32::MAX)), (Some(6), None));
}

/// A listener asks before it disturbs the task of a session.
#[test]
fn a_session_is_known_to_those_who_may_have_it_and_stays_as_it_is() {
    let mut table = table(1);
    let (key, other) = (key(0, 1), key(0, 2));
    for _ in 0..2 {
        assert_eq!(table.known(&key, &resume(&key, 2)), Some(Ok(&"it")), "with or without a connection");
        assert_eq!(table.known(&key, &resume(&key, 1)), Some(Err(Status::Fenced)));
        assert_eq!(table.known(&key, &Hello { epoch: 2, ..new(&key) }), Some(Err(Status::Unknown)));
        assert_eq!(table.known(&other, &resume(&other, 2)), None);
        table.detach(&key, 1, 0, 5, 0);
    }
    assert_eq!(table.detached(), 1);
    assert_eq!(table.hello(&key, &resume(&key, 2), 0), Verdict::Resume(&mut "it"));
    table.bury(&key, 2, 0, Positions::default());
    assert_eq!((table.known(&key, &resume(&key, 3)), table.find(&key)), (None, None), "no more than its end");
}

/// R7: a HELLO for a new session that comes late finds that session, or makes one that nobody comes back to.
#[test]
fn a_session_that_is_there_is_not_made_again() {
    let mut table = table(1);
    let key = key(0, 1);
    let again = |epoch| Hello { epoch, ..new(&key) };
    assert_eq!(table.hello(&key, &again(1), 0), Verdict::Refuse(Status::Fenced));
    assert_eq!(table.hello(&key, &again(2), 0), Verdict::Refuse(Status::Unknown), "and has its connection still");
    assert!(table.detach(&key, 1, 0, 0, 0));
    assert_eq!(table.hello(&key, &again(2), 0), Verdict::Refuse(Status::Unknown));
    assert_eq!(table.hello(&key, &resume(&key, 2), 0), Verdict::Resume(&mut "it"), "as it was");
}

/// R14: the peer whose last connection broke before it saw the last ACK finds its positions.
#[test]
fn what_is_over_but_was_not_ended_with_fin_is_remembered() {
    let mut table = table(1);
    let key = key(0, 1);
    let positions = Positions { acked: 4, sent: 4, received: 9, taken: 9 };
    assert_eq!(table.bury(&key, 2, 0, positions), None, "another connection's");
    assert_eq!(table.bury(&key, 1, 0, positions), Some("it"));
    assert_eq!(table.hello(&key, &resume(&key, 2), 0), Verdict::Tombstone(positions));
    let mut end = End::tombstone(&positions);
    let theirs = Positions { acked: 7, sent: 9, received: 4, taken: 4 };
    assert_eq!(end.resume(&theirs, &hello().terms), Ok(()));
    assert_eq!(end.positions(), positions);
    assert_eq!(table.hello(&key, &resume(&key, 3), 0), Verdict::Fence { session: None, epoch: 2 });
    assert!(table.detach(&key, 2, 10, 9, 0));
    assert_eq!((table.next_end(), table.len()), (Some(1010), 0));
    assert_eq!(ends(&mut table, 1010), [key]);
    assert_eq!(table.len(), 0);
}

/// R17.
#[test]
fn a_session_expires_its_ttl_after_the_last_break() {
    let mut table = table(2);
    assert!(table.detach(&key(0, 2), 1, 50, 5, 0) && table.detach(&key(0, 1), 1, 100, 5, 7));
    assert_eq!(table.next_end(), Some(1050));
    assert_eq!(ends(&mut table, 1049), []);
    let late = table.hello(&key(0, 2), &resume(&key(0, 2), 2), 1050);
    assert_eq!(late, Verdict::Refuse(Status::Unknown), "though nobody has taken it out yet");
    assert!(matches!(table.hello(&key(0, 2), &resume(&key(0, 2), 2), 1049), Verdict::Resume(_)));
    assert!(table.detach(&key(0, 2), 2, 900, 5, 0));
    assert_eq!(ends(&mut table, 1500), [key(0, 1)]);
    assert_eq!(table.hello(&key(0, 1), &resume(&key(0, 1), 2), 0), Verdict::Refuse(Status::Unknown));
    assert_eq!(table.next_end(), Some(1900));
    assert!(table.detach(&key(0, 1), 2, 0, 0, 0).eq(&false), "it is gone");
}

/// 53 of the hostile bytes, and a flood of newcomers: those that have anything stay.
#[test]
fn a_newcomer_costs_no_session_that_has_anything() {
    let mut table = table(3);
    let next = key(0, 9);
    assert_eq!(table.hello(&next, &new(&next), 0), Verdict::Refuse(Status::Busy), "all have connections");
    assert!(table.detach(&key(0, 1), 1, 0, 1, 0) && table.detach(&key(0, 2), 1, 0, 0, 1));
    assert_eq!(table.hello(&next, &new(&next), 0), Verdict::Refuse(Status::Busy), "one received, one holds");
    assert!(table.detach(&key(0, 3), 1, 0, 0, 0));
    let Verdict::New { evicted: Some(evicted) } = table.hello(&next, &new(&next), 0) else { panic!("no room") };
    assert_eq!(evicted, (key(0, 3), Some("it")));
    table.insert(next, 1, 1000, "next");
    assert_eq!(table.len(), 3);
    assert_eq!(table.hello(&key(0, 2), &resume(&key(0, 2), 2), 0), Verdict::Resume(&mut "it"));
}

#[test]
fn the_oldest_tombstone_goes_first_and_then_the_oldest_blank() {
    let mut table = table(3);
    assert!(table.detach(&key(0, 2), 1, 0, 0, 0) && table.detach(&key(0, 1), 1, 5, 0, 0));
    assert_eq!(table.bury(&key(0, 3), 1, 9, Positions::default()), Some("it"));
    let mut evicted = Vec::new();
    for id in 4..7 {
        let key = key(0, id);
        let Verdict::New { evicted: Some((gone, _)) } = table.hello(&key, &new(&key), 0) else { panic!("no room") };
        table.insert(key, 1, 1000, "new");
        evicted.push(gone);
    }
    assert_eq!(evicted, [key(0, 3), key(0, 2), key(0, 1)]);
    assert_eq!((table.next_end(), table.detached()), (None, 0));
}

#[test]
fn the_longest_without_a_connection_goes_when_all_hold_too_much() {
    let mut table = table(3);
    assert!(table.detach(&key(0, 3), 1, 0, 9, 0) && table.detach(&key(0, 2), 1, 1, 9, 60));
    assert!(table.detach(&key(0, 1), 1, 2, 9, 30));
    assert_eq!(table.evict(), None);
    table.hold(&key(0, 3), 10);
    assert_eq!(table.evict(), None, "100 of 100");
    table.hold(&key(0, 3), 20);
    assert_eq!(
        table.evict(),
        Some((key(0, 3), Some("it"))),
        "it has been without one for longest, and holds something"
    );
    table.hold(&key(0, 1), 80);
    assert_eq!(table.evict(), Some((key(0, 2), Some("it"))));
    assert_eq!(table.evict(), None);
    assert!(matches!(table.hello(&key(0, 1), &resume(&key(0, 1), 2), 0), Verdict::Resume(_)));
    table.hold(&key(0, 1), 1000);
    assert_eq!(table.evict(), None, "it has a connection");
}

#[test]
fn a_listener_that_closes_lets_come_back_and_nobody_new() {
    let mut table = table(1);
    table.close();
    assert!(table.detach(&key(0, 1), 1, 0, 9, 0));
    assert_eq!(table.hello(&key(0, 2), &new(&key(0, 2)), 0), Verdict::Refuse(Status::Busy));
    assert_eq!(table.hello(&key(0, 1), &resume(&key(0, 1), 2), 0), Verdict::Resume(&mut "it"));
    assert_eq!(table.remove(&key(0, 1)), Some("it"));
}

/// A session is over when both directions are, and what is said goes in order: refusals, ACK, HEARTBEAT, CLOSE.
#[test]
fn both_directions_end_a_session() {
    let mut end = End::new(Side::Dialer, 4096);
    end.resume(&Positions::default(), &hello().terms).unwrap();
    end.sender.rewound(0);
    end.sender.offer(1, 10);
    end.sender.handed();
    end.receiver.frames(1, 10).unwrap();
    end.receiver.settle(0, 1, 10, super::super::gaps::Settled::Refused);
    end.sender.refuse(0, 1, |_| {}).unwrap();
    end.sender.ack(1).unwrap();
    end.sender.finish();
    end.receiver.close(1).unwrap();
    use super::super::wire::{Control, Why};
    let said: Vec<_> = std::iter::from_fn(|| end.next(0, false)).collect();
    let refuse = Control::Refuse { first: 0, count: 1, why: Why::Refused };
    assert_eq!(said, [refuse, Control::Ack(1), Control::Heartbeat { sent: 1, acked: 1 }, Control::Close(1)]);
    assert!(!end.is_over(), "its refusal is not confirmed");
    end.receiver.heartbeat(1, 1).unwrap();
    assert!(end.is_over());
    end.broke();
    assert!(!end.is_over());
}
