//! A manager whose messages are acknowledged: what its futures wait for, and what they tell.

use buffstreams::{Address, Bytes, Config, Error, Listener, Loss, Manager, ManagerSink, Outcome, Session};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::net::{SOON, defaults, next, run, within};

fn config() -> Config {
    defaults().session(Session::new())
}

/// A listener, and a manager that has dialed it.
async fn pair() -> (Listener, Manager, Address) {
    let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
    let address = Address::from(listener.local_addr());
    let manager = Manager::new(config());
    manager.dial(address.clone()).await.unwrap();
    (listener, manager, address)
}

async fn feed(sink: &mut ManagerSink, address: &Address, messages: &[&'static str]) {
    for message in messages {
        sink.feed((address.clone(), Bytes::from_static(message.as_bytes()))).await.unwrap();
    }
}

#[test]
fn a_barrier_and_a_write_wait_until_the_program_has_taken_everything() {
    run(async {
        let (mut listener, manager, address) = pair().await;
        let mut sink = manager.sink();
        feed(&mut sink, &address, &["one", "two"]).await;
        within(SOON, sink.flush()).await.unwrap();
        assert!(sink.barrier().now_or_never().is_none(), "nobody has taken anything");
        let mut write = Box::pin(manager.write(address.clone(), "three".into()));
        assert!((&mut write).now_or_never().is_none());
        for message in ["one", "two", "three"] {
            assert_eq!(next(&mut listener).await.unwrap().1, message);
        }
        assert!((&mut write).now_or_never().is_none(), "who has not asked for the next has not taken the last");
        // From here on it takes everything.
        let taking = async_std::task::spawn(listener.for_each(|_| async {}));
        within(SOON, write).await.unwrap();
        within(SOON, sink.barrier()).await.unwrap();
        let stats = manager.stats().total;
        assert_eq!((stats.accepted, stats.acked, stats.held), (3, 3, 0));
        taking.cancel().await;
    });
}

#[test]
fn a_sink_that_is_closed_has_delivered_everything() {
    run(async {
        let (mut listener, manager, address) = pair().await;
        let mut sink = manager.sink();
        feed(&mut sink, &address, &["one"]).await;
        assert!(sink.close().now_or_never().is_none());
        assert_eq!(next(&mut listener).await.unwrap().1, "one");
        let taking = async_std::task::spawn(listener.for_each(|_| async {}));
        within(SOON, sink.close()).await.unwrap();
        assert_eq!(manager.stats().total.acked, 1);
        taking.cancel().await;
    });
}

#[test]
fn what_is_refused_is_told_to_its_writer_and_to_the_next_barrier() {
    run(async {
        let (listener, manager, address) = pair().await;
        let mut letters = manager.dead_letters();
        let _serving = listener.serve_in_background(|_, message| match message {
            b"bad" => Err("no".into()),
            _ => Ok(()),
        });
        let error = within(SOON, manager.write(address.clone(), "bad".into())).await.unwrap_err();
        assert!(matches!(&error, Error::Refused { message: Some(_), .. }), "{error:?}");
        assert!(error.into_unsent().is_none(), "it was sent");
        let mut sink = manager.sink();
        feed(&mut sink, &address, &["good", "bad", "good"]).await;
        let error = within(SOON, sink.barrier()).await.unwrap_err();
        let Error::NotSent { source, message: None, .. } = error else { panic!("{error}") };
        assert!(matches!(*source, Error::Refused { .. }), "{source}");
        within(SOON, sink.barrier()).await.unwrap();
        let letter = next(&mut letters).await.unwrap();
        assert_eq!((letter.outcome, letter.message), (Outcome::Refused, "bad".into()));
        let stats = manager.stats().total;
        assert_eq!((stats.accepted, stats.acked, stats.dead_lettered, stats.refused), (4, 2, 2, 2));
    });
}

#[test]
fn what_a_listener_that_is_gone_may_have_taken_is_in_doubt() {
    run(async {
        let (mut listener, manager, address) = pair().await;
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink();
        feed(&mut sink, &address, &["one"]).await;
        within(SOON, sink.flush()).await.unwrap();
        let mut write = Box::pin(manager.write(address.clone(), "two".into()));
        assert!((&mut write).now_or_never().is_none());
        assert_eq!(next(&mut listener).await.unwrap().1, "one");
        assert_eq!(next(&mut listener).await.unwrap().1, "two");
        drop(listener);
        let again = Listener::bind(address.clone(), config()).await.unwrap();
        let error = within(SOON, write).await.unwrap_err();
        let Error::InDoubt { message: Some(message), why: Some(Loss::Restarted), .. } = error else {
            panic!("{error}")
        };
        assert_eq!(message.into_inner(), "two");
        let error = within(SOON, sink.barrier()).await.unwrap_err();
        let Error::NotSent { source, .. } = error else { panic!("{error}") };
        assert!(matches!(*source, Error::SessionLost { in_doubt: 2, why: Loss::Restarted, .. }), "{source}");
        let letter = next(&mut letters).await.unwrap();
        assert_eq!((letter.outcome, letter.message), (Outcome::InDoubt, "one".into()));
        // What follows goes on in another session.
        let _taking = async_std::task::spawn(again.for_each(|_| async {}));
        within(SOON, manager.write(address.clone(), "three".into())).await.unwrap();
        let stats = manager.stats().total;
        assert_eq!((stats.accepted, stats.acked, stats.in_doubt, stats.sessions), (3, 1, 2, 2));
    });
}

#[test]
fn without_a_session_there_is_no_barrier() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
        let manager = Manager::new(defaults());
        manager.dial(listener.local_addr()).await.unwrap();
        assert!(matches!(within(SOON, manager.sink().barrier()).await, Err(Error::NoSession)));
    });
}
