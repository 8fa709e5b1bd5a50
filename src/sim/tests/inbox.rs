//! Who waits for room in an inbox: that they are let in, in turn, however the room comes about.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use futures::FutureExt;

use super::waits::Waiting;
use crate::queue::{ITEM, Sender, Share, inbox};

const ROOM: usize = 4 * ITEM;

async fn reserve(mut sender: Sender<u8>, bytes: usize) -> Share {
    poll_fn(|cx| sender.poll_reserve(bytes, cx)).await
}

#[track_caller]
fn granted<T>(polled: Poll<T>) -> T {
    let Poll::Ready(share) = polled else { panic!("it still waits") };
    share
}

/// Nobody has to come for what was granted before others are let in: on a busy machine that takes its time.
#[test]
fn room_that_is_given_back_lets_in_all_for_whom_it_does() {
    let (sender, receiver) = inbox(ROOM, None);
    let all = reserve(sender.clone(), ROOM).now_or_never().expect("there is room");
    let waiting = |bytes| Waiting::new(reserve(sender.clone(), bytes));
    let (mut first, mut second, mut large) = (waiting(ITEM), waiting(ITEM), waiting(3 * ITEM));
    let mut behind = waiting(ITEM);
    drop(all);
    let second_share = granted(second.poll_if_called());
    assert!(large.poll_if_called().is_pending(), "there is not room enough");
    assert!(behind.poll_if_called().is_pending(), "it is not its turn");
    assert!(reserve(sender.clone(), ITEM).now_or_never().is_none(), "it is not its turn either");
    assert!(receiver.reserve(ITEM).is_none());
    drop(second_share);
    let large_share = granted(large.poll_if_called());
    assert!(behind.poll_if_called().is_pending(), "what was granted is kept");
    let first_share = granted(first.poll_if_called());
    drop(first_share);
    granted(behind.poll_if_called());
    drop(large_share);
    assert!(receiver.reserve(ROOM).is_some(), "nothing is held any more");
}

#[test]
fn what_was_granted_to_one_who_leaves_an_inbox_or_needs_more_is_for_those_behind() {
    let (sender, receiver) = inbox(ROOM, None);
    for leaves in [false, true] {
        let all = reserve(sender.clone(), ROOM).now_or_never().expect("there is room");
        let mut sends = sender.clone();
        let mut poll = |bytes| sends.poll_reserve(bytes, &mut Context::from_waker(Waker::noop()));
        assert!(poll(ITEM).is_pending());
        let mut behind = Waiting::new(reserve(sender.clone(), ROOM));
        drop(all);
        assert!(behind.poll_if_called().is_pending(), "some was granted to the first");
        if leaves {
            sends.leave();
        } else {
            assert!(poll(2 * ITEM).is_pending(), "it waits anew");
        }
        granted(behind.poll_if_called());
        drop(sends);
        assert!(receiver.reserve(ROOM).is_some(), "nothing is held any more");
    }
}

#[test]
fn who_needs_less_of_an_inbox_than_was_granted_leaves_the_rest_to_those_behind() {
    let (sender, receiver) = inbox(ROOM, None);
    let all = reserve(sender.clone(), ROOM).now_or_never().expect("there is room");
    let mut sends = sender.clone();
    let mut poll = |bytes| sends.poll_reserve(bytes, &mut Context::from_waker(Waker::noop()));
    assert!(poll(ROOM).is_pending());
    let mut behind = Waiting::new(reserve(sender, 3 * ITEM));
    drop(all);
    let share = granted(poll(ITEM));
    assert_eq!(share.bytes(), ITEM);
    drop(granted(behind.poll_if_called()));
    drop(share);
    assert!(receiver.reserve(ROOM).is_some(), "nothing is held any more");
}

#[test]
fn who_needs_another_amount_of_an_inbox_before_any_was_granted_keeps_its_place() {
    let (sender, receiver) = inbox(ROOM, None);
    let half = reserve(sender.clone(), 2 * ITEM).now_or_never().expect("there is room");
    let mut sends = sender.clone();
    let mut poll = |bytes| sends.poll_reserve(bytes, &mut Context::from_waker(Waker::noop()));
    assert!(poll(3 * ITEM).is_pending());
    let mut behind = Waiting::new(reserve(sender, 3 * ITEM));
    assert!(poll(ROOM).is_pending(), "it needs more");
    assert!(behind.poll_if_called().is_pending());
    let share = granted(poll(ITEM));
    assert!(behind.poll_if_called().is_pending(), "there is not room enough");
    drop(half);
    drop(granted(behind.poll_if_called()));
    drop(share);
    assert!(receiver.reserve(ROOM).is_some(), "nothing is held any more");
}

/// Its message is larger than what is left, and that of the next is not.
#[test]
fn who_no_longer_waits_for_an_inbox_lets_in_who_comes_next() {
    let (sender, receiver) = inbox(ROOM, None);
    let _half = reserve(sender.clone(), ROOM / 2).now_or_never().expect("there is room");
    let large = Waiting::new(reserve(sender.clone(), ROOM));
    assert!(receiver.reserve(ITEM).is_none(), "the consumer does not go before who waits");
    let mut small = Waiting::new(reserve(sender, ITEM));
    drop(large);
    let _share = granted(small.poll_if_called());
    assert!(receiver.reserve(ITEM).is_some());
    assert!(receiver.reserve(ROOM).is_none());
}

/// What is to be read now is thrown away, but the end of each peer is to be noticed.
#[test]
fn nobody_waits_for_an_inbox_whose_consumer_has_gone() {
    let (sender, receiver) = inbox(ROOM, None);
    let _all = reserve(sender.clone(), ROOM).now_or_never().expect("there is room");
    let mut waiting = [(); 2].map(|()| Waiting::new(reserve(sender.clone(), ITEM)));
    drop(receiver);
    let _shares = waiting.each_mut().map(|waiting| granted(waiting.poll_if_called()));
    assert!(sender.send(1, reserve(sender.clone(), ITEM).now_or_never().expect("there is room")).is_err());
}
