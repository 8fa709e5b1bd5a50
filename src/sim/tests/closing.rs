//! How long a listener that is being closed goes on receiving.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::io::AsyncWriteExt;

use crate::observe::{Event, Events, Reason};
use crate::sim::testing;
use crate::sim::testing::{Sim, elapsed};
use crate::{Address, Config, Error, Limit, Listener, Serving, WireFormat};

/// Odd times, that nothing else comes to by chance.
const SILENCE: Duration = Duration::from_millis(503);
const WHOLE: Duration = Duration::from_millis(20_011);
const PIECE: Duration = Duration::from_millis(50);
const ANYWHERE: &str = "127.0.0.1:0";
const LARGE: usize = 2 << 20;

fn config() -> Config {
    let config = Config::new().wire_format(WireFormat::u32_be()).max_message_size(LARGE).frame_timeout(None);
    config.close_timeout(SILENCE).drain_timeout(WHOLE)
}

/// The frame of a large message.
fn large() -> Vec<u8> {
    [&(LARGE as u32).to_be_bytes()[..], &vec![7; LARGE]].concat()
}

/// A listener with a callback that counts bytes, its events, and somebody who is connected.
async fn serving(config: Config) -> (Serving, Events<Event>, testing::Stream, Arc<AtomicUsize>) {
    let listener = Listener::bind(ANYWHERE, config.clone()).await.unwrap();
    let (events, address) = (listener.events(), Address::from(listener.local_addr()));
    let bytes = Arc::new(AtomicUsize::new(0));
    let counting = bytes.clone();
    let serving = listener.serve_in_background(move |_, message| {
        counting.fetch_add(message.len(), Ordering::Relaxed);
        Ok(())
    });
    (serving, events, testing::dial(&address, &config).await.unwrap(), bytes)
}

/// Sends this, a piece at a time, and then nothing.
fn send(mut peer: testing::Stream, wire: Vec<u8>, piece: usize) -> testing::Task {
    testing::spawn(async move {
        for piece in wire.chunks(piece) {
            if peer.write_all(piece).await.is_err() {
                return;
            }
            testing::sleep(PIECE).await;
        }
        std::future::pending().await
    })
}

async fn disconnected(events: &mut Events<Event>) -> Reason {
    loop {
        if let Event::Disconnected { reason, .. } = events.next().await.unwrap() {
            return reason;
        }
    }
}

#[track_caller]
fn assert_timeout(closed: Result<(), Error>, setting: Limit, limit: Duration) {
    assert!(matches!(closed, Err(Error::Timeout { what, after }) if what == setting && after == limit), "{closed:?}");
}

#[test]
fn a_close_receives_a_large_message_that_comes_slowly() {
    Sim::default().run(async {
        let (serving, mut events, peer, bytes) = serving(config()).await;
        let _sending = send(peer, large(), 64 << 10);
        testing::sleep(PIECE / 2).await;
        serving.close().await.unwrap();
        assert_eq!(bytes.load(Ordering::Relaxed), LARGE);
        // It is silent from then on, between two messages.
        assert!(matches!(
            disconnected(&mut events).await,
            Reason::Timeout { what: Limit::CloseTimeout, after: SILENCE }
        ));
        assert_eq!(elapsed(), PIECE * 32 + SILENCE);
    });
}

#[test]
fn a_stream_receives_a_large_message_that_comes_slowly_after_a_close() {
    Sim::default().run(async {
        let mut listener = Listener::bind(ANYWHERE, config()).await.unwrap();
        let peer = testing::dial(&listener.local_addr().into(), &config()).await.unwrap();
        let _sending = send(peer, large(), 64 << 10);
        assert!(testing::within(Some(PIECE / 2), listener.next()).await.is_none());
        listener.close().await.unwrap();
        assert_eq!(listener.next().await.unwrap().1.len(), LARGE);
        assert!(listener.next().await.is_none());
    });
}

#[test]
fn silence_in_the_middle_of_a_message_is_an_error_of_the_close() {
    Sim::default().run(async {
        let (serving, mut events, peer, bytes) = serving(config()).await;
        let _sending = send(peer, large()[..LARGE / 2].to_vec(), 64 << 10);
        testing::sleep(PIECE / 2).await;
        assert_timeout(serving.close().await, Limit::CloseTimeout, SILENCE);
        assert_eq!(elapsed(), PIECE * 15 + SILENCE);
        assert!(matches!(
            disconnected(&mut events).await,
            Reason::Timeout { what: Limit::CloseTimeout, after: SILENCE }
        ));
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_peer_that_drips_is_an_error_of_the_close_when_the_whole_time_is_over() {
    Sim::default().run(async {
        let (serving, mut events, peer, _) = serving(config()).await;
        let _sending = send(peer, large(), 1);
        testing::sleep(PIECE / 2).await;
        assert_timeout(serving.close().await, Limit::DrainTimeout, WHOLE);
        assert_eq!(elapsed(), PIECE / 2 + WHOLE);
        assert!(matches!(disconnected(&mut events).await, Reason::Timeout { what: Limit::DrainTimeout, after: WHOLE }));
    });
}

#[test]
fn a_peer_that_goes_on_with_whole_messages_is_ended_when_the_whole_time_is_over() {
    for in_background in [true, false] {
        Sim::default().run(async {
            let listener = Listener::bind(ANYWHERE, config()).await.unwrap();
            let (closer, address) = (listener.closer(), Address::from(listener.local_addr()));
            let peer = testing::dial(&address, &config()).await.unwrap();
            let _sending = send(peer, [0, 0, 0, 1, 7].repeat(10_000), 5);
            let closed = if in_background {
                let serving = listener.serve_in_background(|_, _| Ok(()));
                testing::sleep(PIECE / 2).await;
                serving.close().await
            } else {
                let served = listener.serve_async(|_, _| async { Ok(()) });
                let (served, closed) = futures::join!(served, async {
                    testing::sleep(PIECE / 2).await;
                    closer.close().await
                });
                closed.unwrap();
                served
            };
            assert_timeout(closed, Limit::DrainTimeout, WHOLE);
            assert_eq!(elapsed(), PIECE / 2 + WHOLE);
            assert!((390..=410).contains(&closer.stats().messages), "{}", closer.stats().messages);
        });
    }
}

#[test]
fn without_a_limit_a_close_takes_as_long_as_somebody_sends() {
    Sim::default().run(async {
        let (serving, _, peer, bytes) = serving(config().drain_timeout(None)).await;
        let _sending = send(peer, large(), 1 << 10);
        testing::sleep(PIECE / 2).await;
        serving.close().await.unwrap();
        assert!(elapsed() > 5 * WHOLE, "{:?}", elapsed());
        assert_eq!(bytes.load(Ordering::Relaxed), LARGE);
    });
}

#[test]
fn what_is_between_two_messages_is_no_error_of_the_close() {
    Sim::default().run(async {
        let (serving, mut events, peer, bytes) = serving(config()).await;
        let _sending = send(peer, vec![0, 0, 0, 1, 7], 5);
        testing::sleep(PIECE).await;
        serving.close().await.unwrap();
        assert_eq!((elapsed(), bytes.load(Ordering::Relaxed)), (PIECE + SILENCE, 1));
        assert!(matches!(disconnected(&mut events).await, Reason::Timeout { what: Limit::CloseTimeout, .. }));
    });
}

/// The limit is one for the peers: what has come is the program's, whenever it takes it.
#[test]
fn what_has_arrived_in_time_is_received_however_slow_the_consumer_is() {
    for closes in [true, false] {
        Sim { capacity: 1 << 20, ..Sim::default() }.run(async {
            // Most of it stays in the connection.
            let mut listener = Listener::bind(ANYWHERE, config().inbox_bytes(1)).await.unwrap();
            let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
            let mut peer = testing::dial(&address, &config()).await.unwrap();
            for _ in 0..200 {
                peer.write_all(&[&[0, 0, 0x0f, 0xfc][..], &[7; 4092]].concat()).await.unwrap();
            }
            let staying = (!closes).then_some(peer);
            listener.next().await.unwrap();
            listener.close().await.unwrap();
            for _ in 1..200 {
                testing::sleep(WHOLE / 20).await;
                assert_eq!(listener.next().await.unwrap().1.len(), 4092);
            }
            assert!(listener.next().await.is_none());
            let reason = disconnected(&mut events).await;
            match reason {
                Reason::Closed if closes => {}
                Reason::Timeout { what: Limit::DrainTimeout, after: WHOLE } if !closes => {}
                other => panic!("{closes} {other:?}"),
            }
            drop(staying);
        });
    }
}
