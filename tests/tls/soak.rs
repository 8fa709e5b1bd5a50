//! Certificates are replaced, and connections broken, under load.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use buffstreams::{Backoff, Config, Listener, Manager, Session, Tls};
use futures::StreamExt;
use futures::future::join_all;

use super::certificates::Authority;
use super::net::{SOON, config, number, numbered, run};

/// What one producer sends, to one address after the other.
const PRODUCERS: u64 = 4;
const FOR: Duration = Duration::from_secs(3);

/// A listener disconnects who is silent for a moment, and they are dialed anew. What is on its way in that moment may be lost with
/// the socket, as it is without TLS; nothing else is, and nothing comes twice.
#[test]
fn little_is_lost_while_certificates_are_replaced_and_connections_come_and_go() {
    soak(config());
}

/// A session goes on over all of them, with whatever certificate of the same name, and although each connection is cut when it has
/// carried so much.
#[test]
fn nothing_is_lost_in_a_session_while_certificates_are_replaced_and_connections_come_and_go() {
    soak(config().session(Session::new().window_bytes(2 << 20)));
}

/// Between the two ends: cuts each connection behind so many bytes of the one that dials.
fn cutting(to: SocketAddr) -> SocketAddr {
    const CARRIES: u64 = 2_500;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let carry = |from: &TcpStream, into: &TcpStream, most: u64| {
        let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
        thread::spawn(move || {
            let _ = io::copy(&mut (&from).take(most), &mut &into);
            let _ = (from.shutdown(Shutdown::Both), into.shutdown(Shutdown::Both));
        });
    };
    thread::spawn(move || {
        for near in socket.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(to)) else { return };
            carry(&near, &far, CARRIES);
            carry(&far, &near, u64::MAX);
        }
    });
    addr
}

fn soak(config: Config) {
    let is_session = config.get_session().is_some();
    run(async move {
        let authority = Arc::new(Authority::new("the authority"));
        let (issue, roots) = (authority.clone(), authority.pem());
        let server_of = move || {
            let (own, issued) = (issue.issue("localhost"), issue.pem());
            Tls::new().server(own.cert, own.key).unwrap().client_auth(issued).unwrap()
        };
        let issue = authority.clone();
        let client_of = move || {
            let own = issue.issue("a-client");
            let tls = Tls::new().roots(&roots).unwrap().identity(own.cert, own.key).unwrap();
            tls.server_name("localhost").unwrap()
        };
        let (server, client) = (server_of(), client_of());
        let received = Arc::<Mutex<Vec<(u64, u64)>>>::default();
        let mut listeners = Vec::new();
        for _ in 0..3 {
            let config = config.clone().tls(server.clone()).idle_timeout(Duration::from_millis(40));
            let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            let addr = listener.local_addr().ip().unwrap();
            let received = received.clone();
            let serving = listener.serve_in_background(move |_, message| {
                received.lock().unwrap().push(number(message));
                Ok(())
            });
            listeners.push((if is_session { cutting(addr) } else { addr }, serving));
        }
        let reconnect = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(20));
        let manager = Manager::new(config.tls(client.clone()).reconnect(reconnect));
        let mut letters = manager.dead_letters();
        for (addr, _) in &listeners {
            manager.dial(*addr).await.unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let replacing = thread::spawn({
            let stop = stop.clone();
            move || {
                let mut replaced = 0;
                while !stop.load(Ordering::Relaxed) {
                    server.replace(&server_of()).unwrap();
                    client.replace(&client_of()).unwrap();
                    replaced += 1;
                }
                replaced
            }
        });
        let begun = Instant::now();
        let producing = (0..PRODUCERS).map(|producer| {
            let (manager, addrs) = (manager.clone(), listeners.iter().map(|(addr, _)| *addr).collect::<Vec<_>>());
            async_std::task::spawn(async move {
                let mut sent = 0;
                while begun.elapsed() < FOR {
                    // In bursts, with rests of all lengths between them, in which connections end.
                    let addr = addrs[(sent / 50 % 3) as usize];
                    manager.write(addr, numbered(producer, sent)).await.unwrap();
                    sent += 1;
                    if sent % 50 == 0 {
                        let rest = Duration::from_millis(sent * 7 % 90);
                        let _ = async_std::future::timeout(rest, std::future::pending::<()>()).await;
                    }
                }
                sent
            })
        });
        let sent = join_all(producing.collect::<Vec<_>>()).await;
        stop.store(true, Ordering::Relaxed);
        let replaced = replacing.join().unwrap();
        manager.shutdown(SOON).await;
        let total = manager.stats().total;
        assert_eq!(total.accepted, sent.iter().sum::<u64>());
        assert_eq!(total.accepted, total.written + total.dead_lettered + total.held, "{total:?}");
        assert_eq!((total.held, total.dead_lettered), (0, 0), "{total:?}");
        // In a session each write waits for the other program, so there are fewer.
        let reconnects = if is_session { 3 } else { 10 };
        assert!(replaced > 20 && total.reconnects > reconnects, "{replaced} certificates, {total:?}");
        let all: BTreeSet<_> =
            (0..).zip(&sent).flat_map(|(producer, sent)| (0..*sent).map(move |n| (producer, n))).collect();
        for (_, serving) in listeners {
            serving.close().await.unwrap();
        }
        let received = std::mem::take(&mut *received.lock().unwrap());
        let came: BTreeSet<_> = received.iter().copied().collect();
        assert_eq!(came.len(), received.len(), "nothing comes twice");
        let lost: Vec<_> = all.difference(&came).collect();
        let may_be_lost = if is_session { 0 } else { total.reconnects / 10 };
        assert!(lost.len() as u64 <= may_be_lost, "{} of {} were lost: {lost:?}", lost.len(), all.len());
        drop(manager);
        assert!(letters.next().await.is_none());
    });
}
