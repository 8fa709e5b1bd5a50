//! A panic of the library's own, in each kind of a listener's tasks: it is told, it ends no more than it has to, and the rest
//! goes on.

use bytes::Bytes;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use futures::{SinkExt, StreamExt};

use crate::foreign::PanicSource;
use crate::observe::{Event, Events, Reason};
use crate::sim::testing;
use crate::sim::testing::{Sim, plant};
use crate::{Address, Config, Connection, Listener, Peer, WireFormat};

const ANYWHERE: &str = "127.0.0.1:0";

fn config() -> Config {
    Config::new().wire_format(WireFormat::u32_be())
}

/// The panic that is told next, and whose it was.
async fn panicked(events: &mut Events<Event>) -> (Option<Peer>, String) {
    loop {
        if let Event::Panicked { peer, source: PanicSource::Task, message } = events.next().await.unwrap() {
            return (peer, message);
        }
    }
}

async fn disconnected(events: &mut Events<Event>) -> (Peer, Reason) {
    loop {
        if let Event::Disconnected { peer, reason } = events.next().await.unwrap() {
            return (peer, reason);
        }
    }
}

#[test]
fn a_panic_of_the_accept_task_is_told_and_it_goes_on() {
    Sim::default().run(async {
        let mut listener = Listener::bind(ANYWHERE, config()).await.unwrap();
        let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
        for _ in 0..3 {
            plant("accept");
            // The first of the two is what lets the task run into it.
            for message in ["one", "two"] {
                let mut connection = Connection::dial(&address, config()).await.unwrap();
                connection.send(Bytes::from(message)).await.unwrap();
                assert_eq!(listener.next().await.unwrap().1, message);
            }
            assert_eq!(panicked(&mut events).await, (None, "planted: accept".into()));
        }
        plant("accept");
        listener.close().await.unwrap();
        assert!(listener.next().await.is_none());
    });
}

#[test]
fn a_panic_of_a_peers_task_ends_the_peer_in_order_and_nobody_else() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let listener = Listener::bind(ANYWHERE, config().max_connections(2)).await.unwrap();
        let (mut events, address, closer) =
            (listener.events(), Address::from(listener.local_addr()), listener.closer());
        let (mut incoming, mut outgoing) = listener.split();
        let mut other = Connection::dial(&address, config()).await.unwrap();
        other.send(Bytes::from_static(b"first")).await.unwrap();
        let (from_other, _) = incoming.next().await.unwrap();
        for round in 0..3 {
            let mut doomed = testing::dial(&address, &config()).await.unwrap();
            doomed.write_all(&[0, 0, 0, 1, 7]).await.unwrap();
            let (peer, _) = incoming.next().await.unwrap();
            // More than the connection holds, and less than keeps it from being read: some of it comes back.
            for _ in 0..4 {
                outgoing.feed((peer, Bytes::from_static(&[1; 4096]))).await.unwrap();
            }
            plant("read");
            doomed.write_all(&[0, 0, 0, 1, 7]).await.unwrap();
            assert_eq!(panicked(&mut events).await, (Some(peer), "planted: read".into()), "round {round}");
            let told = events.next().await.unwrap();
            assert!(matches!(told, Event::Undelivered { peer: to, messages: 1.. } if to == peer), "{told:?}");
            let (gone, reason) = disconnected(&mut events).await;
            assert!(gone == peer && matches!(reason, Reason::Panicked), "{gone} {reason:?}");
            assert_eq!(closer.stats().connections, 1);
            let mut all = Vec::new();
            // What it sent was not read, so it is reset.
            doomed.read_to_end(&mut all).await.unwrap_err();
            // Nobody waits for the replies to it.
            outgoing.flush().await.unwrap();
            outgoing.send((from_other, Bytes::from_static(b"reply"))).await.unwrap();
            assert_eq!(other.next().await.unwrap().unwrap(), "reply");
        }
        closer.close().await.unwrap();
    });
}

#[test]
fn a_panic_of_a_peers_task_is_no_error_of_a_close() {
    Sim::default().run(async {
        let listener = Listener::bind(ANYWHERE, config()).await.unwrap();
        let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
        let serving = listener.serve_in_background(|_, _| Ok(()));
        let mut doomed = testing::dial(&address, &config()).await.unwrap();
        testing::yield_now().await;
        plant("read");
        doomed.write_all(&[0, 0, 0, 1, 7]).await.unwrap();
        panicked(&mut events).await;
        assert!(matches!(disconnected(&mut events).await, (_, Reason::Panicked)));
        serving.close().await.unwrap();
    });
}
