//! The rules of the receiving end.

use super::super::gaps::Settled::{self, Dropped, Refused, Taken};
use super::super::receiver::Receiver;
use super::super::wire::{Control, Side, Violation, Why};

const WINDOW: u32 = 4096;

fn up(side: Side) -> Receiver {
    let mut receiver = Receiver::new(side, WINDOW);
    receiver.resume(0, 0).unwrap();
    receiver
}

/// A listener's, on its first connection, that has so many messages of 6 bytes.
fn with(frames: u64) -> Receiver {
    let mut receiver = up(Side::Listener);
    receiver.frames(frames, 10 * frames).unwrap();
    receiver
}

fn settle(receiver: &mut Receiver, position: u64, how: Settled) {
    assert!(receiver.settle(position, 1, 10, how), "{position}");
}

fn all(receiver: &mut Receiver) -> Vec<Control> {
    std::iter::from_fn(|| receiver.next(0)).collect()
}

fn refusal(first: u64, count: u32) -> Control {
    Control::Refuse { first, count, why: Why::Refused }
}

/// R2; 49 and 50 of the hostile bytes.
#[test]
fn more_than_the_window_is_a_violation() {
    let mut receiver = up(Side::Listener);
    assert_eq!(receiver.frames(1, 9999), Ok(0), "alone");
    assert_eq!(receiver.frames(1, 4), Err(Violation::Window));
    assert!(receiver.settle(0, 1, 9999, Taken));
    assert_eq!(receiver.frames(2, 4097), Err(Violation::Window), "not alone");
    assert_eq!(receiver.frames(2, 4096), Ok(1));
    assert_eq!(receiver.frames(1, 4), Err(Violation::Window));

    let mut receiver = up(Side::Listener);
    assert_eq!(receiver.frames(1024, 4096), Ok(0), "empty messages count their headers");
    assert_eq!(receiver.frames(1, 4), Err(Violation::Window));
    // One that is kept: the others are settled, and remembered a bit each.
    assert!(receiver.settle(1, 1023, 4092, Taken));
    assert_eq!(receiver.frames(1, 4), Err(Violation::Window), "no sender would: the first is not acknowledged");
    assert!(receiver.words() <= 1024 / 64);
    assert!(receiver.settle(0, 1, 4, Taken));
    assert_eq!(receiver.frames(1024, 4096), Ok(1024));
    assert_eq!(receiver.words(), 0);
}

#[test]
fn an_end_without_a_window_takes_no_messages() {
    let mut receiver = Receiver::new(Side::Dialer, 0);
    receiver.resume(0, 0).unwrap();
    assert_eq!(receiver.frames(1, 4), Err(Violation::Window));
}

/// R3.
#[test]
fn what_came_is_not_acknowledged_before_the_program_took_it() {
    let mut receiver = with(3);
    assert_eq!((receiver.next(0), receiver.due()), (None, None));
    settle(&mut receiver, 0, Taken);
    assert_eq!(all(&mut receiver), [Control::Ack(1)]);
    assert_eq!(receiver.untaken(), (2, 20));
}

/// R4: however much is settled, there is one ACK to write.
#[test]
fn the_acks_are_one_slot() {
    let mut receiver = with(300);
    for position in 0..300 {
        settle(&mut receiver, position, Taken);
    }
    assert_eq!(all(&mut receiver), [Control::Ack(300)]);
}

/// R4: at once, or a millisecond after the last.
#[test]
fn an_ack_is_due_at_once_for_a_quarter_of_the_window_and_else_a_millisecond_after_the_last() {
    let mut receiver = with(300);
    settle(&mut receiver, 0, Taken);
    assert_eq!(receiver.due(), Some(0), "the first");
    assert_eq!(receiver.next(50), Some(Control::Ack(1)));
    assert_eq!(receiver.due(), None);
    settle(&mut receiver, 1, Taken);
    assert_eq!(receiver.due(), Some(51));
    assert!(receiver.settle(2, 101, 1010, Taken));
    assert_eq!(receiver.due(), Some(51), "1020 bytes");
    settle(&mut receiver, 103, Taken);
    assert_eq!(receiver.due(), Some(0), "1030 bytes of 4096");
    assert_eq!(receiver.next(50), Some(Control::Ack(104)));
    receiver.broke();
    settle(&mut receiver, 104, Taken);
    assert_eq!((receiver.due(), receiver.next(60)), (None, None), "there is nobody to tell");
}

/// R7 and R8; 26 to 28 of the hostile bytes.
#[test]
fn a_handshake_with_positions_that_cannot_be_ends_the_session() {
    for (acked, sent) in [(0, 9), (3, 10), (u64::MAX, u64::MAX)] {
        let mut receiver = with(10);
        assert!(receiver.settle(0, 2, 20, Taken));
        receiver.broke();
        assert_eq!(receiver.resume(acked, sent), Err(Violation::Position), "{acked} {sent}");
    }
}

/// R5: what a connection brings after its fence, or after the HELLO of its own end, is not counted.
#[test]
fn a_reader_that_goes_on_after_the_break_brings_nothing() {
    let mut receiver = with(3);
    receiver.broke();
    assert_eq!(receiver.frames(1, 10), Err(Violation::Position));
    assert_eq!(receiver.heartbeat(3, 0), Err(Violation::Position));
    assert_eq!(receiver.close(3), Err(Violation::Position));
    assert_eq!(receiver.received(), 3);
}

/// R10; 41, 42 and 51 of the hostile bytes.
#[test]
fn a_heartbeat_that_cannot_be_is_a_violation() {
    let mut receiver = with(3);
    assert_eq!(receiver.heartbeat(4, 0), Err(Violation::Position));
    assert_eq!(receiver.heartbeat(2, 0), Err(Violation::Position));
    settle(&mut receiver, 0, Taken);
    assert_eq!(receiver.heartbeat(3, 1), Err(Violation::Position), "it was not told yet");
    receiver.next(0).unwrap();
    assert_eq!(receiver.heartbeat(3, 1), Ok(()));
    assert_eq!(receiver.heartbeat(3, 2), Err(Violation::Position));
    // 51: however many come, there is nothing to say.
    for _ in 0..100_000 {
        receiver.heartbeat(3, 1).unwrap();
    }
    assert_eq!((receiver.due(), receiver.next(0)), (None, None));
}

/// R10; 43 to 45 of the hostile bytes.
#[test]
fn what_comes_after_close_and_a_close_elsewhere_are_violations() {
    let mut receiver = with(3);
    assert_eq!(receiver.close(4), Err(Violation::Position));
    assert_eq!(receiver.close(3), Ok(()));
    assert_eq!(receiver.frames(1, 4), Err(Violation::Position));
    assert_eq!(receiver.close(3), Err(Violation::Position));
    receiver.broke();
    receiver.resume(0, 3).unwrap();
    assert_eq!(receiver.frames(1, 4), Err(Violation::Position), "it had ended");
    assert_eq!(receiver.close(3), Ok(()), "each connection says it again");
}

/// R11: the sender would take a refused message for a taken one.
#[test]
fn a_refusal_is_written_before_the_ack_that_passes_it() {
    let mut receiver = with(5);
    settle(&mut receiver, 0, Taken);
    settle(&mut receiver, 1, Refused);
    settle(&mut receiver, 2, Refused);
    settle(&mut receiver, 3, Dropped);
    settle(&mut receiver, 4, Taken);
    let dropped = Control::Refuse { first: 3, count: 1, why: Why::Dropped };
    assert_eq!(all(&mut receiver), [refusal(1, 2), dropped, Control::Ack(5)]);
}

/// R11: what is refused behind a refusal that is written already is one more.
#[test]
fn each_refusal_is_written() {
    let mut receiver = with(4);
    settle(&mut receiver, 0, Refused);
    assert_eq!(all(&mut receiver), [refusal(0, 1), Control::Ack(1)]);
    settle(&mut receiver, 1, Refused);
    settle(&mut receiver, 2, Refused);
    assert_eq!(all(&mut receiver), [refusal(1, 2), Control::Ack(3)]);
    receiver.broke();
    receiver.resume(0, 4).unwrap();
    settle(&mut receiver, 3, Refused);
    assert_eq!(all(&mut receiver), [refusal(0, 1), refusal(1, 3), Control::Ack(4)]);
}

/// R11: it may have been lost with the connection.
#[test]
fn a_refusal_is_written_again_on_a_new_connection() {
    let mut receiver = with(3);
    assert!(receiver.settle(0, 1, 10, Taken) && receiver.settle(1, 1, 10, Refused));
    assert_eq!(all(&mut receiver), [refusal(1, 1), Control::Ack(2)]);
    receiver.broke();
    receiver.resume(0, 3).unwrap();
    assert_eq!(all(&mut receiver), [refusal(1, 1), Control::Ack(2)]);
}

/// R11: nor does the handshake pass it.
#[test]
fn a_handshake_stops_at_a_refusal_that_is_not_confirmed() {
    let mut receiver = with(3);
    assert!(receiver.settle(0, 1, 10, Taken) && receiver.settle(1, 1, 10, Refused) && receiver.settle(2, 1, 10, Taken));
    all(&mut receiver);
    receiver.broke();
    assert_eq!(receiver.taken(), 1);
    receiver.resume(1, 3).unwrap();
    assert_eq!(receiver.taken(), 1);
    assert_eq!(all(&mut receiver), [refusal(1, 1), Control::Ack(3)]);
    assert_eq!(receiver.heartbeat(3, 2), Ok(()));
    assert_eq!(receiver.taken(), 3);
}

/// R11: the sender's HEARTBEAT or HELLO is past it.
#[test]
fn a_confirmed_refusal_is_forgotten() {
    let mut receiver = with(3);
    assert!(receiver.settle(0, 3, 30, Refused));
    all(&mut receiver);
    receiver.heartbeat(3, 2).unwrap();
    receiver.broke();
    receiver.resume(2, 3).unwrap();
    assert_eq!(all(&mut receiver), [refusal(2, 1), Control::Ack(3)]);
    receiver.broke();
    receiver.resume(3, 3).unwrap();
    assert_eq!((all(&mut receiver), receiver.taken()), (vec![], 3));
}

/// R11: the memory of refusals is bounded, and none of them is lost for it.
#[test]
fn with_too_many_refusals_unconfirmed_the_next_waits() {
    let mut receiver = Receiver::new(Side::Listener, 1 << 20);
    receiver.resume(0, 0).unwrap();
    receiver.frames(3000, 30_000).unwrap();
    for n in 0..1500 {
        settle(&mut receiver, 2 * n, Taken);
        settle(&mut receiver, 2 * n + 1, Refused);
    }
    let said = all(&mut receiver);
    assert_eq!(said.len(), 1025);
    assert_eq!(said[1024], Control::Ack(2049), "all up to the refusal after the 1,024th");
    receiver.heartbeat(3000, 2049).unwrap();
    let said = all(&mut receiver);
    assert_eq!((said.len(), said[0]), (477, refusal(2049, 1)));
    assert_eq!(said[476], Control::Ack(3000));
}

/// A dialer's program goes on taking between HELLO and WELCOME.
#[test]
fn a_dialer_has_told_what_its_hello_said_and_no_more() {
    let mut receiver = up(Side::Dialer);
    receiver.frames(4, 40).unwrap();
    receiver.broke();
    assert_eq!(receiver.taken(), 0);
    settle(&mut receiver, 0, Taken);
    receiver.resume(0, 4).unwrap();
    assert_eq!(all(&mut receiver), [Control::Ack(1)]);
}

/// The listener had seen the ACK that passes a refusal; the HEARTBEAT that says so was lost.
#[test]
fn a_dialer_learns_from_the_welcome_that_its_refusal_is_confirmed() {
    let mut receiver = up(Side::Dialer);
    receiver.frames(2, 20).unwrap();
    assert!(receiver.settle(0, 1, 10, Refused));
    all(&mut receiver);
    receiver.broke();
    assert_eq!(receiver.taken(), 0);
    receiver.resume(1, 2).unwrap();
    assert_eq!((all(&mut receiver), receiver.taken()), (vec![], 1));
    assert_eq!(receiver.heartbeat(2, 1), Ok(()));
}

/// R12.
#[test]
fn explicit_acks_come_in_any_order_and_the_lowest_gap_counts() {
    let mut receiver = with(200);
    for position in (1..200).rev() {
        settle(&mut receiver, position, Taken);
        assert_eq!(receiver.next(0), None);
    }
    assert_eq!(receiver.untaken(), (200, 10));
    settle(&mut receiver, 0, Taken);
    assert_eq!(all(&mut receiver), [Control::Ack(200)]);
    assert_eq!(receiver.untaken(), (0, 0));
}

/// A token that is dropped is neither acknowledged nor called refused.
#[test]
fn a_dropped_message_is_told_as_dropped() {
    let mut receiver = with(2);
    settle(&mut receiver, 1, Dropped);
    settle(&mut receiver, 0, Taken);
    let dropped = Control::Refuse { first: 1, count: 1, why: Why::Dropped };
    assert_eq!(all(&mut receiver), [dropped, Control::Ack(2)]);
}

/// R12 and R20.
#[test]
fn each_message_is_settled_once_and_not_after_the_end() {
    let mut receiver = with(100);
    settle(&mut receiver, 0, Taken);
    assert!(!receiver.settle(0, 1, 10, Refused));
    settle(&mut receiver, 70, Refused);
    assert!(!receiver.settle(70, 1, 10, Taken));
    assert!(!receiver.settle(69, 2, 20, Taken), "one of them is");
    assert!(!receiver.settle(100, 1, 10, Taken), "it never came");
    assert!(!receiver.settle(u64::MAX, 2, 10, Taken));
    assert!(!receiver.settle(1, 0, 0, Taken));
    assert_eq!(receiver.untaken(), (99, 980));
    receiver.end();
    assert!(!receiver.settle(1, 1, 10, Refused));
    assert_eq!((receiver.due(), receiver.next(0)), (None, None));
}

/// R14: a tombstone has positions only, and would take what was refused for taken.
#[test]
fn a_direction_is_not_over_while_a_refusal_is_unconfirmed() {
    let mut receiver = with(2);
    receiver.close(2).unwrap();
    assert!(receiver.settle(0, 2, 20, Refused));
    all(&mut receiver);
    assert!(receiver.is_told() && !receiver.is_over());
    receiver.heartbeat(2, 2).unwrap();
    assert!(receiver.is_over());
}

/// R14.
#[test]
fn a_direction_is_over_when_its_last_ack_is_written() {
    let mut receiver = with(2);
    receiver.close(2).unwrap();
    assert!(!receiver.is_over());
    assert!(receiver.settle(0, 2, 20, Taken));
    assert!(!receiver.is_over());
    all(&mut receiver);
    assert!(receiver.is_over());

    let mut receiver = Receiver::tombstone(Side::Listener, WINDOW, 2);
    assert_eq!(receiver.resume(0, 1), Err(Violation::Position));
    receiver.resume(0, 2).unwrap();
    assert_eq!(receiver.frames(1, 4), Err(Violation::Position));
    assert_eq!((receiver.close(2), receiver.is_over()), (Ok(()), true));
}
