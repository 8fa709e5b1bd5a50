//! What is published of a process, as Prometheus scrapes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_std::future::timeout;
use async_std::net::{SocketAddr, TcpListener};
use async_std::task;
use buffstreams::{Config, Endpoint, Error, Event, Listener, Manager, ManagerEvent, Route, Session};
use futures::{SinkExt, StreamExt};

#[allow(dead_code)] // Its `main` is for whoever runs it.
#[path = "../../examples/metrics.rs"]
mod example;
mod values;

/// The figures of a scrape: each name with its labels. And the kind of each name.
struct Page {
    figures: BTreeMap<String, f64>,
    kinds: BTreeMap<String, String>,
}

impl Page {
    fn parse(page: &str) -> Self {
        let (mut figures, mut kinds) = (BTreeMap::new(), BTreeMap::new());
        for line in page.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
                kinds.insert(name.to_owned(), kind.to_owned());
            } else if let Some((series, value)) = line.rsplit_once(' ')
                && !line.starts_with('#')
                && let Ok(value) = value.parse()
            {
                figures.insert(series.to_owned(), value);
            }
        }
        Self { figures, kinds }
    }

    #[track_caller]
    fn is(&self, series: &str, value: f64) {
        assert_eq!(self.figures.get(series), Some(&value), "{series}: {:#?}", self.figures);
    }
}

async fn scraped(at: SocketAddr) -> Page {
    let answer = example::scrape(at).await.unwrap();
    let (_head, page) = answer.split_once("\r\n\r\n").expect("an answer of HTTP");
    Page::parse(page)
}

/// Scrapes again and again, until a page is like that.
async fn until(at: SocketAddr, is_it: impl Fn(&Page) -> bool) -> Page {
    let scraping = async {
        loop {
            let page = scraped(at).await;
            if is_it(&page) {
                return page;
            }
        }
    };
    timeout(Duration::from_secs(20), scraping).await.expect("it comes soon")
}

/// What is counted is of the whole process, and a duration is published once: one test runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_scrape_has_what_the_page_on_operating_says_and_nothing_else() {
    let _alone = alone();
    task::block_on(timeout(Duration::from_secs(60), a_process_and_its_scrapes()))
        .expect("nothing is waited for in vain");
}

async fn a_process_and_its_scrapes() {
    let scrapes = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = scrapes.local_addr().unwrap();
    // Before there is a recorder, nothing of what is counted is lost.
    let mut listener = Listener::bind("127.0.0.1:0", Config::new()).await.unwrap();
    let (manager, address) = (Manager::new(Config::new()), listener.local_addr());
    manager.dial(&address).await.unwrap();
    manager.write(&address, "one".into()).await.unwrap();
    buffstreams::metrics::publish();
    task::spawn(example::serve(scrapes, example::install().unwrap()));
    for message in ["two", "three"] {
        manager.write(&address, message.into()).await.unwrap();
    }
    for _ in 0..3 {
        listener.next().await.unwrap();
    }

    // One that breaks, and is opened again.
    let breaking = Listener::bind("127.0.0.1:0", Config::new()).await.unwrap();
    let (breaks, mut events) = (breaking.local_addr(), manager.events());
    let mut connections = breaking.connections();
    manager.dial(&breaks).await.unwrap();
    drop(connections.next().await.unwrap());
    while !matches!(events.next().await, Some(ManagerEvent::Broken { .. })) {}
    manager.write(&breaks, "again".into()).await.unwrap();
    let _kept = connections.next().await.unwrap();
    while !matches!(events.next().await, Some(ManagerEvent::Opened { .. })) {}

    // One that is gone, and of which nobody takes the dead letters.
    let leaving = Listener::bind("127.0.0.1:0", Config::new()).await.unwrap();
    let gone = leaving.local_addr();
    manager.dial(&gone).await.unwrap();
    drop(leaving);
    while !matches!(events.next().await, Some(ManagerEvent::Broken { .. })) {}
    let sent = manager.sink().send((gone.clone().into(), "unspeakable".into())).await;
    assert!(matches!(sent, Err(Error::NotSent { .. })), "{sent:?}");
    while !matches!(events.next().await, Some(ManagerEvent::Lost { .. })) {}

    // A route none of whose addresses is open makes letters by itself.
    let sent = manager.sink_to(Route::failover(["nobody:1"])).send("unspeakable".into()).await;
    assert!(matches!(sent, Err(Error::NotOpen { .. })), "{sent:?}");
    while !matches!(events.next().await, Some(ManagerEvent::Lost { .. })) {}

    // Callbacks that fail and panic.
    let calling = Listener::bind("127.0.0.1:0", Config::new()).await.unwrap();
    let (called, mut told) = (calling.local_addr(), calling.events());
    let _serving = calling.serve_in_background(|_, message| match message {
        b"fail" => Err("planted".into()),
        _ => std::panic::panic_any("planted"),
    });
    manager.dial(&called).await.unwrap();
    manager.write(&called, "fail".into()).await.unwrap();
    manager.write(&called, "panic".into()).await.unwrap();
    while !matches!(told.next().await, Some(Event::Disconnected { .. })) {}

    // A session, of which one message is taken, as the next was asked for, and one is not.
    let acked = Config::new().session(Session::new());
    let mut acking = Listener::bind("127.0.0.1:0", acked.clone()).await.unwrap();
    let (session, mut met, in_session) = (acking.local_addr(), acking.events(), Manager::new(acked));
    in_session.dial(&session).await.unwrap();
    let mut sink = in_session.sink();
    for message in ["taken", "not yet"] {
        sink.send((session.clone().into(), message.into())).await.unwrap();
        assert_eq!(acking.next().await.unwrap().1, message);
    }

    let of = |name: &str, label: &str, address: &Endpoint| format!("{name}{{{label}=\"{address}\"}}");
    let acked = of("buffstreams_link_acked_messages", "address", &session);
    let page = until(at, |page| page.figures[&acked] > 0.0).await;
    page.is(&acked, 1.0);
    page.is(&of("buffstreams_link_held_messages", "address", &session), 1.0);
    page.is(&of("buffstreams_link_sessions", "address", &session), 1.0);
    page.is(&of("buffstreams_listener_sessions", "listener", &session), 1.0);
    page.is(&of("buffstreams_listener_sessions_detached", "listener", &session), 0.0);
    page.is(&of("buffstreams_listener_untaken_messages", "listener", &session), 1.0);
    for (name, value) in [
        ("messaging_client_consumed_messages", 3.0),
        ("buffstreams_listener_received_bytes", 20.0),
        ("buffstreams_listener_connections", 1.0),
        ("buffstreams_listener_accepted", 1.0),
        ("buffstreams_listener_callback_errors", 0.0),
    ] {
        page.is(&of(name, "listener", &address), value);
    }
    page.is(&of("buffstreams_listener_callback_errors", "listener", &called), 2.0);
    for (name, value) in [
        ("messaging_client_sent_messages", 3.0),
        ("buffstreams_link_sent_bytes", 20.0),
        ("buffstreams_link_connections", 1.0),
        ("buffstreams_link_held_messages", 0.0),
        ("buffstreams_dials", 1.0),
        ("buffstreams_dials_failed", 0.0),
    ] {
        page.is(&of(name, "address", &address), value);
    }
    page.is(&of("buffstreams_dial_duration_count", "address", &breaks), 2.0);
    page.is(&of("buffstreams_link_reconnects", "address", &breaks), 1.0);
    page.is(&of("buffstreams_link_reconnect_duration_count", "address", &breaks), 1.0);
    page.is(&of("buffstreams_link_connections", "address", &breaks), 1.0);
    page.is(&of("buffstreams_link_connections", "address", &gone), 0.0);
    page.is(&of("buffstreams_dials_failed", "address", &gone), 1.0);
    page.is(&of("buffstreams_dials", "address", &gone), 2.0);
    page.is(&format!("buffstreams_link_dead_letters{{address=\"{gone}\",outcome=\"not_sent\"}}"), 1.0);
    page.is("buffstreams_link_dead_letters{address=\"nobody:1\",outcome=\"closed\"}", 1.0);
    page.is("buffstreams_link_dead_letters_lost{address=\"nobody:1\"}", 1.0);
    page.is(&of("buffstreams_link_dead_letters_lost", "address", &gone), 1.0);
    names_agree(&page);

    drop((sink, in_session));
    while !matches!(met.next().await, Some(Event::Detached { .. })) {}
    let page = scraped(at).await;
    page.is(&of("buffstreams_listener_sessions", "listener", &session), 1.0);
    page.is(&of("buffstreams_listener_sessions_detached", "listener", &session), 1.0);
    page.is(&of("buffstreams_listener_connections", "listener", &session), 0.0);

    // What is gone keeps what it has counted, and has nothing any more.
    drop((listener, manager));
    // The task of a link, which holds it, ends a little later.
    let connections = of("buffstreams_link_connections", "address", &address);
    let page = until(at, |page| page.figures[&connections] == 0.0).await;
    page.is(&of("messaging_client_sent_messages", "address", &address), 3.0);
    page.is(&of("messaging_client_consumed_messages", "listener", &address), 3.0);
    page.is(&of("buffstreams_listener_connections", "listener", &address), 0.0);
    // An address that is dialed again goes on counting.
    let mut listener = Listener::bind(&address, Config::new()).await.unwrap();
    let manager = Manager::new(Config::new());
    manager.dial(&address).await.unwrap();
    manager.write(&address, "four".into()).await.unwrap();
    assert_eq!(listener.next().await.unwrap().1, "four");
    let page = scraped(at).await;
    page.is(&of("messaging_client_sent_messages", "address", &address), 4.0);
    page.is(&of("messaging_client_consumed_messages", "listener", &address), 4.0);
    page.is(&of("buffstreams_link_connections", "address", &address), 1.0);
}

/// The names and kinds of the table are those of the scrape, and those in the code. Nothing is labelled by peer.
fn names_agree(page: &Page) {
    let (table, code) = (table(), read("src/metrics.rs"));
    let written: BTreeSet<_> = code.split('"').filter(|piece| !piece.contains(' ')).collect();
    let is_name = |piece: &&&str| piece.starts_with("messaging.") || piece.starts_with("buffstreams.");
    let written: Vec<_> = written.iter().filter(is_name).map(|name| (*name).to_owned()).collect();
    assert_eq!(table.keys().cloned().collect::<Vec<_>>(), written);
    assert_eq!(table.len(), 27);

    let kinds: BTreeMap<_, _> = table.iter().map(|(name, row)| (name.replace('.', "_"), row[1].clone())).collect();
    assert_eq!(kinds, page.kinds);
    for series in page.figures.keys() {
        let (name, labels) = series.split_once('{').unwrap();
        let labels = labels.trim_end_matches('}').split(',').map(|label| label.split_once('=').unwrap().0);
        let labels: Vec<_> = labels.filter(|label| *label != "le").map(|label| format!("`{label}`")).collect();
        let row = table.iter().find(|(known, _)| {
            let known = known.replace('.', "_");
            name == known || ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{known}{end}"))
        });
        let (_, row) = row.unwrap_or_else(|| panic!("{series} is not in the table"));
        assert_eq!(labels.join(", "), row[3], "{series}");
    }
}

/// The rows of the table of the page on operating, by the name of the metric.
fn table() -> BTreeMap<String, Vec<String>> {
    let text = read("docs/operating.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    let rows = rows.map(|row| row.split(" | ").map(str::to_owned).collect::<Vec<_>>()).filter(|row| row.len() == 5);
    rows.map(|row| (row[0].trim_end_matches('`').to_owned(), row)).collect()
}

fn read(file: &str) -> String {
    fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}
