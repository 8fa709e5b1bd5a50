//! With sessions: what senders hear of a message on its way into a stream, and the stream of one on its way out.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, message::PublishMessage};
use buffstreams::{Backoff, Bytes, Config, Deliveries, Health, Listener, Manager, Outcome, Session};
use buffstreams_nats::{ADDRESS, Egress, Error, ID, Ingress, OUTCOME, OnFailure, REASON, async_nats};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::server::{Port, Server, config, consumer, everything, impatient, soon, stream, until};

fn acked() -> Config {
    config().session(Session::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_acknowledged_when_the_stream_has_it_and_not_before() {
    let Some(mut server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let ingress = Ingress::new(jetstream, "orders").ordered();
    let deliveries = Listener::bind("127.0.0.1:0", acked()).await.unwrap().deliveries();
    let (address, closer) = (deliveries.local_addr(), deliveries.closer());
    let (running, counted) = (ingress.clone(), ingress.clone());
    let running = tokio::spawn(async move { running.run_acked(deliveries).await });

    server.kill();
    let manager = Manager::new(acked());
    manager.dial(&address).await.unwrap();
    let mut sink = manager.sink();
    for message in ["one", "two"] {
        sink.feed((address.clone().into(), message.into())).await.unwrap();
    }
    soon("flush", sink.flush()).await.unwrap();
    until("arrival", async || (counted.stats().received == 2).then_some(())).await;
    assert!(sink.barrier().now_or_never().is_none(), "the stream is away");
    assert_eq!(manager.stats().total.acked, 0);
    server.restart();
    soon("acknowledgement", sink.barrier()).await.unwrap();
    assert_eq!(manager.stats().total.acked, 2);
    assert_eq!(ingress.stats().stored, 2);
    let all = everything(&orders).await;
    let messages: Vec<_> = all.iter().map(|(_, _, message)| &message[..]).collect();
    assert_eq!(messages, [b"one", b"two"]);
    // The id of a delivery is 32 digits.
    assert!(all.iter().all(|(_, id, _)| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())), "{all:?}");
    closer.close().await.unwrap();
    soon("end", running).await.unwrap();
}

/// What becomes of a message at its sender, with an ingress in between.
async fn outcome(ingress: Ingress, message: Bytes) -> Outcome {
    let config = acked().max_message_size(2 << 20).queue_bytes(8 << 20);
    let config = config.session(Session::new().window_bytes(4 << 20)).inbox_bytes(4 << 20);
    let deliveries = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap().deliveries();
    let (address, closer) = (deliveries.local_addr(), deliveries.closer());
    let running = tokio::spawn(async move { ingress.run_acked(deliveries).await });
    let manager = Manager::new(config);
    let mut letters = manager.dead_letters();
    manager.dial(&address).await.unwrap();
    let mut sink = manager.sink();
    sink.feed((address.into(), message.clone())).await.unwrap();
    assert!(soon("return", sink.barrier()).await.is_err());
    let letter = soon("letter", letters.next()).await.unwrap();
    assert_eq!(letter.message, message);
    closer.close().await.unwrap();
    soon("end", running).await.unwrap();
    letter.outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_can_never_have_is_refused() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let small = jetstream::stream::Config { name: "small".to_owned(), max_message_size: 100, ..Default::default() };
    jetstream.create_stream(small).await.unwrap();
    stream(&jetstream, "orders", 1).await;
    let to = |subject: &str| Ingress::new(jetstream.clone(), subject);
    assert_eq!(outcome(to("no subject"), "nowhere".into()).await, Outcome::Refused);
    // The server takes 1 MiB.
    let too_large = to("orders");
    let mut unstored = too_large.unstored();
    assert_eq!(outcome(too_large.clone(), vec![0; (1 << 20) + 1].into()).await, Outcome::Refused);
    let told = soon("message", unstored.next()).await.unwrap();
    assert!(matches!(told.error, Error::TooLarge { len: 1_048_577, .. }) && !told.in_doubt, "{told:?}");
    // And this stream 100 bytes.
    let too_large = to("small");
    let mut unstored = too_large.unstored();
    assert_eq!(outcome(too_large.clone(), vec![0; 101].into()).await, Outcome::Refused);
    let told = soon("message", unstored.next()).await.unwrap();
    assert!(matches!(told.error, Error::TooLarge { len: 101, .. }) && !told.in_doubt, "{told:?}");
    // No stream has the subject, which each attempt is told.
    let given_up = to("nowhere").give_up(Duration::from_millis(300));
    assert_eq!(outcome(given_up, "nowhere".into()).await, Outcome::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_without_an_answer_is_in_doubt() {
    let Some(server) = Server::start() else { return };
    let mut jetstream = server.jetstream().await;
    jetstream.set_timeout(Duration::from_millis(100));
    // Here is somebody who says nothing, and there somebody who says something else.
    let _silent = jetstream.client().subscribe("silent").await.unwrap();
    let mut other = jetstream.client().subscribe("other").await.unwrap();
    let client = jetstream.client();
    tokio::spawn(async move {
        while let Some(message) = other.next().await {
            client.publish(message.reply.unwrap(), "hello".into()).await.unwrap();
        }
    });
    for subject in ["silent", "other"] {
        let ingress = Ingress::new(jetstream.clone(), subject).give_up(Duration::from_millis(300));
        let mut unstored = ingress.unstored();
        assert_eq!(outcome(ingress.clone(), "doubtful".into()).await, Outcome::InDoubt);
        let told = soon("message", unstored.next()).await.unwrap();
        assert!(matches!(told.error, Error::Unacknowledged) && told.in_doubt, "{told:?}");
        assert!(ingress.stats().repeated > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_client_of_nats_nothing_is_published_and_nothing_is_in_doubt() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    jetstream.client().drain().await.unwrap();
    until("end of the client", async || jetstream.client().flush().await.err()).await;
    let ingress = Ingress::new(jetstream, "orders").give_up(Duration::from_millis(100));
    assert_eq!(outcome(ingress, "nowhere".into()).await, Outcome::Refused);
}

/// A stream with these, a consumer of it, and an egress to a receiver with sessions.
async fn egress(server: &Server, messages: &[&str]) -> (PullConsumer, Deliveries, Egress) {
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let pulled = consumer(&orders).await;
    for message in messages {
        let publish = PublishMessage::build().message_id(format!("id-{message}")).payload((*message).to_owned().into());
        jetstream.send_publish("orders", publish.header("Own", "kept")).await.unwrap().await.unwrap();
    }
    let receiver = Listener::bind("127.0.0.1:0", acked()).await.unwrap().deliveries();
    let egress = Egress::new(pulled.clone(), Manager::new(acked()), receiver.local_addr());
    (pulled, receiver, egress)
}

#[tokio::test(flavor = "multi_thread")]
async fn jetstream_hears_of_a_message_when_the_receiver_has_taken_it_and_not_before() {
    let Some(server) = Server::start() else { return };
    let (mut pulled, mut receiver, egress) = egress(&server, &["one"]).await;
    let egress = egress.payload(|message| {
        let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).unwrap();
        format!("{id}: {}", String::from_utf8_lossy(&message.payload)).into()
    });
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    let delivery = soon("message", receiver.next()).await.unwrap();
    assert_eq!(delivery.message(), "id-one: one");
    assert_eq!((handle.stats().written, pulled.info().await.unwrap().num_ack_pending), (0, 1));
    delivery.ack();
    until("acknowledgement", async || (pulled.get_info().await.ok()?.num_ack_pending == 0).then_some(())).await;
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    assert_eq!(handle.stats().written, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_terminated_and_what_is_in_doubt_comes_again_unless_the_program_says_otherwise() {
    let Some(server) = Server::start() else { return };
    let (pulled, mut receiver, egress) = egress(&server, &["bad", "doubtful"]).await;
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    let mut doubtful = 0;
    while doubtful < 2 {
        let delivery = soon("message", receiver.next()).await.unwrap();
        match &delivery.message()[..] {
            b"bad" => delivery.refuse(),
            _ if doubtful == 0 => {
                doubtful += 1;
                drop(delivery);
            }
            _ => {
                doubtful += 1;
                delivery.ack();
            }
        }
    }
    until("acknowledgement", async || (pulled.get_info().await.ok()?.num_ack_pending == 0).then_some(())).await;
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    let stats = handle.stats();
    assert_eq!((stats.pulled, stats.written, stats.again, stats.terminated, stats.moved), (3, 1, 1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_doubt_may_go_into_another_stream_with_its_id() {
    let Some(server) = Server::start() else { return };
    let (pulled, mut receiver, egress) = egress(&server, &["doubtful"]).await;
    let jetstream = server.jetstream().await;
    let address = receiver.local_addr().to_string();
    // The first time it cannot be moved, and comes again.
    let egress = egress.on_failure(|undelivered| match (undelivered.outcome(), undelivered.deliveries) {
        (Outcome::InDoubt, 1) => OnFailure::Move("no subject".to_owned()),
        (Outcome::InDoubt, _) => OnFailure::Move("doubts".to_owned()),
        other => panic!("{other:?}"),
    });
    let doubts = stream(&jetstream, "doubts", 1).await;
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    for _ in 0..2 {
        drop(soon("message", receiver.next()).await.unwrap());
    }
    until("end of it", async || (handle.stats().moved == 1).then_some(())).await;
    until("end of it", async || (pulled.get_info().await.ok()?.num_ack_pending == 0).then_some(())).await;
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    assert_eq!((handle.stats().again, handle.stats().terminated, handle.stats().written), (1, 0, 0));
    let letter = doubts.get_raw_message(1).await.unwrap();
    let header = |name: &str| letter.headers.get(name).map(|value| value.as_str());
    assert_eq!((&letter.payload[..], header(ID), header("Own")), (&b"doubtful"[..], Some("id-doubtful"), Some("kept")));
    assert_eq!((header("Nats-Msg-Id"), header(ADDRESS)), (Some("orders.1"), Some(&*address)));
    assert_eq!(header(OUTCOME), Some(&*Outcome::InDoubt.to_string()));
    assert!(header(REASON).unwrap().contains("it may or may not have been taken"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_is_told_and_comes_again() {
    let Some(server) = Server::start() else { return };
    let (pulled, receiver, _egress) = egress(&server, &["old"]).await;
    let address = receiver.local_addr();
    let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_millis(10));
    let manager = Manager::new(acked().reconnect(backoff).message_ttl(Duration::from_millis(50)));
    manager.dial(&address).await.unwrap();
    drop(receiver);
    until("break", async || (!matches!(manager.health(&address)?, Health::Up)).then_some(())).await;
    let (sender, mut outcomes) = futures::channel::mpsc::unbounded();
    let egress = Egress::new(pulled, manager, address).on_failure(move |undelivered| {
        sender.unbounded_send(undelivered.outcome()).unwrap();
        OnFailure::Again(Duration::ZERO)
    });
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    assert_eq!(soon("failure", outcomes.next()).await, Some(Outcome::Expired));
    assert_eq!(soon("failure", outcomes.next()).await, Some(Outcome::Expired));
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_is_taken_when_a_receiver_and_an_egress_die() {
    const MESSAGES: usize = 300;
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let pulled = impatient(&orders, Duration::from_secs(1)).await;
    for number in 0..MESSAGES {
        jetstream.publish("orders", number.to_string().into()).await.unwrap().await.unwrap();
    }
    let port = Port::new();
    let bind = async || Listener::bind(port.address(), acked()).await.unwrap().deliveries();
    let start = || {
        let egress = Egress::new(pulled.clone(), Manager::new(acked()), port.address());
        let egress = egress.in_flight(50, 1 << 20).on_failure(|_| OnFailure::Again(Duration::from_millis(50)));
        (egress.handle(), tokio::spawn(egress.run()))
    };
    let mut taken = BTreeSet::new();
    let mut take_up_to = async |count: usize, receiver: &mut Deliveries| {
        while taken.len() < count {
            let delivery = soon("message", receiver.next()).await.unwrap();
            taken.insert(delivery.message().clone());
            delivery.ack();
        }
    };
    let (mut receiver, (first, running)) = (bind().await, start());
    take_up_to(100, &mut receiver).await;
    // What is in its inbox, and what it has taken of late, is in doubt as soon as there is another one, which knows nothing of it.
    drop(receiver);
    let mut receiver = bind().await;
    take_up_to(200, &mut receiver).await;
    until("failure", async || (first.stats().again > 0).then_some(())).await;
    running.abort();
    assert!(running.await.is_err(), "it was pulling");
    let (second, running) = start();
    take_up_to(MESSAGES, &mut receiver).await;
    let look = async || {
        let info = pulled.get_info().await.ok()?;
        (info.num_pending + info.num_ack_pending as u64 == 0).then_some(())
    };
    // What comes a second time is taken as well.
    let rest = async {
        while let Some(delivery) = receiver.next().await {
            delivery.ack();
        }
    };
    tokio::select! {
        () = until("acknowledgements", look) => {}
        () = rest => panic!("the receiver has ended"),
    }
    second.stop();
    soon("end", running).await.unwrap().unwrap();
}
