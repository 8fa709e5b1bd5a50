//! Delivers a stream of NATS JetStream to an address. Several of these, with the same name of the consumer, share the work.
//!
//! ```sh
//! cargo run --release -p buffstreams-nats --example egress -- 127.0.0.1:5032 nats://127.0.0.1:4222 orders
//! ```
//!
//! On Ctrl-C, and on the SIGTERM of a supervisor, it pulls no more, and ends when all that it has is written.
#![allow(clippy::print_stdout)] // It is a program.

use std::env::args;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use buffstreams::{Backoff, BoxError, Config, Manager, Tokio};
use buffstreams_nats::{Egress, EgressHandle, Error, OnFailure, async_nats};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = args().skip(1);
    let mut argument = |default: &str| args.next().unwrap_or_else(|| default.to_owned());
    let (address, servers, name) = (argument("127.0.0.1:5032"), argument("nats://127.0.0.1:4222"), argument("orders"));

    let jetstream = jetstream::new(async_nats::connect(servers.split(',').collect::<Vec<_>>()).await?);
    let config = pull::Config {
        durable_name: Some("egress".to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(30), // How soon another takes over, when this one dies.
        ..Default::default()
    };
    let consumer = jetstream.get_stream(&name).await?.get_or_create_consumer("egress", config).await?;

    let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(10));
    let config = Config::new().runtime(Tokio::current()).reconnect(backoff.max_elapsed(Duration::from_secs(60)));
    let manager = Manager::new(config);
    let egress = Egress::new(consumer, manager.clone(), address).on_failure(|undelivered| match undelivered.error {
        // It would be too large the next time as well.
        Error::Write(buffstreams::Error::MessageTooLarge { .. }) => OnFailure::Terminate,
        _ => OnFailure::Again(Duration::from_secs(undelivered.deliveries.min(30))),
    });
    let handle = egress.handle();
    tokio::spawn(stop_when_told(handle.clone()));
    egress.run().await?;
    for (address, ending) in manager.shutdown(Duration::from_secs(5)).await {
        println!("{address}: {ending:?}");
    }
    println!("{:?}", handle.stats());
    Ok(())
}

async fn stop_when_told(handle: EgressHandle) -> Result<(), BoxError> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("stopping");
    handle.stop();
    Ok(())
}
