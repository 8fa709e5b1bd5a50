//! What its senders hear of a message that is on its way into a stream.

use buffstreams::{Config, Listener, Manager, Outcome, Session};
use buffstreams_nats::Ingress;
use futures::{FutureExt, SinkExt, StreamExt};

use crate::server::{Server, config, everything, soon, stream, until};

fn acked() -> Config {
    config().session(Session::new())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_acknowledged_when_the_stream_has_it_and_not_before() {
    let Some(mut server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let ingress = Ingress::new(jetstream, "orders");
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

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_in_doubt_at_its_sender() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    stream(&jetstream, "orders", 1).await;
    let ingress = Ingress::new(jetstream, "no subject");
    let deliveries = Listener::bind("127.0.0.1:0", acked()).await.unwrap().deliveries();
    let (address, closer) = (deliveries.local_addr(), deliveries.closer());
    let running = tokio::spawn(async move { ingress.run_acked(deliveries).await });
    let manager = Manager::new(acked());
    let mut letters = manager.dead_letters();
    manager.dial(&address).await.unwrap();
    let mut sink = manager.sink();
    sink.send((address.into(), "nowhere".into())).await.unwrap();
    let letter = soon("letter", letters.next()).await.unwrap();
    assert_eq!((letter.outcome, letter.message), (Outcome::InDoubt, "nowhere".into()));
    closer.close().await.unwrap();
    soon("end", running).await.unwrap();
}
