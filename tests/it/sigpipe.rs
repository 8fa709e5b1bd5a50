//! Writes to a socket that takes nothing any more, where SIGPIPE has its default action, as in many programs that are not
//! written in Rust: an error, and not the end of the process.

use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr};

use buffstreams::{Connection, Error, Listener, Manager, ManagerEvent, Reason};
use futures::SinkExt;

use crate::net::{alone, disconnected, next, put, raw, with_socket};
use crate::peers::{Site, config, dialed, numbered, run};

/// Below and above the length from which messages are chained, and more than a socket has room for.
const LENGTHS: [usize; 3] = [110, 5000, 8_000_000];

/// Runs the rest of the test `name` in a process of its own, in which SIGPIPE kills.
#[track_caller]
fn where_sigpipe_kills(name: &str, test: impl Future<Output = ()>) {
    alone(name, "", || {
        restore_sigpipe();
        run(test);
    });
}

/// The standard library has set it to be ignored.
#[allow(unsafe_code)]
pub(crate) fn restore_sigpipe() {
    // SAFETY: this sets no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(ignored & (1 << (libc::SIGPIPE - 1)), 0);
}

/// Ends the sending direction of the socket of the library that goes from `local` to `peer`, behind its back.
fn cut(local: SocketAddr, peer: SocketAddr) {
    with_socket(local, peer, |socket| socket.shutdown(Shutdown::Write).unwrap());
}

fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Write(error) if error.kind() == ErrorKind::BrokenPipe)
}

#[test]
fn a_reply_to_a_client_that_left_is_an_error() {
    where_sigpipe_kills("sigpipe::a_reply_to_a_client_that_left_is_an_error", async {
        for len in LENGTHS {
            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let addr = listener.local_addr().ip().unwrap();
            let mut connections = listener.connections();
            let client = raw(addr);
            let mut connection = next(&mut connections).await.unwrap();
            drop(client);
            // The kernel takes some, until the other end has said that nobody is there.
            let error = loop {
                if let Err(error) = connection.send(numbered(0, len)).await {
                    break error;
                }
            };
            assert!(matches!(error, Error::Write(_)), "{error:?}");
        }
    });
}

#[test]
fn a_reply_of_a_merged_listener_is_an_error() {
    where_sigpipe_kills("sigpipe::a_reply_of_a_merged_listener_is_an_error", async {
        for len in LENGTHS {
            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
            let (mut incoming, mut outgoing) = listener.split();
            let mut client = raw(addr);
            put(&mut client, b"request");
            let (peer, _) = next(&mut incoming).await.unwrap();
            cut(addr, peer.addr().unwrap());
            // What comes of a reply is told by the events.
            let _ = outgoing.send((peer, numbered(0, len))).await;
            let reason = disconnected(&mut events, peer.addr().unwrap()).await;
            assert!(matches!(&reason, Reason::Failed(error) if error.kind() == ErrorKind::BrokenPipe), "{reason:?}");
        }
    });
}

#[test]
fn a_message_of_a_connection_is_an_error() {
    where_sigpipe_kills("sigpipe::a_message_of_a_connection_is_an_error", async {
        for len in LENGTHS {
            let site = Site::new();
            let (connection, _far) = futures::join!(Connection::dial(site.addr, config()), site.accept());
            let mut connection = connection.unwrap();
            cut(connection.local_addr().unwrap().ip().unwrap(), site.addr);
            let error = connection.send(numbered(0, len)).await.unwrap_err();
            assert!(is_broken_pipe(&error), "{error:?}");
            assert_eq!(connection.take_unsent(), [numbered(0, len)]);
        }
    });
}

#[test]
fn a_message_of_a_manager_is_an_error_and_is_sent_again() {
    async fn check(write: impl AsyncFn(&Manager, SocketAddr, usize)) {
        for len in LENGTHS {
            let site = Site::new();
            let (manager, far) = dialed(config(), &site).await;
            let mut events = manager.events();
            cut(far.0.peer_addr().unwrap(), site.addr);
            let receive = async {
                let mut far = site.accept().await;
                assert_eq!(far.message().await, numbered(0, len));
                far
            };
            let ((), _again) = futures::join!(write(&manager, site.addr, len), receive);
            let event = next(&mut events).await.unwrap();
            let ManagerEvent::Broken { error: Some(error), .. } = &event else { panic!("{event:?}") };
            assert!(is_broken_pipe(error), "{error:?}");
        }
    }
    where_sigpipe_kills("sigpipe::a_message_of_a_manager_is_an_error_and_is_sent_again", async {
        check(async |manager, addr, len| manager.write(addr, numbered(0, len)).await.unwrap()).await;
        check(async |manager, addr, len| manager.sink().send((addr.into(), numbered(0, len))).await.unwrap()).await;
    });
}
