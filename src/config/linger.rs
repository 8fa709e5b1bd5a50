//! When what was fed is handed over although nobody flushes.

use std::time::Duration;

/// That of a manager's sinks, where nothing else is said.
const OF_SINKS: Duration = Duration::from_millis(5);

/// The setting: `None` of one that was set is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Linger {
    /// A manager's sinks linger, and a connection does not.
    #[default]
    Unset,
    Set(Option<Duration>),
}

impl Linger {
    /// That of a manager's sinks.
    pub(crate) fn of_sinks(self) -> Option<Duration> {
        match self {
            Self::Unset => Some(OF_SINKS),
            Self::Set(linger) => linger,
        }
    }

    /// That of a connection.
    pub(crate) fn of_connections(self) -> Option<Duration> {
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
            limit::serialize(&self.of_sinks(), serializer)
        }
    }

    impl<'de> Deserialize<'de> for Linger {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            limit::deserialize(deserializer).map(Self::Set)
        }
    }
}
