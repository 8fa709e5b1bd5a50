//! Certificates are replaced, and connections broken, under load.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use buffstreams::{Backoff, Listener, Manager, Tls};
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
fn nothing_is_lost_while_certificates_are_replaced_and_connections_come_and_go() {
    run(async {
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
            let config = config().tls(server.clone()).idle_timeout(Duration::from_millis(40));
            let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            let addr = listener.local_addr().ip().unwrap();
            let received = received.clone();
            let serving = listener.serve_in_background(move |_, message| {
                received.lock().unwrap().push(number(message));
                Ok(())
            });
            listeners.push((addr, serving));
        }
        let reconnect = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(20));
        let manager = Manager::new(config().tls(client.clone()).reconnect(reconnect));
        let mut letters = manager.dead_letters();
        for (addr, _) in &listeners {
            manager.dial(*addr).await.unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let replacing = std::thread::spawn({
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
        assert!(replaced > 20 && total.reconnects > 10, "{replaced} certificates, {total:?}");
        let all: BTreeSet<_> =
            (0..).zip(&sent).flat_map(|(producer, sent)| (0..*sent).map(move |n| (producer, n))).collect();
        for (_, serving) in listeners {
            serving.close().await.unwrap();
        }
        let received = std::mem::take(&mut *received.lock().unwrap());
        let came: BTreeSet<_> = received.iter().copied().collect();
        assert_eq!(came.len(), received.len(), "nothing comes twice");
        let lost: Vec<_> = all.difference(&came).collect();
        assert!(lost.len() as u64 <= total.reconnects / 10, "{} of {} were lost: {lost:?}", lost.len(), all.len());
        drop(manager);
        assert!(letters.next().await.is_none());
    });
}
