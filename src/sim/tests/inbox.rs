//! Who waits for room in an inbox: that they are let in, in turn, however the room comes about.

use std::future::poll_fn;
use std::task::Poll;

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

/// One that gives its room back wakes one; the room may do for the next as well.
#[test]
fn who_is_let_into_an_inbox_lets_in_who_comes_next() {
    let (sender, _receiver) = inbox(ROOM, None);
    let all = reserve(sender.clone(), ROOM).now_or_never().expect("there is room");
    let mut first = Waiting::new(reserve(sender.clone(), ITEM));
    let mut second = Waiting::new(reserve(sender, ITEM));
    drop(all);
    assert!(second.poll_if_called().is_pending(), "it is not its turn");
    let _share = granted(first.poll_if_called());
    granted(second.poll_if_called());
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
