//! Requests and replies over one connection each: a server with a task per connection, and a client that asks, waits for
//! the reply, and asks again.
#![allow(clippy::print_stdout)] // To print is what it is for.

use async_std::task;
use buffstreams::{BoxError, Bytes, Config, Connection, Error, Listener};
use futures::{SinkExt, StreamExt, TryStreamExt};

/// Answers one client until it closes. As a `Connection` of its own it can be answered whenever the reply is there.
async fn answer(mut client: Connection) -> Result<(), Error> {
    while let Some(request) = client.try_next().await? {
        let reply: Bytes = request.to_ascii_uppercase().into();
        client.send(reply).await?; // `send` flushes: the client is waiting for it.
    }
    client.close().await
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    let closer = listener.closer();
    // One client's error is its own: the others are answered all the same.
    let server = task::spawn(listener.connections().for_each_concurrent(None, |client| async {
        if let Err(error) = answer(client).await {
            println!("a client failed: {error}");
        }
    }));

    let mut connection = Connection::dial(closer.local_addr(), Config::new()).await?;
    for request in ["what", "is", "your", "name"] {
        connection.send(Bytes::from(request)).await?;
        let reply = connection.try_next().await?.ok_or("the server closed before it replied")?;
        println!("{request} -> {}", String::from_utf8_lossy(&reply));
    }
    connection.close().await?;
    assert!(connection.next().await.is_none()); // The server has closed as well.

    closer.close().await?;
    server.await;
    Ok(())
}
