//! What the kernel was asked to do for a silent connection, as its own table of sockets tells; and that a peer is gone
//! when its host has vanished.

use std::future::Future;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use buffstreams::{Connection, Error, Listener, ManagerEvent, Reason};
use futures::{SinkExt, StreamExt};
use socket2::{SockFilter, SockRef};

use crate::net::{alone, disconnected, next, put, raw, rest, start};
use crate::peers::{Far, Site, config, dialed, numbered, run, within};

/// The longest silence that Linux accepts.
const LONGEST: Duration = Duration::from_secs(32_767);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// After how much more silence the kernel will ask, of the dialed connection; `None` if it will not.
fn asks_in(connection: &Connection) -> Option<Duration> {
    let port = |addr: SocketAddr| format!(":{:04X}", addr.port());
    let ends = [connection.local_addr(), connection.peer_addr()].map(|addr| port(addr.unwrap().ip().unwrap()));
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    // Number, own address, the other's, state, queues, and the timer: 02 is keepalive, then when, in hundredths.
    let mut fields = table.lines().map(|line| line.split_whitespace().take(6).collect::<Vec<_>>());
    let is_it = |fields: &Vec<&str>| fields[1].ends_with(&ends[0]) && fields[2].ends_with(&ends[1]);
    let timer = fields.find(is_it).expect("it is open")[5];
    let hundredths = u64::from_str_radix(timer.strip_prefix("02:")?, 16).unwrap();
    Some(Duration::from_millis(10 * hundredths))
}

#[test]
fn a_silence_is_what_was_asked_for_and_at_most_the_longest_that_the_system_knows() {
    run(async {
        let site = Site::new();
        let asked = [(Duration::from_secs(60), Duration::from_secs(60)), (DAY, LONGEST)];
        for (keepalive, expected) in asked {
            let connection = Connection::dial(site.addr, config().keepalive(keepalive)).await.unwrap();
            let left = asks_in(&connection).expect("it has the timer");
            assert!(left <= expected && left > expected - Duration::from_secs(30), "{left:?} for {keepalive:?}");
        }
        let connection = Connection::dial(site.addr, config().keepalive(None)).await.unwrap();
        assert_eq!(asks_in(&connection), None);
    });
}

/// The host of this socket vanishes: whatever comes to it from now on is dropped and not answered, not even by a reset.
/// What the socket itself sends, its end included, would still be a sign of life.
fn vanish(socket: &impl AsFd) -> std::io::Result<()> {
    // One instruction, "return 0": of every packet, TCP's own included, it keeps nothing.
    SockRef::from(socket).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)])
}

/// Runs the rest of the test `name` where hosts can vanish. Newer kernels let only the administrator of a network filter
/// what comes to a TCP socket; in a network of its own, a process is that.
#[track_caller]
fn where_hosts_vanish(name: &str, test: impl FnOnce()) {
    const OWN: [&str; 3] = ["--user", "--map-root-user", "--net"];
    let any = TcpListener::bind("127.0.0.1:0").unwrap();
    match vanish(&any) {
        Ok(()) => return test(),
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}"),
    }
    let why = match Command::new("unshare").args(OWN).arg("true").output() {
        Ok(output) if output.status.success() => {
            // It begins without an address. `ip` is of the package iproute2.
            let up = "ip link set lo up && exec \"$0\" \"$@\"";
            return alone(name, &format!("exec unshare {} sh -c '{up}' \"$0\" \"$@\"", OWN.join(" ")), test);
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_string(),
        Err(error) => format!("unshare: {error}"),
    };
    // Not by `eprintln!`, whose line is shown only when a test fails.
    let mut shown = std::io::stderr();
    writeln!(shown, "{name} is left out: no packet can be made to vanish here: {why}").unwrap();
}

/// Waits for the end that comes of a host's vanishing: no sooner than `expected`, and hardly later.
async fn in_time<T>(what: &str, expected: Duration, end: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let output = within(expected + 4 * SECOND, what, end).await;
    // The kernel counts in ticks of up to a hundredth, and rounds.
    assert!(begun.elapsed() + SECOND / 20 > expected, "{what} after {:?} already", begun.elapsed());
    output
}

#[test]
fn a_peer_whose_host_vanished_is_gone_in_the_configured_time() {
    /// Two peers are silent; the host of one of them vanishes.
    async fn after(expected: Duration, user_timeout: Option<Duration>) {
        let config = config().keepalive(SECOND).user_timeout(user_timeout);
        let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        start(&mut listener);
        let mut well = raw(addr);
        let vanishing = async {
            let gone = raw(addr);
            vanish(&gone).unwrap();
            disconnected(&mut events, gone.local_addr().unwrap()).await
        };
        let reason = in_time("the end of a silent peer", expected, vanishing).await;
        assert!(matches!(&reason, Reason::Failed(error) if error.kind() == ErrorKind::TimedOut), "{reason:?}");
        // The other was as silent, but its host answered.
        assert_eq!(listener.stats().connections, 1);
        put(&mut well, b"here");
        assert_eq!(next(&mut listener).await.unwrap().1, "here");
        drop(listener);
        assert_eq!(rest(&mut well), b"");
    }
    where_hosts_vanish("keepalive::a_peer_whose_host_vanished_is_gone_in_the_configured_time", || {
        run(async {
            // A second of silence, then three questions, a second apart. With a user timeout, Linux does not count the
            // questions: the first is enough when the silence has lasted that long.
            futures::join!(after(4 * SECOND, None), after(2 * SECOND, Some(2 * SECOND)));
        });
    });
}

#[test]
fn a_receiver_whose_host_vanished_is_gone_in_the_configured_time() {
    const LIMIT: Duration = SECOND;
    fn asked() -> buffstreams::Config {
        config().keepalive(None).user_timeout(LIMIT)
    }
    fn timed_out(error: &Error) -> bool {
        matches!(error, Error::Read(error) | Error::Write(error) if error.kind() == ErrorKind::TimedOut)
    }
    async fn to_vanish() -> (Connection, Far) {
        let site = Site::new();
        let (connection, far) = futures::join!(Connection::dial(site.addr, asked()), site.accept());
        vanish(&far.0).unwrap();
        (connection.unwrap(), far)
    }
    /// The kernel has taken the message, and a reply is waited for.
    async fn for_who_waits() {
        let (mut connection, _far) = to_vanish().await;
        let waiting = async {
            connection.send(numbered(0, 8)).await.expect("there is room for it");
            connection.next().await
        };
        let error = in_time("the end of the replies", LIMIT, waiting).await.unwrap().unwrap_err();
        assert!(timed_out(&error), "{error:?}");
        assert!(next(&mut connection).await.is_none());
    }
    /// The message is more than the kernel takes.
    async fn for_who_writes() {
        let (mut connection, _far) = to_vanish().await;
        let message = numbered(0, 8 << 20);
        let writing = in_time("the end of the write", LIMIT, connection.send(message.clone()));
        let error = writing.await.expect_err("nobody takes it");
        assert!(timed_out(&error), "{error:?}");
        assert_eq!(connection.take_unsent(), [message]);
    }
    /// Nobody waits for anything but the event.
    async fn for_a_manager() {
        let site = Site::new();
        let (manager, far) = dialed(asked(), &site).await;
        let mut events = manager.events();
        vanish(&far.0).unwrap();
        let breaking = async {
            manager.write(site.addr, numbered(0, 8)).await.expect("there is room for it");
            events.next().await.unwrap()
        };
        let event = in_time("the break", LIMIT, breaking).await;
        let ManagerEvent::Broken { address, error: Some(error), .. } = &event else { panic!("{event:?}") };
        assert_eq!(address.as_str(), site.addr.to_string());
        assert!(timed_out(error), "{error:?}");
        // Its place is free for the next message, which reaches the host that has come back.
        let (written, mut far) = futures::join!(manager.write(site.addr, numbered(1, 8)), site.accept());
        written.unwrap();
        assert_eq!(far.message().await, numbered(1, 8));
    }
    where_hosts_vanish("keepalive::a_receiver_whose_host_vanished_is_gone_in_the_configured_time", || {
        run(async {
            futures::join!(for_who_waits(), for_who_writes(), for_a_manager());
        });
    });
}
