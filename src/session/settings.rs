//! What a program sets of its sessions.

use std::time::Duration;

use super::handshake::{MIN_HEARTBEAT, Terms};
use super::wire::{HEADER, MAX_MESSAGE};
use crate::error::ConfigError;

/// What one read brings, at the most. A window has room for that and for one message, so that each can wait for the other.
const READ: usize = 64 << 10;
/// The handshake has times as numbers of 32 bits, in ms.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

/// The settings of acknowledged sessions, for [`Config::session`](crate::Config::session), which has what a session is and what
/// it costs.
///
/// A builder by value; it is checked with the configuration, when that is used.
///
/// ```
/// use std::time::Duration;
/// use buffstreams::{Config, Session};
///
/// let config = Config::new().session(Session::new().ttl(Duration::from_secs(30)));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Session {
    pub(crate) window_bytes: usize,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::always"))]
    pub(crate) ttl: Duration,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::always"))]
    pub(crate) heartbeat: Duration,
    pub(crate) max_sessions: usize,
    pub(crate) detached_bytes: usize,
    pub(crate) or_plain: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            window_bytes: 1 << 20,
            ttl: Duration::from_secs(120),
            heartbeat: Duration::from_secs(15),
            max_sessions: 16_384,
            detached_bytes: 64 << 20,
            or_plain: false,
        }
    }
}

impl Session {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes, headers included, the other end may have sent without an acknowledgement. Default: 1 MiB.
    ///
    /// When they are under way, it waits until this end's program has taken some: a larger window is for long lines, a smaller
    /// one for less memory, which is this much a session at either end. It has room for 64 KiB and one message of
    /// `max_message_size` with its header of 4 bytes, and at most 2^32 - 1 bytes; else it is an error
    /// ([`ConfigError::Window`](crate::ConfigError::Window)).
    #[must_use]
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// How long a session lives without a connection. Default: 120 s.
    ///
    /// It is counted from the break, in milliseconds, from 1 to 2^32 - 1 (49 days). Of the two ends' values the smaller one
    /// holds. Then the session is over: what was sent and not acknowledged is in doubt, and what was not sent goes on in the next
    /// session. A session belongs to the endpoint that it was made with, so where a peer may come back at another IP address,
    /// as in a cluster, a small value serves better.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How often this end says something at least. Default: 15 s.
    ///
    /// The other end takes the connection for broken after three times as long without a byte, and the session goes on
    /// with another one: this is how hosts that vanished are found, in 45 s with the default. It is counted in
    /// milliseconds, from 100 to 2^32 - 1. The two ends may have different values.
    #[must_use]
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every;
        self
    }

    /// How many sessions a listener has at once, those without a connection and those that are just remembered included. Default:
    /// 16,384.
    ///
    /// When there are so many, a newcomer takes the place of one that has ended or that never received anything. Where there is
    /// none, it is told to come again later: no session that has something is given up for it.
    #[must_use]
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.max_sessions = sessions;
        self
    }

    /// How many bytes of replies a listener holds for sessions without a connection, all of them together. Default: 64 MiB.
    ///
    /// Over it, the one that has been without a connection for longest ends, and its replies are reported as
    /// [`Event::Undelivered`](crate::Event::Undelivered).
    #[must_use]
    pub fn detached_bytes(mut self, bytes: usize) -> Self {
        self.detached_bytes = bytes;
        self
    }

    /// Lets a listener take peers without sessions as well, as it would without [`Config::session`](crate::Config::session).
    /// Default: it takes none.
    ///
    /// The first byte of a connection tells them apart. They speak the `wire_format` of the configuration, and nothing
    /// of theirs is acknowledged. Where a frame of that format, with that `max_message_size`, may begin as a session
    /// does, with the byte `0xf5`, it is an error ([`ConfigError::Ambiguous`](crate::ConfigError::Ambiguous)). The
    /// default format has no such frame, and a big-endian length has none that is below 245 in its first byte. A dial
    /// with this setting still dials a session.
    #[must_use]
    pub fn or_plain(mut self) -> Self {
        self.or_plain = true;
        self
    }

    /// Whether these can work, with messages of so many bytes.
    pub(crate) fn check(&self, max_message_size: usize) -> Result<(), ConfigError> {
        if self.max_sessions == 0 {
            return Err(ConfigError::Zero { name: "max_sessions" });
        }
        let least = READ + HEADER + max_message_size;
        let most = u32::MAX as usize;
        if !(least..=most).contains(&self.window_bytes) {
            return Err(ConfigError::Window { given: self.window_bytes, least, most, max_message_size });
        }
        let times = [
            ("ttl", self.ttl, Duration::from_millis(1)),
            ("heartbeat", self.heartbeat, Duration::from_millis(MIN_HEARTBEAT.into())),
        ];
        match times.into_iter().find(|(_, given, least)| !(*least..=LONGEST).contains(given)) {
            Some((name, given, least)) => {
                let bound = if given < least { least } else { LONGEST };
                Err(ConfigError::SessionTime { name, given, bound })
            }
            None => Ok(()),
        }
    }

    /// What this end tells the other, if it takes messages of so many bytes. Everything has been checked, and fits.
    pub(crate) fn terms(&self, max_message_size: usize) -> Terms {
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let bytes = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Terms {
            max_message: bytes(max_message_size).min(MAX_MESSAGE),
            window: bytes(self.window_bytes),
            heartbeat: ms(self.heartbeat),
            ttl: ms(self.ttl),
        }
    }
}
