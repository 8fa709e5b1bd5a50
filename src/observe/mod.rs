//! What a program learns of what happens in the background: events, and the log.

mod events;
mod reporter;
mod text;

pub use events::{Event, ManagerEvent, Reason};
pub use reporter::Events;
pub(crate) use reporter::Reporter;
