//! Durations as a person writes them, `5s` or `1m 30s`, for serde: a field names [`always`] or [`limit`].

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;

/// What stands for no limit. Not every format of files has a way to write that nothing is there.
const NONE: &str = "none";

/// A duration.
pub(crate) mod always {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        struct Always;

        impl Visitor<'_> for Always {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration like \"5s\", \"250ms\" or \"1m 30s\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
                parse(text)
            }
        }

        deserializer.deserialize_str(Always)
    }
}

/// A duration, or no limit.
pub(crate) mod limit {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(limit: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match limit {
            Some(limit) => always::serialize(limit, serializer),
            None => serializer.serialize_str(NONE),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        struct Limit;

        impl Visitor<'_> for Limit {
            type Value = Option<Duration>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration like \"5s\", \"250ms\" or \"1m 30s\", or \"none\" for no limit")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                if text == NONE { Ok(None) } else { parse(text).map(Some) }
            }
        }

        deserializer.deserialize_str(Limit)
    }
}

fn parse<E: Error>(text: &str) -> Result<Duration, E> {
    humantime::parse_duration(text).map_err(|error| E::custom(format_args!("{text:?} is no duration: {error}")))
}
