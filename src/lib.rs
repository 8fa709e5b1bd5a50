//! Length-prefixed messages over TCP, as [`futures::Stream`] and [`futures::Sink`].

mod accept;
mod callback;
mod config;
mod connection;
mod dead_letters;
mod error;
mod events;
mod inbox;
mod link;
mod listener;
mod manager;
mod net;
mod outbox;
mod peer;
mod pool;
mod reader;
mod serve;
pub mod wire;
mod writer;

pub use bytes::Bytes;
pub use callback::Serving;
pub use config::Config;
pub use connection::{Connection, ReadHalf, WriteHalf};
pub use dead_letters::{DeadLetter, DeadLetters, Outcome};
pub use error::{BoxError, ConfigError, Error, FrameError, FrameErrorKind, LooksLike, Unsent};
pub use events::{Event, Events, ManagerEvent, Reason};
pub use listener::{Closer, Connections, Incoming, Listener, ListenerStats, Outgoing};
pub use manager::{LinkStats, Manager, ManagerSink, ManagerStats};
pub use peer::{Address, Peer};
pub use reader::Reader;
pub use wire::{FixedFormat, WireFormat};
pub use writer::Writer;
