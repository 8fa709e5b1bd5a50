//! The simulator as a program uses it: what its faults do, that a seed makes one run, and whole programs over many seeds.

#![allow(clippy::print_stdout)] // How many seeds there were, and what became of the messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buffstreams::{
    Backoff, Bytes, Config, Connection, Error, Event, Fault, Incoming, Limit, Listener, Manager, Outcome, Reason, Side,
    Sim, WireFormat,
};
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt, SinkExt, StreamExt};

const ANYWHERE: &str = "10.0.0.1:0";
const SECOND: Duration = Duration::from_secs(1);
const LATENCY: Duration = Duration::from_millis(20);

fn config(sim: &Sim) -> Config {
    Config::new().runtime(sim.clone()).wire_format(WireFormat::u32_be())
}

async fn listening(sim: &Sim) -> (Listener, SocketAddr) {
    let listener = Listener::bind(ANYWHERE, config(sim)).await.unwrap();
    let addr = listener.local_addr().ip().unwrap();
    (listener, addr)
}

async fn dialed(sim: &Sim, addr: SocketAddr) -> Connection {
    Connection::dial(addr, config(sim)).await.unwrap()
}

async fn next(incoming: &mut Listener) -> Bytes {
    incoming.next().await.unwrap().1
}

#[test]
fn a_unix_socket_is_a_place_in_the_world() {
    Sim::new().run(|sim| async move {
        const PATH: &str = "unix:/run/app.sock";
        let gone = Connection::dial(PATH, config(&sim)).await.unwrap_err();
        assert!(matches!(gone, Error::Dial { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
        let mut listener = Listener::bind(PATH, config(&sim)).await.unwrap();
        assert_eq!(listener.local_addr().to_string(), PATH);
        let taken = Listener::bind(PATH, config(&sim)).await.unwrap_err();
        assert!(matches!(taken, Error::Bind { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse));
        sim.link(listener.local_addr()).latency(LATENCY).fail_next(Side::Dialer, 5, Fault::Rst);
        let came = sim.spawn(async move { listener.next().await.unwrap() });
        let mut connection = Connection::dial(PATH, config(&sim)).await.unwrap();
        assert!(connection.send(b"a message"[..].into()).await.is_err());
        connection.flush().await.unwrap();
        let (peer, message) = came.await;
        assert_eq!((peer.to_string().as_str(), &*message), ("unix#2", &b"a message"[..]));
        assert_eq!(sim.now(), LATENCY);
        Listener::bind(PATH, config(&sim)).await.unwrap();

        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken_over = Listener::from_std(socket, config(&sim)).unwrap_err();
        assert!(matches!(taken_over, Error::Bind { source, .. } if source.kind() == std::io::ErrorKind::Unsupported));
    });
}

#[test]
fn a_connection_is_cut_at_the_byte_that_was_asked_for() {
    for (fault, after, whole) in [(Fault::Fin, 9, 1), (Fault::Rst, 13, 2), (Fault::Fin, 10, 2), (Fault::Fin, 0, 0)] {
        Sim::new().run(|sim| async move {
            let (mut listener, addr) = listening(&sim).await;
            let events = listener.events();
            sim.link(addr).fail_next(Side::Dialer, after, fault);
            let mut connection = dialed(&sim, addr).await;
            let coming = sim.spawn({
                let sim = sim.clone();
                async move {
                    let mut came = 0;
                    while let Some((peer, _)) = sim.timeout(SECOND, listener.next()).await.flatten() {
                        // What did not come goes over the connection that is opened next.
                        came += usize::from(peer.id() == 1);
                    }
                    came
                }
            });
            for message in [&b"a"[..], b"b", b"c"] {
                let _ = connection.send(message.into()).await;
                // What is reset on its way is gone.
                sim.sleep(LATENCY).await;
            }
            let came = coming.await;
            assert_eq!(came, whole, "{fault:?} after {after}");
            let ended = events.filter_map(async |event| match event {
                Event::Disconnected { reason, .. } => Some(reason),
                _ => None,
            });
            let reason = std::pin::pin!(ended).next().await.unwrap();
            match (fault, after % 5) {
                (Fault::Rst, _) => {
                    assert!(matches!(reason, Reason::Failed(_) | Reason::Truncated { .. }), "{reason:?}")
                }
                (_, 0) => assert!(matches!(reason, Reason::Closed), "{reason:?}"),
                _ => assert!(matches!(reason, Reason::Truncated { .. }), "{reason:?}"),
            }
        });
    }
}

#[test]
fn a_stall_and_a_black_hole_are_met_by_the_time_limits() {
    Sim::new().capacity(1024).run(|sim| async move {
        let (listener, addr) = listening(&sim).await;
        let _incoming = listener.split();
        sim.link(addr).fail_next(Side::Dialer, 3, Fault::Stall);
        let mut connection = Connection::dial(addr, config(&sim).write_timeout(SECOND)).await.unwrap();
        let sent = connection.send(vec![7; 4096].into()).await;
        assert!(matches!(sent, Err(Error::Timeout { what: Limit::WriteTimeout, .. })), "{sent:?}");

        sim.link(addr).black_hole();
        let began = sim.now();
        let dialing = Connection::dial(addr, config(&sim).dial_timeout(SECOND)).await;
        assert!(matches!(dialing, Err(Error::DialTimeout { .. })), "{dialing:?}");
        assert_eq!(sim.now() - began, SECOND);
        // Who still waits when it is over is answered.
        let waiting = sim.spawn({
            let sim = sim.clone();
            async move { Connection::dial(addr, config(&sim)).await.map(drop) }
        });
        sim.sleep(SECOND).await;
        sim.link(addr).heal();
        waiting.await.unwrap();
        assert_eq!(sim.link(addr).connections(), 2);
    });
}

#[test]
fn latency_bandwidth_and_segments_are_what_they_are_set_to() {
    Sim::new().run(|sim| async move {
        let (mut listener, addr) = listening(&sim).await;
        sim.link(addr).latency(LATENCY);
        let mut connection = dialed(&sim, addr).await;
        let began = sim.now();
        connection.send(b"a message"[..].into()).await.unwrap();
        assert_eq!(next(&mut listener).await, "a message");
        assert_eq!(sim.now() - began, LATENCY);

        sim.link(addr).latency(Duration::ZERO).bandwidth(1004);
        let mut connection = dialed(&sim, addr).await;
        let began = sim.now();
        connection.send(vec![7; 1000].into()).await.unwrap();
        connection.send(vec![7; 1000].into()).await.unwrap();
        assert_eq!(next(&mut listener).await.len(), 1000);
        assert_eq!(sim.now() - began, SECOND);
        assert_eq!(next(&mut listener).await.len(), 1000);
        assert_eq!(sim.now() - began, 2 * SECOND);
    });
    // In single bytes all is as before, with many more reads.
    let reads = |bytes| {
        let sim = Sim::new().traced();
        sim.run(|sim| async move {
            let (mut listener, addr) = listening(&sim).await;
            sim.link(addr).segments(bytes);
            let mut connection = dialed(&sim, addr).await;
            connection.send(vec![7; 96].into()).await.unwrap();
            assert_eq!(next(&mut listener).await, vec![7; 96]);
            sim.take_trace().iter().filter(|line| line.contains("reads Ready(Ok(1))")).count()
        })
    };
    assert_eq!((reads(usize::MAX), reads(1)), (0, 100));
}

#[test]
fn what_is_parted_comes_together_again() {
    Sim::new().run(|sim| async move {
        let (mut listener, addr) = listening(&sim).await;
        let mut connection = dialed(&sim, addr).await;
        sim.link(addr).part();
        connection.send(b"on its way"[..].into()).await.unwrap();
        assert!(sim.timeout(SECOND, listener.next()).await.is_none());
        let dialing = sim.timeout(SECOND, dialed(&sim, addr)).await;
        assert!(dialing.is_none());
        sim.link(addr).heal();
        assert_eq!(next(&mut listener).await, "on its way");
        dialed(&sim, addr).await.send(b"another"[..].into()).await.unwrap();
        assert_eq!(next(&mut listener).await, "another");
        // And what there is can be ended at once.
        sim.link(addr).fail_now(Fault::Rst);
        connection.send(b"over a third"[..].into()).await.unwrap();
        assert_eq!(next(&mut listener).await, "over a third");
        assert_eq!(sim.link(addr).connections(), 3);
    });
}

#[test]
fn a_name_is_known_when_it_was_given() {
    Sim::new().run(|sim| async move {
        let (mut listener, addr) = listening(&sim).await;
        let named = format!("collector:{}", addr.port());
        assert!(matches!(Connection::dial(named.as_str(), config(&sim)).await, Err(Error::Dial { .. })));
        sim.name("collector", addr.ip());
        Connection::dial(named.as_str(), config(&sim)).await.unwrap().send(b"a"[..].into()).await.unwrap();
        assert_eq!(next(&mut listener).await, "a");
    });
}

#[test]
fn a_wait_for_something_outside_is_a_panic_that_names_the_seed() {
    let stalled = catch_unwind(|| {
        Sim::new().seed(11).run(|sim| async move {
            let (mut listener, _) = listening(&sim).await;
            listener.next().await
        })
    });
    let panic = stalled.unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("nothing can run") && text.contains("the seed is 11"), "{text}");
}

#[test]
fn the_output_of_a_task_comes_to_whoever_waits() {
    Sim::new().run(|sim| async move {
        let (answer, sleeper) = (sim.spawn(async { 42 }), sim.sleep(SECOND));
        assert_eq!((answer.await, sim.now()), (42, Duration::ZERO));
        sleeper.await;
        sim.yield_now().await;
        assert_eq!(sim.now(), SECOND);
    });
}

/// What the program of [`many_ends`] came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcomes {
    hash: u64,
    received: BTreeMap<usize, Vec<u32>>,
    /// What came back: as letters, and in the errors of `write`.
    letters: Vec<u32>,
    /// How many came back, as the managers have counted them.
    dead_lettered: u64,
}

/// How many messages each producer sends to each address.
const MESSAGES: u32 = 12;

/// Two managers that write to three listeners, over connections that break, stall and are parted, as the seed decides.
fn many_ends(seed: u64) -> Outcomes {
    // So little that a stall is soon met.
    let sim = Sim::new().seed(seed).capacity(64);
    let (received, letters, dead_lettered) = sim.run(|sim| async move {
        let received = Arc::new(Mutex::new(BTreeMap::<usize, Vec<u32>>::new()));
        let mut addrs = Vec::new();
        for n in 0..3 {
            let (listener, addr) = listening(&sim).await;
            let (incoming, _outgoing) = listener.split();
            sim.link(addr).latency(Duration::from_micros(sim.random() % 3_000));
            for _ in 0..sim.random() % 3 {
                let (side, fault) = match sim.random() % 3 {
                    0 => (Side::Dialer, Fault::Rst),
                    1 => (Side::Dialer, Fault::Fin),
                    _ => (Side::Acceptor, Fault::Stall),
                };
                sim.link(addr).fail_next(side, (sim.random() % 400) as usize, fault);
            }
            let received = received.clone();
            drop(sim.spawn(collect(incoming, n, received)));
            addrs.push(addr);
        }
        let reconnect = Backoff::exponential(Duration::from_millis(10), SECOND).max_elapsed(2 * SECOND);
        let config =
            config(&sim).reconnect(reconnect).dial_timeout(SECOND).write_timeout(SECOND).message_ttl(5 * SECOND);
        let mut letters = Vec::new();
        let mut tasks = Vec::new();
        for n in 0..2 {
            let manager = Manager::new(config.clone());
            letters.push(manager.dead_letters());
            let (addrs, sim) = (addrs.clone(), sim.clone());
            tasks.push(sim.clone().spawn(async move { produce(&sim, &manager, n, &addrs).await }));
        }
        if sim.random().is_multiple_of(2) {
            let link = sim.link(addrs[0]);
            sim.sleep(Duration::from_millis(sim.random() % 40)).await;
            link.part();
            sim.sleep(Duration::from_millis(sim.random() % 9_000)).await;
            link.heal();
        }
        let (unsent, counted): (Vec<_>, Vec<_>) = join_all(tasks).await.into_iter().unzip();
        let mut came_back: Vec<u32> = unsent.into_iter().flatten().collect();
        for mut letters in letters {
            // Its manager is gone: what it has is all there will be.
            while let Some(letter) = letters.next().await {
                assert!(!matches!(letter.outcome, Outcome::QueueFull));
                came_back.push(number(&letter.message));
            }
        }
        sim.sleep(10 * SECOND).await;
        let received = std::mem::take(&mut *received.lock().unwrap());
        (received, came_back, counted.into_iter().sum())
    });
    Outcomes { hash: sim.hash(), received, letters, dead_lettered }
}

async fn collect(mut incoming: Incoming, n: usize, received: Arc<Mutex<BTreeMap<usize, Vec<u32>>>>) {
    while let Some((_, message)) = incoming.next().await {
        received.lock().unwrap().entry(n).or_default().push(number(&message));
    }
}

fn number(message: &[u8]) -> u32 {
    u32::from_be_bytes(*message.first_chunk().unwrap())
}

/// Returns what came back in an error, and how many came back in any way.
async fn produce(sim: &Sim, manager: &Manager, n: u32, addrs: &[SocketAddr]) -> (Vec<u32>, u64) {
    let mut unsent = Vec::new();
    for addr in addrs {
        while manager.dial(*addr).await.is_err() {
            sim.sleep(Duration::from_millis(50)).await;
        }
    }
    let mut sink = manager.sink();
    for message in 0..MESSAGES {
        for (to, addr) in addrs.iter().enumerate() {
            let number = n * 1_000_000 + to as u32 * 1_000 + message;
            let bytes = Bytes::copy_from_slice(&number.to_be_bytes());
            if sim.random().is_multiple_of(2) {
                sink.send(((*addr).into(), bytes)).await.ok();
            } else if let Err(error) = manager.write(*addr, bytes).await {
                unsent.push(self::number(&error.into_unsent().expect("it comes back")));
            }
        }
        sim.sleep(Duration::from_micros(sim.random() % 8_000)).await;
    }
    drop(sink);
    let before = manager.stats().total;
    manager.shutdown(2 * SECOND).await;
    let total = manager.stats().total;
    assert_eq!(total.accepted, total.written + total.dead_lettered + total.held, "{before:?} {total:?}");
    assert_eq!((total.accepted, total.held), (u64::from(MESSAGES) * addrs.len() as u64, 0), "{total:?}");
    (unsent, total.dead_lettered)
}

/// Every seed of these: `BUFFSTREAMS_SEEDS` says how many, 200 if it is not set.
#[test]
fn no_seed_loses_a_message_without_a_word() {
    let seeds = std::env::var("BUFFSTREAMS_SEEDS").map_or(200, |seeds| seeds.parse().unwrap());
    let (mut came, mut came_back) = (0, 0);
    for seed in 0..seeds {
        let Outcomes { received, letters, dead_lettered, .. } = many_ends(seed);
        assert_eq!(letters.len() as u64, dead_lettered, "seed {seed}: what was counted as come back must come back");
        let mut seen: Vec<u32> = received.into_values().flatten().chain(letters.iter().copied()).collect();
        came_back += letters.len();
        came += seen.len() - letters.len();
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all, "seed {seed}: a message came twice, or came and came back");
    }
    println!("{seeds} seeds: {came} messages came, {came_back} came back");
    assert!(came > 0 && (seeds < 50 || came_back > 0));
}

#[test]
fn the_same_seed_is_the_same_run_on_any_thread() {
    for seed in 0..20 {
        let here = many_ends(seed);
        assert_eq!(here, many_ends(seed));
        assert_eq!(here, std::thread::spawn(move || many_ends(seed)).join().unwrap());
        assert_ne!(here.hash, many_ends(seed + 1_000).hash);
    }
}

#[test]
fn runs_that_differ_in_any_way_have_another_hash() {
    let run = |program: fn(Sim, Connection) -> BoxFuture<'static, ()>| {
        let sim = Sim::new().seed(3);
        sim.run(|sim| async move {
            let (mut listener, addr) = listening(&sim).await;
            let connection = dialed(&sim, addr).await;
            program(sim.clone(), connection).await;
            sim.timeout(SECOND, listener.next()).await;
        });
        sim.hash()
    };
    let a: fn(Sim, Connection) -> BoxFuture<'static, ()> =
        |_, mut connection| async move { connection.send(b"a"[..].into()).await.unwrap() }.boxed();
    let hashes = [
        run(a),
        run(|_, mut connection| async move { connection.send(b"b"[..].into()).await.unwrap() }.boxed()),
        run(|_, mut connection| async move { connection.send(b"abcdefgh1"[..].into()).await.unwrap() }.boxed()),
        run(|_, mut connection| async move { connection.send(b"abcdefgh2"[..].into()).await.unwrap() }.boxed()),
        run(|sim, _connection| async move { assert_ne!(sim.random(), 0) }.boxed()),
        run(|_, _connection| async {}.boxed()),
    ];
    for (at, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..at].contains(hash), "{at}: {hashes:?}");
    }
    assert_eq!(run(a), hashes[0]);
    assert_eq!(std::thread::spawn(move || run(a)).join().unwrap(), hashes[0]);
}

/// What is further away than the clock can tell never comes; nothing panics on the way there.
#[test]
fn the_longest_times_are_those_that_never_end() {
    Sim::new().run(|sim| async move {
        let (mut listener, addr) = listening(&sim).await;
        assert_eq!(sim.timeout(SECOND, sim.sleep(Duration::MAX)).await, None);
        assert_eq!(sim.timeout(Duration::MAX, async { 7 }).await, Some(7));
        sim.link(addr).latency(Duration::MAX);
        let mut connection = dialed(&sim, addr).await;
        connection.send(b"a message"[..].into()).await.unwrap();
        assert!(sim.timeout(SECOND, listener.next()).await.is_none());
        assert_eq!(sim.now(), 2 * SECOND);
    });
}
