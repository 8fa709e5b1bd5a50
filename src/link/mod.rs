//! What opens a connection again that broke: how often and when it is dialed, and the attempt that is under way.
//!
//! The books of the attempts, [`Retries`], last as long as the connection; [`Down`] is there from a break until the
//! connection is open again. What the connection is for meanwhile, who is told, and what else goes on while it waits, is
//! the business of whoever has one.

mod attempts;
mod dial;

use std::future::Future;
use std::io;
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
/// error, in the form in which its owner tells it when there is no other attempt.
pub(crate) struct Down<W> {
    pub(crate) why: W,
    step: Step,
}

enum Step {
    /// No attempt is under way.
    Idle,
    /// The delay before it; `None` where that is over.
    Waiting(Option<Sleep>),
    Dialing(Dial),
}

type Sleep = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl<W: From<Error>> Down<W> {
    pub(crate) fn new(why: W) -> Self {
        Self { why, step: Step::Idle }
    }

    /// Whether no attempt is under way.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.step, Step::Idle)
    }

    /// Begins the next attempt; `false` to give up.
    pub(crate) fn begin(&mut self, retries: &mut Retries, runtime: &Handle) -> bool {
        match retries.next(runtime.now()) {
            Ok(Some(delay)) => {
                self.wait(delay, runtime);
                return true;
            }
            Ok(None) => {}
            Err(error) => self.why = error.into(),
        }
        false
    }

    /// Begins an attempt after this delay.
    pub(crate) fn wait(&mut self, delay: Duration, runtime: &Handle) {
        let sleep: Option<Sleep> = if delay.is_zero() { None } else { Some(Box::pin(runtime.sleep(delay))) };
        self.step = Step::Waiting(sleep);
    }

    /// Whether the delay is not known to be over.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.step, Step::Waiting(Some(_)))
    }

    /// Ready when the delay is over.
    pub(crate) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Step::Waiting(sleep) = &mut self.step {
            if let Some(sleeping) = sleep {
                ready!(sleeping.as_mut().poll(cx));
            }
            *sleep = None;
        }
        Poll::Ready(())
    }

    /// Dials, whether or not the delay is over.
    pub(crate) fn dial(&mut self, address: &Address, config: &Config) -> Dial {
        let dial = Dial::new(address.clone(), config.clone());
        self.step = Step::Dialing(dial.clone());
        dial
    }

    /// What the dial comes to; `None` where it failed, and `why` says how.
    pub(crate) fn poll_dialed(&mut self, cx: &mut Context<'_>) -> Poll<Option<Stream>> {
        let Step::Dialing(dial) = &self.step else { return Poll::Ready(None) };
        let dialed = ready!(dial.poll(cx));
        self.step = Step::Idle;
        Poll::Ready(dialed.map_err(|error| self.why = error.into()).ok())
    }

    /// Makes one attempt after another; `None` when there are no more of them, and what is dialed for next is another outage.
    pub(crate) fn poll_open(
        &mut self,
        retries: &mut Retries,
        address: &Address,
        config: &Config,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Stream>> {
        loop {
            match self.step {
                Step::Idle => {
                    if !self.begin(retries, &config.runtime) {
                        retries.start_over();
                        return Poll::Ready(None);
                    }
                }
                Step::Waiting(_) => {
                    ready!(self.poll_due(cx));
                    self.dial(address, config);
                }
                Step::Dialing(_) => {
                    if let Some(stream) = ready!(self.poll_dialed(cx)) {
                        return Poll::Ready(Some(stream));
                    }
                }
            }
        }
    }
}

/// What there is to say of a peer that has closed before it took what is to be written.
pub(crate) fn why_closed(stream: &Stream) -> Error {
    stream.take_error().map_or_else(closed_by_peer, Error::Write)
}

/// The same, where the socket is not asked: what it would say, it says once, and whoever reads it may wait for that.
pub(crate) fn closed_by_peer() -> Error {
    Error::Write(io::ErrorKind::BrokenPipe.into())
}
