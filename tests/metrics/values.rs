//! Each metric of the page on operating, by a value that a program has caused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use buffstreams::{
    Address, Backoff, Config, Connection, DeadLetters, Delivery, Error, Event, Events, Fault, Listener, Manager,
    ManagerEvent, Outcome, Session, Sim,
};
use futures::future::join;
use futures::{FutureExt, SinkExt, StreamExt};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::{Page, alone, table};

const SECOND: Duration = Duration::from_secs(1);
const INBOX: &str = "buffstreams.listener.inbox.bytes";

/// A program in virtual time, which takes just as long as it says.
struct Scene {
    sim: Sim,
    prometheus: PrometheusHandle,
    /// The names of the metrics that had a value, with dots.
    seen: Mutex<BTreeSet<String>>,
}

impl Scene {
    fn config(&self) -> Config {
        Config::new().runtime(self.sim.clone())
    }

    fn acked(&self) -> Config {
        self.config().session(Session::new())
    }

    /// A listener at this host, which accepts.
    async fn listen(&self, host: u8, config: Config) -> (Listener, Address) {
        let mut listener = Listener::bind(format!("10.0.0.{host}:5031"), config).await.unwrap();
        assert!(listener.next().now_or_never().is_none());
        let address = listener.local_addr().into();
        (listener, address)
    }

    /// A manager that was connected to an address where nobody listens any more.
    async fn away(&self, host: u8, config: Config) -> (Manager, Address, Events<ManagerEvent>) {
        let (mut listener, address) = self.listen(host, self.config()).await;
        let (manager, mut accepted) = (Manager::new(config), listener.events());
        let mut events = manager.events();
        manager.dial(&address).await.unwrap();
        while !matches!(accepted.next().await, Some(Event::Connected { .. })) {}
        assert!(listener.next().now_or_never().is_none());
        drop(listener);
        while !matches!(events.next().await, Some(ManagerEvent::Broken { .. })) {}
        (manager, address, events)
    }

    /// All figures of what listens at this address and of what dials it, except those that are 0.
    fn figures(&self, address: &Address) -> BTreeMap<String, f64> {
        buffstreams::metrics::publish();
        let mut figures = Page::parse(&self.prometheus.render()).figures;
        figures.retain(|_, value| *value != 0.0);
        let figures = figures.into_iter().filter_map(|(series, value)| {
            let (name, labels) = series.split_once('{').unwrap();
            let labels = labels.trim_end_matches("\"}").split("\",").map(|label| label.split_once("=\"").unwrap());
            let labels: BTreeMap<_, _> = labels.collect();
            let is_it = labels.get("address").or(labels.get("listener")) == Some(&address.as_str());
            let outcome = labels.get("outcome").map_or(String::new(), |outcome| format!(" {outcome}"));
            (is_it && !labels.contains_key("le")).then(|| (format!("{name}{outcome}"), value))
        });
        figures.collect()
    }

    /// These are all the figures of an address that are not 0, but for that of the inbox.
    #[track_caller]
    fn is(&self, address: &Address, values: &[(&str, f64)]) {
        let mut figures = self.figures(address);
        figures.remove(&INBOX.replace('.', "_"));
        assert_eq!(figures, values.iter().map(|(name, value)| (name.replace('.', "_"), *value)).collect());
        // An outcome stands behind the name, and a histogram has two figures.
        let name = |(name, _): &(&str, f64)| name.split(' ').next().unwrap().replace("duration_count", "duration");
        let names = values.iter().map(name).filter(|name| !name.ends_with("_sum"));
        self.seen.lock().unwrap().extend(names);
    }

    /// The inbox counts the memory of a read, which is more than its messages.
    #[track_caller]
    fn inbox_has(&self, address: &Address, messages: f64) {
        let bytes = self.figures(address).get(&INBOX.replace('.', "_")).copied().unwrap_or_default();
        assert!((messages..messages + 4096.0).contains(&bytes), "{bytes} for {messages}");
        self.seen.lock().unwrap().insert(INBOX.to_owned());
    }
}

#[test]
fn each_metric_of_the_page_has_the_value_that_a_program_has_caused() {
    let _alone = alone();
    let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
    let prometheus = recorder.handle();
    let program = |sim: Sim| async move {
        let scene = Scene { sim, prometheus, seen: Mutex::default() };
        let all = async {
            a_closed_port(&scene).await;
            a_full_listener(&scene).await;
            opened_again(&scene).await;
            callbacks(&scene).await;
            answers(&scene).await;
            sent_again(&scene).await;
            without_a_connection(&scene).await;
            not_sent(&scene).await;
            gave_up(&scene).await;
            expired(&scene).await;
            closed(&scene).await;
            queue_full(&scene).await;
        };
        scene.sim.timeout(3600 * SECOND, all).await.expect("it ends within an hour of virtual time");
        scene.seen.into_inner().unwrap()
    };
    let seen = metrics::with_local_recorder(&recorder, || Sim::new().run(program));
    assert_eq!(seen, table().into_keys().collect());
}

async fn a_closed_port(scene: &Scene) {
    let address = Address::from("10.0.0.1:5031");
    let dialed = Manager::new(scene.config()).dial(&address).await;
    assert!(matches!(dialed, Err(Error::Dial { .. })), "{dialed:?}");
    scene.is(&address, &[("buffstreams.dials", 1.0), ("buffstreams.dials.failed", 1.0)]);
}

/// The first connection takes two seconds to make, and brings three messages. The second is one too many.
async fn a_full_listener(scene: &Scene) {
    let (mut listener, address) = scene.listen(2, scene.config().max_connections(1)).await;
    let (manager, mut events) = (Manager::new(scene.config()), listener.events());
    let link = scene.sim.link(listener.local_addr());
    link.black_hole();
    let healing = async {
        scene.sim.sleep(2 * SECOND).await;
        link.heal();
    };
    join(manager.dial(&address).map(Result::unwrap), healing).await;
    for message in ["one", "two", "three"] {
        manager.write(&address, message.into()).await.unwrap();
    }
    Connection::dial(&address, scene.config()).await.unwrap();
    while !matches!(events.next().await, Some(Event::Refused { .. })) {}
    let values = [
        ("buffstreams.dials", 2.0),
        ("buffstreams.dial.duration_count", 2.0),
        ("buffstreams.dial.duration_sum", 2.0),
        ("buffstreams.link.connections", 1.0),
        ("buffstreams.link.sent.bytes", 20.0),
        ("messaging.client.sent.messages", 3.0),
        ("buffstreams.listener.accepted", 1.0),
        ("buffstreams.listener.connections", 1.0),
        ("buffstreams.listener.received.bytes", 20.0),
        ("buffstreams.listener.refused", 1.0),
        ("messaging.client.consumed.messages", 3.0),
    ];
    scene.is(&address, &values);
    scene.inbox_has(&address, 20.0);
    for message in ["one", "two", "three"] {
        assert_eq!(listener.next().await.unwrap().1, message);
    }
    assert!(listener.next().now_or_never().is_none());
    scene.is(&address, &values);
    assert!(!scene.figures(&address).contains_key(&INBOX.replace('.', "_")), "all is taken");
}

/// The listener is gone for the first attempt, and there for the second, five seconds later.
async fn opened_again(scene: &Scene) {
    let (manager, address, mut events) = scene.away(3, scene.config().reconnect(every(5 * SECOND))).await;
    let again = async {
        while !matches!(events.next().await, Some(ManagerEvent::DialFailed { .. })) {}
        let (mut listener, _) = scene.listen(3, scene.config()).await;
        assert_eq!(listener.next().await.unwrap().1, "again");
        listener
    };
    let (written, listener) = join(manager.write(&address, "again".into()), again).await;
    written.unwrap();
    let values = [
        ("buffstreams.dials", 3.0),
        ("buffstreams.dials.failed", 1.0),
        ("buffstreams.dial.duration_count", 2.0),
        ("buffstreams.link.connections", 1.0),
        ("buffstreams.link.reconnects", 1.0),
        ("buffstreams.link.reconnect.duration_count", 1.0),
        ("buffstreams.link.reconnect.duration_sum", 5.0),
        ("buffstreams.link.sent.bytes", 8.0),
        ("messaging.client.sent.messages", 1.0),
        ("buffstreams.listener.accepted", 2.0),
        ("buffstreams.listener.connections", 1.0),
        ("buffstreams.listener.received.bytes", 8.0),
        ("messaging.client.consumed.messages", 1.0),
    ];
    scene.is(&address, &values);
    drop(listener);
}

/// Three messages come in one read. The callback takes one, returns an error for the next, and panics on the last.
async fn callbacks(scene: &Scene) {
    // One that was polled before would have an inbox.
    let listener = Listener::bind("10.0.0.4:5031", scene.config()).await.unwrap();
    let (address, mut events) = (Address::from(listener.local_addr()), listener.events());
    let _serving = listener.serve_in_background(|_, message| match message {
        b"take" => Ok(()),
        b"fail" => Err("planted".into()),
        _ => std::panic::panic_any("planted"),
    });
    let manager = Manager::new(scene.config());
    manager.dial(&address).await.unwrap();
    let mut sink = manager.sink();
    for message in ["take", "fail", "panic"] {
        sink.feed((address.clone(), message.into())).await.unwrap();
    }
    sink.flush().await.unwrap();
    while !matches!(events.next().await, Some(Event::Disconnected { .. })) {}
    let values = [
        ("buffstreams.dials", 1.0),
        ("buffstreams.dial.duration_count", 1.0),
        ("buffstreams.link.connections", 1.0),
        ("buffstreams.link.sent.bytes", 22.0),
        ("messaging.client.sent.messages", 3.0),
        ("buffstreams.listener.accepted", 1.0),
        ("buffstreams.listener.callback.errors", 2.0),
        ("buffstreams.listener.received.bytes", 22.0),
        ("messaging.client.consumed.messages", 3.0),
    ];
    scene.is(&address, &values);
}

/// Of eight messages, two are acknowledged, two refused and one dropped without an answer. Three are not answered yet.
async fn answers(scene: &Scene) {
    let (listener, address) = scene.listen(5, scene.acked()).await;
    let (manager, mut deliveries) = (Manager::new(scene.acked()), listener.deliveries());
    let mut letters = manager.dead_letters();
    manager.dial(&address).await.unwrap();
    let mut sink = manager.sink();
    for message in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        sink.feed((address.clone(), message.into())).await.unwrap();
    }
    sink.flush().await.unwrap();
    let mut delivered: Vec<_> = deliveries.by_ref().take(8).collect().await;
    let _unanswered = delivered.split_off(5);
    drop(delivered.pop());
    delivered.drain(2..).for_each(Delivery::refuse);
    delivered.drain(..).for_each(Delivery::ack);
    for outcome in [Outcome::Refused, Outcome::Refused, Outcome::InDoubt] {
        assert_eq!(letters.next().await.unwrap().outcome, outcome);
    }
    // Until the other end has told that it knows what was refused.
    scene.sim.sleep(SECOND).await;
    let values = [
        ("buffstreams.dials", 1.0),
        ("buffstreams.dial.duration_count", 1.0),
        ("buffstreams.link.acked.messages", 2.0),
        ("buffstreams.link.connections", 1.0),
        ("buffstreams.link.dead_letters in_doubt", 1.0),
        ("buffstreams.link.dead_letters refused", 2.0),
        ("buffstreams.link.held.bytes", 15.0),
        ("buffstreams.link.held.messages", 3.0),
        ("buffstreams.link.in_doubt.messages", 1.0),
        ("buffstreams.link.refused.messages", 2.0),
        // Eight frames, and a control of 21 bytes.
        ("buffstreams.link.sent.bytes", 61.0),
        ("buffstreams.link.sessions", 1.0),
        ("messaging.client.sent.messages", 8.0),
        ("buffstreams.listener.accepted", 1.0),
        ("buffstreams.listener.connections", 1.0),
        ("buffstreams.listener.received.bytes", 40.0),
        ("buffstreams.listener.sessions", 1.0),
        ("buffstreams.listener.untaken.messages", 3.0),
        ("messaging.client.consumed.messages", 8.0),
    ];
    scene.is(&address, &values);
}

/// Two messages are on their way, for a second, when their connection is reset.
async fn sent_again(scene: &Scene) {
    let (mut listener, address) = scene.listen(6, scene.acked()).await;
    let link = scene.sim.link(listener.local_addr());
    link.latency(SECOND);
    let manager = Manager::new(scene.acked());
    manager.dial(&address).await.unwrap();
    let mut sink = manager.sink();
    for message in ["one", "two"] {
        sink.feed((address.clone(), message.into())).await.unwrap();
    }
    sink.flush().await.unwrap();
    link.fail_now(Fault::Rst);
    for message in ["one", "two"] {
        assert_eq!(listener.next().await.unwrap().1, message);
    }
    let values = [
        ("buffstreams.dials", 2.0),
        ("buffstreams.dial.duration_count", 2.0),
        ("buffstreams.link.connections", 1.0),
        ("buffstreams.link.held.bytes", 14.0),
        ("buffstreams.link.held.messages", 2.0),
        ("buffstreams.link.reconnects", 1.0),
        // The greeting goes there and back.
        ("buffstreams.link.reconnect.duration_count", 1.0),
        ("buffstreams.link.reconnect.duration_sum", 2.0),
        ("buffstreams.link.replayed.messages", 2.0),
        ("buffstreams.link.sent.bytes", 28.0),
        ("buffstreams.link.sessions", 1.0),
        ("messaging.client.sent.messages", 2.0),
        ("buffstreams.listener.accepted", 1.0),
        ("buffstreams.listener.connections", 1.0),
        ("buffstreams.listener.received.bytes", 14.0),
        ("buffstreams.listener.sessions", 1.0),
        ("buffstreams.listener.untaken.messages", 2.0),
        ("messaging.client.consumed.messages", 2.0),
    ];
    scene.is(&address, &values);
}

/// Of two sessions one has lost its connection.
async fn without_a_connection(scene: &Scene) {
    let (listener, address) = scene.listen(7, scene.acked()).await;
    let mut events = listener.events();
    let (goes, stays) = (Manager::new(scene.acked()), Manager::new(scene.acked()));
    goes.dial(&address).await.unwrap();
    stays.dial(&address).await.unwrap();
    drop(goes);
    while !matches!(events.next().await, Some(Event::Detached { .. })) {}
    let values = [
        ("buffstreams.dials", 2.0),
        ("buffstreams.dial.duration_count", 2.0),
        ("buffstreams.link.connections", 1.0),
        ("buffstreams.link.sessions", 2.0),
        ("buffstreams.listener.accepted", 2.0),
        ("buffstreams.listener.connections", 1.0),
        ("buffstreams.listener.sessions", 2.0),
        ("buffstreams.listener.sessions.detached", 1.0),
    ];
    scene.is(&address, &values);
}

/// Nobody takes the letter.
async fn not_sent(scene: &Scene) {
    let (manager, address, mut events) = scene.away(8, scene.config()).await;
    let sent = manager.sink().send((address.clone(), "one".into())).await;
    assert!(matches!(sent, Err(Error::NotSent { .. })), "{sent:?}");
    while !matches!(events.next().await, Some(ManagerEvent::Lost { .. })) {}
    came_back(scene, &address, 1, &[("buffstreams.link.dead_letters not_sent", 1.0), LOST]);
}

/// After two attempts.
async fn gave_up(scene: &Scene) {
    let (manager, address, _events) = scene.away(9, scene.config().reconnect(Backoff::from_fn(|| [SECOND]))).await;
    let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
    let (sent, outcome) = join(sink.send((address.clone(), "one".into())), outcome(&mut letters)).await;
    assert!(matches!((&sent, outcome), (Err(Error::NotSent { .. }), Outcome::GaveUp)), "{sent:?} {outcome}");
    came_back(scene, &address, 2, &[("buffstreams.link.dead_letters gave_up", 1.0)]);
}

/// In the middle between two attempts.
async fn expired(scene: &Scene) {
    let config = scene.config().reconnect(every(2 * SECOND)).message_ttl(3 * SECOND);
    let (manager, address, _events) = scene.away(10, config).await;
    let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
    let (sent, outcome) = join(sink.send((address.clone(), "one".into())), outcome(&mut letters)).await;
    assert!(matches!((&sent, outcome), (Err(_), Outcome::Expired)), "{sent:?} {outcome}");
    came_back(scene, &address, 2, &[("buffstreams.link.dead_letters expired", 1.0)]);
}

/// In the middle between two attempts, too.
async fn closed(scene: &Scene) {
    let config = scene.config().reconnect(every(2 * SECOND)).close_timeout(3 * SECOND);
    let (manager, address, _events) = scene.away(11, config).await;
    let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
    sink.feed((address.clone(), "one".into())).await.unwrap();
    drop(sink);
    let (closed, outcome) = join(manager.close(&address), outcome(&mut letters)).await;
    assert!(matches!((&closed, outcome), (Err(_), Outcome::Closed)), "{closed:?} {outcome}");
    came_back(scene, &address, 2, &[("buffstreams.link.dead_letters closed", 1.0)]);
}

/// The first message is as long as the queue, and the second has no room.
async fn queue_full(scene: &Scene) {
    let config = scene.config().reconnect(every(2 * SECOND)).queue_bytes(2000);
    let (manager, address, mut events) = scene.away(12, config).await;
    let mut letters = manager.dead_letters();
    for _ in 0..2 {
        manager.sink().feed((address.clone(), vec![7; 2000].into())).await.unwrap();
    }
    assert_eq!(outcome(&mut letters).await, Outcome::QueueFull);
    while !matches!(events.next().await, Some(ManagerEvent::DialFailed { .. })) {}
    let held = [("buffstreams.link.held.bytes", 2003.0), ("buffstreams.link.held.messages", 1.0)];
    came_back(scene, &address, 1, &[&held[..], &[("buffstreams.link.dead_letters queue_full", 1.0)]].concat());
}

const LOST: (&str, f64) = ("buffstreams.link.dead_letters.lost", 1.0);

/// These are the figures of an address that was dialed once, and then so often in vain.
#[track_caller]
fn came_back(scene: &Scene, address: &Address, in_vain: u8, values: &[(&str, f64)]) {
    let in_vain = f64::from(in_vain);
    let dials = [
        ("buffstreams.dials", 1.0 + in_vain),
        ("buffstreams.dials.failed", in_vain),
        ("buffstreams.dial.duration_count", 1.0),
        ("buffstreams.listener.accepted", 1.0),
    ];
    scene.is(address, &[&dials, values].concat());
}

async fn outcome(letters: &mut DeadLetters) -> Outcome {
    letters.next().await.unwrap().outcome
}

fn every(delay: Duration) -> Backoff {
    Backoff::from_fn(move || std::iter::repeat(delay))
}
