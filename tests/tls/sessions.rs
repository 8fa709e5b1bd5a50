//! What works: every kind of connection of the crate, over TLS.

use buffstreams::{Backoff, Bytes, Config, Connection, Event, Listener, Manager, Reason, Tls};
use futures::{SinkExt, StreamExt};
use std::time::Duration;

use super::certificates::{Authority, Pair};
use super::net::{SOON, config, within};

/// Two ends that each ask for a certificate of the other.
fn mutual() -> (Config, Config) {
    let authority = Authority::new("the authority");
    let (server, client) = (authority.issue("localhost"), authority.issue("a client"));
    let server = Tls::new().server(server.cert, server.key).unwrap().client_auth(authority.pem()).unwrap();
    let client = Tls::new().roots(authority.pem()).unwrap().identity(client.cert, client.key).unwrap();
    (config().tls(server), config().tls(client.server_name("localhost").unwrap()))
}

#[async_std::test]
async fn messages_and_replies_pass_and_both_directions_end_cleanly() {
    let (server, client) = mutual();
    let listener = Listener::bind("127.0.0.1:0", server).await.unwrap();
    let (addr, mut events, closer) = (listener.local_addr().ip().unwrap(), listener.events(), listener.closer());
    let (incoming, outgoing) = listener.split();
    let echo = async_std::task::spawn(incoming.map(Ok).forward(outgoing));

    let mut connection = Connection::dial(addr, client).await.unwrap();
    let messages: Vec<Bytes> =
        [0, 1, 110, 4095, 4096, 16_383, 16_384, 16_385, 65_536, 1 << 20].map(|len| vec![len as u8; len].into()).into();
    for message in &messages {
        connection.send(message.clone()).await.unwrap();
        assert_eq!(within(SOON, connection.next()).await.unwrap().unwrap(), message);
    }
    connection.close().await.unwrap();
    assert!(within(SOON, connection.next()).await.is_none(), "the other end closes as well, and says so");
    assert_eq!(connection.identity().unwrap().certificates().len(), 1, "that of the listener");
    match within(SOON, events.next()).await {
        Some(Event::Connected { peer, identity, .. }) => {
            assert_eq!(identity.unwrap().certificates().len(), 1, "that of {peer}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(within(SOON, events.next()).await, Some(Event::Disconnected { reason: Reason::Closed, .. })));
    closer.close().await.unwrap();
    within(SOON, echo).await.unwrap();
}

#[async_std::test]
async fn a_listener_that_hands_connections_out_does_so_over_tls() {
    let (server, client) = mutual();
    let listener = Listener::bind("127.0.0.1:0", server).await.unwrap();
    let addr = listener.local_addr().ip().unwrap();
    let mut connections = listener.connections();
    let mut dialed = Connection::dial(addr, client).await.unwrap();
    let mut accepted = within(SOON, connections.next()).await.unwrap();
    for round in 0..100 {
        let message = Bytes::from(vec![round; 1000]);
        dialed.feed(message.clone()).await.unwrap();
        accepted.feed(message.clone()).await.unwrap();
        dialed.flush().await.unwrap();
        accepted.flush().await.unwrap();
        assert_eq!(within(SOON, accepted.next()).await.unwrap().unwrap(), message);
        assert_eq!(within(SOON, dialed.next()).await.unwrap().unwrap(), message);
    }
    accepted.close().await.unwrap();
    assert!(within(SOON, dialed.next()).await.is_none());
    dialed.close().await.unwrap();
    assert!(within(SOON, accepted.next()).await.is_none());
}

#[async_std::test]
async fn a_manager_opens_its_sessions_again() {
    let (server, client) = mutual();
    let client = client.reconnect(Backoff::exponential(Duration::from_millis(5), Duration::from_millis(50)));
    let mut listener = Listener::bind("127.0.0.1:0", server.clone()).await.unwrap();
    let addr = listener.local_addr().ip().unwrap();
    let manager = Manager::new(client);
    manager.dial(addr).await.unwrap();
    for round in 0..5u8 {
        manager.write(addr, vec![round; 100].into()).await.unwrap();
        assert_eq!(within(SOON, listener.next()).await.unwrap().1, vec![round; 100]);
        drop(listener);
        listener = Listener::bind(addr, server.clone()).await.unwrap();
    }
    manager.shutdown(SOON).await;
}

#[async_std::test]
async fn certificates_are_replaced_while_messages_pass() {
    let authority = Authority::new("the authority");
    let new = || authority.issue("localhost");
    let of = |Pair { cert, key }: Pair| Tls::new().server(cert, key).unwrap();
    let server = of(new());
    let client = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
    let mut listener = Listener::bind("127.0.0.1:0", config().tls(server.clone())).await.unwrap();
    let addr = listener.local_addr().ip().unwrap();
    for round in 0..50u32 {
        server.replace(&of(new())).unwrap();
        let mut connection = Connection::dial(addr, config().tls(client.clone())).await.unwrap();
        connection.send(round.to_be_bytes().to_vec().into()).await.unwrap();
        assert_eq!(within(SOON, listener.next()).await.unwrap().1, &round.to_be_bytes()[..]);
    }
}
