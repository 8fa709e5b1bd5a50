//! A reader that is lent to the consumer: time limits are kept, the end is noticed, and the order stays.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncWriteExt;
use futures::{FutureExt, StreamExt};

use crate::framed::{Batch, Reader};
use crate::listener::{Loan, Loaned};
use crate::observe::{Event, Events, Reason};
use crate::runtime::Handle;
use crate::sim::testing::{self, Acceptor};
use crate::sim::testing::{Sim, elapsed, plant};
use crate::wire::{Decoder, Encoder};
use crate::{Address, Config, Error, Limit, Listener, WireFormat};

const LIMIT: Duration = Duration::from_millis(7_013);
/// How much later than without a loan the end of a peer may be noticed, when nobody asks for its messages.
const LATER: Duration = Duration::from_millis(50);
/// What one read brings of these is worth lending for.
const BURST: u64 = 400;

fn config() -> Config {
    Config::new().wire_format(WireFormat::u32_be()).frame_timeout(LIMIT).idle_timeout(None)
}

fn roomy(seed: Option<u64>) -> Sim {
    Sim { capacity: 1 << 20, seed, traced: false }
}

/// Frames of 104 bytes, with these numbers.
fn frames(numbers: std::ops::Range<u64>) -> Vec<u8> {
    let encoder = Encoder::new(WireFormat::u32_be(), 4096).unwrap();
    let mut wire = Vec::new();
    for number in numbers {
        let mut message = number.to_be_bytes().to_vec();
        message.resize(100, 0);
        encoder.encode(&message, &mut wire).unwrap();
    }
    wire
}

fn number(message: &Bytes) -> u64 {
    u64::from_be_bytes(*message.first_chunk().unwrap())
}

async fn disconnected(events: &mut Events<Event>) -> Reason {
    loop {
        if let Event::Disconnected { reason, .. } = events.next().await.unwrap() {
            return reason;
        }
    }
}

#[test]
fn a_frame_that_drips_in_behind_a_burst_is_ended_at_its_deadline() {
    roomy(None).run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
        let _receiving = testing::spawn(async move { while listener.next().await.is_some() {} });
        let mut peer = testing::dial(&address, &config()).await.unwrap();
        peer.write_all(&frames(0..BURST)).await.unwrap();
        let _dripping = testing::spawn(async move {
            peer.write_all(&[0, 0, 1, 0]).await.unwrap();
            while peer.write_all(&[7]).await.is_ok() {
                testing::sleep(Duration::from_millis(40)).await;
            }
        });
        let reason = disconnected(&mut events).await;
        assert!(matches!(reason, Reason::Timeout { what: Limit::FrameTimeout, after: LIMIT }), "{reason:?}");
        assert_eq!(elapsed(), LIMIT);
    });
}

#[test]
fn time_limits_shorter_than_a_loan_are_kept_to_the_moment() {
    const SHORT: Duration = Duration::from_millis(21);
    const PAUSE: Duration = Duration::from_millis(13);
    for (config, last, what) in [
        (config().frame_timeout(SHORT), &[0, 0, 1, 0][..], Limit::FrameTimeout),
        (config().idle_timeout(SHORT), &[0, 0, 0, 1, 7], Limit::IdleTimeout),
    ] {
        roomy(None).run(async {
            let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
            let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
            let _receiving = testing::spawn(async move { while listener.next().await.is_some() {} });
            let mut peer = testing::dial(&address, &config).await.unwrap();
            // From the second on, who sends alone is read by the consumer.
            for _ in 0..4 {
                peer.write_all(&[0, 0, 0, 1, 7]).await.unwrap();
                testing::sleep(PAUSE).await;
            }
            peer.write_all(last).await.unwrap();
            let reason = disconnected(&mut events).await;
            assert!(matches!(reason, Reason::Timeout { what: found, after: SHORT } if found == what), "{reason:?}");
            assert_eq!(elapsed(), 4 * PAUSE + SHORT, "{what}");
        });
    }
}

/// The consumer meets the start of a frame that only the task has room for.
#[test]
fn a_large_frame_that_begins_with_the_consumer_has_its_whole_time() {
    const SHORT: Duration = Duration::from_millis(60);
    const PAUSE: Duration = Duration::from_millis(49);
    roomy(None).run(async {
        let config = config().frame_timeout(SHORT).max_message_size(1 << 20);
        let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
        let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
        let _receiving = testing::spawn(async move { while listener.next().await.is_some() {} });
        let mut peer = testing::dial(&address, &config).await.unwrap();
        for _ in 0..4 {
            peer.write_all(&[0, 0, 0, 1, 7]).await.unwrap();
            testing::sleep(PAUSE).await;
        }
        peer.write_all(&100_000_u32.to_be_bytes()).await.unwrap();
        let reason = disconnected(&mut events).await;
        assert!(matches!(reason, Reason::Timeout { what: Limit::FrameTimeout, after: SHORT }), "{reason:?}");
        assert_eq!(elapsed(), 4 * PAUSE + SHORT);
    });
}

#[test]
fn the_end_of_a_peer_is_noticed_though_nobody_asks_for_its_messages() {
    roomy(None).run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
        let mut peer = testing::dial(&address, &config()).await.unwrap();
        peer.write_all(&frames(0..BURST)).await.unwrap();
        listener.next().await.unwrap();
        drop(peer);
        assert!(matches!(disconnected(&mut events).await, Reason::Closed));
        assert!(elapsed() <= LATER, "{:?}", elapsed());
        // What it sent is all there.
        for expected in 1..BURST {
            assert_eq!(number(&listener.next().await.unwrap().1), expected);
        }
    });
}

#[test]
fn a_consumer_that_comes_and_goes_gets_everything_in_order() {
    for seed in 0..300 {
        let received = roomy(Some(seed)).run(async {
            let mut listener = Listener::bind("127.0.0.1:0", config().inbox_bytes(300 << 10)).await.unwrap();
            let address = Address::from(listener.local_addr());
            let mut peer = testing::dial(&address, &config()).await.unwrap();
            let _sending = testing::spawn(async move {
                let mut next = 0;
                for burst in [400, 1, 3_000, 170, 2_000, 5, 900, 400] {
                    peer.write_all(&frames(next..next + burst)).await.unwrap();
                    next += burst;
                    testing::sleep(Duration::from_millis(seed % 7 * 11)).await;
                }
            });
            let mut random = fastrand::Rng::with_seed(seed);
            let mut received = Vec::new();
            while let Some((_, message)) = listener.next().await {
                received.push(number(&message));
                match random.u32(0..200) {
                    0 => testing::sleep(Duration::from_millis(random.u64(0..130))).await,
                    1 => testing::yield_now().await,
                    // A wait for the next message that is given up.
                    2 => drop(testing::within(Some(Duration::ZERO), std::future::pending::<()>()).await),
                    _ => {}
                }
                if received.len() == 6_876 {
                    break;
                }
            }
            received
        });
        assert!(received.iter().copied().eq(0..6_876), "out of order with seed {seed}");
    }
}

/// The reader is of no use to a consumer for a frame that is larger than a read: the task goes on with it.
#[test]
fn a_large_frame_behind_a_burst_is_received() {
    roomy(None).run(async {
        let config = config().max_message_size(1 << 20);
        let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
        let address = Address::from(listener.local_addr());
        let mut peer = testing::dial(&address, &config).await.unwrap();
        let mut wire = frames(0..BURST);
        let large = vec![9; 500_000];
        Encoder::new(WireFormat::u32_be(), 1 << 20).unwrap().encode(&large, &mut wire).unwrap();
        wire.extend(frames(0..BURST));
        let _sending = testing::spawn(async move {
            peer.write_all(&wire).await.unwrap();
            testing::sleep(LIMIT).await;
        });
        let mut received = Vec::new();
        for _ in 0..2 * BURST + 1 {
            received.push(listener.next().await.unwrap().1);
        }
        assert!(received[BURST as usize] == large);
        let decoder = Decoder::new(WireFormat::u32_be(), 4096).unwrap();
        let mut expected = Bytes::from(frames(0..BURST));
        for message in &received[BURST as usize + 1..] {
            assert_eq!(Some(message.clone()), decoder.decode(&mut expected).unwrap());
        }
    });
}

/// Between the two, the consumer has a batch to take that it does not know of. It takes two threads to get there.
#[test]
fn who_was_lent_a_reader_once_cannot_use_it_when_it_is_lent_again() {
    roomy(None).run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let stream = testing::dial(&listener.local_addr().into(), &config()).await.unwrap();
        let loan = Loan::default();
        let first =
            loan.lend(Box::new(Reader::with(stream, Decoder::with(config().codec().unwrap()))), &Handle::default());
        let Some(Ok(reader)) = loan.revoke() else { panic!("it was out") };
        let second = loan.lend(reader, &Handle::default());
        assert!(matches!(
            futures::poll!(poll_fn(|cx| loan.poll_batch(first, &Handle::default(), cx, drop))),
            Poll::Ready(Loaned::Back)
        ));
        loan.give_back(first);
        assert!(loan.take_back().is_none());
        assert!(futures::poll!(poll_fn(|cx| loan.poll_batch(second, &Handle::default(), cx, drop))).is_pending());
        loan.give_back(second);
        assert!(matches!(loan.take_back(), Some(Ok(_))));
    });
}

/// Only its task has a share of the inbox for it: a frame that comes slowly would grow with the consumer, beside the budget.
#[test]
fn a_large_frame_that_begins_with_the_consumer_goes_back_to_its_task_at_once() {
    roomy(None).run(async {
        let config = config().max_message_size(1 << 20);
        let (acceptor, addr) = Acceptor::bind(&"127.0.0.1:0".into()).await.unwrap();
        let mut peer = testing::dial(&addr.into(), &config).await.unwrap();
        let (stream, _) = acceptor.accept(&config).await.unwrap();
        let loan = Loan::default();
        let reader = Box::new(Reader::with(stream, Decoder::with(config.codec().unwrap())));
        let lent = loan.lend(reader, &Handle::default());
        peer.write_all(&100_000_u32.to_be_bytes()).await.unwrap();
        let polled = futures::poll!(poll_fn(|cx| loan.poll_batch(lent, &Handle::default(), cx, drop)));
        assert_eq!(polled, Poll::Ready(Loaned::Back));
        // What comes of it now is not read by the consumer.
        peer.write_all(&[7; 70_000]).await.unwrap();
        let polled = futures::poll!(poll_fn(|cx| loan.poll_batch(lent, &Handle::default(), cx, drop)));
        assert_eq!(polled, Poll::Ready(Loaned::Back));
        let Some(Ok(reader)) = loan.take_back() else { panic!("it is back") };
        assert_eq!(reader.received(), 4);
    });
}

/// What the consumer's reading calls comes back here: its waker, and those who wait for room in the inbox. Whoever wants the
/// reader meanwhile gets it afterwards, and the batch is the consumer's. It takes two threads to get there otherwise.
#[test]
fn a_reader_that_is_in_use_can_be_asked_for() {
    roomy(None).run(async {
        let (acceptor, addr) = Acceptor::bind(&"127.0.0.1:0".into()).await.unwrap();
        let mut peer = testing::dial(&addr.into(), &config()).await.unwrap();
        let (stream, _) = acceptor.accept(&config()).await.unwrap();
        let reader = |stream| Box::new(Reader::with(stream, Decoder::with(config().codec().unwrap())));
        for ends in [false, true] {
            let loan = Loan::default();
            let lent = loan.lend(reader(stream.clone()), &Handle::default());
            peer.write_all(&frames(0..BURST)).await.unwrap();
            let ask = |batch: Batch| {
                assert!(loan.take_back().is_none());
                let asked = if ends { loan.end() } else { loan.revoke() };
                assert!(asked.is_none());
                assert!(loan.quiet_since().is_some());
                assert_eq!(batch.messages, 400);
            };
            let polled = futures::poll!(poll_fn(|cx| loan.poll_batch(lent, &Handle::default(), cx, ask)));
            assert_eq!(polled, Poll::Ready(Loaned::Last), "the batch is there, and nothing else");
            assert!(matches!(
                futures::poll!(poll_fn(|cx| loan.poll_batch(lent, &Handle::default(), cx, drop))),
                Poll::Ready(Loaned::Back)
            ));
            loan.give_back(lent);
            assert_eq!(loan.take_back().is_some_and(|back| back.is_ok()), !ends);
        }
    });
}

#[test]
fn a_consumer_that_panics_while_it_reads_costs_the_connection_and_not_its_task() {
    roomy(None).run(async {
        let (acceptor, addr) = Acceptor::bind(&"127.0.0.1:0".into()).await.unwrap();
        let _peer = testing::dial(&addr.into(), &config()).await.unwrap();
        let (stream, _) = acceptor.accept(&config()).await.unwrap();
        let loan = Loan::default();
        let lent =
            loan.lend(Box::new(Reader::with(stream, Decoder::with(config().codec().unwrap()))), &Handle::default());
        plant("read");
        let polled =
            AssertUnwindSafe(poll_fn(|cx| loan.poll_batch(lent, &Handle::default(), cx, drop))).catch_unwind().await;
        assert!(polled.is_err());
        assert!(matches!(loan.take_back(), Some(Err(Error::Read(_)))));
    });
}
