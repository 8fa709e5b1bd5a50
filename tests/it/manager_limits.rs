//! What bounds a manager: its queues, and how often it tries the same.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use buffstreams::{Address, Bytes, Error, Listener, Manager, ManagerEvent};
use futures::channel::mpsc;
use futures::{FutureExt, SinkExt, StreamExt};

use crate::net::{config, next, run, within};

#[test]
fn messages_that_come_one_by_one_to_a_stalled_peer_do_not_fill_the_queue_without_end() {
    run(async {
        // It accepts, and never reads.
        let stalled = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::from(stalled.local_addr().unwrap());
        let manager = Manager::new(config());
        manager.dial(&address).await.unwrap();
        // `forward` flushes whenever nothing has come for a moment, and goes on with the next message if that waits.
        let (mut source, messages) = mpsc::channel::<Bytes>(0);
        let to = address.clone();
        let mut forward = messages.map(move |message| Ok((to.clone(), message))).forward(manager.sink());
        let mut taken = 0;
        for _ in 0..1_000 {
            let message = Bytes::from(vec![0; 50_000]);
            let mut send = source.send(message);
            for _ in 0..4 {
                let sent = poll_fn(|cx| Poll::Ready(send.poll_unpin(cx))).await;
                let forwarded = poll_fn(|cx| Poll::Ready(forward.poll_unpin(cx))).await;
                assert!(forwarded.is_pending());
                if sent.is_ready() {
                    taken += 1;
                    break;
                }
            }
        }
        let held = manager.stats().total.held_bytes;
        assert!(taken < 1_000 && held < 500_000, "{taken} messages were taken, {held} bytes are held");
    });
}

#[test]
fn a_message_that_its_peer_refuses_comes_back() {
    run(async {
        let mut refusing = Listener::bind("127.0.0.1:0", config().max_message_size(1_000)).await.unwrap();
        let address = refusing.local_addr().ip().unwrap();
        async_std::task::spawn(async move { while refusing.next().await.is_some() {} });
        let manager = Manager::new(config().max_message_size(1 << 25));
        let mut events = manager.events();
        manager.dial(address).await.unwrap();
        // More than the sockets hold, so it is cut each time.
        let message = Bytes::from(vec![0; 1 << 25]);
        let error = within(Duration::from_secs(20), manager.write(address, message.clone())).await.unwrap_err();
        assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
        assert!(error.into_unsent().unwrap() == message);
        let mut breaks = 0;
        while let Some(Some(event)) = events.next().now_or_never() {
            breaks += usize::from(matches!(event, ManagerEvent::Broken { .. }));
        }
        assert_eq!(breaks, 3);
        // The next message is a new start.
        manager.write(address, Bytes::from_static(b"short")).await.unwrap();
        assert_eq!(manager.stats().total.written, 1);
    });
}

#[test]
fn a_reply_to_a_peer_of_another_listener_goes_to_nobody() {
    run(async {
        let (one, other) = (
            Listener::bind("127.0.0.1:0", config()).await.unwrap(),
            Listener::bind("127.0.0.1:0", config()).await.unwrap(),
        );
        let mut clients = Vec::new();
        let mut peers = Vec::new();
        let mut outgoing = Vec::new();
        let mut rest = Vec::new();
        for listener in [one, other] {
            let address = listener.local_addr().ip().unwrap();
            let mut client = buffstreams::Connection::dial(address, config()).await.unwrap();
            client.send(Bytes::from_static(b"hello")).await.unwrap();
            let (mut incoming, sink) = listener.split();
            peers.push(next(&mut incoming).await.unwrap().0);
            clients.push(client);
            outgoing.push(sink);
            rest.push(incoming);
        }
        assert_eq!(peers[0].id(), peers[1].id(), "they differ by their addresses alone");
        outgoing[1].send((peers[0], Bytes::from_static(b"astray"))).await.unwrap();
        outgoing[1].send((peers[1], Bytes::from_static(b"right"))).await.unwrap();
        assert_eq!(next(&mut clients[1]).await.unwrap().unwrap(), "right");
    });
}

/// The letters of an address that is closed wait in the background, as nobody takes them: not without end.
#[test]
fn dead_letters_that_nobody_takes_are_bounded_and_the_others_are_told() {
    run(async {
        // It accepts, and never reads.
        let stalled = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::from(stalled.local_addr().unwrap());
        let manager = Manager::new(config().queue_bytes(20_000));
        manager.dial(&address).await.unwrap();
        // More than the system has room for: the queue is full from then on.
        let mut writes: Vec<_> =
            (0..20).map(|_| Box::pin(manager.write(&address, Bytes::from(vec![0; 1 << 20])))).collect();
        assert!(writes.iter_mut().filter_map(|write| write.now_or_never()).count() < 19);
        let (mut events, mut letters) = (manager.events(), manager.dead_letters());
        for _ in 0..20 {
            let mut sink = manager.sink();
            for _ in 0..40 {
                sink.feed((address.clone(), Bytes::from(vec![0; 1_000]))).await.unwrap();
            }
            // What it has not handed over has nowhere to go.
            drop(sink);
        }
        // Forty of them: some in the queue, the rest on their way to it.
        for _ in 0..40 {
            within(Duration::from_secs(20), letters.next()).await.unwrap();
        }
        assert!(letters.next().now_or_never().is_none());
        let mut lost = 0;
        while let Some(Some(event)) = events.next().now_or_never() {
            if let ManagerEvent::Lost { messages, .. } = event {
                lost += messages;
            }
        }
        assert_eq!(lost, 19 * 40);
    });
}
