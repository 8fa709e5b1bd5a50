//! Messages on any transport: a stream of those that come, a sink for those that go.

mod buffers;
mod messages;
mod reader;
mod writer;

pub(crate) use buffers::CHUNK;
#[cfg(any(test, feature = "sim"))]
pub(crate) use buffers::FreshBuffers;
#[cfg(test)]
pub(crate) use buffers::Lent;
pub use messages::{Messages, MessagesIter};
pub(crate) use reader::Batch;
pub use reader::Reader;
pub(crate) use writer::HIGH_WATER;
pub use writer::Writer;
