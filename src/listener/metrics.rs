//! What is published of a listener.

use super::handle::stats;
use super::shared::Shared;
use crate::metrics::{self, Sample, Source};

impl Source for Shared {
    fn sample(&self, into: &mut Sample) {
        let stats = stats(self);
        let inbox = self.inbox.get().map_or(0, |inbox| inbox.used());
        into.add(
            ("listener", self.local_addr.to_string()),
            &[
                (&metrics::CONSUMED_MESSAGES, stats.messages),
                (&metrics::RECEIVED_BYTES, stats.bytes),
                (&metrics::CONNECTIONS, stats.connections.saturating_sub(stats.detached) as u64),
                (&metrics::ACCEPTED, stats.accepted),
                (&metrics::REFUSED, stats.refused),
                (&metrics::INBOX_BYTES, inbox as u64),
                (&metrics::CALLBACK_ERRORS, stats.callback_errors),
                (&metrics::SESSIONS, stats.sessions as u64),
                (&metrics::DETACHED, stats.detached as u64),
                (&metrics::UNTAKEN_MESSAGES, stats.untaken),
            ],
        );
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        metrics::retire(self);
    }
}
