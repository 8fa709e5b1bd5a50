//! What a program learns of what happens in the background: events, and the log, or `tracing`.

mod events;
#[cfg(feature = "tracing")]
mod facts;
mod kind;
mod lines;
mod reporter;
mod span;
mod text;

pub use events::{Event, ManagerEvent, Reason};
pub use reporter::Events;
pub(crate) use reporter::Reporter;
pub(crate) use span::{in_link_span, in_peer_span};
