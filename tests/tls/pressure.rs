//! A receiver that does not read, over TLS and real sockets: its sender waits, in time gives up, and gets back exactly what the
//! other end cannot have read.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use buffstreams::{Bytes, Connection, Error, Limit, Reader, Tls};
use futures::{FutureExt, SinkExt, StreamExt};

use super::certificates::Authority;
use super::net::{SOON, config, number, numbered, run, within};
use super::raw::{PROTOCOL, RawTls, server};

/// A message of this size, with its number in it.
fn message(number: u64, len: usize) -> Bytes {
    let mut message = numbered(0, number).to_vec();
    message.resize(len.max(16), 7);
    message.into()
}

/// What came over the wire, decrypted, as far as it goes.
fn decrypted(mut raw: RawTls) -> Vec<u8> {
    let mut received = Vec::new();
    let mut buf = vec![0; 1 << 16];
    loop {
        // A reset, or an end without a word, is no matter here.
        let ended = matches!(raw.tls.read_tls(&mut raw.tcp), Ok(0) | Err(_));
        if raw.tls.process_new_packets().is_err() {
            return received;
        }
        while let Ok(n @ 1..) = raw.tls.reader().read(&mut buf) {
            received.extend_from_slice(&buf[..n]);
        }
        if ended {
            return received;
        }
    }
}

/// Sends until the receiver, who does not read, is given up. Whatever it reads then, to the end, and what comes back, is all.
fn stalled(len: usize) {
    run(async {
        let authority = Authority::new("the authority");
        let own = authority.issue("localhost");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (read, may_read) = std::sync::mpsc::channel();
        let receiver = std::thread::spawn(move || {
            let (tcp, _) = listener.accept().unwrap();
            tcp.set_read_timeout(Some(SOON)).unwrap();
            let mut raw = RawTls::server(server(&own, None, &[PROTOCOL]), tcp);
            raw.shake().unwrap();
            may_read.recv_timeout(SOON).unwrap();
            decrypted(raw)
        });
        let tls = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
        let limit = Duration::from_millis(300);
        let config = config().tls(tls).write_timeout(limit);
        let mut connection = Connection::dial(addr, config.clone()).await.unwrap();
        let mut accepted = 0;
        let mut waited = false;
        let error = loop {
            let mut feeding = connection.feed(message(accepted, len));
            let fed = match (&mut feeding).now_or_never() {
                Some(fed) => fed,
                None => {
                    waited = true;
                    within(SOON, feeding).await
                }
            };
            match fed {
                Ok(()) => accepted += 1,
                Err(error) => break error,
            }
        };
        assert!(waited, "the sink was pending");
        assert!(accepted < 1 << 20, "no more is taken than there is room for");
        let Error::NotSent { source, message: Some(last), .. } = error else { panic!("{error:?}") };
        assert!(
            matches!(*source, Error::Timeout { what: Limit::WriteTimeout, after, .. } if after == limit),
            "{source:?}"
        );
        assert_eq!(number(&last.into_inner()), (0, accepted), "the one there was no room for");
        let unsent: Vec<u64> = connection.take_unsent().iter().map(|message| number(message).1).collect();
        drop(connection);

        read.send(()).unwrap();
        let received = receiver.join().unwrap();
        let received: Vec<_> = Reader::new(&received[..], &config).unwrap().collect().await;
        let received: Vec<u64> =
            received.iter().filter_map(|message| message.as_ref().ok()).map(|message| number(message).1).collect();
        assert!(!received.is_empty() && !unsent.is_empty());
        let all: Vec<u64> = received.iter().chain(&unsent).copied().collect();
        assert!(
            all.iter().copied().eq(0..accepted),
            "{} received, {} unsent of {accepted}, and {:?} meets {:?}",
            received.len(),
            unsent.len(),
            received.last(),
            unsent.first()
        );
    });
}

#[test]
fn what_a_receiver_that_stops_has_not_read_comes_back_of_small_messages() {
    stalled(110);
}

#[test]
fn what_a_receiver_that_stops_has_not_read_comes_back_of_messages_of_a_record() {
    stalled(16_380);
}

#[test]
fn what_a_receiver_that_stops_has_not_read_comes_back_of_large_messages() {
    stalled(300_000);
}
