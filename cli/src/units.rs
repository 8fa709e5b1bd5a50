//! Sizes, times and permissions as people write them: `1MiB`, `500ms`, `none`, `660`.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// The units of a size, in bytes.
const SIZES: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];
/// The units of a time, in seconds.
const TIMES: [(&str, f64); 6] = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// A number of bytes, or of anything else: `4096`, `64KiB`, `1MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size: write 4096, 64KiB or 1MB");
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len()));
        let number: u64 = number.replace('_', "").parse().map_err(|_| wrong())?;
        let bytes = match unit.trim_start() {
            "" => 1,
            unit => SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
        };
        let size = number.checked_mul(bytes).and_then(|size| usize::try_from(size).ok());
        size.map(Self).ok_or_else(|| format!("{text:?} is more than this machine can count"))
    }
}

/// A time: `500ms`, `10s`, `5m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no time: write 500ms, 10s or 5m");
        let (mut seconds, mut rest) = (0.0, text.trim());
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        // As in `1m 30s`.
        loop {
            let (number, behind) =
                rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?);
            let behind = behind.trim_start();
            let (unit, behind) =
                behind.split_at(behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len()));
            let number: f64 = number.parse().map_err(|_| wrong())?;
            seconds += number * TIMES.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
            rest = behind.trim_start();
            if rest.is_empty() {
                return Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| wrong());
            }
        }
    }
}

/// A limit in time: a time, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeLimit(pub(crate) Option<Duration>);

impl FromStr for TimeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => match text.parse() {
                Ok(Time(limit)) => Ok(Self(Some(limit))),
                Err(_) => Err(format!("{text:?} is no time: write 500ms, 10s or 5m, or none for no limit")),
            },
        }
    }
}

/// The delays of a reconnect: `100ms..10s`, the first and the longest. In a file, they may have the names of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delays {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
    /// For how long. Only a file has it here: on the command line it is an option of its own.
    pub(crate) limit: Option<Duration>,
}

impl FromStr for Delays {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no pair of times: write the first delay and the longest, as 100ms..10s");
        let (first, longest) = text.split_once("..").ok_or_else(wrong)?;
        let (Ok(Time(first)), Ok(Time(longest))) = (first.parse(), longest.parse()) else { return Err(wrong()) };
        Ok(Self { first, longest, limit: None })
    }
}

/// Permissions in octal, as `chmod` takes them: `660`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode(pub(crate) u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self).ok_or_else(|| format!("{text:?} are no permissions: write three octal digits, as 660"))
    }
}

/// What the file of settings may have: the text that the option takes, or a number, which is read as that text.
struct Text<T>(PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the option of this name takes, as a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// Reads what has a text for the command line from a file in the same way.
macro_rules! deserialize_as_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Text(PhantomData))
            }
        }
    )*};
}

deserialize_as_text!(Size, Time, TimeLimit, crate::format::Format);

/// A text, or the figures of the library's `Backoff`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "neither a text like \"100ms..10s\" nor { first = \"100ms\", longest = \"10s\" }")]
enum TextOrFigures {
    Text(String),
    Figures(Figures),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Figures {
    first: Time,
    longest: Time,
    #[serde(default, alias = "max-elapsed")]
    max_elapsed: Option<TimeLimit>,
}

impl<'de> Deserialize<'de> for Delays {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match TextOrFigures::deserialize(deserializer)? {
            TextOrFigures::Text(text) => text.parse().map_err(de::Error::custom),
            TextOrFigures::Figures(Figures { first: Time(first), longest: Time(longest), max_elapsed }) => {
                Ok(Self { first, longest, limit: max_elapsed.and_then(|TimeLimit(limit)| limit) })
            }
        }
    }
}

/// A text with octal digits, or a number, which TOML has in octal as well: 0o660.
#[derive(Deserialize)]
#[serde(untagged, expecting = "neither a text like \"660\" nor a number like 0o660")]
enum TextOrNumber {
    Text(String),
    Number(u32),
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match TextOrNumber::deserialize(deserializer)? {
            TextOrNumber::Text(text) => text,
            TextOrNumber::Number(mode) => format!("{mode:o}"),
        };
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        let sizes = [("4096", 4096), ("64KiB", 65_536), ("1 MiB", 1 << 20), ("1MB", 1_000_000), ("1_000", 1000)];
        for (text, size) in sizes {
            assert_eq!(text.parse(), Ok(Size(size)), "{text}");
        }
        for text in ["", "MiB", "4k", "1.5MiB", "-1", "99999999999999999999", "99999999999GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_units_and_may_be_none_as_limits() {
        let times = [("500ms", 500), ("10s", 10_000), ("1.5s", 1_500), ("5m", 300_000), ("1m 30s", 90_000), ("0", 0)];
        for (text, millis) in times {
            assert_eq!(text.parse(), Ok(Time(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "5", "s", "5 minutes", "-1s", "none", "1e400s", "1m 30", "1m30"] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
        assert_eq!("none".parse(), Ok(TimeLimit(None)));
        assert!("never".parse::<TimeLimit>().is_err());
    }

    #[test]
    fn delays_and_permissions() {
        let delays = Delays { first: Duration::from_millis(100), longest: Duration::from_secs(10), limit: None };
        assert_eq!("100ms..10s".parse(), Ok(delays));
        assert!("100ms".parse::<Delays>().is_err());
        assert_eq!("660".parse(), Ok(Mode(0o660)));
        assert!(["8", "1777", ""].iter().all(|text| text.parse::<Mode>().is_err()));
    }
}
