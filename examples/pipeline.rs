//! The main job: two producers send protobuf messages to a listener. Its stream is decoded, filtered, put together in
//! batches, and forwarded through a manager to a second listener. It runs for two seconds, and counts.
#![allow(clippy::print_stdout)] // To print is what it is for.

use std::time::{Duration, Instant};

use async_std::task::spawn;
use buffstreams::{Address, BoxError, Config, Connection, Error, Manager};
use futures::future::{ok, ready};
use futures::{StreamExt, TryStreamExt, stream, try_join};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Reading {
    #[prost(double, tag = "1")]
    celsius: f64,
}
#[derive(Clone, PartialEq, Message)]
struct Batch {
    #[prost(message, repeated, tag = "1")]
    readings: Vec<Reading>,
}

/// Sends readings for half a second, and returns how many. `forward` waits whenever the other end is behind.
async fn produce(to: Address) -> Result<u64, Error> {
    let (connection, start, mut sent) = (Connection::dial(to, Config::new()).await?, Instant::now(), 0);
    let numbers = (0u32..).take_while(|_| start.elapsed() < Duration::from_millis(500)).inspect(|_| sent += 1);
    let messages = numbers.map(|n| Reading { celsius: f64::from(n % 100) }.encode_to_vec());
    stream::iter(messages).map(|message| Ok(message.into())).forward(connection).await?;
    Ok(sent)
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let manager = Manager::new(Config::new());
    let (source, target) = (manager.listen("127.0.0.1:0").await?, manager.listen("127.0.0.1:0").await?);
    let (from, to) = (Address::from(source.local_addr()), Address::from(target.local_addr()));
    let counters = source.closer();
    manager.dial(&to).await?;
    println!("2 producers -> {from} -> decode, filter, batch -> {to}, for 2 seconds");
    let (start, mut sent, address) = (Instant::now(), 0, to.clone());
    let batches = (source.filter_map(|(_peer, message)| ready(Reading::decode(message).ok()))) // Skips others.
        .filter(|reading| ready(reading.celsius >= 90.0))
        .ready_chunks(64) // What is there already, 64 at the most: it never waits for a batch to fill.
        .map(move |readings| Ok((address.clone(), Batch { readings }.encode_to_vec().into())));
    let hot = target.map(|(_, message)| Batch::decode(message)).try_fold(0, |n, batch| ok(n + batch.readings.len()));
    let (pipeline, hot) = (spawn(batches.forward(manager.sink())), spawn(hot));
    for _ in 0..4 {
        sent += try_join!(spawn(produce(from.clone())), spawn(produce(from.clone()))).map(|(one, two)| one + two)?;
        println!("{:.1} s: {sent} sent, {} received", start.elapsed().as_secs_f64(), counters.stats().messages);
    }
    manager.close_listener(&from).await?; // Its stream ends when all has been read, and so does the pipeline.
    pipeline.await?;
    manager.close(&to).await?; // Delivers what the pipeline's sink accepted.
    manager.close_listener(&to).await?;
    let (received, rate) = (counters.stats().messages, sent as f64 / start.elapsed().as_secs_f64());
    println!("{sent} sent, {received} received, {} of them hot: {rate:.0} messages a second", hot.await?);
    Ok(())
}
