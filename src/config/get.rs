//! What a configuration is set to.

use std::time::Duration;

use super::Config;
use crate::backoff::Backoff;
use crate::runtime::Runtime;
use crate::session::Session;
#[cfg(feature = "tls")]
use crate::tls::Tls;
use crate::wire::WireFormat;

/// What it is set to, as it was given: nothing is checked, and `None` is no limit.
impl Config {
    /// See [`runtime`](Self::runtime). `None` where none was given. What it is, its `Debug` says.
    pub fn get_runtime(&self) -> Option<&dyn Runtime> {
        self.runtime.get()
    }

    /// See [`wire_format`](Self::wire_format).
    pub fn get_wire_format(&self) -> WireFormat {
        self.wire_format
    }

    /// See [`max_message_size`](Self::max_message_size).
    pub fn get_max_message_size(&self) -> usize {
        self.max_message_size
    }

    /// See [`inbox_bytes`](Self::inbox_bytes).
    pub fn get_inbox_bytes(&self) -> usize {
        self.inbox_bytes
    }

    /// See [`queue_bytes`](Self::queue_bytes).
    pub fn get_queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// See [`max_connections`](Self::max_connections).
    pub fn get_max_connections(&self) -> usize {
        self.max_connections
    }

    /// See [`reconnect`](Self::reconnect).
    pub fn get_reconnect(&self) -> Option<&Backoff> {
        self.reconnect.as_ref()
    }

    /// See [`message_ttl`](Self::message_ttl).
    pub fn get_message_ttl(&self) -> Option<Duration> {
        self.message_ttl
    }

    /// See [`linger`](Self::linger). Where it was not set, it is the 5 ms of a manager's sinks and of connections in a
    /// session.
    pub fn get_linger(&self) -> Option<Duration> {
        self.linger.with_task()
    }

    /// See [`dial_timeout`](Self::dial_timeout).
    pub fn get_dial_timeout(&self) -> Option<Duration> {
        self.dial_timeout
    }

    /// See [`write_timeout`](Self::write_timeout).
    pub fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    /// See [`frame_timeout`](Self::frame_timeout).
    pub fn get_frame_timeout(&self) -> Option<Duration> {
        self.frame_timeout
    }

    /// See [`idle_timeout`](Self::idle_timeout).
    pub fn get_idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout
    }

    /// See [`close_timeout`](Self::close_timeout).
    pub fn get_close_timeout(&self) -> Option<Duration> {
        self.close_timeout
    }

    /// See [`drain_timeout`](Self::drain_timeout).
    pub fn get_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    /// See [`keepalive`](Self::keepalive).
    pub fn get_keepalive(&self) -> Option<Duration> {
        self.keepalive
    }

    /// See [`user_timeout`](Self::user_timeout).
    pub fn get_user_timeout(&self) -> Option<Duration> {
        self.user_timeout
    }

    /// See [`unix_mode`](Self::unix_mode).
    pub fn get_unix_mode(&self) -> Option<u32> {
        self.unix_mode
    }

    /// See [`session`](Self::session).
    pub fn get_session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// See [`tls`](Self::tls).
    #[cfg(feature = "tls")]
    pub fn get_tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }
}
