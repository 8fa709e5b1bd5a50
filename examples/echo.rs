//! An echo server in one line, and a client that sends, ends its sending direction, and reads the replies to the end.
#![allow(clippy::print_stdout)] // To print is what it is for.

use async_std::task;
use buffstreams::{BoxError, Bytes, Config, Connection, Listener};
use futures::{SinkExt, StreamExt, TryStreamExt};

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    let (address, closer) = (listener.local_addr(), listener.closer());
    let (incoming, outgoing) = listener.split();
    // Each message goes back to the peer that it came from: the peer is a part of the item.
    let server = task::spawn(incoming.map(Ok).forward(outgoing));

    let mut connection = Connection::dial(address, Config::new()).await?;
    for word in ["length", "prefixed", "messages"] {
        // `feed` collects, and `close` flushes: one system call for the three. A client that sends more than fits on
        // the way must read replies meanwhile: see `Connection::split`.
        connection.feed(Bytes::from(word)).await?;
    }
    connection.close().await?; // Ends this direction only.
    while let Some(reply) = connection.try_next().await? {
        println!("{}", String::from_utf8_lossy(&reply));
    }

    closer.close().await?;
    server.await?;
    Ok(())
}
