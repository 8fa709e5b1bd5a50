//! How long to wait before a connection is opened again, and when to give up.

use std::fmt;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use crate::foreign;

/// How long a connection must have lived before a break of it counts as a new outage. Longer than a peer takes that
/// accepts and closes at once, and shorter than any outage that somebody would notice.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// The policy of [`Config::reconnect`](crate::Config::reconnect): the delays between the attempts to open a connection
/// again.
///
/// In each outage the first attempt is made at once, the next after the first delay, and so on. The outage ends in one
/// of two ways: with a connection that was [stable](Self::stable_after), or when it gives up, because there are no more
/// delays or [`max_elapsed`](Self::max_elapsed) is over. Then the delays start over. A connection that breaks before it
/// was stable belongs to the outage before it, even if it took messages: a peer that accepts and closes, or fails at
/// each message, is dialed with delays that grow, and given up.
///
/// When it gives up, what is held comes back. Where nothing is held, nothing does. The address of a manager is
/// [down](crate::Health::Down) then: it is dialed in the background, by the delays that are left, and after them at the longest
/// that there was, a second if there was none; what is sent comes back at once. With the next connection all starts over. For
/// a `Connection` it is the next message that is the first of a new outage.
///
/// A peer that takes longer than `stable_after` to refuse a message, closing the connection each time, is sent that
/// message again without end: then [`Config::message_ttl`] is the bound.
///
/// The iterator may panic, and so may the closure that makes it: then it gives up, with
/// [`Error::Panicked`](crate::Error::Panicked).
///
/// [`Config::message_ttl`]: crate::Config::message_ttl
///
/// ```
/// use std::time::Duration;
/// use buffstreams::{Backoff, Config};
///
/// let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(30));
/// let config = Config::new().reconnect(backoff.max_elapsed(Duration::from_secs(300)));
///
/// // Any delays will do: three attempts, a second apart.
/// let config = Config::new().reconnect(Backoff::from_fn(|| [Duration::from_secs(1); 2]));
/// ```
///
/// Two are equal if they have the same figures, or closures of which one is a clone of the other.
///
/// With the feature `serde`, an exponential one is its figures: `{ first = "100ms", longest = "30s" }`, and where they are not the
/// default, `max_elapsed = "5m"` and `stable_after = "5s"`. One of a closure is an error to serialize.
#[derive(Clone, PartialEq)]
pub struct Backoff {
    delays: Source,
    pub(crate) max_elapsed: Option<Duration>,
    pub(crate) stable_after: Duration,
}

/// The delays of one outage.
pub(crate) type Delays = Box<dyn Iterator<Item = Duration> + Send>;

/// Where the delays come from.
#[derive(Clone, PartialEq)]
enum Source {
    Exponential { first: Duration, longest: Duration },
    Program(Maker),
}

/// What makes the delays. It is the program's, and may panic when its last clone is dropped, which may be in a drop of ours.
#[derive(Clone)]
struct Maker(Option<Arc<dyn Fn() -> Delays + Send + Sync>>);

impl PartialEq for Maker {
    fn eq(&self, other: &Self) -> bool {
        let pointer = |maker: &Self| maker.0.as_ref().map(|make| Arc::as_ptr(make).cast::<()>());
        pointer(self) == pointer(other)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = foreign::dispose(self.0.take());
    }
}

impl Backoff {
    /// Delays that double from `first` to `longest`, without an end. Each is jittered: drawn from the upper half, so that
    /// clients that lost the same peer at the same moment do not come back at the same moment.
    pub fn exponential(first: Duration, longest: Duration) -> Self {
        Self::of(Source::Exponential { first, longest })
    }

    /// The delays of the iterator that `delays` makes, a new one for each outage whose first attempt fails. It gives up
    /// at their end. They are used as they are, except that one below 1 ms lasts 1 ms: jitter them where many clients
    /// share a peer. The builders of the `backon` crate fit in: `Backoff::from_fn(move || builder.build())`.
    pub fn from_fn<I>(delays: impl Fn() -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item = Duration>,
        I::IntoIter: Send + 'static,
    {
        // It is asked again after its end.
        let make = move || -> Delays { Box::new(delays().into_iter().fuse()) };
        Self::of(Source::Program(Maker(Some(Arc::new(make)))))
    }

    fn of(delays: Source) -> Self {
        Self { delays, max_elapsed: None, stable_after: STABLE_AFTER }
    }

    /// Gives up rather than make an attempt when the outage has lasted for longer than this. Default: no limit.
    ///
    /// It lasts from its first break, or from the first message after that if nothing was held, and goes on while a connection
    /// is open that is not stable yet.
    #[must_use]
    pub fn max_elapsed(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.max_elapsed = limit.into();
        self
    }

    /// How long a connection must have lived to end the outage: its break is a new one. Default: 5 s.
    #[must_use]
    pub fn stable_after(mut self, age: Duration) -> Self {
        self.stable_after = age;
        self
    }

    /// What [`max_elapsed`](Self::max_elapsed) is set to; `None` is no limit.
    pub fn get_max_elapsed(&self) -> Option<Duration> {
        self.max_elapsed
    }

    /// What [`stable_after`](Self::stable_after) is set to.
    pub fn get_stable_after(&self) -> Duration {
        self.stable_after
    }

    /// May call the program. What is drawn comes from `seed`.
    pub(crate) fn delays(&self, seed: u64) -> Delays {
        match &self.delays {
            Source::Exponential { first, longest } => exponential(*first, *longest, seed),
            Source::Program(maker) => maker.0.as_ref().map_or_else(Self::none, |make| make()),
        }
    }

    /// No delays at all.
    pub(crate) fn none() -> Delays {
        Box::new(iter::empty())
    }
}

fn exponential(first: Duration, longest: Duration, seed: u64) -> Delays {
    let mut rng = fastrand::Rng::with_seed(seed);
    let doubled = iter::successors(Some(first.min(longest)), move |delay| Some(delay.saturating_mul(2).min(longest)));
    Box::new(doubled.map(move |delay| jittered(delay, rng.f64())))
}

/// A delay from the upper half: `drawn` is from 0 to 1. The product of the longest delay and 1.0 would not fit into one.
fn jittered(delay: Duration, drawn: f64) -> Duration {
    delay - delay.mul_f64(drawn / 2.0)
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Backoff");
        if let Source::Exponential { first, longest } = &self.delays {
            debug.field("first", first).field("longest", longest);
        }
        debug.field("max_elapsed", &self.max_elapsed).field("stable_after", &self.stable_after).finish_non_exhaustive()
    }
}

/// The figures of an exponential one.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename = "Backoff", deny_unknown_fields)]
struct Figures {
    #[serde(with = "crate::duration::always")]
    first: Duration,
    #[serde(with = "crate::duration::always")]
    longest: Duration,
    #[serde(with = "crate::duration::limit", default)]
    max_elapsed: Option<Duration>,
    #[serde(with = "crate::duration::always", default = "Figures::stable_after")]
    stable_after: Duration,
}

#[cfg(feature = "serde")]
impl Figures {
    fn stable_after() -> Duration {
        STABLE_AFTER
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Backoff {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Source::Exponential { first, longest } = self.delays else {
            return Err(serde::ser::Error::custom("a backoff made of a closure cannot be serialized"));
        };
        let Self { max_elapsed, stable_after, .. } = *self;
        Figures { first, longest, max_elapsed, stable_after }.serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Backoff {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Figures { first, longest, max_elapsed, stable_after } = Figures::deserialize(deserializer)?;
        Ok(Self::exponential(first, longest).max_elapsed(max_elapsed).stable_after(stable_after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept here because hardly any seed draws it.
    #[test]
    fn the_longest_delay_may_be_drawn_as_a_whole() {
        assert_eq!(jittered(Duration::MAX, 0.0), Duration::MAX);
        let half = jittered(Duration::MAX, 1.0);
        assert!(half >= Duration::MAX / 2 && half <= Duration::MAX / 2 + Duration::from_secs(1), "{half:?}");
    }
}
