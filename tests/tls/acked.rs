//! Acknowledged sessions over TLS: a session belongs to the names in the certificate that it was begun with.

use buffstreams::{Bytes, Listener, Session, Tls};
use futures::{FutureExt, SinkExt, StreamExt};
use std::io::{Read, Write};
use std::net::SocketAddr;

use buffstreams::Connection;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::certificates::{Authority, Pair};
use super::net::{config, next, raw};
use super::raw::{PROTOCOL, client};

type Client = StreamOwned<ClientConnection, std::net::TcpStream>;

/// Greets as whoever has this certificate. What the answer says.
fn greet(addr: SocketAddr, authority: &Authority, own: &Pair, resume: u8, epoch: u8) -> (Client, u8) {
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(client(&authority.pem(), Some(own), &[PROTOCOL]), name).unwrap();
    let mut stream = StreamOwned::new(session, raw(addr));
    let mut hello = [&b"\xf5buffstreams\x01"[..], &[resume, 0, 0], &[0xa5; 16], &[0, 0, 0, epoch]].concat();
    for field in [1 << 20, 2 << 20, 0, 120_000, 0] {
        hello.extend(u32::to_be_bytes(field));
    }
    hello.extend([0; 32]);
    stream.write_all(&hello).unwrap();
    let mut welcome = [0; 88];
    stream.read_exact(&mut welcome).unwrap();
    (stream, welcome[13])
}

#[async_std::test]
async fn a_session_is_resumed_with_a_new_certificate_of_the_same_names_and_no_other() {
    let (authority, stranger) = (Authority::new("the authority"), Authority::new("another authority"));
    let server = authority.issue("localhost");
    let roots = [authority.pem(), stranger.pem()].concat();
    let tls = Tls::new().server(server.cert, server.key).unwrap().client_auth(roots).unwrap();
    let config = config().tls(tls).session(Session::new().window_bytes(2 << 20));
    let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
    assert!(listener.next().now_or_never().is_none());
    let addr = listener.local_addr().ip().unwrap();
    const NEW: u8 = 0;
    const RESUMED: u8 = 1;
    const UNKNOWN: u8 = 2;

    let (first, status) = greet(addr, &authority, &authority.issue("one"), 0, 1);
    assert_eq!(status, NEW);
    drop(first);
    for (own, expected) in [
        (authority.issue("two"), UNKNOWN),
        (stranger.issue("one"), UNKNOWN),
        // Renewed: the names are the same, and the key is not.
        (authority.issue("one"), RESUMED),
        (authority.issue("two"), UNKNOWN),
    ] {
        let epoch = if expected == RESUMED { 2 } else { 3 };
        let (_, status) = greet(addr, &authority, &own, 1, epoch);
        assert_eq!(status, expected, "{}", own.cert);
    }
    // The same id of somebody else is another session.
    let (mut other, status) = greet(addr, &authority, &authority.issue("two"), 0, 1);
    assert_eq!(status, NEW);
    other.write_all(b"\0\0\0\x04mine").unwrap();
    assert_eq!(next(&mut listener).await.unwrap().1, "mine");
}

#[async_std::test]
async fn a_session_is_acknowledged_over_tls() {
    let authority = Authority::new("the authority");
    let server = authority.issue("localhost");
    let server = Tls::new().server(server.cert, server.key).unwrap();
    let client = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
    let session = || config().session(Session::new().window_bytes(2 << 20));
    let listener = Listener::bind("127.0.0.1:0", session().tls(server)).await.unwrap();
    let addr = listener.local_addr().ip().unwrap();
    let (incoming, outgoing) = listener.split();
    async_std::task::spawn(incoming.map(Ok).forward(outgoing));
    let mut connection = Connection::dial(addr, session().tls(client)).await.unwrap();
    for len in [0, 1, 110, 16_384, 1 << 20] {
        let message = Bytes::from(vec![7; len]);
        connection.send(message.clone()).await.unwrap();
        assert_eq!(next(&mut connection).await.unwrap().unwrap(), message);
    }
    connection.close().await.unwrap();
    assert!(next(&mut connection).await.is_none());
}
