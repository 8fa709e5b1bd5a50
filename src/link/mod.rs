//! What opens a connection again that broke: how often and when it is dialed, and the attempt that is under way.
//!
//! The books of the attempts, [`Retries`], last as long as the connection; [`Down`] is there from a break until it is open
//! again. What is held meanwhile, and who is told, is the business of its driver.

mod attached;
mod attempts;
mod burials;
mod dial;
mod handle;
mod handshake;
mod health;
mod lingering;
#[cfg(feature = "metrics")]
mod metrics;
mod opened;
mod owner;
mod redial;
mod serve;
mod session;
mod socket;
mod stats;
mod task;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::Error;
use crate::peer::Address;
use crate::runtime::Handle;
use crate::transport::Stream;
pub(crate) use attached::{Attached, Break, Came};
pub(crate) use attempts::Retries;
pub(crate) use dial::Dial;
pub(crate) use handle::Link;
pub use health::Health;
pub(crate) use opened::First;
pub(crate) use owner::{News, Owner};
pub(crate) use session::lost_by;
pub use stats::LinkStats;

/// A connection that broke, or could not be opened again, and how far it is with the next attempt. `W` is why: the last
/// error, as its owner tells it when there is no other attempt.
pub(crate) struct Down<W, T = Stream> {
    pub(crate) why: W,
    /// The other end has said so: whatever the delay, no attempt is made before.
    pub(crate) not_before: Option<Instant>,
    step: Step<T>,
}

enum Step<T> {
    /// No attempt is under way.
    Idle,
    /// For the delay before it; `None` where that is over.
    Waiting(Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>),
    Dialing(Dial<T>),
}

/// How far it has come.
pub(crate) enum Progress<T = Stream> {
    /// The delay is over, and this comes next, unless it is [stopped](Down::stop).
    Due(Dial<T>),
    Opened(T),
    /// The dial failed, and the next attempt comes next.
    Failed,
    /// There is no other attempt.
    GaveUp,
}

impl<W: From<Error>> Down<W> {
    /// Goes on to whatever its owner may want to know.
    pub(crate) fn poll_progress(
        &mut self,
        retries: &mut Retries,
        address: &Address,
        config: &Config,
        cx: &mut Context<'_>,
    ) -> Poll<Progress> {
        self.poll_attempts(retries, &config.runtime, || Dial::new(address.clone(), config.clone()), cx)
    }
}

impl<W: From<Error>, T> Down<W, T> {
    pub(crate) fn new(why: W) -> Self {
        Self { why, not_before: None, step: Step::Idle }
    }

    /// Goes on to whatever its owner may want to know. An attempt is what `dial` makes.
    pub(crate) fn poll_attempts(
        &mut self,
        retries: &mut Retries,
        runtime: &Handle,
        mut dial: impl FnMut() -> Dial<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Progress<T>> {
        loop {
            match &mut self.step {
                Step::Idle => match retries.next(runtime.now()) {
                    Ok(Some(delay)) => self.wait(delay, runtime),
                    Ok(None) => return Poll::Ready(Progress::GaveUp),
                    Err(error) => {
                        self.why = error.into();
                        return Poll::Ready(Progress::GaveUp);
                    }
                },
                Step::Waiting(sleep) => {
                    if let Some(sleep) = sleep {
                        ready!(sleep.as_mut().poll(cx));
                    }
                    let dial = dial();
                    self.step = Step::Dialing(dial.clone());
                    return Poll::Ready(Progress::Due(dial));
                }
                Step::Dialing(dial) => {
                    let dialed = ready!(dial.poll(cx));
                    self.step = Step::Idle;
                    let failed = |error: Error| self.why = error.into();
                    return Poll::Ready(dialed.map_err(failed).map_or(Progress::Failed, Progress::Opened));
                }
            }
        }
    }

    /// Begins an attempt with this delay, which starts when the other end lets it.
    pub(crate) fn wait(&mut self, delay: Duration, runtime: &Handle) {
        let closed = self.not_before.map(|at| at.saturating_duration_since(runtime.now()));
        let delay = delay.saturating_add(closed.unwrap_or_default());
        self.step = Step::Waiting(if delay.is_zero() { None } else { Some(Box::pin(runtime.sleep(delay))) });
    }

    /// Makes the attempt without a delay.
    pub(crate) fn hurry(&mut self, runtime: &Handle) {
        if let Step::Waiting(_) = self.step {
            self.wait(Duration::ZERO, runtime);
        }
    }

    /// Gives the attempt up that is under way.
    pub(crate) fn stop(&mut self) {
        self.step = Step::Idle;
    }
}
