//! Callbacks, for programs in the older style: in the background, and until the listener ends.
#![allow(clippy::print_stdout)] // To print is what it is for.

use buffstreams::{BoxError, Bytes, Config, Connection, Endpoint, Error, Event, Listener, Peer};
use futures::{SinkExt, StreamExt, try_join};

/// The message is borrowed from the buffer that it was read into. An error is reported, and the peer goes on.
fn print(peer: Peer, message: &[u8]) -> Result<(), BoxError> {
    let text = std::str::from_utf8(message)?;
    println!("peer {}: {text}", peer.id());
    Ok(())
}

async fn send(listener: Endpoint) -> Result<(), Error> {
    let mut connection = Connection::dial(listener, Config::new()).await?;
    connection.feed(Bytes::from_static(b"one")).await?;
    connection.feed(Bytes::from_static(b"\xff is not text")).await?;
    connection.feed(Bytes::from_static(b"three")).await?;
    connection.close().await
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    // In the background: the program goes on, and the listener lives as long as the handle.
    let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    let (address, events) = (listener.local_addr(), listener.events());
    let serving = listener.serve_in_background(print);
    send(address).await?;
    serving.close().await?; // The callback has seen everything when this returns.

    // The events end with their listener, so they can be read to the end here.
    let failures = events.filter_map(|event| async move {
        match event {
            Event::CallbackFailed { peer, error, .. } => Some(format!("peer {}: failed: {error}", peer.id())),
            _ => None,
        }
    });
    failures.for_each(|failure| async move { println!("{failure}") }).await;

    // Until the listener ends, which `closer` brings about from elsewhere.
    let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    let closer = listener.closer();
    let sender = async {
        send(closer.local_addr()).await?;
        closer.close().await
    };
    try_join!(listener.serve(print), sender)?;
    Ok(())
}
