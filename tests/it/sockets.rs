//! What the library asks of the system: where it listens, by which names an address goes, and the limits of its sockets.

use std::error::Error as _;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use buffstreams::{Bytes, ConfigError, Connection, Error, Listener, WriteHalf, chain};
use futures::{SinkExt, StreamExt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::{SOON, config, defaults, next, run, with_socket};

/// Takes a port on the one side, over which the other has nothing to say.
fn taken(ip: std::net::IpAddr) -> Option<(Socket, u16)> {
    let addr = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)).ok()?;
    if addr.is_ipv6() {
        socket.set_only_v6(true).ok()?;
    }
    socket.bind(&addr.into()).ok()?;
    socket.listen(1).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    Some((socket, port))
}

#[test]
fn a_port_of_which_one_side_is_taken_is_an_error() {
    run(async {
        for ip in [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()] {
            // Where the system has no IPv6, there is nothing to take.
            let Some((_taken, port)) = taken(ip) else { continue };
            let bound = Listener::bind(format!(":{port}"), config()).await;
            let Err(Error::Bind { source, .. }) = bound else { panic!("{ip}: {bound:?}") };
            assert_eq!(source.kind(), ErrorKind::AddrInUse, "{ip}");
        }
    });
}

#[test]
fn a_name_of_which_the_first_address_is_taken_is_an_error() {
    run(async {
        let first = std::net::ToSocketAddrs::to_socket_addrs("localhost:0").unwrap().next().unwrap();
        let taken = TcpListener::bind(first).unwrap();
        let port = taken.local_addr().unwrap().port();
        let bound = Listener::bind(format!("localhost:{port}"), config()).await;
        let Err(Error::Bind { source, .. }) = bound else { panic!("{bound:?}") };
        assert_eq!(source.kind(), ErrorKind::AddrInUse);
    });
}

#[test]
fn an_address_that_cannot_be_one_says_why_when_it_is_used() {
    run(async {
        for (text, why) in [
            (":", "there is no port: an address is host:port, or :port"),
            (":+80", "the port is no number"),
            (":99999", "the port is out of range: it is 65535 at the most"),
            ("::1:5031", "an IPv6 address needs brackets: [::1]:5031"),
        ] {
            let errors = [
                Listener::bind(text, config()).await.map(drop).unwrap_err(),
                Connection::dial(text, config()).await.map(drop).unwrap_err(),
            ];
            for error in errors {
                let (Error::Bind { source, .. } | Error::Dial { source, .. }) = &error else { panic!("{error:?}") };
                assert_eq!(source.kind(), ErrorKind::InvalidInput, "{text}");
                assert_eq!(source.to_string(), why, "{text}");
                assert_eq!(chain(&error).to_string(), format!("{error}: {why}"));
                assert!(error.source().is_some() && error.to_string().ends_with(text), "{error}");
            }
        }
    });
}

#[test]
fn an_ipv4_peer_of_a_listener_of_both_is_given_as_what_it_is() {
    run(async {
        let mut listener = Listener::bind(":0", config()).await.unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr().port().unwrap()));
        let mut connection = Connection::dial(to, config()).await.unwrap();
        connection.send(Bytes::from_static(b"hello")).await.unwrap();
        let (peer, _) = next(&mut listener).await.unwrap();
        assert_eq!(peer.addr().unwrap(), connection.local_addr().unwrap());
        assert!(peer.addr().unwrap().is_ipv4() && peer.to_string().starts_with("127.0.0.1:"), "{peer}");

        let mut connections = Listener::bind(":0", config()).await.unwrap().connections();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, connections.closer().local_addr().port().unwrap()));
        let dialed = Connection::dial(to, config()).await.unwrap();
        let accepted = next(&mut connections).await.unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), dialed.local_addr().unwrap());
        assert_eq!(accepted.local_addr().unwrap(), to);
    });
}

#[test]
fn each_half_knows_both_ends() {
    run(async {
        let mut connections = Listener::bind("127.0.0.1:0", config()).await.unwrap().connections();
        let there = connections.closer().local_addr();
        let dialed = Connection::dial(&there, config()).await.unwrap();
        let accepted = next(&mut connections).await.unwrap();
        let (here, peer) = (dialed.local_addr().unwrap(), accepted.peer());
        let ((dialed_read, dialed_write), (read, write)) = (dialed.split(), accepted.split());
        for (peer_addr, local_addr) in [
            (dialed_read.peer_addr(), dialed_read.local_addr()),
            (dialed_write.peer_addr(), dialed_write.local_addr()),
            (read.local_addr(), read.peer_addr()),
            (write.local_addr(), write.peer_addr()),
        ] {
            assert_eq!((peer_addr.unwrap(), local_addr.unwrap()), (there.clone(), here.clone()));
        }
        assert!(peer.is_some());
        assert_eq!((read.peer(), write.peer()), (peer, peer));
        assert_eq!((dialed_read.peer(), dialed_write.peer()), (None, None));
        // Plain TCP knows nobody.
        assert_eq!((read.identity(), write.identity()), (None, None));
    });
}

#[test]
fn a_time_that_cannot_be_a_limit_is_an_error() {
    const ZERO: Duration = Duration::ZERO;
    let most = Duration::from_millis(i32::MAX as u64);
    let refused = [
        ("dial_timeout", defaults().dial_timeout(ZERO)),
        ("write_timeout", defaults().write_timeout(ZERO)),
        ("frame_timeout", defaults().frame_timeout(ZERO)),
        ("idle_timeout", defaults().idle_timeout(ZERO)),
        ("keepalive", defaults().keepalive(ZERO)),
        ("user_timeout", defaults().user_timeout(ZERO)),
        ("user_timeout", defaults().user_timeout(Duration::from_micros(999))),
        ("user_timeout", defaults().user_timeout(most + Duration::from_millis(1))),
    ];
    run(async {
        for (expected, config) in refused {
            let bound = Listener::bind("127.0.0.1:0", config).await;
            let Err(Error::Config(ConfigError::Time { name, .. })) = bound else { panic!("{expected}: {bound:?}") };
            assert_eq!(name, expected);
        }
        let text = Listener::bind(":0", defaults().user_timeout(ZERO)).await.unwrap_err().to_string();
        assert_eq!(text, "user_timeout is 0ns: it is from 1ms to 2147483.647s, or None for no limit");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn the_user_timeout_that_is_asked_for_is_the_one_in_force() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        for asked in [Duration::from_millis(1), Duration::from_secs(30), Duration::from_millis(i32::MAX as u64)] {
            let connection = Connection::dial(to, config().user_timeout(asked)).await.unwrap();
            let in_force =
                with_socket(connection.local_addr().unwrap().ip().unwrap(), to, |socket| socket.tcp_user_timeout());
            assert_eq!(in_force.unwrap(), Some(asked));
        }
    });
}

/// Polls the other half of its connection when it is woken.
struct Flusher(Mutex<WriteHalf>, AtomicUsize);

impl Wake for Flusher {
    fn wake(self: Arc<Self>) {
        let mut write = self.0.lock().unwrap();
        assert!(write.poll_flush_unpin(&mut Context::from_waker(&self.clone().into())).is_pending());
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

/// The reactor wakes a waker that is replaced under the lock of its socket.
#[test]
fn a_waker_that_is_replaced_may_use_its_connection() {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let connection = async_std::task::block_on(Connection::dial(to, config())).unwrap();
        let _peer = listener.accept().unwrap();
        let (mut read, mut write) = connection.split();
        // More than the kernel has room for, or it would be written at once.
        let mut cx = Context::from_waker(Waker::noop());
        while write.poll_flush_unpin(&mut cx).is_ready() {
            write.start_send_unpin(vec![0; 1 << 20].into()).unwrap();
        }
        let flusher = Arc::new(Flusher(Mutex::new(write), AtomicUsize::new(0)));
        let waker = flusher.clone().into();
        assert!(read.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
        assert!(read.poll_next_unpin(&mut cx).is_pending());
        assert!(flusher.1.load(Ordering::Relaxed) > 0, "it was told that another waits");
        done.send(()).unwrap();
    });
    assert_eq!(ended.recv_timeout(SOON), Ok(()), "a lock was held, or a test of the thread failed");
}
