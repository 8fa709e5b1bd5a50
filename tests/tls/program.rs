//! Code of the program inside TLS, by `Tls::from_rustls`: it may panic, and come back here when it is dropped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use buffstreams::{Event, Listener, PanicSource, Tls};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;

use super::certificates::Authority;
use super::net::{SOON, config, event, next, raw, rest, run};
use super::raw::{RawTls, certified, client};

fn server(resolver: Arc<dyn ResolvesServerCert>) -> Tls {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(&[&TLS13]).unwrap().with_no_client_auth();
    Tls::from_rustls(Some(Arc::new(config.with_cert_resolver(resolver))), None)
}

/// Panics so many times, and then works.
#[derive(Debug)]
struct Panics(AtomicUsize, Arc<dyn ResolvesServerCert>);

impl ResolvesServerCert for Panics {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "no certificate today");
        self.1.resolve(hello)
    }
}

#[test]
fn a_panic_in_a_handshake_is_told_and_ends_only_that() {
    run(async {
        let authority = Authority::new("the authority");
        let tls = server(Arc::new(Panics(3.into(), certified(&authority.issue("localhost")))));
        let mut listener = Listener::bind("127.0.0.1:0", config().tls(tls).max_connections(1)).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        for _ in 0..3 {
            let mut hostile = RawTls::client(client(&authority.pem(), None, &[]), raw(addr));
            let hello = hostile.records();
            hostile.put(&hello);
            let panicked = event(&mut events, |event| match event {
                Event::Panicked { peer: None, source: PanicSource::Task, message, .. } => Some(message),
                Event::Refused { .. } => panic!("there is room"),
                _ => None,
            });
            assert!(panicked.await.contains("no certificate today"));
            assert_eq!(rest(&mut hostile.tcp), b"");
        }
        let mut good = RawTls::client(client(&authority.pem(), None, &[]), raw(addr));
        good.shake().unwrap();
        let message = good.message(b"today there is one");
        good.put(&message);
        assert_eq!(next(&mut listener).await.unwrap().1, "today there is one");
    });
}

/// Asks the settings that it is part of when it is dropped.
#[derive(Debug)]
struct Asks(mpsc::Sender<()>, mpsc::Receiver<Tls>);

// A receiver is not `Sync`, and a resolver has to be.
#[derive(Debug)]
struct Shared(#[allow(dead_code)] std::sync::Mutex<Asks>); // Held, to be dropped with it.

impl ResolvesServerCert for Shared {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

impl Drop for Asks {
    fn drop(&mut self) {
        if let Ok(tls) = self.1.try_recv() {
            assert!(format!("{tls:?}").contains("server: true"));
            self.0.send(()).unwrap();
        }
    }
}

#[test]
fn what_is_replaced_may_come_back_when_it_is_dropped() {
    let authority = Authority::new("the authority");
    let own = authority.issue("localhost");
    let (dropped, was_dropped) = mpsc::channel();
    let (ask, asks) = mpsc::channel();
    let tls = server(Arc::new(Shared(std::sync::Mutex::new(Asks(dropped, asks)))));
    // It asks those which it is a part of.
    ask.send(tls.clone()).unwrap();
    // In a thread of its own, which it may keep for ever.
    thread::spawn(move || tls.replace(&Tls::new().server(own.cert, own.key).unwrap()).unwrap());
    was_dropped.recv_timeout(SOON).expect("it is dropped, and nothing is locked");
}
