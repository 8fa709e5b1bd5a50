//! What waits: what has arrived until the program takes it, and what is to be written until the transport does.

mod acks;
mod ages;
mod batch;
mod books;
mod driver;
mod held;
#[cfg(any(test, fuzzing))]
pub(crate) mod hostile;
mod inbox;
mod intake;
mod line;
mod ordinal;
mod outbox;
mod place;
mod returns;
mod rules;
mod session;
mod settling;
mod shelf;
mod totals;
mod transport;
mod unsettled;
mod verdict;

pub(crate) use ages::Ages;
pub(crate) use batch::Batch;
pub(crate) use books::Fate;
#[cfg(feature = "metrics")]
pub(crate) use inbox::Usage;
pub(crate) use inbox::{ITEM, Parcel, Receiver, Sender, Share, inbox};
pub(crate) use line::Offer;
pub(crate) use ordinal::Ordinal;
pub(crate) use outbox::Outbox;
pub(crate) use place::{Place, Stage};
pub(crate) use returns::{Returned, Returns, Trail};
pub(crate) use rules::{Rules, Ttl};
pub(crate) use session::Obeyed;
pub(crate) use shelf::Shelf;
pub(crate) use unsettled::Unsettled;
pub use verdict::Outcome;
pub(crate) use verdict::Verdict;
