//! Closes its listener on Ctrl-C, and on the SIGTERM of a supervisor, and receives what its peers had sent.
//!
//! With an address to listen on it waits for that. Without one it plays all the parts: a peer sends, then the process interrupts
//! itself.
#![allow(clippy::print_stdout)] // To print is what it is for.

use async_signal::{Signal, Signals};
use buffstreams::{BoxError, Bytes, Closer, Config, Connection, Endpoint, Listener};
use futures::{SinkExt, StreamExt, try_join};

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let address = std::env::args().nth(1);
    // From here on a signal ends nothing by itself.
    let signals = Signals::new([Signal::Int, Signal::Term])?;
    let mut listener = Listener::bind(address.as_deref().unwrap_or("127.0.0.1:0"), Config::new()).await?;
    println!("listening on {}", listener.local_addr());

    let (closer, local_addr) = (listener.closer(), listener.local_addr());
    let play = async { if address.is_none() { play(local_addr).await } else { Ok(()) } };
    // After the close the stream goes on to its end: all that the peers had sent.
    let receive = async {
        while let Some((peer, message)) = listener.next().await {
            println!("{peer} sent {message:?}");
        }
        Ok(())
    };
    try_join!(receive, close_when_told(signals, closer), play)?;
    println!("everything was received");
    Ok(())
}

/// A peer that goes on sending after the close is cut off at the end of `drain_timeout`, one that is silent after
/// `close_timeout`: that is how long it takes at the most.
async fn close_when_told(mut signals: Signals, closer: Closer) -> Result<(), BoxError> {
    if let Some(signal) = signals.next().await {
        println!("{:?}: closing", signal?);
    }
    closer.close().await?;
    Ok(())
}

async fn play(listener: Endpoint) -> Result<(), BoxError> {
    let mut connection = Connection::dial(listener, Config::new()).await?;
    connection.feed(Bytes::from_static(b"one")).await?;
    connection.send(Bytes::from_static(b"two")).await?;
    interrupt()?;
    // The end of the stream says that the listener closes.
    while connection.next().await.transpose()?.is_some() {}
    connection.close().await?;
    Ok(())
}

/// As Ctrl-C does.
#[cfg(unix)]
fn interrupt() -> Result<(), BoxError> {
    std::process::Command::new("sh").args(["-c", "kill -INT $PPID"]).status()?;
    Ok(())
}

#[cfg(not(unix))]
fn interrupt() -> Result<(), BoxError> {
    println!("press Ctrl-C");
    Ok(())
}
