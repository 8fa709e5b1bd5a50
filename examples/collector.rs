//! Collects readings, which are messages of Protocol Buffers, in a file: `collector ADDRESS FILE`. In a session, a reading is
//! acknowledged when it is in the file, so a sender knows what becomes of each, even if this is killed. On Ctrl-C or SIGTERM it
//! stores what its senders have under way, and says how many there were. Without arguments it plays all the parts.
#![allow(clippy::print_stdout)] // To print is what it is for.

use std::fs::{File, OpenOptions};
use std::io::Write;

use async_signal::{Signal, Signals};
use buffstreams::typed::Prost;
use buffstreams::{BoxError, Closer, Config, Connection, Endpoint, Listener, Session, chain};
use futures::{SinkExt, StreamExt, try_join};

/// In a `.proto` file: `message Reading { string sensor = 1; uint64 number = 2; double celsius = 3; }`
#[derive(Clone, PartialEq, prost::Message)]
struct Reading {
    #[prost(string, tag = "1")]
    sensor: String,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(double, tag = "3")]
    celsius: f64,
}

fn config() -> Config {
    Config::new().session(Session::new())
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let (address, file) = (arguments.next(), arguments.next());
    let signals = Signals::new([Signal::Int, Signal::Term])?; // From here on a signal ends nothing by itself.
    let listener = Listener::bind(address.as_deref().unwrap_or("127.0.0.1:0"), config()).await?;
    let file = OpenOptions::new().create(true).append(true).open(file.as_deref().unwrap_or("/dev/null"))?;

    let (closer, local_addr) = (listener.closer(), listener.local_addr());
    let play = async { if address.is_none() { play(local_addr).await } else { Ok(()) } };
    let (stored, (), ()) = try_join!(store(listener, file), close_when_told(signals, closer), play)?;
    println!("{stored} readings stored");
    Ok(())
}

/// Goes on to the end of the stream: after the close that is all that the senders had under way.
async fn store(listener: Listener, mut file: File) -> Result<u64, BoxError> {
    let (mut readings, mut stored) = (listener.typed(Prost::<Reading>::new()), 0);
    // What does not decode is refused: its sender has it back.
    while let Some((_peer, Reading { sensor, number, celsius })) = readings.next().await {
        // In one write, so that a process that is killed does not leave a part of the line.
        file.write_all(format!("{sensor} {number} {celsius}\n").as_bytes())?;
        stored += 1;
    }
    Ok(stored)
}

/// A sender that does not end is cut off: after `close_timeout` if it is silent, and else after `drain_timeout`.
async fn close_when_told(mut signals: Signals, closer: Closer) -> Result<(), BoxError> {
    signals.next().await.transpose()?;
    if let Err(error) = closer.close().await {
        println!("some senders did not end: {}", chain(&error));
    }
    Ok(())
}

async fn play(collector: Endpoint) -> Result<(), BoxError> {
    let mut sensor = Connection::dial(collector, config()).await?.typed(Prost::<Reading>::new());
    for number in 1..=3 {
        sensor.feed(Reading { sensor: "roof".into(), number, celsius: 21.5 }).await?;
    }
    sensor.flush().await?;
    // As Ctrl-C does, while they are under way.
    std::process::Command::new("sh").args(["-c", "kill -INT $PPID"]).status()?;
    sensor.close().await?; // The collector has them.
    Ok(())
}
