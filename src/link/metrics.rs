//! What is published of a link.

use super::handle::Link;
use crate::metrics::{self, Sample, Source};

impl Source for Link {
    fn sample(&self, into: &mut Sample) {
        let stats = self.stats();
        let is_open = u64::from(self.socket.is_open());
        into.add(
            ("address", self.address.to_string()),
            &[
                // A counter never goes back: what came back from a session was sent as well.
                (&metrics::SENT_MESSAGES, stats.written + stats.in_doubt + stats.refused),
                (&metrics::SENT_BYTES, stats.bytes),
                (&metrics::LINKS, is_open),
                (&metrics::HELD_MESSAGES, stats.held),
                (&metrics::HELD_BYTES, stats.held_bytes as u64),
                (&metrics::RECONNECTS, stats.reconnects),
                (&metrics::LINK_SESSIONS, stats.sessions),
                (&metrics::ACKED_MESSAGES, stats.acked),
                (&metrics::REPLAYED_MESSAGES, stats.replayed),
                (&metrics::IN_DOUBT_MESSAGES, stats.in_doubt),
                (&metrics::REFUSED_MESSAGES, stats.refused),
            ],
        );
    }
}
