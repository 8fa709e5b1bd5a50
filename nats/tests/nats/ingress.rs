//! Into a stream: what, how often, and in which order.

use std::collections::HashMap;

use buffstreams_nats::{Error, Ingress};
use futures::future::join_all;
use futures::{FutureExt, StreamExt};

use crate::server::{Server, everything, listen, send, soon, stream};

const CLIENTS: usize = 8;
const MESSAGES: usize = 500;

fn numbered(client: usize) -> impl Iterator<Item = String> {
    (0..MESSAGES).map(move |number| format!("{client} {number}"))
}

/// Stores what these clients send at the same time, to its end.
async fn run(ingress: &Ingress) {
    let mut listener = listen().await;
    let (address, closer) = (listener.local_addr(), listener.closer());
    let clients = async {
        join_all((0..CLIENTS).map(|client| send(address.clone(), numbered(client)))).await;
        closer.close().await.unwrap();
    };
    soon("end", async { futures::join!(clients, ingress.run(&mut listener)) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_is_once_in_the_stream_under_the_subject_of_its_function() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let ingress = Ingress::by(jetstream, |_peer, message| {
        let client = message.split(|byte| *byte == b' ').next().unwrap();
        format!("orders.{}", String::from_utf8_lossy(client))
    });
    run(&ingress).await;

    let mut expected: Vec<_> = (0..CLIENTS)
        .flat_map(|client| numbered(client).map(move |message| (format!("orders.{client}"), message)))
        .collect();
    let all = everything(&orders).await;
    let mut found: Vec<_> = all
        .into_iter()
        .map(|(subject, _id, message)| (subject, String::from_utf8(message.to_vec()).unwrap()))
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let stats = ingress.stats();
    let total = (CLIENTS * MESSAGES) as u64;
    assert_eq!((stats.received, stats.stored, stats.duplicates, stats.unstored), (total, total, 0, 0));
    assert_eq!((stats.in_flight, stats.in_flight_bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_each_client_are_in_order() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    run(&Ingress::new(jetstream, "orders").ordered()).await;

    let mut last = HashMap::new();
    let all = everything(&orders).await;
    assert_eq!(all.len(), CLIENTS * MESSAGES);
    for (_subject, _id, message) in all {
        let text = String::from_utf8(message.to_vec()).unwrap();
        let (client, number) = text.split_once(' ').unwrap();
        let (client, number): (usize, usize) = (client.parse().unwrap(), number.parse().unwrap());
        let before = last.insert(client, number);
        assert_eq!(number, before.map_or(0, |before| before + 1), "client {client}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_again_is_once_in_the_stream_by_the_programs_id() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let ingress =
        Ingress::new(jetstream, "orders").message_id(|_peer, message| String::from_utf8_lossy(message).into_owned());
    run(&ingress).await;
    run(&ingress).await;

    let all = everything(&orders).await;
    assert_eq!(all.len(), CLIENTS * MESSAGES);
    assert!(all.iter().all(|(_subject, id, message)| id.as_bytes() == message));
    let (stats, total) = (ingress.stats(), (CLIENTS * MESSAGES) as u64);
    assert_eq!((stats.received, stats.stored, stats.duplicates), (2 * total, 2 * total, total));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_attempt_can_store_comes_back_and_the_others_are_stored() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let ingress = Ingress::by(jetstream, |_peer, message| match message {
        b"panic" => panic!("this one is caught"),
        b"wildcard" => "orders.*".to_owned(),
        _ => "orders".to_owned(),
    });
    let ingress = ingress.message_id(|_peer, message| match message {
        b"lines" => "a\nb".to_owned(),
        _ => String::from_utf8_lossy(message).into_owned(),
    });
    let unstored = ingress.unstored();
    let mut listener = listen().await;
    let (address, closer) = (listener.local_addr(), listener.closer());
    let client = async {
        send(address, ["one", "panic", "wildcard", "lines", "two"].map(str::to_owned)).await;
        closer.close().await.unwrap();
    };
    soon("end", async { futures::join!(client, ingress.run(&mut listener)) }).await;

    assert_eq!(ingress.stats().unstored, 3);
    drop(ingress); // The stream of them ends with it.
    let mut errors = HashMap::new();
    soon(
        "end",
        unstored.for_each(|unstored| {
            errors.insert(unstored.message, unstored.error);
            std::future::ready(())
        }),
    )
    .await;
    assert!(matches!(errors[&b"panic"[..]], Error::Panicked { .. }));
    assert!(matches!(&errors[&b"wildcard"[..]], Error::Subject { subject, .. } if subject == "orders.*"));
    assert!(matches!(&errors[&b"lines"[..]], Error::Header { value, .. } if value == "a\nb"));
    assert_eq!(errors.len(), 3);
    let stored: Vec<_> = everything(&orders).await.into_iter().map(|(.., message)| message).collect();
    assert_eq!(stored, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_given_up_when_its_time_is_over() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    // Nobody has this subject.
    let ingress = Ingress::new(jetstream, "nowhere").give_up(std::time::Duration::from_millis(300));
    let mut unstored = ingress.unstored();
    let mut listener = listen().await;
    let (address, closer) = (listener.local_addr(), listener.closer());
    let client = async {
        send(address, ["one".to_owned()]).await;
        closer.close().await.unwrap();
    };
    soon("end", async { futures::join!(client, ingress.run(&mut listener)) }).await;

    assert_eq!((ingress.stats().in_flight, ingress.stats().unstored), (1, 1), "it is in flight until it is taken");
    let given_up = soon("message", unstored.next()).await.unwrap();
    assert_eq!(given_up.message, "one");
    assert!(matches!(&given_up.error, Error::NoStream { subject, .. } if subject == "nowhere"), "{:?}", given_up.error);
    let stats = ingress.stats();
    assert!(stats.repeated > 0);
    assert_eq!((stats.in_flight, stats.in_flight_bytes), (0, 0));
    assert!(unstored.next().now_or_never().is_none(), "there may be more");
}
