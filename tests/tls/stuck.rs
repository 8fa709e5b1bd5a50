//! Handshakes that come to no end: what they cost others, who gives way, and that nothing of them stays.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use buffstreams::{Config, Connection, Endpoint, Event, Events, Listener, Tls, TlsError};
use futures::future::join_all;
use futures::{SinkExt, StreamExt};

use super::certificates::Authority;
use super::net::{SOON, alone, config, connected, descriptors, event, next, raw, refused, rest, run, until, within};

const STUCK: usize = 1000;

fn sides() -> (Tls, Config) {
    let authority = Authority::new("the authority");
    let own = authority.issue("localhost");
    let client = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
    (Tls::new().server(own.cert, own.key).unwrap(), config().tls(client))
}

/// What the next handshake that failed has failed with, and whose it was.
#[track_caller]
fn failed(events: &mut Events<Event>) -> impl Future<Output = (Endpoint, std::sync::Arc<TlsError>)> {
    event(events, |event| match event {
        Event::HandshakeFailed { from, error, .. } => Some((from, error)),
        Event::Refused { .. } => panic!("there is room"),
        _ => None,
    })
}

/// How long it takes until a message of somebody new has come: the median of a few.
async fn takes(listener: &mut Listener, client: &Config) -> Duration {
    let mut times = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        let mut connection = Connection::dial(listener.local_addr().ip().unwrap(), client.clone()).await.unwrap();
        connection.send(b"good"[..].into()).await.unwrap();
        assert_eq!(next(listener).await.unwrap().1, "good");
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_thousand_who_say_nothing_delay_nobody() {
    alone("stuck::a_thousand_who_say_nothing_delay_nobody", "ulimit -n 4096", || {
        run(async {
            let (server, client) = sides();
            let config = config().tls(server.max_handshakes(2 * STUCK)).dial_timeout(None);
            let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            let addr = listener.local_addr().ip().unwrap();
            let before = takes(&mut listener, &client).await;
            until(SOON, || listener.stats().connections == 0);
            let open = descriptors();
            let stuck: Vec<TcpStream> = (0..STUCK).map(|_| raw(addr)).collect();
            until(SOON, || descriptors() >= open + 2 * STUCK);
            let with = takes(&mut listener, &client).await;
            assert!(with < before + Duration::from_millis(100), "{before:?} without them, {with:?} with them");
            assert_eq!((listener.stats().accepted, listener.stats().connections <= 1), (18, true), "they are no peers");
            drop(stuck);
            until(SOON, || descriptors() <= open + 2);
        });
    });
}

#[test]
fn the_oldest_give_way_where_there_are_too_many() {
    const MOST: usize = 200;
    alone("stuck::the_oldest_give_way_where_there_are_too_many", "ulimit -n 4096", || {
        run(async {
            let (server, client) = sides();
            let config = config().tls(server.max_handshakes(MOST)).dial_timeout(None);
            let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
            let before = takes(&mut listener, &client).await;
            until(SOON, || listener.stats().connections == 0);
            let open = descriptors();
            let mut stuck = Vec::new();
            for n in 0..STUCK {
                stuck.push(raw(addr));
                if n >= MOST {
                    let (from, error) = failed(&mut events).await;
                    assert!(matches!(*error, TlsError::GaveWay { max_handshakes: MOST, .. }), "{error:?}");
                    assert_eq!(from, stuck[n - MOST].local_addr().unwrap(), "the oldest goes first");
                }
            }
            for gone in &mut stuck[..STUCK - MOST] {
                assert_eq!(rest(gone), b"");
            }
            until(SOON, || descriptors() <= open + STUCK + MOST);
            let with = takes(&mut listener, &client).await;
            assert!(with < before + Duration::from_millis(100), "{before:?} without them, {with:?} with them");
            drop(stuck);
            until(SOON, || descriptors() <= open + 2);
        });
    });
}

#[test]
fn who_is_in_a_handshake_has_a_place_and_leaves_it() {
    run(async {
        let (server, client) = sides();
        let listener = Listener::bind("127.0.0.1:0", config().tls(server).max_connections(3)).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let mut stuck: Vec<TcpStream> = (0..3).map(|_| raw(addr)).collect();
        for _ in 0..5 {
            let mut extra = raw(addr);
            assert_eq!(refused(&mut events).await, (extra.local_addr().unwrap().into(), 3));
            assert_eq!(rest(&mut extra), b"");
            let local = stuck.remove(0).local_addr().unwrap();
            let (from, error) = failed(&mut events).await;
            assert!(from == local && matches!(*error, TlsError::Ended { received: 0, .. }), "{error:?}");
            // Whoever hears of it finds room.
            stuck.push(raw(addr));
        }
        drop(stuck);
        for _ in 0..3 {
            failed(&mut events).await;
        }
        let _peers = join_all([(); 3].map(|()| Connection::dial(addr, client.clone()))).await;
        for _ in 0..3 {
            connected(&mut events).await;
        }
        assert_eq!(listener.stats().connections, 3);
    });
}

#[test]
fn who_gives_way_leaves_no_place_taken() {
    run(async {
        let (server, client) = sides();
        let config = config().tls(server.max_handshakes(1)).max_connections(2);
        let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let mut last = raw(addr);
        for _ in 0..50 {
            let newer = raw(addr);
            let (from, error) = failed(&mut events).await;
            assert_eq!(from, last.local_addr().unwrap());
            assert!(matches!(*error, TlsError::GaveWay { max_handshakes: 1, .. }), "{error:?}");
            assert_eq!(rest(&mut last), b"");
            last = newer;
        }
        let mut connection = within(SOON, Connection::dial(addr, client)).await.unwrap();
        connection.send(b"there is room"[..].into()).await.unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "there is room");
    });
}

/// Some who say nothing, and one who has begun.
fn stuck(addr: SocketAddr) -> Vec<TcpStream> {
    let mut stuck: Vec<TcpStream> = (0..10).map(|_| raw(addr)).collect();
    std::io::Write::write_all(&mut stuck[3], &[0x16, 3, 1, 2, 0, 1]).unwrap();
    stuck
}

/// Long enough that a test which waits for it fails.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_listener_that_is_dropped_closes_them() {
    run(async {
        let (server, _) = sides();
        let listener = Listener::bind("127.0.0.1:0", config().tls(server).dial_timeout(LONG)).await.unwrap();
        let mut events = listener.events();
        let mut stuck = stuck(listener.local_addr().ip().unwrap());
        drop(listener);
        for socket in &mut stuck {
            assert_eq!(rest(socket), b"");
        }
        // The events end with the last task.
        let rest: Vec<_> = within(SOON, events.by_ref().collect()).await;
        assert!(rest.is_empty(), "{rest:?}");
    });
}

/// They have as long as any other peer who is silent while a listener closes.
#[test]
fn a_listener_that_is_closed_waits_for_them_no_longer_than_for_peers() {
    run(async {
        for serves in [false, true] {
            let (server, client) = sides();
            let config = config().tls(server).dial_timeout(LONG).close_timeout(SHORT).drain_timeout(LONG);
            let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            let addr = listener.local_addr().ip().unwrap();
            let mut stuck = stuck(addr);
            let mut events = listener.events();
            // Behind them, so they are taken in.
            let mut good = Connection::dial(addr, client).await.unwrap();
            if serves {
                let serving = listener.serve_in_background(|_, _| Ok(()));
                good.close().await.unwrap();
                within(SOON, serving.close()).await.unwrap();
            } else {
                let closer = listener.closer();
                good.close().await.unwrap();
                within(SOON, closer.close()).await.unwrap();
                let mut listener = listener;
                assert!(within(SOON, listener.next()).await.is_none());
            }
            for socket in &mut stuck {
                assert_eq!(rest(socket), b"");
            }
            let mut ended = 0;
            while let Some(event) = within(SOON, events.next()).await {
                if let Event::HandshakeFailed { error, .. } = event {
                    assert!(matches!(*error, TlsError::Timeout { after: SHORT, .. }), "{error:?}");
                    ended += 1;
                }
            }
            assert_eq!(ended, 10);
        }
    });
}

/// Who is in the middle of a handshake when a listener closes is received as well, as is who waits to be accepted.
#[test]
fn a_handshake_that_goes_on_while_a_listener_closes_comes_to_its_end() {
    run(async {
        let authority = Authority::new("the authority");
        let own = authority.issue("localhost");
        let server = Tls::new().server(own.cert, own.key).unwrap();
        let mut listener = Listener::bind("127.0.0.1:0", config().tls(server)).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let closer = listener.closer();
        let socket = raw(addr);
        // Which is accepted before it closes, or while it does.
        closer.close().await.unwrap();
        let mut late = super::raw::RawTls::client(super::raw::client(&authority.pem(), None, &[]), socket);
        late.shake().unwrap();
        let wire = [late.message(b"in time"), late.close_notify()].concat();
        late.put(&wire);
        late.fin();
        assert_eq!(next(&mut listener).await.unwrap().1, "in time");
        assert!(next(&mut listener).await.is_none());
    });
}
