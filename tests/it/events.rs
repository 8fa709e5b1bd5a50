//! What happens beside the messages: subscriptions, and log lines.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Instant;

use async_std::task;
use buffstreams::{Connection, Event, Events, Listener, Manager, ManagerEvent, Reason};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::peers::{Refusing, SOON, Site, config, dialed, number, numbered, run, until, within};

/// A manager of which one address is down, and that address.
async fn down() -> (Manager, String) {
    let site = Site::new();
    let (manager, far) = dialed(config(), &site).await;
    let mut events = manager.events();
    let address = site.addr.to_string();
    drop((site, far));
    let event = within(SOON, "the break", events.next()).await;
    assert!(
        matches!(&event, Some(ManagerEvent::Broken { address: a, error: None, .. }) if a.as_str() == address),
        "{event:?}"
    );
    (manager, address)
}

/// Loses a message: that makes two events, `DialFailed` and `Lost`.
async fn lose_one(manager: &Manager, address: &str, message: &'static [u8]) {
    let mut sink = manager.sink();
    sink.feed((address.into(), message.into())).await.unwrap();
    sink.close().await.expect_err("nobody listens");
}

#[test]
fn a_subscription_sees_what_happens_from_then_on() {
    run(async {
        let site = Site::new();
        let manager = Manager::new(config());
        let mut early = manager.events();
        let (made, far) = futures::join!(manager.dial(site.addr), site.accept());
        made.unwrap();
        let mut late = manager.events();
        let opened = early.next().now_or_never().flatten();
        assert!(
            matches!(&opened, Some(ManagerEvent::Opened { address, .. }) if address.as_str() == site.addr.to_string())
        );
        assert!(late.next().now_or_never().is_none(), "it was before");
        drop(far);
        for events in [&mut early, &mut late] {
            let broken = within(SOON, "the break", events.next()).await;
            assert!(matches!(broken, Some(ManagerEvent::Broken { error: None, .. })), "{broken:?}");
        }
        let (written, _far) = futures::join!(manager.write(site.addr, numbered(1, 8)), site.accept());
        written.unwrap();
        drop(late);
        let opened = within(SOON, "the reopening", early.next()).await;
        assert!(matches!(opened, Some(ManagerEvent::Opened { .. })), "{opened:?}");
    });
}

#[test]
fn a_reset_and_a_failed_dial_are_told_with_their_reasons() {
    run(async {
        let site = Site::small();
        let (manager, far) = dialed(config(), &site).await;
        let mut events = manager.events();
        let mut write = Box::pin(manager.write(site.addr, numbered(1, 8 << 20)));
        assert!((&mut write).now_or_never().is_none());
        drop(site);
        far.reset();
        within(SOON, "the write", write).await.expect_err("nobody listens");
        let broken = within(SOON, "the break", events.next()).await;
        let Some(ManagerEvent::Broken { error: Some(error), .. }) = broken else { panic!("{broken:?}") };
        // What the system said, not what follows from it.
        assert!(matches!(*error, buffstreams::Error::Read(_) | buffstreams::Error::Write(_)), "{error:?}");
        let failed = within(SOON, "the failed dial", events.next()).await;
        let Some(ManagerEvent::DialFailed { error, .. }) = failed else { panic!("{failed:?}") };
        assert!(matches!(*error, buffstreams::Error::Dial { .. }), "{error:?}");
        let down = within(SOON, "that it is down", events.next()).await;
        assert!(matches!(down, Some(ManagerEvent::Down { .. })), "{down:?}");
        assert!(events.next().now_or_never().is_none(), "the write's message is not lost");
    });
}

/// A producer may meet the break before the connection's own task does.
#[test]
fn a_break_that_a_producer_meets_is_told_with_its_reason() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config(), &site).await;
        let mut events = manager.events();
        for n in 0..300 {
            far.reset();
            let mut sink = manager.sink();
            let again = async {
                let mut again = Box::pin(site.accept());
                loop {
                    // The first may go into the dead socket.
                    sink.feed((site.addr.into(), numbered(n, 8))).await.unwrap();
                    drop(sink.flush().now_or_never());
                    if let Some(far) = (&mut again).now_or_never() {
                        return far;
                    }
                    task::yield_now().await;
                }
            };
            far = within(SOON, "the reopening", again).await;
            while let Some(event) = events.next().now_or_never().flatten() {
                let ManagerEvent::Broken { error: Some(error), .. } = event else { continue };
                let said = matches!(*error, buffstreams::Error::Read(_) | buffstreams::Error::Write(_));
                assert!(said, "round {n}: what the system said, not {error:?}");
            }
        }
    });
}

#[test]
fn a_slow_subscriber_is_told_how_many_it_missed() {
    const LOST: u64 = 700;
    // Of each a dial that failed, and once that the address is down.
    const EVENTS: u64 = 2 * LOST + 1;
    run(async {
        let (manager, address) = down().await;
        let mut slow = manager.events();
        let quick = manager.events();
        let counted = Arc::new(AtomicU64::new(0));
        let count = counted.clone();
        let counting = task::spawn(quick.for_each(move |event| {
            assert!(!matches!(event, ManagerEvent::Missed { .. }));
            count.fetch_add(1, Ordering::AcqRel);
            async {}
        }));
        for _ in 0..LOST {
            lose_one(&manager, &address, b"a message").await;
        }
        until("the last event", || counted.load(Ordering::Acquire) == EVENTS).await;
        let missed = slow.next().now_or_never().flatten();
        assert!(matches!(missed, Some(ManagerEvent::Missed { events, .. }) if events == EVENTS - 1024), "{missed:?}");
        drop(manager);
        let rest = within(SOON, "the end of the events", slow.collect::<Vec<_>>()).await;
        assert_eq!(rest.len(), 1024);
        // The newest are kept.
        assert!(matches!(rest.last(), Some(ManagerEvent::Lost { messages: 1, .. })), "{:?}", rest.last());
        within(SOON, "the other subscriber's end", counting).await;
        assert_eq!(counted.load(Ordering::Acquire), EVENTS);
    });
}

#[test]
fn subscriptions_end_with_their_source() {
    run(async {
        let manager = Manager::new(config());
        let (mut one, two) = (manager.events(), manager.events());
        // One is being waited for.
        let waiting = task::spawn(two.collect::<Vec<_>>());
        assert!(one.next().now_or_never().is_none());
        let clone = manager.clone();
        drop(manager);
        assert!(one.next().now_or_never().is_none(), "a clone is as good as the first");
        drop(clone);
        assert!(within(SOON, "the end", one.next()).await.is_none());
        assert!(within(SOON, "the end", waiting).await.is_empty());
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let waiting = task::spawn(listener.events().collect::<Vec<_>>());
        drop(listener);
        assert!(within(SOON, "the end", waiting).await.is_empty());
    });
}

/// A handle to what is gone is no source of events: not a `Closer`, not the manager that has one, not the sink of replies.
#[test]
fn the_events_of_a_listener_end_when_it_is_gone_although_there_are_handles_to_it() {
    run(async {
        let manager = Manager::new(config());
        let listener = manager.listen("127.0.0.1:0").await.unwrap();
        let (closer, events) = (listener.closer(), listener.events());
        let mut connection = Connection::dial(listener.local_addr(), config()).await.unwrap();
        let (mut incoming, mut outgoing) = listener.split();
        connection.send(numbered(1, 8)).await.unwrap();
        let (peer, _) = within(SOON, "the message", incoming.next()).await.unwrap();
        drop(incoming);
        let told: Vec<_> = within(SOON, "the end of the events", events.collect()).await;
        assert!(matches!(told[0], Event::Connected { peer: p, .. } if p == peer), "{told:?}");
        assert!(
            matches!(told[1], Event::Disconnected { peer: p, reason: Reason::Stopped, .. } if p == peer),
            "{told:?}"
        );
        assert_eq!(told.len(), 2);
        // Whoever is late misses nothing.
        outgoing.send((peer, numbered(2, 8))).await.unwrap();
        assert!(closer.close().await.is_ok());
        drop((manager, outgoing, closer));
    });
}

#[test]
fn the_events_of_a_listener_do_not_end_before_the_connections_that_it_gave_away() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (closer, mut events) = (listener.closer(), listener.events());
        let _client = Connection::dial(listener.local_addr(), config()).await.unwrap();
        let mut connections = listener.connections();
        let kept = within(SOON, "the connection", connections.next()).await.unwrap();
        drop(connections);
        assert!(matches!(events.next().await, Some(Event::Connected { .. })));
        assert!(events.next().now_or_never().is_none());
        drop(kept);
        let last = within(SOON, "the end of the connection", events.next()).await;
        assert!(matches!(last, Some(Event::Disconnected { reason: Reason::Stopped, .. })), "{last:?}");
        assert!(within(SOON, "the end of the events", events.next()).await.is_none());
        drop(closer);
    });
}

#[test]
fn a_listener_tells_who_comes_and_goes() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut events: Events<Event> = listener.events();
        let mut connection = Connection::dial(listener.local_addr(), config()).await.unwrap();
        connection.send(numbered(1, 8)).await.unwrap();
        let (peer, message) = listener.next().await.unwrap();
        assert_eq!(number(&message), 1);
        let event = events.next().await;
        assert!(matches!(event, Some(Event::Connected { peer: p, .. }) if p == peer), "{event:?}");
        assert!(events.next().now_or_never().is_none());
        drop(connection);
        let draining = task::spawn(listener.for_each(|_| async {}));
        let event = within(SOON, "the end of the peer", events.next()).await;
        assert!(
            matches!(event, Some(Event::Disconnected { peer: p, reason: Reason::Closed, .. }) if p == peer),
            "{event:?}"
        );
        draining.cancel().await;
    });
}

/// Keeps every line of this crate's, of all tests.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Lines {
    fn install() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            log::set_logger(&LINES).expect("the only logger");
            log::set_max_level(log::LevelFilter::Debug);
        });
    }

    fn of(&self, what: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|line| line.contains(what)).cloned().collect()
    }
}

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("buffstreams")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

#[test]
fn log_lines_are_few_and_have_no_payload() {
    run(async {
        Lines::install();
        let (manager, address) = down().await;
        let start = Instant::now();
        for _ in 0..300 {
            lose_one(&manager, &address, b"the payload").await;
        }
        // A second later there may be lines again, and the first says how many there were not.
        until("the line about the others", || {
            lose_one(&manager, &address, b"the payload").now_or_never();
            !LINES.of("more lines were suppressed").is_empty()
        })
        .await;
        let lines = LINES.of(&address);
        let seconds = start.elapsed().as_secs() as usize + 2;
        assert!(lines.len() >= 20, "{}", lines.len());
        assert!(lines.len() <= 20 * seconds, "{} lines in {seconds} s", lines.len());
        assert!(lines.iter().any(|line| line.starts_with("WARN") && line.contains("DialFailed")), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("WARN") && line.contains("Lost")), "{lines:?}");
        let bytes = format!("{:?}", b"the payload");
        for line in LINES.of("") {
            assert!(!line.contains("the payload") && !line.contains(bytes.trim_matches(['[', ']'])), "{line}");
        }
        // Nor has an error one, when the program prints it.
        let refusing = Refusing::new();
        let error = manager.write(refusing.addr, "the payload".into()).await.expect_err("never dialed");
        assert!(!format!("{error} {error:?}").contains("the payload"), "{error:?}");
    });
}

#[test]
fn the_log_has_nothing_of_a_message_on_which_a_callback_fails() {
    run(async {
        Lines::install();
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (address, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let _serving = listener.serve_in_background(|_, message| {
            let text = String::from_utf8(message.to_vec())?;
            panic!("what is {text}?")
        });
        let mut connection = Connection::dial(address, config()).await.unwrap();
        let local = connection.local_addr().unwrap().to_string();
        connection.feed(b"\xffunreadable".as_slice().into()).await.unwrap();
        connection.send("unspeakable".into()).await.unwrap();
        let mut told = String::new();
        loop {
            let event = within(SOON, "an event", events.next()).await.unwrap();
            told += &format!("{event:?}\n");
            if let Event::Disconnected { .. } = event {
                break;
            }
        }
        // The program may know.
        let bytes = format!("{:?}", b"\xffunreadable");
        assert!(told.contains(&bytes) && told.contains("unspeakable"), "{told}");
        for what in ["CallbackFailed", "CallbackPanicked", "Disconnected"] {
            assert!(LINES.of(&local).iter().any(|line| line.contains(what)), "{what}");
        }
        for line in LINES.of("") {
            assert!(!line.contains("unspeakable") && !line.contains("unreadable"), "{line}");
            assert!(!line.contains(bytes.trim_matches(['[', ']'])), "{line}");
        }
    });
}
