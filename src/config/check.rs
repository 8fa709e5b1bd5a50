//! What settings come to, and whether they can work.

use std::time::Duration;

use super::Config;
use crate::backoff::Backoff;
use crate::error::{ConfigError, Error, Limit};
use crate::session::{MAGIC, MAX_MESSAGE, Session};
use crate::wire::{Codec, WireFormat};

/// What the option of the kernel takes: milliseconds, as a signed number of 32 bits. 0 would mean its own default.
const USER_TIMEOUT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(i32::MAX as u64));

/// The shortest and the longest delay between two attempts to open a connection of a session again, where nothing else is said.
pub(super) const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl Config {
    /// The value of a limit; `None` where there is none.
    pub(crate) fn limit(&self, limit: Limit) -> Option<Duration> {
        match limit {
            Limit::MessageTtl => self.message_ttl,
            Limit::WriteTimeout => self.write_timeout,
            Limit::FrameTimeout => self.frame_timeout,
            Limit::IdleTimeout => self.idle_timeout,
            Limit::CloseTimeout => self.close_timeout,
            Limit::DrainTimeout => self.drain_timeout,
        }
    }

    /// This limit, which there is, has run out.
    pub(crate) fn ran_out(&self, what: Limit) -> Error {
        Error::Timeout { what, after: self.limit(what).unwrap_or_default() }
    }

    /// Whether and how a connection that broke is opened again: with a session it always is.
    pub(crate) fn backoff(&self) -> Option<Backoff> {
        let of_session = |session: &Session| Backoff::exponential(REDIAL.0, REDIAL.1).max_elapsed(session.ttl);
        self.reconnect.clone().or_else(|| self.session.as_ref().map(of_session))
    }

    /// How many bytes are held while a peer is away.
    pub(crate) fn room_while_down(&self) -> Option<usize> {
        self.backoff().map(|_| self.queue_bytes)
    }

    /// The format of what is sent and received, with its limit, if all settings can work. That of a session is always the same.
    pub(crate) fn codec(&self) -> Result<Codec, ConfigError> {
        let Some(session) = &self.session else { return self.plain_codec() };
        self.check()?;
        let codec = Codec::new(WireFormat::u32_be(), self.max_message_size.min(MAX_MESSAGE as usize))?;
        session.check(codec.max())?;
        if session.or_plain {
            let (plain, byte) = (self.plain_codec()?, MAGIC[0]);
            if plain.can_begin_with(byte) {
                let (wire_format, max_message_size) = (self.wire_format.to_string(), plain.max());
                return Err(ConfigError::Ambiguous { wire_format, max_message_size, byte });
            }
        }
        Ok(codec)
    }

    /// The format of a peer without a session, with its limit, if all settings of such a one can work.
    pub(crate) fn plain_codec(&self) -> Result<Codec, ConfigError> {
        self.check()?;
        Codec::new(self.wire_format, self.max_message_size)
    }

    /// Whether the settings can work, whatever the format.
    fn check(&self) -> Result<(), ConfigError> {
        let counts = [
            ("inbox_bytes", self.inbox_bytes),
            ("queue_bytes", self.queue_bytes),
            ("max_connections", self.max_connections),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::Zero { name });
        }
        // Zero as a limit of these would end everything at once; what was meant is mostly no limit.
        const SHORTEST: Duration = Duration::from_nanos(1);
        let times = [
            ("dial_timeout", self.dial_timeout, SHORTEST, Duration::MAX),
            ("write_timeout", self.write_timeout, SHORTEST, Duration::MAX),
            ("frame_timeout", self.frame_timeout, SHORTEST, Duration::MAX),
            ("idle_timeout", self.idle_timeout, SHORTEST, Duration::MAX),
            ("keepalive", self.keepalive, SHORTEST, Duration::MAX),
            ("user_timeout", self.user_timeout, USER_TIMEOUT.0, USER_TIMEOUT.1),
        ];
        for (name, given, least, most) in times {
            if let Some(given) = given.filter(|given| !(least..=most).contains(given)) {
                return Err(ConfigError::Time { name, given, least, most });
            }
        }
        match self.unix_mode.filter(|mode| *mode > 0o777) {
            Some(given) => Err(ConfigError::UnixMode { given }),
            None => Ok(()),
        }
    }
}
