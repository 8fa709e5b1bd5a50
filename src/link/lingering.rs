//! The timer of what sinks have fed and nobody has flushed.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Instant;

use crate::queue::Outbox;
use crate::runtime::{Alarm, Handle};
use crate::transport;

/// The timer of the task that drives a queue: there is one while something may be due, whatever the number of messages.
#[derive(Default)]
pub(super) struct Lingering(Option<(Instant, Alarm)>);

impl Lingering {
    /// Hands over what is due, and comes back when more is. The task is the driver of the queue already.
    pub(super) fn poll(&mut self, outbox: &Outbox<transport::Stream>, runtime: &Handle, cx: &mut Context<'_>) {
        while let Some(at) = outbox.hand_over_due() {
            let (_, alarm) = match &mut self.0 {
                Some(armed) if armed.0 <= at => armed,
                late => late.insert((at, runtime.timer(at))),
            };
            if Pin::new(alarm).poll(cx).is_pending() {
                return;
            }
            self.0 = None;
        }
    }
}
