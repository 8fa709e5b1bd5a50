//! How many messages a second come from a TCP connection into a stream, against a publisher of `async_nats` that has them already.
//!
//! ```sh
//! nats-server -js -sd /tmp/throughput -a 127.0.0.1 &
//! cargo run --release -p buffstreams-nats --example throughput -- nats://127.0.0.1:4222
//! ```
//!
//! Both wait for every acknowledgement, and both give each message an id. They take turns. The first round is not counted; the
//! figures are the medians of the others, and the ratio is the median of theirs, as machines are not equally fast at all times.
#![allow(clippy::print_stdout)] // To print is what it is for.

use std::time::Instant;

use async_nats::jetstream::{self, message::PublishMessage, stream};
use buffstreams::{BoxError, Bytes, Config, Connection, Listener, Tokio};
use buffstreams_nats::{Ingress, async_nats};
use futures::{SinkExt, StreamExt, TryStreamExt};

const MESSAGES: u32 = 100_000;
const ROUNDS: u32 = 5;
/// How many messages the publisher has in flight.
const ACKS: usize = 256;
const LEN: usize = 110;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let server = std::env::args().nth(1).unwrap_or_else(|| "nats://127.0.0.1:4222".to_owned());
    let jetstream = jetstream::new(async_nats::connect(server).await?);
    let config = stream::Config { name: "throughput".to_owned(), ..Default::default() };
    let mut stream = jetstream.get_or_create_stream(config).await?;

    let (mut bare, mut through, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let publisher = publish(&jetstream, round).await?;
        check(&mut stream).await?;
        let ingress = ingress(&jetstream, round).await?;
        check(&mut stream).await?;
        println!("async_nats with {ACKS} in flight: {publisher:.0}/s    ingress: {ingress:.0}/s");
        if round > 0 {
            bare.push(publisher);
            through.push(ingress);
            ratios.push(ingress / publisher);
        }
    }
    let (bare, through, ratio) = (median(bare), median(through), median(ratios));
    println!("medians: {bare:.0}/s and {through:.0}/s; the ratio is {ratio:.2}");
    jetstream.delete_stream("throughput").await?;
    Ok(())
}

/// All are there, and make room for the next.
async fn check(stream: &mut stream::Stream) -> Result<(), BoxError> {
    assert_eq!(stream.info().await?.state.messages, u64::from(MESSAGES));
    stream.purge().await?;
    Ok(())
}

fn message(who: &str, round: u32, number: u32) -> Bytes {
    format!("{:LEN$}", format!("{who}.{round}.{number}")).into()
}

fn id(message: &[u8]) -> String {
    String::from_utf8_lossy(message).trim_end().to_owned()
}

async fn publish(jetstream: &jetstream::Context, round: u32) -> Result<f64, BoxError> {
    let start = Instant::now();
    let acks = futures::stream::iter(0..MESSAGES).map(|number| async move {
        let message = message("bare", round, number);
        let publish = PublishMessage::build().message_id(id(&message)).payload(message);
        jetstream.send_publish("throughput", publish).await?.await
    });
    acks.buffer_unordered(ACKS).try_for_each(|_ack| async { Ok(()) }).await?;
    Ok(f64::from(MESSAGES) / start.elapsed().as_secs_f64())
}

async fn ingress(jetstream: &jetstream::Context, round: u32) -> Result<f64, BoxError> {
    let config = Config::new().runtime(Tokio::current());
    let listener = Listener::bind("127.0.0.1:0", config.clone()).await?;
    let (address, closer) = (listener.local_addr(), listener.closer());
    let ingress = Ingress::new(jetstream.clone(), "throughput").message_id(|_peer, message| id(message));
    let running = tokio::spawn(async move { ingress.run(listener).await });

    let start = Instant::now();
    let mut connection = Connection::dial(address, config).await?;
    for number in 0..MESSAGES {
        connection.feed(message("through", round, number)).await?;
    }
    connection.close().await?;
    closer.close().await?;
    running.await?;
    Ok(f64::from(MESSAGES) / start.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
