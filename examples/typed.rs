//! Messages of Protocol Buffers as values of the program's own types, without `protoc`: a client that asks, and a server that
//! answers each of its peers.
#![allow(clippy::print_stdout)] // To print is what it is for.

use async_std::task;
use buffstreams::typed::Prost;
use buffstreams::{BoxError, Config, Connection, Listener};
use futures::{SinkExt, StreamExt, TryStreamExt};

/// In a `.proto` file: `message Question { uint64 id = 1; repeated double numbers = 2; }`
#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(double, repeated, tag = "2")]
    numbers: Vec<f64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(double, tag = "2")]
    sum: f64,
}

/// Each half has a type of its own: questions come in, and answers go out.
async fn answer(connection: Connection) -> Result<(), BoxError> {
    let (questions, answers) = connection.split();
    let questions = questions.typed(Prost::<Question>::new());
    let answers = answers.typed(Prost::<Answer>::new());
    let answered = questions.map_ok(|Question { id, numbers }| Answer { id, sum: numbers.iter().sum() });
    Ok(answered.forward(answers).await?)
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    let address = listener.local_addr();
    task::spawn(listener.connections().for_each_concurrent(None, async |connection| {
        if let Err(error) = answer(connection).await {
            println!("a peer failed: {error}");
        }
    }));

    let (answers, questions) = Connection::dial(address, Config::new()).await?.split();
    let mut questions = questions.typed(Prost::<Question>::new());
    let mut answers = answers.typed(Prost::<Answer>::new());
    for id in 1..=3 {
        questions.feed(Question { id, numbers: vec![0.5; id as usize] }).await?;
    }
    questions.close().await?; // Ends this direction only.
    while let Some(Answer { id, sum }) = answers.try_next().await? {
        println!("answer {id}: {sum}");
    }
    Ok(())
}
