//! Messages that the program acknowledges itself.

use std::collections::HashSet;

use buffstreams::{Address, Bytes, Config, Connection, Deliveries, Delivery, Listener, Manager, Outcome, Session};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::net::{SOON, defaults, next, run, within};
use crate::peers::until;

fn config() -> Config {
    defaults().session(Session::new())
}

async fn pair() -> (Deliveries, Manager, Address) {
    let deliveries = Listener::bind("127.0.0.1:0", config()).await.unwrap().deliveries();
    let (manager, address) = (Manager::new(config()), Address::from(deliveries.local_addr()));
    manager.dial(address.clone()).await.unwrap();
    (deliveries, manager, address)
}

/// Sends these, and takes them at the other end.
async fn deliver(deliveries: &mut Deliveries, manager: &Manager, to: &Address, messages: &[&str]) -> Vec<Delivery> {
    let mut sink = manager.sink();
    for message in messages {
        sink.feed((to.clone(), Bytes::copy_from_slice(message.as_bytes()))).await.unwrap();
    }
    within(SOON, sink.flush()).await.unwrap();
    let mut delivered = Vec::new();
    for message in messages {
        delivered.push(next(deliveries).await.unwrap());
        assert_eq!(delivered.last().unwrap().message(), message);
    }
    delivered
}

#[test]
fn each_is_settled_by_itself_and_in_any_order() {
    run(async {
        let (mut deliveries, manager, address) = pair().await;
        let mut letters = manager.dead_letters();
        let four = deliver(&mut deliveries, &manager, &address, &["one", "two", "three", "four"]).await;
        let [one, two, three, four] = <[Delivery; 4]>::try_from(four).unwrap();
        assert_eq!(deliveries.stats().untaken, 4);
        three.refuse();
        four.ack();
        drop(two);
        assert!(letters.next().now_or_never().is_none(), "what comes before them is not settled");
        one.ack();
        for (message, outcome) in [("two", Outcome::InDoubt), ("three", Outcome::Refused)] {
            let letter = next(&mut letters).await.unwrap();
            assert_eq!((letter.message, letter.outcome), (message.into(), outcome));
        }
        let mut sink = manager.sink();
        sink.feed((address, "five".into())).await.unwrap();
        let mut barrier = Box::pin(async move { sink.barrier().await });
        let early = (&mut barrier).now_or_never();
        assert!(early.is_none(), "{early:?} {:?}", manager.stats().total);
        next(&mut deliveries).await.unwrap().ack();
        within(SOON, barrier).await.unwrap();
        let stats = manager.stats().total;
        assert_eq!((stats.accepted, stats.acked, stats.in_doubt, stats.refused, stats.held), (5, 3, 1, 1, 0));
        assert_eq!(deliveries.stats().untaken, 0);
    });
}

#[test]
fn what_is_kept_stalls_its_sender_and_nobody_else() {
    run(async {
        let session = Session::new().window_bytes(72 << 10);
        let config = || config().session(session.clone());
        let mut deliveries = Listener::bind("127.0.0.1:0", config()).await.unwrap().deliveries();
        let address = Address::from(deliveries.local_addr());
        let (one, other) = (Manager::new(config()), Manager::new(config()));
        one.dial(address.clone()).await.unwrap();
        other.dial(address.clone()).await.unwrap();
        let mut sink = one.sink();
        let mut kept = Vec::new();
        let stalls = async {
            for _ in 0..1000 {
                sink.feed((address.clone(), vec![1; 1000].into())).await.unwrap();
            }
            sink.barrier().await.unwrap();
        };
        let mut stalls = Box::pin(stalls);
        // 72 KiB are 73 messages of 1,004 bytes.
        while kept.len() < 73 {
            futures::select_biased! {
                () = (&mut stalls).fuse() => panic!("nothing is taken"),
                delivery = deliveries.next() => kept.push(delivery.unwrap()),
            }
        }
        let mut write = Box::pin(other.write(address.clone(), "through".into()));
        let through = futures::select_biased! {
            () = (&mut stalls).fuse() => panic!("nothing is taken"),
            wrote = (&mut write).fuse() => panic!("{wrote:?} before it is taken"),
            delivery = deliveries.next() => delivery.unwrap(),
        };
        assert_eq!(through.message(), "through", "the other sender is not at a standstill");
        through.ack();
        within(SOON, write).await.unwrap();
        assert_eq!(deliveries.stats().untaken, 73);
        kept.into_iter().for_each(Delivery::ack);
        let take = async {
            while let Some(delivery) = deliveries.next().await {
                delivery.ack();
            }
        };
        futures::select_biased! {
            () = within(SOON, stalls).fuse() => {}
            () = take.boxed_local().fuse() => panic!("the listener has ended"),
        }
    });
}

#[test]
fn ids_are_the_same_only_of_the_same_message() {
    run(async {
        let (mut deliveries, manager, address) = pair().await;
        let mut ids = HashSet::new();
        for n in 0..3 {
            manager.close(address.clone()).now_or_never();
            let another = Manager::new(config());
            another.dial(address.clone()).await.unwrap();
            for delivery in deliver(&mut deliveries, &another, &address, &["same", "same"]).await {
                let id = delivery.id().unwrap();
                assert_eq!(delivery.id(), Some(id));
                assert_eq!(id.to_string().len(), 32);
                assert_eq!(format!("{id:?}"), format!("DeliveryId({id})"));
                assert!(ids.insert(*id.as_bytes()), "{n}: {id} was there");
                delivery.ack();
            }
        }
    });
}

#[test]
fn without_a_session_it_is_a_stream_of_messages() {
    run(async {
        let mut deliveries = Listener::bind("127.0.0.1:0", defaults()).await.unwrap().deliveries();
        let mut connection = Connection::dial(deliveries.local_addr(), defaults()).await.unwrap();
        for message in ["one", "two", "three"] {
            connection.feed(message.into()).await.unwrap();
        }
        connection.close().await.unwrap();
        let one = next(&mut deliveries).await.unwrap();
        assert_eq!((one.message(), one.id()), (&"one".into(), None));
        one.ack();
        next(&mut deliveries).await.unwrap().refuse();
        drop(next(&mut deliveries).await.unwrap());
        deliveries.closer().close().await.unwrap();
        assert!(next(&mut deliveries).await.is_none());
    });
}

#[test]
fn what_a_stream_has_left_of_a_read_comes_first_and_the_rest_of_a_dropped_one_is_in_doubt() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (manager, address) = (Manager::new(config()), Address::from(listener.local_addr()));
        let mut letters = manager.dead_letters();
        manager.dial(address.clone()).await.unwrap();
        let mut sink = manager.sink();
        for message in ["one", "two", "three"] {
            sink.feed((address.clone(), message.into())).await.unwrap();
        }
        within(SOON, sink.flush()).await.unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "one");
        let mut deliveries = listener.deliveries();
        let two = next(&mut deliveries).await.unwrap();
        assert_eq!(two.message(), "two");
        two.ack();
        // The ACK has a millisecond, in which it would be gone with the listener.
        until("two are acknowledged", || manager.stats().total.acked == 2).await;
        drop(deliveries);
        let again = Listener::bind(address.clone(), config()).await.unwrap();
        let letter = next(&mut letters).await.unwrap();
        assert_eq!((letter.message, letter.outcome), ("three".into(), Outcome::InDoubt));
        assert_eq!(manager.stats().total.acked, 2);
        drop(again);
    });
}
