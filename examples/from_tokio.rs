//! The same streams and sinks, polled by tokio's tasks. Only the sockets are async-std's: its reactor wakes the tasks that poll.
#![allow(clippy::print_stdout)] // To print is what it is for.

use buffstreams::{BoxError, Bytes, Config, Connection, Listener};
use futures::{SinkExt, StreamExt, TryStreamExt, stream};

const MESSAGES: usize = 10_000;

fn main() -> Result<(), BoxError> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
        let closer = listener.closer();
        let (incoming, outgoing) = listener.split();
        let server = tokio::spawn(incoming.map(Ok).forward(outgoing));

        // Both halves at once: with this many messages on the way, each side must read while it writes.
        let (replies, mut requests) = Connection::dial(closer.local_addr(), Config::new()).await?.split();
        let sender = tokio::spawn(async move {
            let mut messages = stream::iter(0..MESSAGES).map(|number| Ok(Bytes::from(number.to_string())));
            requests.send_all(&mut messages).await?;
            requests.close().await
        });
        let replies: Vec<Bytes> = replies.try_collect().await?;
        sender.await??;
        println!("{} replies, the last is {:?}", replies.len(), replies.last());
        assert_eq!(replies.len(), MESSAGES);

        closer.close().await?;
        server.await??;
        Ok(())
    })
}
