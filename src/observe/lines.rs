//! The line of an event, and where it goes: to `tracing`, if that feature is on and a subscriber is set, or else to the log.

use std::fmt;

use log::Level;

#[cfg(feature = "tracing")]
use super::facts::Facts;
use crate::foreign::{Panic, PanicSource};

/// What the two kinds of event have in common.
pub(crate) trait Report: Clone + fmt::Debug {
    fn missed(events: u64) -> Self;
    /// Something panicked that belongs to no peer or address.
    fn panicked(source: PanicSource, panic: Panic) -> Self;
    /// How much it matters to those who read the log.
    fn level(&self) -> Level;
    /// What is logged of it: nothing that may hold a message, or a part of one.
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
    /// The same in fields.
    #[cfg(feature = "tracing")]
    fn facts(&self) -> Facts<'_>;
}

/// An event, as it is logged.
pub(crate) struct Described<'a, E>(pub(crate) &'a E);

impl<E: Report> fmt::Display for Described<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f)
    }
}

/// Whether anybody takes lines of this level.
pub(super) fn are_taken(level: Level) -> bool {
    #[cfg(feature = "tracing")]
    if is_traced() {
        return match level {
            Level::Warn => tracing::enabled!(target: "buffstreams", tracing::Level::WARN),
            _ => tracing::enabled!(target: "buffstreams", tracing::Level::DEBUG),
        };
    }
    log::log_enabled!(target: "buffstreams", level)
}

pub(super) fn write<E: Report>(event: &E) {
    #[cfg(feature = "tracing")]
    if is_traced() {
        return match event.level() {
            Level::Warn => event.facts().warn(),
            _ => event.facts().debug(),
        };
    }
    log::log!(target: "buffstreams", event.level(), "{}", Described(event));
}

/// So many lines were left out before the next one.
pub(super) fn write_suppressed(suppressed: u64) {
    #[cfg(feature = "tracing")]
    if is_traced() {
        return tracing::warn!(target: "buffstreams", suppressed, "lines were suppressed");
    }
    log::warn!(target: "buffstreams", "{suppressed} more lines were suppressed");
}

/// Whether a subscriber is set where this runs. One that also takes the log would have each line twice, if both had it.
#[cfg(feature = "tracing")]
fn is_traced() -> bool {
    tracing::dispatcher::get_default(|subscriber| !subscriber.is::<tracing::subscriber::NoSubscriber>())
}
