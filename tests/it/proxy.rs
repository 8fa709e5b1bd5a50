//! The fault lab's proxy does what its plan says: at that byte, in that way, in that direction, and nothing else.

use std::io::ErrorKind;
use std::iter;
use std::time::{Duration, Instant};

use async_std::task;
use futures::{AsyncReadExt, AsyncWriteExt, future};

use crate::fault_lab::proxy::{Done, Fault, Passed, Plan, Proxy, Step};
use crate::peers::{Far, SOON, Site, run, within};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    Up,
    Down,
}
use Direction::{Down, Up};

const BOTH: [Direction; 2] = [Up, Down];
const ALL: u64 = u64::MAX;

/// These steps in one direction, nothing in the other.
fn plan(direction: Direction, steps: Vec<Step>) -> Plan {
    let steps = Box::new(steps.into_iter());
    match direction {
        Up => Plan { up: steps, down: Box::new(iter::empty()) },
        Down => Plan { up: Box::new(iter::empty()), down: steps },
    }
}

/// A connection through a proxy with these steps.
struct Through {
    proxy: Proxy,
    /// The end that sends in the direction of the steps.
    sender: Far,
    /// The one that receives there.
    receiver: Far,
}

async fn through(direction: Direction, steps: Vec<Step>) -> Through {
    let site = Site::new();
    let proxy = Proxy::start(site.addr, ALL, move |_| plan(direction, steps.clone())).expect("a proxy");
    let (client, server) = futures::join!(connect(&proxy), site.accept());
    match direction {
        Up => Through { proxy, sender: client, receiver: server },
        Down => Through { proxy, sender: server, receiver: client },
    }
}

async fn connect(proxy: &Proxy) -> Far {
    Far(async_std::net::TcpStream::connect(proxy.addr).await.expect("connect"))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Everything up to the end, and how that came: `None` is a clean end.
async fn rest(far: &mut Far) -> (Vec<u8>, Option<ErrorKind>) {
    let (mut bytes, mut buf) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match within(SOON, "the end of a connection", far.0.read(&mut buf)).await {
            Ok(0) => return (bytes, None),
            Ok(n) => bytes.extend_from_slice(&buf[..n]),
            Err(error) => return (bytes, Some(error.kind())),
        }
    }
}

/// Sends more than what passes, for as long as it is taken, and waits for the end. A socket tells of a reset once: to
/// whoever asks first.
async fn send(far: &mut Far, bytes: &[u8]) -> Option<ErrorKind> {
    let broken = far.0.write_all(bytes).await.err().map(|error| error.kind());
    let (received, end) = rest(far).await;
    assert_eq!(received, b"");
    broken.or(end)
}

/// Sends 1,000 bytes more than pass, and looks at both ends.
async fn cut_at(direction: Direction, steps: Vec<Step>, at: u64, end: Option<ErrorKind>) {
    let (at, count) = (at as usize, steps.len() as u64);
    let Through { proxy, mut sender, mut receiver } = through(direction, steps).await;
    let sent = pattern(at + 1_000);
    let (sender_end, (received, ended)) = future::join(send(&mut sender, &sent), rest(&mut receiver)).await;
    assert_eq!(received.len(), at, "{direction:?}");
    assert!(received == sent[..at]);
    assert_eq!(ended, end, "{direction:?}, {at}: the receiver");
    assert_eq!(sender_end, end, "{direction:?}, {at}: the sender");
    drop((sender, receiver));
    let done = proxy.finish().await;
    let passed = match direction {
        Up => Passed { up: at as u64, down: 0, cut: true },
        Down => Passed { up: 0, down: at as u64, cut: true },
    };
    assert_eq!((done.total(), done.connections), (count, vec![passed]));
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A cut may come anywhere: before the first byte, around the size of the proxy's buffer, and far behind it.
#[test]
fn a_clean_close_comes_after_exactly_that_byte() {
    run(async {
        for at in [0, 1, 2, 1_000, 16_383, 16_384, 16_385, 300_000] {
            for direction in BOTH {
                cut_at(direction, vec![Step { after: at, fault: Fault::Fin }], at, None).await;
            }
        }
    });
}

/// No further than what a window has room for: a reset takes with it what the kernel had not sent yet. And not before the
/// first byte: it might fail the client's attempt to connect.
#[test]
fn a_reset_comes_after_exactly_that_byte() {
    run(async {
        for at in [1, 2, 1_000, 16_383, 16_384, 16_385, 30_000] {
            for direction in BOTH {
                let reset = Some(ErrorKind::ConnectionReset);
                cut_at(direction, vec![Step { after: at, fault: Fault::Rst }], at, reset).await;
            }
        }
    });
}

/// They are counted from the end of the one before: the bytes that a fault forwards itself are not among them.
#[test]
fn steps_follow_each_other() {
    run(async {
        let steps = vec![
            Step { after: 10, fault: Fault::Split { bytes: 20 } },
            Step { after: 5, fault: Fault::Throttle { bytes: 100, piece: 30, pause: millis(1) } },
            Step { after: 0, fault: Fault::Delay { lasts: millis(1) } },
            Step { after: 7, fault: Fault::Fin },
        ];
        for direction in BOTH {
            cut_at(direction, steps.clone(), 10 + 20 + 5 + 100 + 7, None).await;
        }
    });
}

#[test]
fn a_stall_holds_up_one_direction_and_cuts_after_its_time() {
    run(async {
        let lasts = millis(150);
        for (direction, cleanly) in [(Up, true), (Down, true), (Up, false), (Down, false)] {
            let start = Instant::now();
            let steps = vec![Step { after: 100, fault: Fault::Stall { lasts, cleanly } }];
            let Through { proxy, mut sender, mut receiver } = through(direction, steps).await;
            sender.write(&pattern(200)).await;
            assert_eq!(receiver.read(100).await, pattern(100));
            // The other direction goes on: if it did not, the cut would be all that comes.
            receiver.write(b"back").await;
            assert_eq!(sender.read(4).await, b"back");
            let end = (!cleanly).then_some(ErrorKind::ConnectionReset);
            assert_eq!(rest(&mut receiver).await, (Vec::new(), end));
            assert_eq!(rest(&mut sender).await, (Vec::new(), end));
            assert!(start.elapsed() >= lasts, "it was cut after {:?}", start.elapsed());
            drop((sender, receiver));
            assert!(proxy.finish().await.connections[0].cut);
        }
    });
}

#[test]
fn a_black_connection_answers_nothing_and_is_reset_after_its_time() {
    run(async {
        let lasts = millis(150);
        for direction in BOTH {
            let start = Instant::now();
            let steps = vec![Step { after: 100, fault: Fault::Black { lasts } }];
            let Through { mut sender, mut receiver, proxy: _proxy } = through(direction, steps).await;
            sender.write(&pattern(200)).await;
            assert_eq!(receiver.read(100).await, pattern(100));
            // The fault begins when the byte is forwarded, and not when it is received: a first answer may pass.
            let reset = Some(ErrorKind::ConnectionReset);
            receiver.write(b"back").await;
            let (back, end) = rest(&mut sender).await;
            assert!(back.is_empty() || back == b"back");
            assert_eq!((end, rest(&mut receiver).await), (reset, (Vec::new(), reset)));
            assert!(start.elapsed() >= lasts, "it was reset after {:?}", start.elapsed());
        }
    });
}

#[test]
fn a_delay_and_a_throttle_take_their_time_and_lose_nothing() {
    run(async {
        let throttle = Fault::Throttle { bytes: 1_000, piece: 100, pause: millis(10) };
        for (fault, least) in [(Fault::Delay { lasts: millis(100) }, millis(100)), (throttle, millis(100))] {
            for direction in BOTH {
                let start = Instant::now();
                let steps = vec![Step { after: 100, fault }];
                let Through { proxy, mut sender, mut receiver } = through(direction, steps).await;
                sender.write(&pattern(5_000)).await;
                assert_eq!(receiver.read(5_000).await, pattern(5_000));
                assert!(start.elapsed() >= least, "{fault:?} took {:?}", start.elapsed());
                drop((sender, receiver));
                let done = proxy.finish().await;
                assert_eq!((done.connections[0].cut, done.total()), (false, 1));
            }
        }
    });
}

/// The kernel may put bytes together again, so one time in which they come apart is enough. Without the fault there is
/// none: the proxy passes on at once what it has read at once.
#[test]
fn a_split_stretch_comes_in_pieces() {
    run(async {
        let split = |fault: Option<Fault>| async move {
            let steps = fault.into_iter().map(|fault| Step { after: 0, fault }).collect();
            let Through { mut sender, mut receiver, proxy: _proxy } = through(Up, steps).await;
            sender.write(&pattern(500)).await;
            let mut buf = [0; 500];
            let first = within(SOON, "the first bytes", receiver.0.read(&mut buf)).await.expect("read");
            let rest = receiver.read(500 - first).await;
            assert_eq!([&buf[..first], &rest].concat(), pattern(500));
            first
        };
        let mut pieces = false;
        for _ in 0..50 {
            assert_eq!(split(None).await, 500);
            pieces |= split(Some(Fault::Split { bytes: 500 })).await < 500;
        }
        assert!(pieces, "fifty times it came in one piece");
    });
}

#[test]
fn a_proxy_that_is_away_refuses_and_comes_back_at_its_address() {
    run(async {
        let site = Site::new();
        let lasts = millis(100);
        let away = move |n| {
            plan(Up, (n == 0).then_some(Step { after: 3, fault: Fault::Away { lasts } }).into_iter().collect())
        };
        let proxy = Proxy::start(site.addr, ALL, away).expect("a proxy");
        let (mut client, mut server) = futures::join!(connect(&proxy), site.accept());
        client.write(b"1234").await;
        assert_eq!(rest(&mut server).await, (b"123".to_vec(), Some(ErrorKind::ConnectionReset)));
        let start = Instant::now();
        let mut refused = 0;
        let mut client = loop {
            match async_std::net::TcpStream::connect(proxy.addr).await {
                Ok(stream) => break Far(stream),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                    refused += 1;
                    task::yield_now().await;
                }
            }
            assert!(start.elapsed() < SOON, "it did not come back");
        };
        assert!(refused > 0, "it was never away");
        let mut server = site.accept().await;
        client.write(b"again").await;
        assert_eq!(server.read(5).await, b"again");
    });
}

#[test]
fn a_connection_without_faults_is_forwarded_to_the_end_of_each_direction() {
    run(async {
        let Through { proxy, mut sender, mut receiver } = through(Up, vec![]).await;
        let large = pattern(1 << 20);
        let (_, there) = future::join(sender.write(&large), receiver.read(1 << 20)).await;
        assert!(there == large);
        sender.0.shutdown(std::net::Shutdown::Write).expect("half-close");
        assert_eq!(rest(&mut receiver).await, (Vec::new(), None));
        // The other one is still open.
        receiver.write(b"back").await;
        assert_eq!(sender.read(4).await, b"back");
        drop(receiver);
        assert_eq!(rest(&mut sender).await, (Vec::new(), None));
        let done = within(SOON, "the proxy's end", proxy.finish()).await;
        let passed = Passed { up: 1 << 20, down: 4, cut: false };
        assert_eq!(done, Done { connections: vec![passed], ..Done::default() });
    });
}

#[test]
fn no_more_faults_than_the_limit() {
    run(async {
        let site = Site::new();
        let always = |_| plan(Up, vec![Step { after: 1, fault: Fault::Rst }]);
        let proxy = Proxy::start(site.addr, 3, always).expect("a proxy");
        for n in 0..5 {
            let (mut client, mut server) = futures::join!(connect(&proxy), site.accept());
            client.write(b"12").await;
            let _ = client.0.shutdown(std::net::Shutdown::Write);
            let (received, end) = rest(&mut server).await;
            assert_eq!((received.len(), end.is_some()), if n < 3 { (1, true) } else { (2, false) });
        }
        let cut: Vec<_> = proxy.finish().await.connections.iter().map(|passed| passed.cut).collect();
        assert_eq!(cut, [true, true, true, false, false]);
    });
}

/// What a proxy with this seed does to twenty connections, one after the other, each with the same bytes to send.
async fn seeded(seed: u64) -> Done {
    let site = Site::new();
    let proxy = Proxy::start(site.addr, ALL, move |n| Plan::seeded(seed, n, 10_000)).expect("a proxy");
    let sent = pattern(20_000);
    for n in 0..20 {
        let mut client = loop {
            // It may be away.
            match async_std::net::TcpStream::connect(proxy.addr).await {
                Ok(stream) => break Far(stream),
                Err(_) => task::yield_now().await,
            }
        };
        let mut server = site.accept().await;
        let sending = async {
            let _ = client.0.write_all(&sent).await;
            let _ = client.0.shutdown(std::net::Shutdown::Write);
        };
        let (_, (received, end)) = future::join(sending, rest(&mut server)).await;
        assert!(sent.starts_with(&received));
        // A reset may overtake bytes that the kernel had not sent yet.
        let forwarded = proxy.done().connections[n].up;
        assert!(received.len() as u64 == forwarded || end.is_some() && (received.len() as u64) < forwarded);
    }
    proxy.finish().await
}

#[test]
fn a_seed_decides_everything() {
    run(async {
        let (first, again, other) = (seeded(7).await, seeded(7).await, seeded(8).await);
        assert_eq!(first, again);
        assert_ne!(first.connections, other.connections);
        let steps = |seed, n| Plan::seeded(seed, n, 1_000).up.take(100).collect::<Vec<_>>();
        assert_eq!(steps(7, 0), steps(7, 0));
        assert_ne!(steps(7, 0), steps(7, 1));
        assert_ne!(steps(7, 0), steps(8, 0));
        // Each kind comes, and they are as far apart as was asked for.
        let many: Vec<_> = (0..50).flat_map(|n| steps(7, n)).collect();
        let mut faults = Done::default();
        many.iter().for_each(|step| faults.enter(step.fault));
        assert!(faults.faults.iter().all(|n| *n > 100), "{faults:?}");
        let mean = many.iter().map(|step| step.after).sum::<u64>() / many.len() as u64;
        assert!((800..1_000).contains(&mean), "one in eight is near, the others 1,000 apart: {mean}");
    });
}
