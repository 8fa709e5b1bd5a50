//! What is told of `tracing`: events with fields, in the span of the task that they are of. Each test has a process of its own,
//! as that has one subscriber.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use buffstreams::{Connection, Event, Listener, Manager, ManagerEvent, PanicSource};
use futures::{FutureExt, SinkExt, StreamExt};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

use crate::net::alone;
use crate::peers::{SOON, Site, config, dialed, numbered, run, until, within};
use crate::subscriber::Collector;

fn collected() -> Collector {
    let collector = Collector::default();
    tracing::subscriber::set_global_default(collector.clone()).expect("the only subscriber of this process");
    collector
}

#[track_caller]
fn alone_with_traces<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    alone(&format!("traces::{name}"), "", || run(test()));
}

#[test]
fn what_happens_to_a_peer_is_told_in_its_span() {
    alone_with_traces("what_happens_to_a_peer_is_told_in_its_span", || async {
        let collector = collected();
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (address, mut events) = (listener.local_addr(), listener.events());
        let _serving = listener.serve_in_background(|_, message| {
            tracing::info!(target: "program", len = message.len(), "called");
            Err(String::from_utf8(message.to_vec())?.into())
        });
        let mut connection = Connection::dial(&address, config()).await.unwrap();
        connection.send("unspeakable".into()).await.unwrap();
        let peer = match events.next().await {
            Some(Event::Connected { peer, .. }) => peer,
            other => panic!("{other:?}"),
        };
        drop(connection);
        while !matches!(events.next().await, Some(Event::Disconnected { .. })) {}

        let span = format!("peer listener={address} peer={peer}");
        assert_eq!(collector.spans(), [span.as_str()]);
        let connected = collector.of("Connected");
        assert_eq!(connected[0].text, format!("DEBUG Connected peer={peer}"));
        for text in [
            format!("WARN CallbackFailed peer={peer}"),
            format!("DEBUG Disconnected peer={peer} reason=Closed"),
            // The program's own, in its callback.
            "INFO called len=11".into(),
        ] {
            let told = collector.of(&text);
            assert_eq!(told.len(), 1, "{text}: {:?}", collector.of(""));
            assert_eq!((&told[0].text, told[0].span.as_ref()), (&text, Some(&span)));
        }
        assert!(collector.of("unspeakable").is_empty());
    });
}

#[test]
fn what_happens_to_a_connection_is_told_in_the_span_of_its_address() {
    alone_with_traces("what_happens_to_a_connection_is_told_in_the_span_of_its_address", || async {
        let collector = collected();
        let site = Site::new();
        let (manager, far) = dialed(config(), &site).await;
        let mut events = manager.events();
        let address = site.addr;
        drop((site, far));
        assert!(matches!(events.next().await, Some(ManagerEvent::Broken { .. })));
        let mut sink = manager.sink();
        sink.feed((address.into(), "unspeakable".into())).await.unwrap();
        sink.close().await.expect_err("nobody listens");
        until("the loss", || !collector.of("Lost").is_empty()).await;

        let span = format!("link address={address}");
        assert_eq!(collector.spans(), [span.as_str()]);
        // It was dialed by whoever called, not by the task.
        assert_eq!(collector.of("Opened")[0].text, format!("DEBUG Opened address={address}"));
        assert_eq!(collector.of("Opened")[0].span, None);
        let failed = &collector.of("DialFailed")[0];
        assert!(failed.text.starts_with(&format!("WARN DialFailed address={address} reason=Dial {{")), "{failed:?}");
        assert!(failed.text.ends_with(" attempts=1"), "{failed:?}");
        for (text, has) in [("Broken", ""), ("DialFailed", ""), ("Lost", " messages=1")] {
            let told = &collector.of(text)[0];
            assert!(told.text.ends_with(has), "{told:?}");
            assert_eq!(told.span.as_ref(), Some(&span), "{told:?}");
        }
        assert!(collector.of("unspeakable").is_empty());
    });
}

/// Counts lines.
struct Lines(AtomicUsize);

static LINES: Lines = Lines(AtomicUsize::new(0));

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.fetch_add(usize::from(record.target() == "buffstreams"), Ordering::Relaxed);
    }

    fn flush(&self) {}
}

#[test]
fn events_are_as_few_as_lines_and_the_log_has_none_beside_them() {
    alone_with_traces("events_are_as_few_as_lines_and_the_log_has_none_beside_them", || async {
        log::set_logger(&LINES).expect("the only logger of this process");
        log::set_max_level(log::LevelFilter::Trace);
        let site = Site::new();
        let (manager, far) = dialed(config(), &site).await;
        assert_eq!(LINES.0.load(Ordering::Relaxed), 1, "without a subscriber, the log has it");
        let collector = collected();
        let mut events = manager.events();
        let address = site.addr;
        drop((site, far));
        assert!(matches!(events.next().await, Some(ManagerEvent::Broken { .. })));
        let lose_one = || async {
            let mut sink = manager.sink();
            sink.feed((address.into(), "unspeakable".into())).await.unwrap();
            sink.close().await.expect_err("nobody listens");
        };
        let start = Instant::now();
        for _ in 0..300 {
            lose_one().await;
        }
        // A second later there may be events again, and the first says how many there were not.
        until("the event about the others", || {
            lose_one().now_or_never();
            !collector.of("WARN lines were suppressed").is_empty()
        })
        .await;
        let (told, seconds) = (collector.of("").len(), start.elapsed().as_secs() as usize + 2);
        assert!((20..=20 * seconds).contains(&told), "{told} events in {seconds} s");
        let suppressed = &collector.of("suppressed")[0].text;
        let number = suppressed.rsplit_once('=').unwrap().1.parse::<usize>().unwrap();
        assert!(number > 300, "{suppressed}");
        assert_eq!(LINES.0.load(Ordering::Relaxed), 1);
        let bytes = format!("{:?}", b"unspeakable");
        assert!(collector.of("unspeakable").is_empty() && collector.of(bytes.trim_matches(['[', ']'])).is_empty());
    });
}

/// Panics wherever it is called, while it is to.
struct Bomb(AtomicBool);

static BOMB: Bomb = Bomb(AtomicBool::new(false));

impl Bomb {
    fn go_off(&self) {
        assert!(!self.0.load(Ordering::Relaxed), "planted");
    }
}

struct Bombs;

impl Subscriber for Bombs {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "buffstreams"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        BOMB.go_off();
        Id::from_u64(1)
    }

    fn event(&self, _: &tracing::Event<'_>) {
        BOMB.go_off();
    }

    fn enter(&self, _: &Id) {
        BOMB.go_off();
    }

    fn exit(&self, _: &Id) {
        BOMB.go_off();
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}
}

#[test]
fn a_subscriber_that_panics_is_told_of_and_holds_nobody_up() {
    alone_with_traces("a_subscriber_that_panics_is_told_of_and_holds_nobody_up", || async {
        std::panic::set_hook(Box::new(|_| {}));
        tracing::subscriber::set_global_default(Bombs).expect("the only subscriber of this process");
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (address, manager, mut events) = (listener.local_addr(), Manager::new(config()), listener.events());
        // One peer and one address have a span already, and then one of each has none.
        manager.dial(&address).await.unwrap();
        manager.write(&address, numbered(1, 8)).await.unwrap();
        assert_eq!(within(SOON, "the first", listener.next()).await.unwrap().1, numbered(1, 8));
        BOMB.0.store(true, Ordering::Relaxed);
        manager.write(&address, numbered(2, 8)).await.unwrap();
        assert_eq!(within(SOON, "the second", listener.next()).await.unwrap().1, numbered(2, 8));
        let other = Manager::new(config());
        other.dial(&address).await.unwrap();
        other.write(&address, numbered(3, 8)).await.unwrap();
        assert_eq!(within(SOON, "the third", listener.next()).await.unwrap().1, numbered(3, 8));
        let mut told = Vec::new();
        while !matches!(told.last(), Some(Event::Panicked { source: PanicSource::Logger, .. })) {
            told.push(within(SOON, "the panic", events.next()).await.unwrap());
        }
        manager.close(&address).now_or_never();
        listener.close().await.unwrap();
        drop((manager, other));
        // And all of them end in order.
        let mut gone = 0;
        let drained = listener.for_each(|_| async {});
        within(SOON, "the end", drained).await;
        while let Some(event) = within(SOON, "the end of the events", events.next()).await {
            gone += usize::from(matches!(event, Event::Disconnected { .. }));
        }
        assert_eq!(gone, 2);
        BOMB.0.store(false, Ordering::Relaxed);
    });
}
