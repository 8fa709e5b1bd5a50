//! The time limits of the configuration, by name.

use std::fmt;

/// A time limit that can run out. As text it has the name of its setting in [`Config`](crate::Config).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// [`Config::message_ttl`](crate::Config::message_ttl).
    MessageTtl,
    /// [`Config::write_timeout`](crate::Config::write_timeout).
    WriteTimeout,
    /// [`Config::frame_timeout`](crate::Config::frame_timeout).
    FrameTimeout,
    /// [`Config::idle_timeout`](crate::Config::idle_timeout).
    IdleTimeout,
    /// [`Config::close_timeout`](crate::Config::close_timeout).
    CloseTimeout,
    /// [`Config::drain_timeout`](crate::Config::drain_timeout).
    DrainTimeout,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MessageTtl => "message_ttl",
            Self::WriteTimeout => "write_timeout",
            Self::FrameTimeout => "frame_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::CloseTimeout => "close_timeout",
            Self::DrainTimeout => "drain_timeout",
        })
    }
}

/// The same: it is what is logged.
impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
