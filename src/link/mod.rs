//! What opens a connection again that broke: how often and when it is dialed, and the attempt that is under way.
//!
//! The books of the attempts, [`Retries`], last as long as the connection; [`Down`] is there from a break until it is open
//! again. What is held meanwhile, and who is told, is the business of whoever drives it.

mod attempts;
mod dial;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::config::Config;
use crate::error::Error;
use crate::peer::Address;
use crate::runtime::Handle;
use crate::transport::Stream;
pub(crate) use attempts::Retries;
pub(crate) use dial::Dial;

/// A connection that broke, or could not be opened again, and how far it is with the next attempt. `W` is why: the last
/// error, as its owner tells it when there is no other attempt.
pub(crate) struct Down<W> {
    pub(crate) why: W,
    step: Step,
}

enum Step {
    /// No attempt is under way.
    Idle,
    /// For the delay before it; `None` where that is over.
    Waiting(Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>),
    Dialing(Dial),
}

/// How far it has come.
pub(crate) enum Progress {
    /// The delay is over, and this comes next, unless it is [stopped](Down::stop).
    Due(Dial),
    Opened(Stream),
    /// The dial failed, and the next attempt comes next.
    Failed,
    /// There is no other attempt.
    GaveUp,
}

impl<W: From<Error>> Down<W> {
    pub(crate) fn new(why: W) -> Self {
        Self { why, step: Step::Idle }
    }

    /// Goes on to whatever its owner may want to know.
    pub(crate) fn poll_progress(
        &mut self,
        retries: &mut Retries,
        address: &Address,
        config: &Config,
        cx: &mut Context<'_>,
    ) -> Poll<Progress> {
        loop {
            match &mut self.step {
                Step::Idle => match retries.next(config.runtime.now()) {
                    Ok(Some(delay)) => self.wait(delay, &config.runtime),
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
                    let dial = Dial::new(address.clone(), config.clone());
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

    /// Begins an attempt with this delay.
    pub(crate) fn wait(&mut self, delay: Duration, runtime: &Handle) {
        self.step = Step::Waiting(if delay.is_zero() { None } else { Some(Box::pin(runtime.sleep(delay))) });
    }

    /// Makes the attempt at once.
    pub(crate) fn hurry(&mut self) {
        if let Step::Waiting(sleep) = &mut self.step {
            *sleep = None;
        }
    }

    /// Gives the attempt up that is under way.
    pub(crate) fn stop(&mut self) {
        self.step = Step::Idle;
    }
}
