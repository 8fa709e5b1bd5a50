//! Typed messages over sockets: on each kind of stream and sink.

use std::io::{self, Write};
use std::iter::repeat_n;
use std::net::{Shutdown, TcpListener};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::thread;

use buffstreams::typed::{BufferFull, Json, Postcard, Prost, Typed};
use buffstreams::{Address, Config, Connection, Error, Event, Listener, Manager, Peer, Reason, Route, Session};
use futures::future::join;
use futures::stream::FusedStream;
use futures::{FutureExt, Sink, SinkExt, StreamExt};

use crate::counting::allocated;
use crate::net::{
    SOON, config, connected, defaults, disconnected, event, frame, next, put, raw, rest, run, until, within,
};
use crate::typed_codecs::{Fails, Faulty, Point, Reading, WRONGS, Wrong, bytes_of};

fn reading(value: i64) -> Reading {
    Reading { sensor: "roof".into(), value, ..Reading::default() }
}

#[test]
fn a_connection_and_its_halves_send_and_receive_types() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr();
        let mut connections = listener.connections();
        let mut client = Connection::dial(addr, config()).await.unwrap().typed(Postcard::<Reading>::new());
        client.feed(reading(1)).await.unwrap();
        assert!(client.try_feed(&reading(2)).unwrap());
        client.flush().await.unwrap();
        let (reading_half, writing_half) = next(&mut connections).await.unwrap().split();
        let (mut questions, mut answers) =
            (reading_half.typed(Postcard::<Reading>::new()), writing_half.typed(Json::<i64>::new()));
        for value in 1..=2 {
            assert!(next(&mut questions).await.unwrap().unwrap() == reading(value));
        }
        answers.send(3).await.unwrap();
        assert!(answers.try_feed(&4).unwrap());
        answers.close().await.unwrap();
        // Its replies are of another type.
        let mut client = client.into_inner().typed(Json::<i64>::new());
        assert_eq!(next(&mut client).await.unwrap().unwrap(), 3);
        assert_eq!(next(&mut client).await.unwrap().unwrap(), 4);
        assert!(next(&mut client).await.is_none());
        client.close().await.unwrap();
        let error = client.feed(5).await.unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        assert_eq!(error.into_unsent(), Some("5".into()));
        let error = client.try_feed(&6).unwrap_err();
        assert_eq!(error.into_unsent(), Some("6".into()));
        assert!(format!("{client:?}").starts_with("Typed(Connection"));
    });
}

#[test]
fn the_sink_of_a_manager_sends_types_to_each_address() {
    run(async {
        let mut first = Listener::bind("127.0.0.1:0", config()).await.unwrap().typed(Prost::<Reading>::new());
        let mut second = Listener::bind("127.0.0.1:0", config()).await.unwrap().typed(Prost::<Reading>::new());
        let addresses = [Address::from(first.get_ref().local_addr()), Address::from(second.get_ref().local_addr())];
        let manager = Manager::new(config().max_message_size(100));
        for address in &addresses {
            manager.dial(address).await.unwrap();
        }
        let mut sink = manager.sink().typed(Prost::<Reading>::new());
        sink.feed((addresses[0].clone(), reading(1))).await.unwrap();
        assert!(sink.try_feed(&addresses[1], &reading(2)).unwrap());
        let error =
            sink.feed((addresses[0].clone(), Reading { sensor: "x".repeat(200), ..reading(3) })).await.unwrap_err();
        assert!(matches!(error, Error::Encode { .. }), "{error:?}");
        sink.flush().await.unwrap();
        assert!(next(&mut first).await.unwrap().1 == reading(1));
        assert!(next(&mut second).await.unwrap().1 == reading(2));
        let nobody = Address::from("127.0.0.1:1");
        let error = sink.feed((nobody.clone(), reading(4))).await.unwrap_err();
        assert!(matches!(&error, Error::NotOpen { address, .. } if *address == nobody), "{error:?}");
        let unsent = error.into_unsent().unwrap();
        assert!(prost::Message::decode(unsent) == Ok(reading(4)));
        sink.close().await.unwrap();
        let error = sink.try_feed(&addresses[0], &reading(5)).unwrap_err();
        assert!(matches!(error, Error::Closed { message: Some(_), .. }), "{error:?}");
    });
}

/// Less than what those want to write that do not notice when they are stopped.
const WRONG_MAX: usize = 100_000;

/// Feeds each message that is not encoded, and before, between and behind them some that are. They have so many bytes.
async fn feed_wrongs<I>(sink: &mut (impl Sink<I, Error = Error> + Unpin), item: impl Fn(Wrong) -> I) -> Vec<usize> {
    let sent = Vec::from_iter(1..=WRONGS.len() + 1);
    sink.feed(item(Wrong::Nothing(1))).await.unwrap();
    for (wrong, len) in WRONGS.into_iter().zip(2..) {
        match (wrong, AssertUnwindSafe(sink.feed(item(wrong))).catch_unwind().await) {
            (Wrong::Panics(_) | Wrong::Overruns, Err(_)) => {}
            (Wrong::Fails(_), Ok(Err(Error::Encode { source, .. }))) => assert!(source.is::<Fails>(), "{source:?}"),
            (_, Ok(Err(Error::Encode { source, .. }))) => {
                let max = source.downcast_ref::<BufferFull>().map(|full| full.max);
                assert_eq!(max, Some(WRONG_MAX), "{wrong:?}: {source:?}");
            }
            (_, other) => panic!("{wrong:?}: {other:?}"),
        }
        sink.feed(item(Wrong::Nothing(len))).await.unwrap();
    }
    sink.flush().await.unwrap();
    sent
}

/// Each way in which a connection keeps what it is fed.
fn ways() -> [Config; 3] {
    let config = defaults().max_message_size(WRONG_MAX);
    [config.clone(), config.clone().linger(SOON), config.session(Session::new())]
}

async fn come(listener: &mut Typed<Listener, Faulty, Wrong>, lens: impl IntoIterator<Item = usize>) {
    for len in lens {
        assert_eq!(next(listener).await.unwrap().1, Wrong::Nothing(len));
    }
    // They are taken.
    assert!(listener.next().now_or_never().is_none());
}

#[test]
fn a_type_that_is_not_encoded_takes_nothing_of_others_along() {
    run(async {
        for config in ways() {
            let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap().typed(Faulty);
            let address = Address::from(listener.get_ref().local_addr());

            let mut sink = Connection::dial(&address, config.clone()).await.unwrap().typed(Faulty);
            let sent = feed_wrongs(&mut sink, |wrong| wrong).await;
            come(&mut listener, sent).await;

            let (_reading, writing) = sink.into_inner().split();
            let mut sink = writing.typed(Faulty);
            let sent = feed_wrongs(&mut sink, |wrong| wrong).await;
            come(&mut listener, sent).await;

            let manager = Manager::new(config);
            manager.dial(&address).await.unwrap();
            let mut sink = manager.sink().typed(Faulty);
            let sent = feed_wrongs(&mut sink, |wrong| (address.clone(), wrong)).await;
            come(&mut listener, sent).await;
        }
    });
}

/// Sends more than may be kept, without a copy of what is sent, and waits until it is acknowledged where that can be.
macro_rules! sends_much {
    ($sink:expr, $listener:expr, $has_session:expr, |$message:ident| $($args:expr),*) => {
        let (sink, listener, $message) = (&mut $sink, &mut $listener, &Wrong::Nothing(10_000));
        let sending = async {
            let mut waits = 0;
            for _ in 0..500 {
                while !sink.try_feed($($args),*).unwrap() {
                    waits += 1;
                    within(SOON, sink.ready()).await.unwrap();
                }
            }
            sink.flush().await.unwrap();
            waits
        };
        // In a box, as a test has not much of a stack.
        let (waits, ()) = join(sending, come(listener, repeat_n(10_000, 500))).boxed_local().await;
        assert!(waits > 0);
        match within(SOON, sink.barrier()).await {
            Ok(()) => assert!($has_session),
            Err(error) => assert!(!$has_session && matches!(error, Error::NoSession), "{error:?}"),
        }
    };
}

#[test]
fn who_sends_types_in_place_waits_for_room_and_for_what_is_taken() {
    run(async {
        for (config, has_session) in ways().into_iter().zip([false, false, true]) {
            let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap().typed(Faulty);
            let address = Address::from(listener.get_ref().local_addr());
            let mut sink = Connection::dial(&address, config.clone()).await.unwrap().typed(Faulty);
            sends_much!(sink, listener, has_session, |message| message);
            let (_reading, writing) = sink.into_inner().split();
            let mut sink = writing.typed(Faulty);
            sends_much!(sink, listener, has_session, |message| message);
            let manager = Manager::new(config);
            manager.dial(&address).await.unwrap();
            let mut sink = manager.sink().typed(Faulty);
            sends_much!(sink, listener, has_session, |message| &address, message);
        }
    });
}

/// The least that this thread allocates for one of many steps. Now and then it allocates for what is no message.
async fn least_allocated(mut step: impl AsyncFnMut()) -> usize {
    let mut least = usize::MAX;
    for _ in 0..50 {
        let before = allocated();
        step().await;
        least = least.min(allocated() - before);
    }
    least
}

#[test]
fn a_type_without_memory_of_its_own_allocates_nothing_on_a_connection_or_at_a_listener() {
    const STEP: usize = 10_000;
    run(async {
        let point = Point { id: 7, x: 0.5, valid: true };
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let reading = thread::spawn(move || io::copy(&mut socket.accept().unwrap().0, &mut io::sink()).unwrap());
        let mut sink = Connection::dial(addr, config()).await.unwrap().typed(Postcard::<Point>::new());
        let sending = least_allocated(async || {
            for _ in 0..STEP {
                sink.feed(point).await.unwrap();
            }
        });
        assert_eq!(sending.await, 0, "sending");
        sink.close().await.unwrap();
        drop(sink);
        let wire = frame(&bytes_of("postcard", &point)).repeat(STEP);
        assert_eq!(reading.join().unwrap(), 50 * wire.len() as u64);

        let send = |addr| {
            let wire = wire.clone();
            thread::spawn(move || {
                let mut socket = raw(addr);
                (0..50).for_each(|_| socket.write_all(&wire).unwrap());
                socket
            })
        };
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let mut points = listener.typed(Postcard::<Point>::new());
        let peer_socket = send(addr);
        let receiving = least_allocated(async || {
            for _ in 0..STEP {
                assert!(points.next().await.unwrap().1 == point);
            }
        });
        assert_eq!(receiving.await, 0, "at a listener");
        drop(peer_socket.join());

        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let peer_socket = send(addr);
        let connection = next(&mut listener.connections()).await.unwrap();
        let mut points = connection.typed(Postcard::<Point>::new());
        let receiving = least_allocated(async || {
            for _ in 0..STEP {
                assert!(points.next().await.unwrap().unwrap() == point);
            }
        });
        assert_eq!(receiving.await, 0, "on a connection");
        drop(peer_socket.join());
    });
}

#[test]
fn the_sink_of_a_route_sends_types_to_the_address_of_their_key() {
    run(async {
        let mut first = Listener::bind("127.0.0.1:0", config()).await.unwrap().typed(Faulty);
        let mut second = Listener::bind("127.0.0.1:0", config()).await.unwrap().typed(Prost::<Reading>::new());
        let addresses = [Address::from(first.get_ref().local_addr()), Address::from(second.get_ref().local_addr())];
        let manager = Manager::new(config().max_message_size(WRONG_MAX));
        for address in &addresses {
            manager.dial(address).await.unwrap();
        }

        let mut sink = manager.sink_to(Route::failover(&addresses)).typed(Faulty);
        for len in feed_wrongs(&mut sink, |wrong| wrong).await {
            assert_eq!(next(&mut first).await.unwrap().1, Wrong::Nothing(len));
        }

        // The key is of the bytes, as they are sent.
        let keys = Arc::new(Mutex::new(Vec::new()));
        let seen = keys.clone();
        let key = move |message: &[u8]| seen.lock().unwrap().push(message.to_vec());
        let route = Route::by_key(key, &addresses[1..]);
        let mut sink = manager.sink_to(route).typed(Prost::<Reading>::new());
        sink.send(reading(1)).await.unwrap();
        assert!(next(&mut second).await.unwrap().1 == reading(1));
        assert_eq!(*keys.lock().unwrap(), [prost::Message::encode_to_vec(&reading(1))]);

        // It is given to the next address, where the first is closed before it has it.
        manager.close(&addresses[0]).await.unwrap();
        let mut sink = manager.sink_to(Route::failover(&addresses)).typed(Prost::<Reading>::new());
        sink.send(reading(2)).await.unwrap();
        assert!(next(&mut second).await.unwrap().1 == reading(2));
        sink.close().await.unwrap();
        let error = sink.feed(reading(3)).await.unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        assert!(prost::Message::decode(error.into_unsent().unwrap()) == Ok(reading(3)));
    });
}

#[test]
fn a_route_without_addresses_gives_a_type_back() {
    run(async {
        let manager = Manager::new(config());
        let mut sink = manager.sink_to(Route::failover(<[&str; 0]>::default())).typed(Json::<u8>::new());
        let error = sink.feed(7).await.unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        assert_eq!(error.into_unsent().unwrap(), "7");
    });
}

#[test]
fn a_configuration_that_cannot_work_sends_no_types() {
    run(async {
        let manager = Manager::new(config().max_message_size(0));
        let mut sink = manager.sink_to(Route::failover(["127.0.0.1:1"])).typed(Json::<u8>::new());
        let fed = sink.feed(1).await;
        assert!(matches!(fed, Err(Error::Config(_))), "{fed:?}");
        let written = manager.typed(Json::<u8>::new()).write("127.0.0.1:1", &1).await;
        assert!(matches!(written, Err(Error::Config(_))), "{written:?}");
    });
}

#[test]
fn a_manager_writes_types_that_stay_with_the_program() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap().typed(Faulty);
        let address = Address::from(listener.get_ref().local_addr());
        let manager = Manager::new(config()).typed(Faulty);
        manager.get_ref().dial(&address).await.unwrap();
        for wrong in [Wrong::Fails(3), Wrong::Endless] {
            let written = manager.write(&address, &wrong).await;
            assert!(matches!(written, Err(Error::Encode { .. })), "{written:?}");
        }
        manager.write(&address, &Wrong::Nothing(7)).await.unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, Wrong::Nothing(7));
        manager.get_ref().close(&address).await.unwrap();
        let error = manager.write(&address, &Wrong::Nothing(3)).await.unwrap_err();
        assert!(matches!(error, Error::NotOpen { .. }), "{error:?}");
        assert_eq!(error.into_unsent(), Some(vec![5; 3].into()));
        assert_eq!(manager.get_ref().stats().total.written, 1);
    });
}

#[test]
fn the_replies_of_a_listener_are_types_whatever_its_peers_send() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config().max_message_size(WRONG_MAX)).await.unwrap();
        let (mut events, addr) = (listener.events(), listener.local_addr().ip().unwrap());
        let (incoming, outgoing) = listener.split();
        let (mut questions, mut answers) = (incoming.typed(Json::<u64>::new()), outgoing.typed(Faulty));
        let mut peer_socket = raw(addr);
        for message in [&b"2"[..], b"\xff\0", b"{", b"3"] {
            put(&mut peer_socket, message);
        }
        for len in 2..=3 {
            let (peer, question) = next(&mut questions).await.unwrap();
            assert_eq!(question, len);
            answers.send((peer, Wrong::Nothing(question as usize))).await.unwrap();
        }
        let from = decode_failed(&mut events).await.0;
        let answered = feed_wrongs(&mut answers, |wrong| (from, wrong)).await;
        peer_socket.shutdown(Shutdown::Write).unwrap();
        answers.close().await.unwrap();
        let replies = [2, 3].into_iter().chain(answered).flat_map(|len| frame(&vec![5; len]));
        assert!(rest(&mut peer_socket).into_iter().eq(replies));

        let error = answers.feed((from, Wrong::Nothing(4))).await.unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        assert_eq!(error.into_unsent(), Some(vec![5; 4].into()));
    });
}

/// The next message that does not decode: whose it is, and why.
async fn decode_failed(events: &mut buffstreams::Events<Event>) -> (Peer, String) {
    event(events, |event| match event {
        Event::DecodeFailed { peer, error, .. } => Some((peer, error.to_string())),
        _ => None,
    })
    .await
}

#[test]
fn what_a_peer_sends_that_does_not_decode_is_an_event_and_the_peer_goes_on() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (mut events, addr) = (listener.events(), listener.local_addr().ip().unwrap());
        let mut numbers = listener.typed(Json::<u64>::new());
        let mut peer_socket = raw(addr);
        for message in [&b"1"[..], b"two", b"", b"3"] {
            put(&mut peer_socket, message);
        }
        let from = connected(&mut events).await;
        assert_eq!(next(&mut numbers).await, Some((from, 1)));
        assert_eq!(next(&mut numbers).await, Some((from, 3)));
        let (peer, error) = decode_failed(&mut events).await;
        assert!(peer == from && error.contains("expected"), "{error}");
        assert_eq!(decode_failed(&mut events).await.0, from);
        drop(peer_socket);
        numbers.get_mut().close().await.unwrap();
        assert!(next(&mut numbers).await.is_none() && numbers.is_terminated());
    });
}

#[test]
fn a_strict_listener_ends_a_peer_whose_message_does_not_decode() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (mut events, addr) = (listener.events(), listener.local_addr().ip().unwrap());
        let (incoming, _outgoing) = listener.split();
        let mut numbers = incoming.typed(Json::<u64>::new()).strict();
        let (mut bad, mut good) = (raw(addr), raw(addr));
        let bad_addr = bad.local_addr().unwrap();
        for message in [&b"1"[..], b"two", b"3"] {
            put(&mut bad, message);
        }
        assert_eq!(next(&mut numbers).await.unwrap().1, 1);
        put(&mut good, b"4");
        assert_eq!(next(&mut numbers).await.unwrap().1, 4);
        until(SOON, || numbers.next().now_or_never().is_none() && numbers.get_ref().stats().connections == 1);
        assert!(matches!(disconnected(&mut events, bad_addr).await, Reason::DecodeFailed));
        assert!(rest(&mut bad).is_empty());
        put(&mut good, b"5");
        assert_eq!(next(&mut numbers).await.unwrap().1, 5);
        assert!(!numbers.is_terminated());
    });
}

/// One poll does not pass over all that a peer may send.
#[test]
fn a_flood_that_does_not_decode_lets_other_tasks_run() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (closer, addr) = (listener.closer(), listener.local_addr());
        let mut numbers = listener.typed(Json::<u64>::new());
        let mut client = Connection::dial(addr, config()).await.unwrap();
        for _ in 0..10_000 {
            client.feed("x".into()).await.unwrap();
        }
        client.feed("7".into()).await.unwrap();
        client.close().await.unwrap();
        let mut polls = 0;
        let first = futures::future::poll_fn(|cx| {
            polls += 1;
            numbers.poll_next_unpin(cx)
        });
        assert_eq!(crate::net::within(SOON, first).await.unwrap().1, 7);
        assert!(polls >= 10_000 / 64, "{polls} polls");
        closer.close().await.unwrap();
    });
}
