//! The timer of what sinks have fed and nobody has flushed.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Instant;

use crate::queue::Outbox;
use crate::runtime::{Alarm, Handle};
use crate::transport;

/// The timer of the task that drives a queue: there is one while something may be due, whatever the number of messages. It is kept
/// for the next time, so that setting it takes no memory.
#[derive(Default)]
pub(super) struct Lingering {
    alarm: Option<Alarm>,
    /// When it fires, if it has not.
    at: Option<Instant>,
}

impl Lingering {
    /// Hands over what is due, and comes back when more is. The task is the driver of the queue already.
    pub(super) fn poll(&mut self, outbox: &Outbox<transport::Stream>, runtime: &Handle, cx: &mut Context<'_>) {
        while let Some(at) = outbox.hand_over_due() {
            if self.at.is_none_or(|armed| armed > at) {
                match &mut self.alarm {
                    Some(alarm) => alarm.reset(at),
                    none => *none = Some(runtime.timer(at)),
                }
                self.at = Some(at);
            }
            let Some(alarm) = &mut self.alarm else { return };
            if Pin::new(alarm).poll(cx).is_pending() {
                return;
            }
            self.at = None;
        }
    }
}
