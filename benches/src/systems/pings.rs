//! The requests of one client, each sent when the reply to the one before has come.

use hdrhistogram::Histogram;

use crate::check::{Check, Latency, Tally, histogram};
use crate::child::Sent;
use crate::clock;
use crate::messages::Messages;
use crate::plan::Trial;

/// How many requests are not timed: the first ones find cold caches and unscheduled threads.
pub(crate) const WARM_UP: u64 = 500;

pub(super) struct Pings {
    messages: Messages,
    check: Check,
    count: u64,
    sent: u64,
    sent_at: u64,
    times: Histogram<u64>,
    replies: Tally,
}

impl Pings {
    pub(super) fn new(trial: &Trial) -> Self {
        Self {
            messages: Messages::of(trial),
            check: Check::of(trial),
            count: trial.messages,
            sent: 0,
            sent_at: 0,
            times: histogram(),
            replies: Tally::default(),
        }
    }

    /// The next request, to be sent at once; `None` after the last one.
    pub(super) fn request(&mut self) -> Option<&'static [u8]> {
        if self.sent == self.count {
            return None;
        }
        let request = self.messages.slice(self.sent);
        self.sent += 1;
        self.sent_at = clock::now();
        Some(request)
    }

    /// A reply has come. One that nobody asked for is one too many in the tally.
    pub(super) fn reply(&mut self, reply: &[u8]) {
        if self.replies.messages >= WARM_UP {
            self.times.saturating_record(clock::now() - self.sent_at);
        }
        self.replies.take(&self.check, reply);
    }

    pub(super) fn report(self, start: u64) -> Sent {
        Sent { start, replies: Some(self.replies), latency: Some(Latency::of(&self.times)), resumed: None }
    }
}
