//! Between TCP and NATS JetStream: the messages of a [`Listener`](buffstreams::Listener) into a stream ([`Ingress`]), a stream into
//! a [`Manager`](buffstreams::Manager) ([`Egress`]), and the dead letters of a manager into a stream and back ([`DurableLetters`]).
//!
//! Any number of processes do so side by side. They keep nothing: what must outlive one of them is in the stream.
//!
//! ```no_run
//! use buffstreams::{BoxError, Config, Listener, Tokio};
//! use buffstreams_nats::{Ingress, async_nats};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), BoxError> {
//!     let jetstream = async_nats::jetstream::new(async_nats::connect("127.0.0.1:4222").await?);
//!     let listener = Listener::bind(":5031", Config::new().runtime(Tokio::current())).await?;
//!     Ingress::new(jetstream, "orders").run(listener).await;
//!     Ok(())
//! }
//! ```
//!
//! # Layout
//!
//! ```text
//! in :  Listener -> room -> ingress -> publisher -> JetStream
//! out:  JetStream -> pull -> room -> egress -> write -> Manager
//! ```
//!
//! The streams and the consumers are the program's: how many replicas they have, how long they keep a message, and how long they
//! know an id, is set where they are made. So are the connection to NATS, its credentials and its TLS.

#![forbid(unsafe_code)]

mod error;
mod room;

mod store;

mod arrival;
mod ingress;
mod publisher;

mod pull;
mod write;

mod egress;
mod letters;
mod undelivered;

/// The client of NATS, in the version that is used here.
pub use async_nats;

pub use egress::{Egress, EgressHandle, EgressStats};
pub use error::Error;
pub use ingress::{Ingress, IngressStats, Unstored, UnstoredMessages};
pub use letters::{ADDRESS, DurableLetters, ID, OUTCOME, REASON};
pub use undelivered::{OnFailure, Undelivered};

/// What the integration tests run their servers by.
#[cfg(test)]
#[allow(dead_code, unreachable_pub, clippy::print_stdout)]
#[path = "../tests/nats/server.rs"]
mod server;

/// The programs of the README are compiled.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
