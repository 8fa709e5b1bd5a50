//! A peer that closes between two messages costs none, every time: the next message, sent when the end has arrived, goes to
//! the next connection.
#![allow(unsafe_code)]
// To ask a socket that is in the library's hands what it knows.

// One future at a time has the sink: nothing else can ask for it meanwhile.
#![allow(clippy::await_holding_refcell_ref)]

use std::cell::RefCell;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use buffstreams::Connection;
use futures::SinkExt;
use socket2::SockRef;

use crate::peers::{Far, SOON, Site, balanced, config, dialed, number, numbered, run, within};

const TIMES: u64 = 1_000;

/// Closes, and waits until our socket knows. The thread is kept meanwhile, and no event is waited for: a task of the library
/// may see the end before the next message is sent, or may not.
fn close(far: Far) {
    let local = far.0.peer_addr().expect("our address");
    drop(far);
    while !knows_the_end(local) {
        std::thread::yield_now();
    }
}

/// Whether our socket at this address has received the other end's FIN. The table in /proc tells as well, but it takes so
/// long where there are many sockets that every task would have seen the end before.
fn knows_the_end(local: SocketAddr) -> bool {
    let fds = std::fs::read_dir("/proc/self/fd").expect("/proc");
    for fd in fds.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()) {
        // SAFETY: nothing is done with it but to ask; if it is another file by now, or none, it is another's address, or an
        // error.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let socket = SockRef::from(&fd);
        if socket.local_addr().is_ok_and(|addr| addr.as_socket() == Some(local)) {
            return match socket.peek(&mut [MaybeUninit::uninit(); 1]) {
                Ok(bytes) => bytes == 0,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            };
        }
    }
    // It was seen already, and the socket is closed.
    true
}

/// Sends some messages, has the peer close, and so on. Returns the messages that did not arrive. `send` sends the message
/// of a number; `opened` is something that changes when a connection has been opened.
async fn lost<T: PartialEq>(site: &Site, mut far: Far, send: impl AsyncFn(u64), opened: impl Fn() -> T) -> Vec<u64> {
    let (mut next, mut lost) = (0, Vec::new());
    for round in 0..TIMES {
        for _ in 0..round % 4 {
            send(next).await;
            assert_eq!(number(&far.message().await), next, "nothing was wrong");
            next += 1;
        }
        let before = opened();
        close(far);
        let first = next;
        // Mostly once. A message that went to the closed connection is lost; those after it show when all is well again.
        while next == first || opened() == before {
            within(SOON, "a message to be sent", send(next)).await;
            next += 1;
        }
        far = site.accept().await;
        let mut expected = first;
        while expected < next {
            let number = number(&far.message().await);
            assert!(number >= expected, "{number} came instead of {expected}");
            lost.extend(expected..number);
            expected = number + 1;
        }
    }
    lost
}

fn nothing_is_lost(lost: &[u64]) {
    assert!(lost.is_empty(), "{} messages after {TIMES} clean closes are lost: {lost:?}", lost.len());
}

#[test]
fn a_write_to_a_manager_after_a_clean_close_arrives() {
    run(async {
        let site = Site::new();
        let (manager, far) = dialed(config(), &site).await;
        let send = async |n| manager.write(site.addr, numbered(n, 8)).await.expect("a write");
        let lost = lost(&site, far, send, || manager.stats().total.reconnects).await;
        assert_eq!(balanced(&manager).reconnects, TIMES);
        nothing_is_lost(&lost);
    });
}

#[test]
fn a_message_of_a_sink_after_a_clean_close_arrives() {
    run(async {
        let site = Site::new();
        let (manager, far) = dialed(config(), &site).await;
        let sink = RefCell::new(manager.sink());
        let send = async |n| sink.borrow_mut().send((site.addr.into(), numbered(n, 8))).await.expect("a send");
        let lost = lost(&site, far, send, || manager.stats().total.reconnects).await;
        assert_eq!(balanced(&manager).reconnects, TIMES);
        nothing_is_lost(&lost);
    });
}

#[test]
fn a_message_of_a_connection_after_a_clean_close_arrives() {
    run(async {
        let site = Site::new();
        let (dialed, far) = futures::join!(Connection::dial(site.addr, config()), site.accept());
        let connection = RefCell::new(dialed.expect("dial"));
        let send = async |n| connection.borrow_mut().send(numbered(n, 8)).await.expect("a send");
        let lost = lost(&site, far, send, || connection.borrow().local_addr().ok()).await;
        nothing_is_lost(&lost);
    });
}
