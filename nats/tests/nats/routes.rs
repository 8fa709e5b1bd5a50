//! An egress to several addresses: who gets a message, and when it moves on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use async_nats::jetstream::consumer::PullConsumer;
use buffstreams::{Address, Bytes, Listener, Manager, Outcome, Route, Session};
use buffstreams_nats::{Egress, OnFailure, async_nats};
use futures::StreamExt;
use futures::channel::mpsc;

use crate::server::{Port, Server, config, consumer, listen, soon, stream, until};

/// A stream with these messages, each once, and a consumer of it.
async fn filled(server: &Server, messages: impl IntoIterator<Item = String>) -> PullConsumer {
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    for message in messages {
        jetstream.publish("orders", message.into()).await.unwrap().await.unwrap();
    }
    consumer(&orders).await
}

fn numbers(range: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    range.map(|number| number.to_string())
}

async fn take(receiver: &mut Listener, count: usize) -> Vec<Bytes> {
    soon("messages", receiver.take(count).map(|(_, message)| message).collect()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_first_address_cannot_take_goes_to_the_next_in_order() {
    let Some(server) = Server::start() else { return };
    let pulled = filled(&server, numbers(0..100)).await;
    let (nowhere, mut spare) = (Port::new(), listen().await);
    let route = Route::failover([Address::from(nowhere.address()), spare.local_addr().into()]);
    let egress = Egress::routed(pulled, Manager::new(config()), route);
    let egress = egress.on_failure(|undelivered| panic!("{undelivered:?}"));
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    let received = take(&mut spare, 100).await;
    assert_eq!(received, numbers(0..100).map(Bytes::from).collect::<Vec<_>>());
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    let stats = handle.stats();
    assert_eq!((stats.pulled, stats.written, stats.again), (100, 100, 0));
}

/// Without `reconnect` only a message dials it.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_comes_back_is_the_first_again() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let publish = async || jetstream.publish("orders", "order".into()).await.unwrap().await.unwrap();
    let (port, mut spare) = (Port::new(), listen().await);
    let mut first = Listener::bind(port.address(), config()).await.unwrap();
    let route = Route::failover([first.local_addr(), spare.local_addr()]);
    let egress = Egress::routed(consumer(&orders).await, Manager::new(config()), route);
    let (handle, running) = (egress.handle(), tokio::spawn(egress.run()));
    publish().await;
    take(&mut first, 1).await;
    drop(first);
    publish().await;
    take(&mut spare, 1).await;
    let mut first = Listener::bind(port.address(), config()).await.unwrap();
    until("message", async || {
        publish().await;
        futures::FutureExt::now_or_never(first.next())
    })
    .await;
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
}

/// It is not dialed once more for each message.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_gave_a_message_back_is_left_alone_for_a_second() {
    const MESSAGES: usize = 20;
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let with_session = || config().session(Session::new());
    // It answers nobody, which the greeting of a session shows.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut spare = Listener::bind("127.0.0.1:0", with_session()).await.unwrap();
    let route = Route::failover([Address::from(silent.local_addr().unwrap()), spare.local_addr().into()]);
    let egress = Egress::routed(consumer(&orders).await, Manager::new(with_session()), route);
    let (dials, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let count = dials.clone();
    std::thread::spawn(move || silent.incoming().for_each(|_| _ = count.fetch_add(1, Ordering::SeqCst)));
    let (handle, running) = (egress.handle(), tokio::spawn(egress.run()));
    for _ in 0..MESSAGES {
        jetstream.publish("orders", "order".into()).await.unwrap().await.unwrap();
        take(&mut spare, 1).await;
    }
    let (dials, seconds) = (dials.load(Ordering::SeqCst), began.elapsed().as_secs() as usize);
    assert!((1..=1 + seconds).contains(&dials), "{dials} in {seconds} s");
    // Asking for the next takes the last.
    assert!(futures::FutureExt::now_or_never(spare.next()).is_none());
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_turn_each_address_gets_its_share_and_by_key_each_key_has_one() {
    let Some(server) = Server::start() else { return };
    let pulled = filled(&server, numbers(0..100)).await;
    let mut receivers = [listen().await, listen().await];
    let addresses = receivers.each_ref().map(|receiver| Address::from(receiver.local_addr()));
    let egress = Egress::routed(pulled, Manager::new(config()), Route::round_robin(addresses.clone()));
    let (handle, running) = (egress.handle(), tokio::spawn(egress.run()));
    for (parity, receiver) in receivers.iter_mut().enumerate() {
        let expected = (0..100).filter(|number| number % 2 == parity).map(|number| number.to_string().into());
        assert_eq!(take(receiver, 50).await, expected.collect::<Vec<Bytes>>());
    }
    handle.stop();
    soon("end", running).await.unwrap().unwrap();

    let Some(server) = Server::start() else { return };
    let pulled = filled(&server, numbers(0..100)).await;
    let last_digit = |message: &[u8]| message.last().copied();
    let route = Route::by_key(last_digit, addresses.clone());
    let egress = Egress::routed(pulled, Manager::new(config()), route.clone());
    let (handle, running) = (egress.handle(), tokio::spawn(egress.run()));
    let [first, second] = receivers;
    let mut came =
        futures::stream::select(first.map(|(_, message)| (0, message)), second.map(|(_, message)| (1, message)));
    let owners: BTreeSet<_> =
        soon("messages", came.by_ref().take(100).map(|(at, message)| (last_digit(&message), at)).collect()).await;
    let owner = |key: Option<u8>| {
        let first = &route.order(&[key.unwrap()], 0)[0];
        (key, addresses.iter().position(|address| address == first).unwrap())
    };
    assert_eq!(owners, (b'0'..=b'9').map(Some).map(owner).collect());
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_is_acknowledged_when_all_have_it() {
    let Some(server) = Server::start() else { return };
    let pulled = filled(&server, numbers(0..10)).await;
    let (mut one, port) = (listen().await, Port::new());
    let away = Address::from(port.address());
    let (failed, mut failures) = mpsc::unbounded();
    let egress =
        Egress::routed(pulled, Manager::new(config()), Route::broadcast([one.local_addr().into(), away.clone()]))
            .on_failure(move |undelivered| {
                failed.unbounded_send(undelivered.address.cloned()).unwrap();
                OnFailure::Again(std::time::Duration::from_millis(50))
            });
    let (handle, running) = (egress.handle(), tokio::spawn(egress.run()));
    for _ in 0..10 {
        assert_eq!(soon("failure", failures.next()).await.unwrap().as_ref(), Some(&away));
    }
    let mut other = Listener::bind(port.address(), config()).await.unwrap();
    let expected: BTreeSet<_> = numbers(0..10).map(Bytes::from).collect();
    assert_eq!(take(&mut other, 10).await.into_iter().collect::<BTreeSet<_>>(), expected);
    // Once with each attempt: those that failed, and the one that did not.
    assert_eq!(take(&mut one, 20).await.into_iter().collect::<BTreeSet<_>>(), expected);
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    assert_eq!(handle.stats().written, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_doubt_or_refused_goes_to_nobody_else() {
    let Some(server) = Server::start() else { return };
    let pulled = filled(&server, ["doubtful".to_owned(), "refused".to_owned()]).await;
    let with_session = || config().session(Session::new());
    let mut first = Listener::bind("127.0.0.1:0", with_session()).await.unwrap().deliveries();
    let mut second = Listener::bind("127.0.0.1:0", with_session()).await.unwrap();
    let address = Address::from(first.local_addr());
    let (failed, mut failures) = mpsc::unbounded();
    let route = Route::failover([address.clone(), second.local_addr().into()]);
    let egress = Egress::routed(pulled, Manager::new(with_session()), route).on_failure(move |undelivered| {
        failed.unbounded_send((undelivered.address.cloned(), undelivered.outcome())).unwrap();
        OnFailure::Terminate
    });
    let (handle, running) = (egress.handle(), tokio::spawn(egress.run()));
    drop(soon("message", first.next()).await.unwrap());
    soon("message", first.next()).await.unwrap().refuse();
    let mut seen = [(); 2].map(|()| None);
    for slot in &mut seen {
        *slot = soon("failure", failures.next()).await;
    }
    assert_eq!(seen, [Outcome::InDoubt, Outcome::Refused].map(|outcome| Some((Some(address.clone()), outcome))));
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    let stats = handle.stats();
    assert_eq!((stats.terminated, stats.written, stats.again), (2, 0, 0));
    assert!(futures::FutureExt::now_or_never(second.next()).is_none());
}
