//! Acknowledged sessions: callbacks that take their time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;

use super::acked_raw::{Raw, config, hello, sent, session};
use super::host::frame;
use super::number;
use crate::session::{Control, HANDSHAKE, Status};
use crate::sim::testing::{self, Side, Sim};
use crate::{Address, Listener, Peer};

const SECOND: Duration = Duration::from_secs(1);

fn message(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

/// What the listener has said on the newest connection, behind its WELCOME.
fn said() -> Vec<u8> {
    testing::cables(|cables| cables.last().unwrap().lock().lane(Side::Acceptor).0[HANDSHAKE..].to_vec())
}

async fn until(is_so: impl Fn() -> bool) {
    let waits = async {
        while !is_so() {
            testing::sleep(SECOND).await;
        }
    };
    assert!(testing::within(Some(60 * SECOND), waits).await.is_some());
}

/// The session's task runs the callbacks, so no timer of that task can tell what they have taken.
#[test]
fn what_a_slow_callback_has_taken_is_told_before_the_next_is_called() {
    Sim::default().run(async {
        let listener = Listener::bind("127.0.0.1:0", config(session())).await.unwrap();
        let address = Address::from(listener.local_addr());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = heard.clone();
        let callback = move |_: Peer, message: &[u8]| {
            hears.lock().unwrap().push(said());
            if number(message) >= 2 {
                testing::block(2 * SECOND);
            }
            Ok(())
        };
        testing::spawn(listener.serve(callback).map(drop)).detach();
        let (mut raw, _) = Raw::greet(&address, hello(1, 1, None)).await;
        raw.write(&(0..7).flat_map(|n| frame(&message(n))).collect::<Vec<_>>()).await;
        until(|| heard.lock().unwrap().len() == 7).await;
        let heard = heard.lock().unwrap();
        for (n, said) in heard.iter().enumerate().skip(3) {
            assert!(said.ends_with(&Control::Ack(n as u64).encode()), "{n}: {said:x?}");
        }
    });
}

/// It waits for the message that is in hand, and not for all that came with it.
#[test]
fn a_connection_that_comes_back_does_not_wait_for_all_callbacks() {
    Sim::default().run(async {
        let listener = Listener::bind("127.0.0.1:0", config(session())).await.unwrap();
        let address = Address::from(listener.local_addr());
        let called = Arc::new(AtomicU32::new(0));
        let calls = called.clone();
        let callback = move |_: Peer, message: &[u8]| {
            assert_eq!(calls.fetch_add(1, Ordering::Relaxed), number(message), "each once, and in order");
            testing::block(SECOND / 4);
            Ok(())
        };
        testing::spawn(listener.serve(callback).map(drop)).detach();
        let (mut raw, _) = Raw::greet(&address, hello(1, 1, None)).await;
        raw.write(&(0..40).flat_map(|n| frame(&message(n))).collect::<Vec<_>>()).await;
        let greeted = Raw::greet(&address, hello(1, 2, sent(40, 0)));
        let (_again, welcome) = testing::within(Some(SECOND), greeted).await.expect("in time");
        assert_eq!((welcome.status, welcome.positions.received), (Status::Resumed, 40));
        assert!(called.load(Ordering::Relaxed) < 8);
        until(|| called.load(Ordering::Relaxed) == 40).await;
    });
}
