//! The rules of the sending end.

use super::super::sender::Sender;
use super::super::wire::{Control, Side, Violation, Why};

const WINDOW: u32 = 1000;

/// On its first connection.
fn up(side: Side) -> Sender {
    let mut sender = Sender::new(side);
    sender.resume(0, 0, WINDOW).unwrap();
    sender.rewound(0);
    sender
}

fn dialer() -> Sender {
    up(Side::Dialer)
}

/// Gives the connection so many frames of so many bytes in all.
fn hand(sender: &mut Sender, frames: u64, bytes: u64) {
    sender.offer(frames, bytes);
    sender.handed();
}

fn in_doubt(sender: &Sender) -> Vec<u64> {
    sender.in_doubt().flatten().collect()
}

fn refuse(sender: &mut Sender, first: u64, count: u32) -> Result<Vec<u64>, Violation> {
    let mut told = Vec::new();
    sender.refuse(first, count, |range| told.extend(range)).map(|()| told)
}

/// R1: nothing goes before the handshake, nor before it is known what is in flight.
#[test]
fn nothing_is_sent_without_a_connection() {
    let mut sender = Sender::new(Side::Dialer);
    assert!(!sender.may_send(4));
    assert_eq!(sender.ack(0), Err(Violation::Position));
    assert_eq!(sender.close(false), None);
    sender.resume(0, 0, WINDOW).unwrap();
    assert!(!sender.may_send(4), "what is in flight is not counted yet");
    sender.rewound(0);
    assert!(sender.may_send(4));
    sender.broke();
    assert!(!sender.may_send(4));
}

/// R2.
#[test]
fn the_window_is_held_and_a_frame_that_is_larger_goes_alone() {
    let mut sender = dialer();
    assert!(sender.may_send(5000), "nothing is in flight");
    hand(&mut sender, 1, 5000);
    assert!(!sender.may_send(4) && sender.room() == 0);
    assert_eq!(sender.ack(1), Ok(1));
    assert!(sender.may_send(5000), "all is acknowledged, and so nothing in flight, before anything was let go");

    hand(&mut sender, 2, 800);
    assert!(sender.may_send(200) && !sender.may_send(201));
    assert_eq!(sender.ack(2), Ok(1));
    assert!(!sender.may_send(201), "whoever holds the bytes has not let go");
    sender.freed(400);
    assert!(sender.may_send(600) && !sender.may_send(601));
    sender.freed(9999);
    assert_eq!(sender.room(), 1000);
}

/// R2: an end that takes no messages.
#[test]
fn nothing_is_sent_to_an_end_without_a_window() {
    let mut sender = Sender::new(Side::Listener);
    sender.resume(0, 0, 0).unwrap();
    sender.rewound(0);
    assert!(!sender.may_send(4));
}

/// R2 over a resume.
#[test]
fn the_window_is_held_in_a_repetition() {
    let mut sender = dialer();
    hand(&mut sender, 9, 900);
    sender.broke();
    // The peer has taken 2 of the 6 that it has: 4 are in its window, and 3 go again.
    sender.resume(2, 6, WINDOW).unwrap();
    sender.rewound(400);
    assert_eq!((sender.repetitions(), sender.room()), (3, 600));
    assert!(sender.may_send(600) && !sender.may_send(601));
    hand(&mut sender, 3, 300);
    assert!(sender.may_send(300) && !sender.may_send(301));
}

/// R3 and R8.
#[test]
fn what_the_peer_has_but_has_not_taken_stays_held() {
    let mut sender = dialer();
    hand(&mut sender, 9, 900);
    sender.broke();
    sender.resume(2, 6, WINDOW).unwrap();
    assert_eq!((sender.acked(), sender.sent()), (2, 9));
    assert_eq!(in_doubt(&sender), [2, 3, 4, 5, 6, 7, 8]);
}

/// R8: it goes on from what the peer has, not from what it has taken.
#[test]
fn what_the_peer_has_is_not_sent_again() {
    let mut sender = dialer();
    hand(&mut sender, 9, 900);
    sender.broke();
    sender.resume(2, 6, WINDOW).unwrap();
    assert_eq!(sender.repetitions(), 3);
    assert_eq!(sender.heartbeat(), Control::Heartbeat { sent: 6, acked: 2 });
}

/// R8; 61 and 62 of the hostile bytes.
#[test]
fn a_handshake_with_positions_that_cannot_be_ends_the_session() {
    for (taken, received) in [(4, 9), (6, 5), (6, 11), (11, 11), (u64::MAX, u64::MAX), (5, u64::MAX)] {
        let mut sender = dialer();
        hand(&mut sender, 10, 100);
        sender.ack(5).unwrap();
        sender.broke();
        assert_eq!(sender.resume(taken, received, WINDOW), Err(Violation::Position), "{taken} {received}");
    }
}

/// A dialer says HELLO before it knows whether its refusals are confirmed.
#[test]
fn a_listener_is_told_no_less_than_it_knows() {
    let mut sender = up(Side::Listener);
    hand(&mut sender, 3, 30);
    refuse(&mut sender, 0, 1).unwrap();
    sender.ack(3).unwrap();
    sender.broke(); // The HEARTBEAT that confirms is lost.
    sender.resume(0, 3, WINDOW).unwrap();
    assert_eq!(sender.acked(), 3);
    sender.broke();
    assert_eq!(sender.resume(0, 2, WINDOW), Err(Violation::Position), "it had 3");
    assert_eq!(sender.resume(4, 3, WINDOW), Err(Violation::Position), "more than it has");
}

/// R9.
#[test]
fn what_an_earlier_connection_carried_is_in_doubt_as_well() {
    let mut sender = dialer();
    hand(&mut sender, 5, 50);
    sender.broke();
    sender.resume(0, 0, WINDOW).unwrap();
    sender.rewound(0);
    hand(&mut sender, 1, 10);
    assert_eq!(in_doubt(&sender), [0, 1, 2, 3, 4]);
    refuse(&mut sender, 0, 1).unwrap();
    assert_eq!(in_doubt(&sender), [1, 2, 3, 4], "a refused one has its end");
}

/// R9: only what was never sent can expire.
#[test]
fn a_message_that_an_earlier_connection_carried_does_not_expire() {
    let mut sender = dialer();
    hand(&mut sender, 5, 50);
    sender.broke();
    assert_eq!(sender.sent(), 5);
    sender.resume(0, 0, WINDOW).unwrap();
    sender.rewound(0);
    hand(&mut sender, 1, 10);
    assert_eq!(sender.sent(), 5);
}

/// R9: only what was never sent may go to the next session.
#[test]
fn only_what_was_never_sent_moves_to_another_session() {
    let mut sender = dialer();
    hand(&mut sender, 5, 50);
    sender.ack(2).unwrap();
    sender.broke();
    assert_eq!(sender.sent(), 5);
    assert_eq!(in_doubt(&sender), [2, 3, 4]);
}

/// R10; 36, 37 of the hostile bytes.
#[test]
fn acknowledging_what_was_not_sent_or_less_than_before_is_a_violation() {
    let mut sender = dialer();
    hand(&mut sender, 5, 50);
    assert_eq!(sender.ack(u64::MAX), Err(Violation::Position));
    assert_eq!(sender.ack(6), Err(Violation::Position));
    assert_eq!(sender.ack(5), Ok(5));
    assert_eq!(sender.ack(4), Err(Violation::Position));
    assert_eq!(sender.ack(5), Ok(0));
    // What an earlier connection carried, but not yet this one, cannot be acknowledged here.
    hand(&mut sender, 5, 50);
    sender.broke();
    sender.resume(5, 6, WINDOW).unwrap();
    sender.rewound(10);
    assert_eq!(sender.ack(7), Err(Violation::Position));
    assert_eq!(refuse(&mut sender, 6, 1), Err(Violation::Position));
}

/// R10; 38, 39 of the hostile bytes.
#[test]
fn refusing_what_was_not_sent_or_nothing_is_a_violation() {
    let mut sender = dialer();
    hand(&mut sender, 5, 50);
    sender.ack(2).unwrap();
    for (first, count) in [(2, 0), (u64::MAX, u32::MAX), (1, 1), (5, 1), (4, 2)] {
        assert_eq!(refuse(&mut sender, first, count), Err(Violation::Position), "{first} {count}");
    }
    assert_eq!(refuse(&mut sender, 2, 3), Ok(vec![2, 3, 4]));
}

/// R3 and R11: it comes back once, stays held until an ACK passes it, and then the peer is told.
#[test]
fn a_refusal_is_told_once_and_confirmed() {
    let mut sender = dialer();
    hand(&mut sender, 6, 60);
    assert_eq!(refuse(&mut sender, 2, 1), Ok(vec![2]));
    assert_eq!(refuse(&mut sender, 1, 3), Ok(vec![1, 3]), "the others for the first time");
    assert_eq!(sender.acked(), 0);
    assert_eq!(sender.confirm(), None);
    sender.ack(1).unwrap();
    assert_eq!(sender.confirm(), None, "it passed none");
    sender.ack(3).unwrap();
    assert_eq!(sender.confirm(), Some(Control::Heartbeat { sent: 6, acked: 3 }));
    assert_eq!(sender.confirm(), None);
    sender.broke();
    sender.resume(3, 6, WINDOW).unwrap();
    sender.rewound(0);
    assert_eq!(refuse(&mut sender, 3, 1), Ok(vec![]), "a new connection says it again");
    assert_eq!(in_doubt(&sender), [4, 5]);
    let dropped = Control::Refuse { first: 4, count: 1, why: Why::Dropped };
    assert_ne!(dropped.encode()[..], Control::Refuse { first: 4, count: 1, why: Why::Refused }.encode()[..]);
}

/// The memory of refusals is bounded: no receiver keeps as many unconfirmed.
#[test]
fn a_peer_that_refuses_in_too_many_pieces_is_a_violation() {
    let mut sender = dialer();
    hand(&mut sender, 10_000, 40_000);
    for n in 0..2048 {
        assert!(refuse(&mut sender, 2 * n, 1).is_ok());
    }
    assert_eq!(refuse(&mut sender, 9_000, 1), Err(Violation::Position));
}

/// R14.
#[test]
fn close_comes_when_all_is_sent_and_again_after_a_resume() {
    let mut sender = dialer();
    hand(&mut sender, 2, 20);
    assert_eq!(sender.close(false), None, "nobody has finished");
    sender.finish();
    assert_eq!(sender.close(true), None, "there are more");
    hand(&mut sender, 1, 10);
    assert_eq!(sender.close(false), Some(Control::Close(3)));
    assert_eq!(sender.close(false), None, "once");
    assert!(!sender.may_send(4));
    sender.broke();
    sender.resume(0, 2, WINDOW).unwrap();
    sender.rewound(20);
    assert_eq!(sender.close(false), None, "the third is sent again first");
    hand(&mut sender, 1, 10);
    assert_eq!(sender.close(false), Some(Control::Close(3)));
}

/// R14: the end of a connection that has CLOSE is nobody's before all is acknowledged.
#[test]
fn closing_waits_for_the_acks() {
    let mut sender = dialer();
    hand(&mut sender, 3, 30);
    sender.finish();
    assert!(!sender.is_over());
    sender.close(false).unwrap();
    assert!(!sender.is_over());
    sender.ack(2).unwrap();
    assert!(!sender.is_over());
    sender.ack(3).unwrap();
    assert!(sender.is_over());
    assert_eq!(in_doubt(&sender), [0; 0]);
    sender.broke();
    assert!(!sender.is_over(), "the peer has to be told again");
}

/// R15; 66 of the hostile bytes.
#[test]
fn a_drained_session_keeps_what_was_sent_and_takes_nothing_new() {
    let mut sender = dialer();
    hand(&mut sender, 3, 30);
    sender.drain();
    sender.drain();
    assert!(sender.is_draining() && !sender.may_send(4));
    assert_eq!(sender.sent(), 3, "those below stay, whatever is unsent goes to the next session");
    assert_eq!(sender.close(true), Some(Control::Close(3)), "though there are more");
    sender.broke();
    sender.resume(0, 1, WINDOW).unwrap();
    sender.rewound(10);
    assert!(sender.is_draining() && sender.may_send(10), "what was sent is sent again");
    hand(&mut sender, 2, 20);
    assert!(!sender.may_send(4));
    assert_eq!(sender.close(true), Some(Control::Close(3)));
    assert!(!sender.is_over());
    sender.ack(3).unwrap();
    assert!(sender.is_over());
}

/// R13: what the reader of the socket is told.
#[test]
fn a_direction_of_which_something_is_sent_asks_for_acks() {
    let mut sender = dialer();
    assert!(!sender.waits_for_acks(), "nothing is sent");
    hand(&mut sender, 2, 800);
    sender.ack(1).unwrap();
    assert!(sender.waits_for_acks());
    sender.ack(2).unwrap();
    assert!(!sender.waits_for_acks());
}

#[test]
fn what_is_left_of_a_session_has_all_acknowledged() {
    let mut sender = Sender::tombstone(Side::Listener, 7);
    assert_eq!(sender.resume(6, 6, WINDOW), Err(Violation::Position));
    sender.resume(7, 7, WINDOW).unwrap();
    sender.rewound(0);
    assert_eq!(sender.close(false), Some(Control::Close(7)));
    assert!(sender.is_over() && in_doubt(&sender).is_empty());
}
