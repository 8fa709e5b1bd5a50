//! TLS that is not ours, by futures-rustls: a `Reader` and a `Writer` inside it, with one of our ends at the other side.

use async_std::net::{TcpListener, TcpStream};
use buffstreams::{Bytes, Connection, Error, Listener, Manager, ManagerEvent, Reader, Tls, Writer};
use futures::io::AsyncReadExt;
use futures::{SinkExt, StreamExt};
use futures_rustls::server::TlsStream;
use futures_rustls::{TlsAcceptor, TlsConnector};

use super::certificates::{Authority, Pair};
use super::net::{SOON, config, next, run, within};
use super::raw::{PROTOCOL, client, name, server};

fn messages() -> Vec<Bytes> {
    [0, 1, 110, 4096, 16_383, 16_384, 16_385, 65_536, 1 << 20].map(|len| vec![len as u8; len].into()).into()
}

/// The other end of what one of our connections dials.
async fn accept(socket: TcpListener, own: &Pair) -> TlsStream<TcpStream> {
    let (socket, _) = socket.accept().await.unwrap();
    TlsAcceptor::from(server(own, None, &[PROTOCOL])).accept(socket).await.unwrap()
}

#[test]
fn a_foreign_client_writes_to_our_listener_and_reads_its_replies() {
    run(async {
        let authority = Authority::new("the authority");
        let own = authority.issue("localhost");
        let tls = Tls::new().server(own.cert, own.key).unwrap();
        let listener = Listener::bind("127.0.0.1:0", config().tls(tls)).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let (incoming, outgoing) = listener.split();
        let echo = async_std::task::spawn(incoming.map(Ok).forward(outgoing));

        let connector = TlsConnector::from(client(&authority.pem(), None, &[PROTOCOL]));
        let socket = TcpStream::connect(addr).await.unwrap();
        let (reading, writing) = connector.connect(name(), socket).await.unwrap().split();
        let mut reader = Reader::new(reading, &config()).unwrap();
        let mut writer = Writer::new(writing, &config()).unwrap();
        for message in messages() {
            writer.send(message.clone()).await.unwrap();
            assert_eq!(next(&mut reader).await.unwrap().unwrap(), message);
        }
        // It ends its session with `close_notify`, and so does ours.
        writer.close().await.unwrap();
        assert!(next(&mut reader).await.is_none());
        drop(echo);
    });
}

#[test]
fn our_connection_writes_to_a_foreign_server_and_reads_its_replies() {
    run(async {
        let authority = Authority::new("the authority");
        let own = authority.issue("localhost");
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let serving = async_std::task::spawn(async move {
            let (reading, writing) = accept(socket, &own).await.split();
            let reader = Reader::new(reading, &config()).unwrap();
            let mut writer = Writer::new(writing, &config()).unwrap();
            reader.forward(&mut writer).await?;
            writer.close().await
        });
        let tls = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
        let mut connection = Connection::dial(addr, config().tls(tls)).await.unwrap();
        for message in messages() {
            connection.send(message.clone()).await.unwrap();
            assert_eq!(next(&mut connection).await.unwrap().unwrap(), message);
        }
        connection.close().await.unwrap();
        assert!(next(&mut connection).await.is_none());
        within(SOON, serving).await.unwrap();
    });
}

/// The end of a foreign stream without `close_notify` is `UnexpectedEof` there, and `Truncated` here, between two frames as well.
#[test]
fn a_foreign_session_that_is_cut_is_truncated() {
    run(async {
        let authority = Authority::new("the authority");
        let own = authority.issue("localhost");
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let serving = async_std::task::spawn(async move {
            let mut reader = Reader::new(accept(socket, &own).await, &config()).unwrap();
            let first = reader.next().await;
            (first, reader.next().await)
        });
        let socket = TcpStream::connect(addr).await.unwrap();
        let connector = TlsConnector::from(client(&authority.pem(), None, &[PROTOCOL]));
        let mut writer = Writer::new(connector.connect(name(), socket.clone()).await.unwrap(), &config()).unwrap();
        writer.send(b"whole"[..].into()).await.unwrap();
        socket.shutdown(std::net::Shutdown::Both).unwrap();
        let (first, end) = within(SOON, serving).await;
        assert_eq!(first.unwrap().unwrap(), "whole");
        assert!(matches!(end, Some(Err(Error::Truncated { got: 0, want: 4, .. }))), "{end:?}");
    });
}

/// A manager has no stream of replies, and tells it all the same.
#[test]
fn a_foreign_session_of_a_manager_that_is_cut_is_truncated() {
    run(async {
        let authority = Authority::new("the authority");
        let own = authority.issue("localhost");
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let cutting = async_std::task::spawn(async move {
            let tls = accept(socket, &own).await;
            tls.get_ref().0.shutdown(std::net::Shutdown::Write).unwrap();
            tls
        });
        let tls = Tls::new().roots(authority.pem()).unwrap().server_name("localhost").unwrap();
        let manager = Manager::new(config().tls(tls));
        let mut events = manager.events();
        manager.dial(addr).await.unwrap();
        let _tls = within(SOON, cutting).await;
        let broken = loop {
            match next(&mut events).await.unwrap() {
                ManagerEvent::Broken { error, .. } => break error,
                _ => continue,
            }
        };
        assert!(matches!(broken.as_deref(), Some(Error::Truncated { got: 0, want: 4, .. })), "{broken:?}");
    });
}
