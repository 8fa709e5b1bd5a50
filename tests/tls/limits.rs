//! What an end does that takes everything and not the end of a session, and what is told when one is quicker.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use buffstreams::{
    Bytes, Config, ConfigError, Connection, Error, Event, Limit, Listener, Manager, Reader, Reason, Sim, Tls,
    WireFormat,
};
use futures::{FutureExt, SinkExt, StreamExt};

use super::certificates::Authority;
use super::net;
use super::raw::{PROTOCOL, RawTls, reset, server};

/// What the simulator holds of a direction: one message of 26 bytes less fills it, and there is no room for the end.
const CAPACITY: usize = 4096;
const SECOND: Duration = Duration::from_secs(1);
const ANY: &str = "10.0.0.1:5031";

fn sides() -> (Tls, Tls) {
    let authority = Authority::new("the authority");
    let own = authority.issue("localhost");
    let client = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
    (Tls::new().server(own.cert, own.key).unwrap(), client)
}

fn config(sim: &Sim, tls: &Tls) -> Config {
    Config::new().runtime(sim.clone()).wire_format(WireFormat::u32_be()).max_message_size(1 << 20).tls(tls.clone())
}

fn filling() -> Bytes {
    vec![7; CAPACITY - 26].into()
}

#[test]
fn the_close_of_a_connection_has_its_limit_for_the_end_as_well() {
    Sim::new().capacity(CAPACITY).run(|sim| async move {
        let (server, client) = sides();
        let listener = Listener::bind(ANY, config(&sim, &server)).await.unwrap();
        let mut connections = listener.connections();
        let mut connection = Connection::dial(ANY, config(&sim, &client)).await.unwrap();
        let _held = connections.next().await.unwrap();
        connection.send(filling()).await.unwrap();
        let begun = sim.now();
        let closed = sim.timeout(100 * SECOND, connection.close()).await.expect("it ends");
        assert!(matches!(closed, Err(Error::Timeout { what: Limit::CloseTimeout, .. })), "{closed:?}");
        let took = sim.now() - begun;
        assert!(took >= 5 * SECOND && took < 10 * SECOND, "{took:?}");
    });
}

#[test]
fn a_peer_that_takes_all_replies_and_not_the_end_has_its_limit() {
    for closes in [false, true] {
        Sim::new().capacity(CAPACITY).run(|sim| async move {
            let (server, client) = sides();
            let listener = Listener::bind(ANY, config(&sim, &server)).await.unwrap();
            let (mut events, closer) = (listener.events(), listener.closer());
            let (mut incoming, mut outgoing) = listener.split();
            let mut connection = Connection::dial(ANY, config(&sim, &client)).await.unwrap();
            connection.send(b"ask"[..].into()).await.unwrap();
            let (peer, _) = incoming.next().await.unwrap();
            outgoing.send((peer, filling())).await.unwrap();
            connection.close().await.unwrap();
            let gone = async move {
                loop {
                    if let Event::Disconnected { reason, .. } = events.next().await.expect("it is told") {
                        return reason;
                    }
                }
            };
            // A close sees to its own limit; without one, that of what is written counts.
            let limit = if closes { Limit::CloseTimeout } else { Limit::WriteTimeout };
            let ending = async {
                if closes {
                    let _ = closer.close().await;
                }
                incoming.next().now_or_never()
            };
            let reading = sim.spawn(gone);
            let _ = sim.timeout(100 * SECOND, ending).await.expect("it ends");
            let reason = sim.timeout(100 * SECOND, reading).await.expect("it ends");
            assert!(matches!(reason, Reason::Timeout { what, .. } if what == limit), "{reason:?}");
        });
    }
}

/// Reads what comes until nothing does for a while, or the end.
fn pull(raw: &mut RawTls, into: &mut Vec<u8>) {
    let mut buf = vec![0; 1 << 16];
    loop {
        let ended = matches!(raw.tls.read_tls(&mut raw.tcp), Ok(0) | Err(_));
        if raw.tls.process_new_packets().is_err() {
            return;
        }
        while let Ok(n @ 1..) = raw.tls.reader().read(&mut buf) {
            into.extend_from_slice(&buf[..n]);
        }
        if ended {
            return;
        }
    }
}

/// A write that was given up in the middle leaves a record that is sealed and not sent. The session breaks for the reader then,
/// and what the reader has to say of it must not go out behind that record: it would come whole, and be sent again.
#[test]
fn what_is_left_of_a_record_does_not_come_twice() {
    net::run(async {
        let authority = Authority::new("the authority");
        let own = authority.issue("localhost");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (read, may_read) = std::sync::mpsc::channel();
        let (told, tell) = std::sync::mpsc::channel();
        let serving = std::thread::spawn(move || {
            let quiet = Some(Duration::from_millis(300));
            let mut received = [Vec::new(), Vec::new()];
            let (tcp, _) = listener.accept().unwrap();
            let mut raw = RawTls::server(server(&own, None, &[PROTOCOL]), tcp);
            raw.shake().unwrap();
            may_read.recv().unwrap();
            raw.tcp.set_read_timeout(quiet).unwrap();
            pull(&mut raw, &mut received[0]);
            // No close_notify.
            raw.fin();
            told.send(()).unwrap();
            pull(&mut raw, &mut received[0]);
            let (tcp, _) = listener.accept().unwrap();
            let mut raw = RawTls::server(server(&own, None, &[PROTOCOL]), tcp);
            raw.shake().unwrap();
            raw.tcp.set_read_timeout(quiet).unwrap();
            pull(&mut raw, &mut received[1]);
            received
        });
        let tls = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
        let config = net::config().tls(tls);
        let mut connection = Connection::dial(addr, config.clone()).await.unwrap();
        let mut sent = 0;
        loop {
            let mut message = net::numbered(0, sent).to_vec();
            message.resize(60_000, 7);
            sent += 1;
            if connection.send(message.into()).now_or_never().is_none() {
                break;
            }
        }
        read.send(()).unwrap();
        tell.recv().unwrap();
        let broken = connection.next().await;
        assert!(matches!(broken, Some(Err(Error::Truncated { got: 0, .. }))), "{broken:?}");
        while connection.flush().await.is_err() {}
        let mut numbers = Vec::new();
        for wire in serving.join().unwrap() {
            let mut whole = Reader::new(&wire[..], &config).unwrap();
            while let Some(Ok(message)) = whole.next().await {
                numbers.push(net::number(&message).1);
            }
        }
        assert_eq!(numbers, (0..sent).collect::<Vec<_>>(), "each once, in order");
    });
}

#[test]
fn a_close_that_finds_the_other_end_gone_is_one_as_without_tls() {
    net::run(async {
        for over_tls in [false, true] {
            let authority = Authority::new("the authority");
            let own = authority.issue("localhost");
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let (told, tell) = std::sync::mpsc::channel();
            let (gone, go) = std::sync::mpsc::channel();
            let serving = std::thread::spawn(move || {
                let (tcp, _) = listener.accept().unwrap();
                let mut raw = RawTls::server(server(&own, None, &[PROTOCOL]), tcp);
                if over_tls {
                    raw.shake().unwrap();
                }
                go.recv().unwrap();
                reset(raw.tcp);
                told.send(()).unwrap();
            });
            let tls = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
            let config = if over_tls { net::config().tls(tls) } else { net::config() };
            let mut connection = Connection::dial(addr, config).await.unwrap();
            gone.send(()).unwrap();
            tell.recv().unwrap();
            serving.join().unwrap();
            connection.close().await.unwrap();
        }
    });
}

#[test]
fn a_side_that_is_missing_is_told_before_anything_is_done() {
    net::run(async {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = Listener::from_std(socket, net::config().tls(Tls::new()));
        assert!(matches!(taken, Err(Error::Config(ConfigError::NoTlsServer))), "{taken:?}");
        // Nobody listens there.
        let dialed = Connection::dial("127.0.0.1:1", net::config().tls(Tls::new())).await;
        assert!(matches!(dialed, Err(Error::Config(ConfigError::NoTlsClient))), "{dialed:?}");
        let opened = Manager::new(net::config().tls(Tls::new())).open("127.0.0.1:1");
        assert!(matches!(opened, Err(Error::Config(ConfigError::NoTlsClient))), "{opened:?}");
    });
}
