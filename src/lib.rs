//! Length-prefixed messages over TCP, as [`futures::Stream`] and [`futures::Sink`].

mod config;
mod connection;
mod error;
mod events;
mod inbox;
mod net;
mod outbox;
mod peer;
mod pool;
mod reader;
pub mod wire;
mod writer;

pub use bytes::Bytes;
pub use config::Config;
pub use connection::{Connection, ReadHalf, WriteHalf};
pub use error::{BoxError, ConfigError, Error, FrameError, FrameErrorKind, LooksLike, Unsent};
pub use events::{Event, Events, ManagerEvent, Reason};
pub use peer::{Address, Peer};
pub use reader::Reader;
pub use wire::{FixedFormat, WireFormat};
pub use writer::Writer;
