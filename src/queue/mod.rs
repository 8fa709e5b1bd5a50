//! What waits: what has arrived until the program takes it, and what is to be written until the transport does.

mod books;
mod driver;
mod held;
mod inbox;
mod line;
mod outbox;
mod transport;

pub use books::Outcome;
pub(crate) use books::{Fate, Verdict};
pub(crate) use held::{Place, Stage, Ttl};
pub(crate) use inbox::{ITEM, Parcel, Receiver, Sender, Share, inbox};
pub(crate) use line::{Batch, Offer};
pub(crate) use outbox::{Outbox, Rules};
