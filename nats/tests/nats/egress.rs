//! Out of a stream: written, tried again, given up, stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream::Stream};
use buffstreams::{Address, Bytes, Listener, Manager};
use buffstreams_nats::{Egress, Error, OnFailure, async_nats};
use futures::StreamExt;

use crate::server::{Port, Server, config, consumer, impatient, listen, soon, stream, until};

async fn publish(jetstream: &jetstream::Context, messages: impl IntoIterator<Item = String>) {
    for message in messages {
        jetstream.publish("orders", message.into()).await.unwrap().await.unwrap();
    }
}

/// How many messages the consumer has still to see settled: those that were never pulled, and those not acknowledged.
async fn unsettled(consumer: &mut PullConsumer) -> u64 {
    let info = until("information", async || consumer.get_info().await.ok()).await;
    info.num_pending + info.num_ack_pending as u64
}

async fn started(server: &Server) -> (jetstream::Context, Stream, PullConsumer) {
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let consumer = consumer(&orders).await;
    (jetstream, orders, consumer)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_goes_to_its_address_in_order_and_a_stop_settles_what_is_in_flight() {
    let Some(server) = Server::start() else { return };
    let (jetstream, _orders, mut pulled) = started(&server).await;
    let receivers = [listen().await, listen().await];
    let addresses = receivers.each_ref().map(|receiver| Address::from(receiver.local_addr()));
    let messages =
        |parity: usize| (0..1000).filter(move |number| number % 2 == parity).map(|number| number.to_string());
    publish(&jetstream, (0..1000).map(|number| number.to_string())).await;

    let egress = Egress::by(pulled.clone(), Manager::new(config()), move |message| {
        let is_odd = message.last().unwrap() % 2;
        addresses[usize::from(is_odd)].clone()
    });
    // Less room than messages, so that it asks several times.
    let egress = egress.in_flight(100, 5000);
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    for (parity, receiver) in receivers.into_iter().enumerate() {
        let expected: Vec<_> = messages(parity).map(Bytes::from).collect();
        let received: Vec<_> = soon("message", receiver.take(500).map(|(_, message)| message).collect()).await;
        assert_eq!(received, expected);
    }
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    let stats = handle.stats();
    assert_eq!((stats.pulled, stats.written, stats.in_flight, stats.in_flight_bytes), (1000, 1000, 0, 0));
    assert_eq!(unsettled(&mut pulled).await, 0);
    // It pulls no more.
    publish(&jetstream, ["late".to_owned()]).await;
    assert_eq!(unsettled(&mut pulled).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_dies_and_comes_back_has_what_was_not_written() {
    let Some(server) = Server::start() else { return };
    let (jetstream, _orders, mut pulled) = started(&server).await;
    let port = Port::new();
    let address = port.address();
    let mut receiver = Listener::bind(address, config()).await.unwrap();
    let egress = Egress::new(pulled.clone(), Manager::new(config()), address);
    let egress = egress.on_failure(|_| OnFailure::Again(Duration::from_millis(50)));
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());

    publish(&jetstream, (0..100).map(|number| number.to_string())).await;
    for number in 0..100 {
        assert_eq!(soon("message", receiver.next()).await.unwrap().1, number.to_string());
    }
    until("acknowledgements", async || (handle.stats().written == 100).then_some(())).await;
    drop(receiver);
    publish(&jetstream, (100..200).map(|number| number.to_string())).await;
    until("failures", async || (handle.stats().again >= 100).then_some(())).await;
    assert_eq!(unsettled(&mut pulled).await, 100, "each of them comes again, without waiting for ack_wait");

    let mut receiver = Listener::bind(address, config()).await.unwrap();
    let mut times = BTreeMap::<_, u32>::new();
    while times.len() < 100 {
        *times.entry(soon("message", receiver.next()).await.unwrap().1).or_default() += 1;
    }
    let expected: BTreeMap<_, _> = (100..200).map(|number| (Bytes::from(number.to_string()), 1)).collect();
    assert_eq!(times, expected);
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    assert_eq!((handle.stats().written, unsettled(&mut pulled).await), (200, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_chooses_what_comes_again_and_what_is_given_up() {
    let Some(server) = Server::start() else { return };
    let (jetstream, _orders, mut pulled) = started(&server).await;
    let mut advisories = jetstream.client().subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>").await.unwrap();
    jetstream.client().flush().await.unwrap();
    let receiver = listen().await;
    let address = Address::from(receiver.local_addr());
    publish(&jetstream, ["x".repeat(5000), "nowhere".to_owned(), "panic".to_owned(), "well".to_owned()]).await;

    let (nowhere, mut seen) = (Port::new(), Vec::new());
    let nowhere_at = Address::from(nowhere.address());
    let (sender, mut failures) = futures::channel::mpsc::unbounded();
    let egress = Egress::by(pulled.clone(), Manager::new(config()), move |message| match message {
        b"nowhere" => nowhere_at.clone(),
        b"panic" => panic!("this one is caught"),
        _ => address.clone(),
    });
    let egress = egress.on_failure(move |undelivered| {
        let kind = match undelivered.error {
            Error::Write(buffstreams::Error::MessageTooLarge { .. }) => "too large",
            Error::Dial(_) => "no connection",
            Error::Panicked { .. } => "panic",
            other => panic!("{other:?}"),
        };
        sender.unbounded_send((kind, undelivered.deliveries, undelivered.address.is_some())).unwrap();
        match (kind, undelivered.deliveries) {
            ("no connection", 1 | 2) => OnFailure::Again(Duration::from_millis(10)),
            // That is caught as well, and the message comes again, after a second.
            ("panic", 1) => panic!("this one, too"),
            _ => OnFailure::Terminate,
        }
    });
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    assert_eq!(soon("message", receiver.into_future()).await.0.unwrap().1, "well");
    for _ in 0..6 {
        seen.push(soon("failure", failures.next()).await.unwrap());
    }
    seen.sort_unstable();
    let none = |deliveries| ("no connection", deliveries, true);
    assert_eq!(seen, [none(1), none(2), none(3), ("panic", 1, false), ("panic", 2, false), ("too large", 1, true)]);
    for _ in 0..3 {
        soon("advisory", advisories.next()).await.unwrap();
    }
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    let stats = handle.stats();
    assert_eq!((stats.written, stats.again, stats.terminated), (1, 3, 3));
    assert_eq!(unsettled(&mut pulled).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_larger_than_the_room_comes_alone() {
    let Some(server) = Server::start() else { return };
    let (jetstream, _orders, mut pulled) = started(&server).await;
    publish(&jetstream, ["a".to_owned(), "b".repeat(3000), "c".to_owned()]).await;
    let receiver = listen().await;
    let egress = Egress::new(pulled.clone(), Manager::new(config()), receiver.local_addr()).in_flight(10, 1000);
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    let received: Vec<_> = soon("message", receiver.take(3).map(|(_, message)| message.len()).collect()).await;
    assert_eq!(received, [1, 3000, 1]);
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    assert_eq!(unsettled(&mut pulled).await, 0);
}

/// The bound on what is in flight holds while a receiver takes nothing, and JetStream does not send again what is worked on.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_takes_nothing_holds_up_what_is_in_the_room_and_no_more() {
    const LEN: usize = 100_000;
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let mut pulled = impatient(&orders, Duration::from_secs(1)).await;
    publish(&jetstream, (0..200).map(|_| "x".repeat(LEN))).await;

    let config = config().max_message_size(LEN).inbox_bytes(LEN);
    let mut receiver = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
    let egress = Egress::new(pulled.clone(), Manager::new(config), receiver.local_addr()).in_flight(1000, 10 * LEN);
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    let first = soon("message", receiver.next()).await;
    assert!(first.is_some());
    // As long as JetStream would wait for one of them, three times over.
    let stalled = until("stall", async || {
        let before = handle.stats();
        tokio::time::sleep(Duration::from_secs(3)).await;
        (handle.stats() == before).then_some(before)
    });
    let stalled = stalled.await;
    assert!(stalled.in_flight > 0 && stalled.in_flight_bytes <= 10 * LEN, "{stalled:?}");
    let mut received = 1;
    while received < 200 {
        assert_eq!(soon("message", receiver.next()).await.unwrap().1.len(), LEN);
        received += 1;
    }
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    let stats = handle.stats();
    assert_eq!((stats.pulled, stats.written), (200, 200), "none of them came again");
    assert_eq!(unsettled(&mut pulled).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_when_the_server_is_killed_and_comes_back() {
    let Some(mut server) = Server::start() else { return };
    let (jetstream, _orders, pulled) = started(&server).await;
    let mut receiver = listen().await;
    let egress = Egress::new(pulled, Manager::new(config()), receiver.local_addr());
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    publish(&jetstream, ["before".to_owned()]).await;
    assert_eq!(soon("message", receiver.next()).await.unwrap().1, "before");
    server.kill();
    server.restart();
    until("publish", async || jetstream.publish("orders", "after".into()).await.ok()?.await.ok()).await;
    assert_eq!(soon("message", receiver.next()).await.unwrap().1, "after");
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_acknowledges_nothing_or_does_not_last_is_an_error() {
    let Some(server) = Server::start() else { return };
    let (_jetstream, orders, _pulled) = started(&server).await;
    let (durable_name, ack_policy) = (Some("none".to_owned()), AckPolicy::None);
    let no_acks = pull::Config { durable_name, ack_policy, ..Default::default() };
    let not_durable =
        pull::Config { name: Some("brief".to_owned()), ack_policy: AckPolicy::Explicit, ..Default::default() };
    for (config, who, what) in [(no_acks, "none", "ack_policy"), (not_durable, "brief", "durable_name")] {
        let consumer = orders.create_consumer(config).await.unwrap();
        let egress = Egress::new(consumer, Manager::new(crate::server::config()), "nowhere:1");
        let error = egress.run().await.unwrap_err();
        let Error::Consumer { name, problem, .. } = &error else { panic!("{error:?}") };
        assert!(name == who && problem.contains(what), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_an_egress_whose_server_is_gone() {
    let Some(mut server) = Server::start() else { return };
    let (_jetstream, _orders, pulled) = started(&server).await;
    let egress = Egress::new(pulled, Manager::new(config()), "nowhere:1");
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    server.kill();
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
}
