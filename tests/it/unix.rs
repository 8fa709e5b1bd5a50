//! Unix sockets: whatever goes over TCP goes over them, and the kernel says who is at the other end.

use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use buffstreams::{
    Address, Backoff, Bytes, Config, Connection, Endpoint, Error, Event, FrameErrorKind, Listener, Manager,
    ManagerEvent, Reason,
};
use futures::{FutureExt, SinkExt, StreamExt, TryStreamExt};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::net::{SOON, alone, config, connected, event, frame, next, run, start, within};
use crate::unix_files::Folder;

/// A socket that listens, and whose queue is full.
pub(crate) struct Busy {
    listening: Socket,
    waiting: Vec<Socket>,
}

impl Busy {
    pub(crate) fn new(folder: &Folder) -> Self {
        let new = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let (listening, address) = (new(), SockAddr::unix(folder.path()).unwrap());
        listening.bind(&address).unwrap();
        listening.listen(0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let socket = new();
            socket.set_nonblocking(true).unwrap();
            match socket.connect(&address) {
                Ok(()) => waiting.push(socket),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return Self { listening, waiting };
                }
            }
        }
    }
}

#[test]
fn messages_and_replies_go_over_a_unix_socket() {
    run(async {
        let folder = Folder::new();
        let listener = Listener::bind(folder.address(), config()).await.unwrap();
        assert_eq!(listener.local_addr(), Endpoint::Unix(folder.path()));
        assert_eq!(Address::from(listener.local_addr()), folder.address().into());
        let closer = listener.closer();
        let (mut incoming, mut outgoing) = listener.split();
        let mut connection = Connection::dial(closer.local_addr(), config()).await.unwrap();
        assert_eq!(connection.peer_addr().unwrap().path(), Some(&*folder.path()));
        assert_eq!(connection.local_addr().unwrap(), Endpoint::Unix("".into()));
        for len in [0, 110, 5_000, 1 << 20] {
            let message = Bytes::from(vec![7; len]);
            let answer = async {
                let (peer, received) = next(&mut incoming).await.unwrap();
                assert_eq!((peer.addr(), peer.to_string()), (None, "unix#1".to_owned()));
                outgoing.send((peer, received)).await.unwrap();
            };
            let ask = async {
                connection.send(message.clone()).await.unwrap();
                assert!(next(&mut connection).await.unwrap().unwrap() == message);
            };
            futures::join!(ask, answer);
        }
        connection.close().await.unwrap();
        let (closed, end) = futures::join!(closer.close(), next(&mut incoming));
        closed.unwrap();
        assert!(end.is_none());
        assert!(within(SOON, connection.try_collect::<Vec<_>>()).await.unwrap().is_empty());
    });
}

#[test]
fn a_name_without_a_file_is_an_address_too() {
    run(async {
        let address = format!("unix:@buffstreams-{}", std::process::id());
        let mut listener = Listener::bind(&address, config()).await.unwrap();
        assert_eq!(listener.local_addr().to_string(), address);
        let mut connection = Connection::dial(&address, config()).await.unwrap();
        connection.send(Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "hello");
        let taken = Listener::bind(&address, config()).await.unwrap_err();
        assert!(matches!(taken, Error::Bind { source, .. } if source.kind() == ErrorKind::AddrInUse));
        drop(listener);
        let without = Listener::bind(&address, config().unix_mode(0o600)).await.unwrap_err();
        assert!(matches!(without, Error::Bind { source, .. } if source.kind() == ErrorKind::Unsupported));
    });
}

#[test]
fn a_connection_of_connections_is_reached_over_a_unix_socket() {
    run(async {
        let folder = Folder::new();
        let mut connections = Listener::bind(folder.address(), config()).await.unwrap().connections();
        let mut client = Connection::dial(folder.address(), config()).await.unwrap();
        let mut served = next(&mut connections).await.unwrap();
        client.send(Bytes::from_static(b"ping")).await.unwrap();
        assert_eq!(next(&mut served).await.unwrap().unwrap(), "ping");
        served.send(Bytes::from_static(b"pong")).await.unwrap();
        assert_eq!(next(&mut client).await.unwrap().unwrap(), "pong");
        assert_eq!(served.local_addr().unwrap(), client.peer_addr().unwrap());
        assert_eq!(served.identity(), client.identity());
    });
}

#[test]
fn a_manager_goes_on_when_a_unix_listener_comes_back() {
    run(async {
        let folder = Folder::new();
        let backoff = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(20));
        let manager = Manager::new(config().reconnect(backoff));
        let address = Address::from(folder.address());
        let (mut events, mut sink) = (manager.events(), manager.sink());
        for round in 0..3 {
            let mut listener = manager.listen(&address).await.unwrap();
            if round == 0 {
                manager.dial(&address).await.unwrap();
                assert!(manager.identity(&address).unwrap().credentials().is_some());
            }
            sink.send((address.clone(), Bytes::from(format!("round {round}")))).await.unwrap();
            assert_eq!(next(&mut listener).await.unwrap().1, format!("round {round}"));
            drop(listener);
            while !matches!(next(&mut events).await, Some(ManagerEvent::Broken { .. })) {}
            assert!(!folder.path().exists());
        }
    });
}

#[test]
fn the_kernel_says_who_is_at_the_other_end() {
    run(async {
        let folder = Folder::new();
        let mut listener = Listener::bind(folder.address(), config()).await.unwrap();
        start(&mut listener);
        let mut events = listener.events();
        let connection = Connection::dial(folder.address(), config()).await.unwrap();
        let (peer, told) = event(&mut events, |event| match event {
            Event::Connected { peer, identity, .. } => Some((peer, identity)),
            _ => None,
        })
        .await;
        let credentials = told.as_ref().unwrap().credentials().unwrap();
        let own = std::fs::metadata("/proc/self").unwrap();
        assert_eq!(credentials.pid, Some(std::process::id() as i32));
        assert_eq!((credentials.uid, credentials.gid), (own.uid(), own.gid()));
        assert_eq!(connection.identity(), told, "both ends are of this process");
        assert_eq!(listener.identity(peer), told);
        assert_eq!(listener.closer().identity(peer), told);

        drop(connection);
        event(&mut events, |event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
        assert_eq!(listener.identity(peer), None, "it is gone");

        let tcp = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut events = tcp.events();
        let connection = Connection::dial(tcp.local_addr(), config()).await.unwrap();
        let peer = connected(&mut events).await;
        assert_eq!((connection.identity(), tcp.identity(peer)), (None, None), "TCP knows nothing");
    });
}

/// Both are the first of their listener, and have no address that would tell them apart.
#[test]
fn a_peer_of_one_unix_listener_is_not_taken_for_one_of_another() {
    run(async {
        let (here, there) = (Folder::new(), Folder::new());
        let mut one = Listener::bind(here.address(), config()).await.unwrap();
        let other = Listener::bind(there.address(), config()).await.unwrap();
        let (mut others, closer) = (other.events(), other.closer());
        let (_incoming, mut outgoing) = other.split();
        let mut mine = Connection::dial(here.address(), config()).await.unwrap();
        let _theirs = Connection::dial(there.address(), config()).await.unwrap();
        mine.send(Bytes::from_static(b"hello")).await.unwrap();
        let (peer, _) = next(&mut one).await.unwrap();
        let theirs = connected(&mut others).await;
        assert_eq!((peer.id(), theirs.id()), (1, 1));
        assert_ne!(peer, theirs);
        assert_eq!(closer.identity(peer), None);
        outgoing.send((peer, Bytes::from_static(b"for another"))).await.unwrap();
        let undelivered = event(&mut others, |event| match event {
            Event::Undelivered { peer, messages, .. } => Some((peer, messages)),
            _ => None,
        });
        assert_eq!(undelivered.await, (peer, 1));
    });
}

#[test]
fn a_path_that_cannot_be_one_is_an_error_with_the_figures() {
    run(async {
        for (path, says) in [
            (format!("/{}", "x".repeat(107)), "a path of 108 bytes: that of a Unix socket has at most 107"),
            (String::new(), "there is no path"),
            ("a\0b".to_owned(), "there is a zero byte in the path"),
        ] {
            let address = format!("unix:{path}");
            let Err(Error::Bind { source, .. }) = Listener::bind(&address, config()).await else { panic!("{path}") };
            assert_eq!(source.kind(), ErrorKind::InvalidInput);
            assert!(source.to_string().contains(says), "{source}");
            let Err(Error::Dial { source, .. }) = Connection::dial(&address, config()).await else { panic!("{path}") };
            assert!(source.to_string().contains(says), "{source}");
        }
        let folder = Folder::new();
        let Err(Error::Dial { source, .. }) = Connection::dial(folder.address(), config()).await else { panic!() };
        assert_eq!(source.kind(), ErrorKind::NotFound);
        // As long as it may be.
        let longest = format!("{}{}", folder.address(), "x".repeat(107 - folder.path().as_os_str().len()));
        let listener = Listener::bind(&longest, config()).await.unwrap();
        assert_eq!(listener.local_addr().to_string(), longest);
        Connection::dial(&longest, config()).await.unwrap();
    });
}

#[test]
fn a_dial_waits_for_room_in_the_queue_of_the_other_end() {
    run(async {
        let folder = Folder::new();
        let Busy { listening, waiting } = Busy::new(&folder);
        let limit = Duration::from_millis(50);
        let error = Connection::dial(folder.address(), config().dial_timeout(limit)).await.unwrap_err();
        assert!(matches!(error, Error::DialTimeout { after, .. } if after == limit), "{error:?}");

        let mut dialing = Box::pin(Connection::dial(folder.address(), config()));
        assert!((&mut dialing).now_or_never().is_none());
        for _ in &waiting {
            listening.accept().unwrap();
        }
        within(SOON, dialing).await.unwrap();
    });
}

#[test]
fn a_header_that_makes_no_sense_ends_one_peer_of_a_unix_socket() {
    run(async {
        let folder = Folder::new();
        let mut listener = Listener::bind(folder.address(), config()).await.unwrap();
        let mut events = listener.events();
        let (mut bad, mut good) =
            (UnixStream::connect(folder.path()).unwrap(), UnixStream::connect(folder.path()).unwrap());
        bad.write_all(&[frame(b"before"), vec![0xff; 4], frame(b"behind")].concat()).unwrap();
        let (peer, message) = next(&mut listener).await.unwrap();
        assert_eq!(message, "before");
        good.write_all(&frame(b"good")).unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "good");
        let (rejected, error) = event(&mut events, |event| match event {
            Event::Rejected { peer, error, .. } => Some((peer, error)),
            _ => None,
        })
        .await;
        assert_eq!(rejected, peer);
        assert!(matches!(error.kind, FrameErrorKind::TooLarge { .. }), "{error:?}");
        let gone = event(&mut events, |event| match event {
            Event::Disconnected { peer, reason, .. } => Some((peer, reason)),
            _ => None,
        });
        assert!(matches!(gone.await, (gone, Reason::Rejected) if gone == peer));
    });
}

#[test]
fn a_reply_to_a_client_of_a_unix_socket_that_left_is_an_error() {
    alone("unix::a_reply_to_a_client_of_a_unix_socket_that_left_is_an_error", "", || {
        crate::sigpipe::restore_sigpipe();
        run(async {
            for len in [110, 5_000, 1 << 20] {
                let folder = Folder::new();
                let mut connections = Listener::bind(folder.address(), config()).await.unwrap().connections();
                let client = UnixStream::connect(folder.path()).unwrap();
                let mut connection = next(&mut connections).await.unwrap();
                drop(client);
                let error = within(SOON, connection.send(vec![7; len].into())).await.unwrap_err();
                assert!(matches!(&error, Error::Write(error) if error.kind() == ErrorKind::BrokenPipe), "{error:?}");
            }
        });
    });
}

#[test]
fn a_socket_that_listens_already_is_taken_over_and_its_file_stays() {
    run(async {
        let folder = Folder::new();
        let socket = UnixListener::bind(folder.path()).unwrap();
        // It waits in the queue.
        let mut early = UnixStream::connect(folder.path()).unwrap();
        early.write_all(&frame(b"early")).unwrap();
        let mut listener = Listener::from_std(socket, config()).unwrap();
        assert_eq!(listener.local_addr(), Endpoint::Unix(folder.path()));
        assert_eq!(next(&mut listener).await.unwrap().1, "early");
        let mut late = Connection::dial(folder.address(), config()).await.unwrap();
        late.send(Bytes::from_static(b"late")).await.unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "late");
        listener.close().await.unwrap();
        drop(listener);
        assert!(folder.path().exists(), "it is somebody else's");

        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let mut listener = Listener::from_std(socket, config()).unwrap();
        assert_eq!(listener.local_addr(), addr);
        let mut connection = Connection::dial(addr, config()).await.unwrap();
        connection.send(Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "hello");
    });
}

/// A supervisor has it as well, or the process that comes next.
#[test]
fn a_socket_that_was_taken_over_goes_on_listening_for_others() {
    run(async {
        let folder = Folder::new();
        let (unix, tcp) =
            (UnixListener::bind(folder.path()).unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [folder.address(), tcp.local_addr().unwrap().to_string()];
        for (socket, address) in [OwnedFd::from(unix), OwnedFd::from(tcp)].into_iter().zip(addresses) {
            for closes in [false, true] {
                let mut listener = Listener::from_std(socket.try_clone().unwrap(), config()).unwrap();
                let mut events = listener.events();
                if closes {
                    listener.close().await.unwrap();
                }
                drop(listener);
                // Then the task has let it go.
                while events.next().await.is_some() {}
                let mut next_one = Listener::from_std(socket.try_clone().unwrap(), config()).unwrap();
                let mut connection = Connection::dial(address.as_str(), config()).await.unwrap();
                connection.send(Bytes::from_static(b"for the next one")).await.unwrap();
                assert_eq!(next(&mut next_one).await.unwrap().1, "for the next one", "{address}, {closes}");
            }
        }
    });
}

#[test]
fn what_does_not_listen_is_not_taken_over() {
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (one, _other) = UnixStream::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for socket in [OwnedFd::from(datagrams), OwnedFd::from(one), OwnedFd::from(file)] {
        let refused = Listener::from_std(socket, config());
        let Err(Error::Bind { source, .. }) = refused else { panic!("{refused:?}") };
        let is_told = source.kind() == ErrorKind::InvalidInput || source.raw_os_error() == Some(libc::ENOTSOCK);
        assert!(is_told, "{source:?}");
    }
}

#[path = "../../examples/systemd.rs"]
#[allow(dead_code)]
mod systemd;

/// As systemd starts it: the sockets are descriptors 3 and 4, and the environment says so.
#[test]
fn the_example_answers_on_the_sockets_that_it_is_started_with() {
    const NAME: &str = "unix::the_example_answers_on_the_sockets_that_it_is_started_with";
    if std::env::var_os("LISTEN_FDS").is_some() {
        // Until it is killed.
        return async_std::task::block_on(systemd::activated::main()).unwrap();
    }
    let folder = Folder::new();
    let (unix, tcp) = (UnixListener::bind(folder.path()).unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = [folder.address(), tcp.local_addr().unwrap().to_string()];
    let mut child = Command::new("sh")
        .args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$0\" \"$@\" 3<&0 4<&1 0</dev/null 1>&2"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .stdin(Stdio::from(OwnedFd::from(unix)))
        .stdout(Stdio::from(OwnedFd::from(tcp)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    run(async {
        for address in addresses {
            let mut connection = Connection::dial(address, Config::new()).await.unwrap();
            connection.send(Bytes::from_static(b"hello")).await.unwrap();
            assert_eq!(next(&mut connection).await.unwrap().unwrap(), "hello");
        }
    });
    child.kill().unwrap();
    child.wait().unwrap();
}
