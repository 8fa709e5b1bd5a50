//! When what was fed is handed over although nobody flushes.

use std::time::Duration;

/// Where there is a task for it, and nothing else is said.
const OF_TASKS: Duration = Duration::from_millis(5);

/// The setting: `None` of one that was set is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Linger {
    /// What has a task lingers: a manager's sink, and a connection in a session. Another connection does not.
    #[default]
    Unset,
    Set(Option<Duration>),
}

impl Linger {
    /// That of a manager's sinks, and of connections in a session.
    pub(crate) fn with_task(self) -> Option<Duration> {
        match self {
            Self::Unset => Some(OF_TASKS),
            Self::Set(linger) => linger,
        }
    }

    /// That of a connection without a session, which gets a task for it.
    pub(crate) fn without_task(self) -> Option<Duration> {
        match self {
            Self::Unset => None,
            Self::Set(linger) => linger,
        }
    }

    #[cfg(feature = "serde")]
    pub(super) fn is_unset(&self) -> bool {
        *self == Self::Unset
    }
}

/// In a file it is a limit like others. One that is not set is left out.
#[cfg(feature = "serde")]
mod in_a_file {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Linger;
    use crate::duration::limit;

    impl Serialize for Linger {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            limit::serialize(&self.with_task(), serializer)
        }
    }

    impl<'de> Deserialize<'de> for Linger {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            limit::deserialize(deserializer).map(Self::Set)
        }
    }
}
