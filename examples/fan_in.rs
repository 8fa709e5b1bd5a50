//! Many connections into one listener: one stream with the messages of all, which knows who sent what.
#![allow(clippy::print_stdout)] // To print is what it is for.

use std::collections::HashMap;

use async_std::task;
use buffstreams::{BoxError, Bytes, Config, Connection, Endpoint, Error, Listener, Peer};
use futures::{SinkExt, StreamExt, future};

const CONNECTIONS: usize = 100;
const MESSAGES: u32 = 1000;

async fn produce(to: Endpoint) -> Result<(), Error> {
    let mut connection = Connection::dial(to, Config::new()).await?;
    for number in 0..MESSAGES {
        connection.feed(Bytes::copy_from_slice(&number.to_be_bytes())).await?;
    }
    connection.close().await
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    let closer = listener.closer();
    let producers = task::spawn(async move {
        future::try_join_all((0..CONNECTIONS).map(|_| produce(closer.local_addr()))).await?;
        closer.close().await // So that the stream below ends when all has been read.
    });

    let count = |mut counts: HashMap<Peer, u32>, (peer, message): (Peer, Bytes)| async move {
        let count = counts.entry(peer).or_default();
        // The messages of one peer come in the order in which it sent them, whatever the others do.
        assert_eq!(message, count.to_be_bytes()[..]);
        *count += 1;
        counts
    };
    let counts = listener.fold(HashMap::new(), count).await;
    producers.await?;

    println!("{} peers sent {} messages", counts.len(), counts.values().sum::<u32>());
    assert!(counts.len() == CONNECTIONS && counts.values().all(|count| *count == MESSAGES));
    Ok(())
}
