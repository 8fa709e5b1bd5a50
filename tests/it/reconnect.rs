//! `Config::reconnect`: a peer goes away and comes back, and nobody sees an error; or it does not, and all comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ConstantBuilder};
use buffstreams::{Backoff, Config, Connection, Error, Events, Manager, ManagerEvent, Outcome};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::peers::{Far, SOON, Site, balanced, config, dialed, number, numbered, run, within};

const HOUR: Duration = Duration::from_secs(3600);

/// It tries again every few milliseconds, for as long as it takes.
fn patient() -> Config {
    config().reconnect(Backoff::exponential(Duration::from_millis(1), Duration::from_millis(20)))
}

/// It gives up after so many attempts.
fn attempts(count: usize) -> Config {
    config().reconnect(Backoff::from_fn(move || vec![Duration::from_millis(1); count - 1]))
}

async fn failed_dials(events: &mut Events<ManagerEvent>, count: usize) {
    let failed = events.filter(|event| futures::future::ready(matches!(event, ManagerEvent::DialFailed { .. })));
    within(SOON, "failed dials", failed.take(count).count()).await;
}

/// The peer has gone, and refuses.
async fn gone(site: &Site, far: Far, manager: &Manager) -> Events<ManagerEvent> {
    let mut events = manager.events();
    site.leave();
    drop(far);
    while !matches!(within(SOON, "the break", events.next()).await, Some(ManagerEvent::Broken { .. })) {}
    events
}

#[test]
fn a_peer_that_comes_back_gets_everything_in_order_and_nobody_sees_an_error() {
    run(async {
        let site = Site::new();
        let (manager, far) = dialed(patient(), &site).await;
        let mut events = gone(&site, far, &manager).await;
        let mut sink = manager.sink();
        for n in 0..100 {
            sink.feed((site.addr.into(), numbered(n, 1_000))).await.unwrap();
        }
        let mut flush = Box::pin(sink.flush());
        assert!((&mut flush).now_or_never().is_none());
        let mut write = Box::pin(manager.write(site.addr, numbered(100, 8)));
        assert!((&mut write).now_or_never().is_none());
        failed_dials(&mut events, 5).await;
        assert_eq!(balanced(&manager).held, 101);

        site.come_back();
        let (flushed, written, mut far) = futures::join!(flush, write, site.accept());
        flushed.unwrap();
        written.unwrap();
        for n in 0..101 {
            assert_eq!(number(&far.message().await), n);
        }
        let total = balanced(&manager);
        assert_eq!((total.written, total.dead_lettered, total.held, total.reconnects), (101, 0, 0, 1));
    });
}

#[test]
fn a_connection_goes_on_without_a_word_too() {
    run(async {
        let site = Site::new();
        let (made, far) = futures::join!(Connection::dial(site.addr, patient()), site.accept());
        let mut connection = made.unwrap();
        site.leave();
        drop(far);
        let sending = async {
            for n in 0..100 {
                connection.feed(numbered(n, 1_000)).await.unwrap();
            }
            connection.flush().await.unwrap();
        };
        let coming_back = async {
            site.come_back();
            let mut far = site.accept().await;
            for n in 0..100 {
                assert_eq!(number(&far.message().await), n);
            }
        };
        futures::join!(sending, coming_back);
    });
}

/// It breaks with a frame half written, and again before it has taken one whole.
#[test]
fn a_connection_that_breaks_in_the_middle_is_mended() {
    run(async {
        let site = Site::small();
        let (made, mut far) = futures::join!(Connection::dial(site.addr, patient()), site.accept());
        let mut connection = made.unwrap();
        let sending = async {
            connection.feed(numbered(0, 8 << 20)).await.unwrap();
            connection.send(numbered(1, 8)).await.unwrap();
        };
        let breaking = async {
            for _ in 0..3 {
                far.read(1_000).await;
                far.reset();
                far = site.accept().await;
            }
            assert!(far.message().await == numbered(0, 8 << 20));
            assert_eq!(number(&far.message().await), 1);
        };
        futures::join!(sending, breaking);
    });
}

#[test]
fn a_connection_that_gives_up_says_why_and_gives_back_what_it_holds() {
    run(async {
        let site = Site::new();
        let (made, far) = futures::join!(Connection::dial(site.addr, attempts(3)), site.accept());
        let mut connection = made.unwrap();
        site.leave();
        drop(far);
        for n in 0..3 {
            connection.feed(numbered(n, 8)).await.unwrap();
        }
        let error = within(SOON, "the end of all attempts", connection.flush()).await.expect_err("nobody listens");
        assert!(matches!(error, Error::Dial { .. }), "{error:?}");
        let unsent: Vec<_> = connection.take_unsent().iter().map(|message| number(message)).collect();
        assert_eq!(unsent, [0, 1, 2]);
        // The next message is a new start.
        site.come_back();
        let (sent, mut far) = futures::join!(connection.send(numbered(3, 8)), site.accept());
        sent.unwrap();
        assert_eq!(number(&far.message().await), 3);
    });
}

#[test]
fn when_all_attempts_were_in_vain_everything_comes_back_with_their_number() {
    run(async {
        let site = Site::new();
        let (manager, far) = dialed(attempts(4), &site).await;
        let mut dead = manager.dead_letters();
        let mut events = gone(&site, far, &manager).await;
        for outage in 0..2 {
            let mut sink = manager.sink();
            for n in 0..10 {
                sink.feed((site.addr.into(), numbered(n, 8))).await.unwrap();
            }
            let error = within(SOON, "the end of all attempts", sink.flush()).await.expect_err("nobody listens");
            assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
            for n in 0..10 {
                let letter = within(SOON, "a dead letter", dead.next()).await.unwrap();
                assert_eq!((number(&letter.message), letter.outcome), (n, Outcome::GaveUp));
                // From then on the address is down, and dialed in the background.
                assert!(if outage == 0 { letter.attempts == 4 } else { letter.attempts >= 4 }, "{letter:?}");
                assert!(matches!(*letter.error, Error::Dial { .. }), "{letter:?}");
            }
            if outage == 0 {
                failed_dials(&mut events, 4).await;
            }
            assert_eq!(balanced(&manager).dead_lettered, 10 * (outage + 1));
        }
        let error = manager.write(site.addr, numbered(1, 8)).await.expect_err("nobody listens");
        assert_eq!(error.into_unsent(), Some(numbered(1, 8)));
        assert!(dead.next().now_or_never().is_none(), "it is in the error");
    });
}

#[test]
fn no_attempt_is_made_after_max_elapsed() {
    run(async {
        let site = Site::new();
        let limit = Duration::from_millis(200);
        let backoff = Backoff::from_fn(|| [Duration::from_millis(150); 9]).max_elapsed(limit);
        let (manager, far) = dialed(config().reconnect(backoff), &site).await;
        let mut dead = manager.dead_letters();
        gone(&site, far, &manager).await;
        let start = Instant::now();
        let mut sink = manager.sink();
        sink.send((site.addr.into(), numbered(1, 8))).await.expect_err("nobody listens");
        // At once, after 150 ms, and 300 ms would be too late.
        assert!(start.elapsed() >= Duration::from_millis(150), "{:?}", start.elapsed());
        assert_eq!(within(SOON, "a dead letter", dead.next()).await.unwrap().attempts, 2);
    });
}

/// A peer that accepts and resets, as a balancer does whose servers are gone.
#[test]
fn a_connection_that_was_not_stable_belongs_to_the_outage_before_it() {
    for (stable_after, reconnects) in [(HOUR, 1), (Duration::ZERO, 5)] {
        run(async {
            let site = Site::small();
            let backoff = Backoff::from_fn(Vec::new).stable_after(stable_after);
            let (manager, mut far) = dialed(config().reconnect(backoff), &site).await;
            let mut dead = manager.dead_letters();
            let mut write = Box::pin(manager.write(site.addr, numbered(1, 8 << 20)));
            assert!((&mut write).now_or_never().is_none());
            for _ in 0..reconnects {
                far.read(1_000).await;
                far.reset();
                far = futures::select! {
                    far = site.accept().fuse() => far,
                    written = (&mut write).fuse() => panic!("{written:?}"),
                };
            }
            far.read(1_000).await;
            far.reset();
            if stable_after == HOUR {
                // There is no second attempt.
                let error = within(SOON, "the end", write).await.expect_err("it gave up");
                assert_eq!(error.into_unsent(), Some(numbered(1, 8 << 20)));
            } else {
                // Each break is a new outage, with one attempt of its own.
                let (written, mut far) = futures::join!(write, async {
                    let mut far = site.accept().await;
                    assert!(far.message().await == numbered(1, 8 << 20));
                    far
                });
                written.unwrap();
                site.leave();
                drop(far.rest().now_or_never());
            }
            assert!(dead.next().now_or_never().is_none());
            assert_eq!(manager.stats().total.reconnects, if stable_after == HOUR { 1 } else { 6 });
        });
    }
}

#[test]
fn the_delays_of_another_crate_plug_in() {
    run(async {
        let built = Arc::new(AtomicUsize::new(0));
        let count = built.clone();
        let builder = ConstantBuilder::default().with_delay(Duration::from_millis(1)).with_max_times(2);
        let backoff = Backoff::from_fn(move || {
            count.fetch_add(1, Ordering::Relaxed);
            builder.build()
        });
        let site = Site::new();
        let (manager, far) = dialed(config().reconnect(backoff), &site).await;
        let mut dead = manager.dead_letters();
        gone(&site, far, &manager).await;
        for sent in 0..3 {
            manager.sink().send((site.addr.into(), numbered(1, 8))).await.expect_err("nobody listens");
            let attempts = within(SOON, "a dead letter", dead.next()).await.unwrap().attempts;
            assert!(if sent == 0 { attempts == 3 } else { attempts >= 3 }, "{attempts}");
            assert_eq!(built.load(Ordering::Relaxed), 1, "they are made once for each outage");
        }
    });
}
