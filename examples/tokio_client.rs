//! A client on tokio: `tokio_client ADDRESS COUNT [SECONDS]` sends so many messages. The server may come later, die and come back:
//! nothing is lost unless it is away for that many seconds, 30 if they are not given. Without arguments it plays all the parts.
#![allow(clippy::print_stdout)] // To print is what it is for.

use std::time::Duration;

use buffstreams::{Address, Backoff, BoxError, Bytes, Config, Error, Listener, Manager, Session, Tokio, chain};
use futures::{StreamExt, future::ready, stream};

/// How many messages are under way at once.
const UNDER_WAY: usize = 64;

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (address, count, seconds) = (arguments.next(), arguments.next(), arguments.next());
    tokio::runtime::Runtime::new()?.block_on(async {
        match (address, count) {
            (Some(address), Some(count)) => {
                let seconds = seconds.map_or(Ok(30), |seconds| seconds.parse())?;
                send_all(Address::from(address), count.parse()?, Duration::from_secs(seconds)).await
            }
            _ => play().await,
        }
    })
}

/// Sockets, timers and tasks are those of the runtime that this is called in.
fn config() -> Config {
    Config::new().runtime(Tokio::current()).session(Session::new())
}

async fn send_all(address: Address, count: u32, patience: Duration) -> Result<(), BoxError> {
    let backoff = Backoff::exponential(Duration::from_millis(20), Duration::from_secs(1));
    let manager = Manager::new(config().reconnect(backoff.max_elapsed(patience)));
    manager.open(&address)?; // It need not be there yet.

    let messages = stream::iter(0..count).map(|number| Bytes::from(format!("message {number}")));
    let mut sent = messages.map(|message| send(&manager, &address, message)).buffer_unordered(UNDER_WAY);
    let (mut acknowledged, mut again, mut given_up) = (0, 0, 0);
    while let Some(sent) = sent.next().await {
        match sent {
            Ok(times) => (acknowledged, again) = (acknowledged + 1, again + times - 1),
            Err(error) => {
                given_up += 1;
                println!("{}", chain(&error));
            }
        }
    }
    manager.shutdown(Duration::from_secs(10)).await;
    println!("{acknowledged} acknowledged, {again} sent again, {given_up} given up");
    Ok(())
}

/// Until the server's program has taken it. How many times it was sent.
async fn send(manager: &Manager, address: &Address, message: Bytes) -> Result<u32, Error> {
    let mut times = 1;
    loop {
        match manager.write(address, message.clone()).await {
            // The server that had it is gone, and may have taken it. By its number, the next one can tell that it comes again.
            Err(Error::InDoubt { .. }) => times += 1,
            result => return result.map(|()| times),
        }
    }
}

/// The server dies after a hundred messages, and another one takes its place.
async fn play() -> Result<(), BoxError> {
    let first = Listener::bind("127.0.0.1:0", config()).await?;
    let (address, to) = (first.local_addr(), Address::from(first.local_addr()));
    let server = tokio::spawn(async move {
        first.take(100).for_each(|_| ready(())).await;
        let second = Listener::bind(&address, config()).await?;
        second.for_each(|_| ready(())).await;
        Ok::<(), Error>(())
    });
    send_all(to, 1000, Duration::from_secs(30)).await?;
    server.abort();
    Ok(())
}
