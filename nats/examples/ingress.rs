//! Takes messages at an address, and stores them in a stream of NATS JetStream. Any number of these may run side by side.
//!
//! ```sh
//! cargo run --release -p buffstreams-nats --example ingress -- :5031 nats://127.0.0.1:4222 orders
//! ```
//!
//! On Ctrl-C, and on the SIGTERM of a supervisor, it accepts nobody any more, takes what its peers still send, and ends
//! when all of that is stored.
#![allow(clippy::print_stdout, clippy::print_stderr)] // It is a program.

use std::env::args;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use buffstreams::{BoxError, Closer, Config, Listener, Tokio, chain};
use buffstreams_nats::{Ingress, async_nats};
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = args().skip(1);
    let mut argument = |default: &str| args.next().unwrap_or_else(|| default.to_owned());
    let (address, servers, name) = (argument("127.0.0.1:5031"), argument("nats://127.0.0.1:4222"), argument("orders"));

    let jetstream = jetstream::new(async_nats::connect(servers.split(',').collect::<Vec<_>>()).await?);
    // In a cluster, `num_replicas: 3`. What a client may send again later than after two minutes wants a longer `duplicate_window`.
    let config = stream::Config { name: name.clone(), subjects: vec![format!("{name}.>")], ..Default::default() };
    jetstream.get_or_create_stream(config).await?;

    let listener = Listener::bind(address, Config::new().runtime(Tokio::current())).await?;
    println!("listening on {}", listener.local_addr());
    tokio::spawn(close_when_told(listener.closer()));

    let ingress = Ingress::new(jetstream, format!("{name}.in")).give_up(Duration::from_secs(600));
    let mut unstored = ingress.unstored();
    tokio::spawn(async move {
        // A real program writes it to a file, or answers the peer.
        while let Some(unstored) = unstored.next().await {
            eprintln!(
                "{} bytes of {} are not stored: {}",
                unstored.message.len(),
                unstored.peer,
                chain(&unstored.error)
            );
        }
    });
    ingress.run(listener).await;
    println!("{:?}", ingress.stats());
    Ok(())
}

async fn close_when_told(closer: Closer) -> Result<(), BoxError> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("closing");
    closer.close().await?;
    Ok(())
}
