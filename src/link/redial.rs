//! How the task of a link opens its connection again.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use futures::future::{Either, select};

use super::handshake::greet;
use super::opened::Opened;
use super::session::{Dialed, Judged};
use super::task::LinkTask;
use super::{Dial, Down, News, Progress, Retries};
use crate::error::{Error, Loss};
use crate::transport;

/// How long it waits until it dials once more, where messages are to come back and earlier letters are in their way.
const BETWEEN: Duration = Duration::from_secs(1);

impl LinkTask {
    /// Whether there is a session to go on with, although nothing is to be sent. When this end has closed, the other may still
    /// send.
    pub(super) fn resumes(&self) -> bool {
        let (session, outbox) = (self.session.as_ref(), &self.link.outbox);
        let may_come = |session: &Dialed| session.terms().window > 0 && !outbox.is_receiving_over();
        session.is_some_and(|session| session.is_established() && (!outbox.is_closed() || may_come(session)))
    }

    /// Whether it dials although nothing is held: for the first connection, or because it was given up.
    pub(super) fn dials_unasked(&self) -> bool {
        let asks = (self.opens && !self.link.pulse.is_down()) || self.given_up.is_some();
        asks && !self.link.outbox.is_closed()
    }

    /// An attempt to open the connection.
    pub(super) fn dial(&mut self) -> Dial<Opened> {
        let (address, config) = (self.link.address.clone(), self.config.clone());
        let Some(session) = &mut self.session else {
            return Dial::of(async move { transport::dial(&address, &config).await.map(Opened::Plain) });
        };
        let greeting = session.greeting(&address, self.link.outbox.positions());
        Dial::of(async move { greet(greeting, config).await.map(Opened::Greeted) })
    }

    /// Dials until the connection is open; `None` when nothing is left to dial for: it has grown too old, or was given up.
    pub(super) async fn redial(
        &mut self,
        retries: &mut Retries,
        down: &mut Down<Arc<Error>, Opened>,
    ) -> Option<Opened> {
        let (link, runtime) = (self.link.clone(), self.runtime().clone());
        let broke = runtime.now();
        loop {
            down.not_before = self.session.as_ref().and_then(Dialed::not_before);
            let next = self.dial();
            let progress = poll_fn(|cx| down.poll_attempts(retries, &runtime, || next.clone(), cx));
            // A close cannot wait for the end of a long delay: it cuts the one short that it meets. Behind that, all may come back.
            let (was_closed, resumes) = (link.outbox.is_closed(), self.resumes());
            let closing = async {
                if !was_closed {
                    return link.outbox.closed().await;
                }
                let is_over = || !resumes && link.outbox.books().held == 0;
                poll_fn(|_| if is_over() { Poll::Ready(()) } else { Poll::Pending }).await
            };
            // Nor can the end of the session wait for a dial that hangs.
            let expires = self.session.as_ref().and_then(|session| session.expires(broke));
            let left = expires.map(|at| at.saturating_duration_since(runtime.now()));
            let closing = pin!(runtime.within(left, closing));
            let progress = match self.expiring(select(progress, closing)).await {
                Either::Left((progress, _)) => progress,
                Either::Right((Some(()), _)) => {
                    if let Some(verdict) = self.given_up.clone()
                        && self.is_free(Duration::ZERO).await
                    {
                        // The close accepts what was fed.
                        self.give_back(verdict);
                    }
                    if link.outbox.books().held == 0 && !self.resumes() {
                        down.stop();
                        link.socket.let_go();
                        return None;
                    }
                    down.hurry(&runtime);
                    continue;
                }
                Either::Right((None, _)) => {
                    self.lose_session(Loss::Expired);
                    down.stop();
                    link.socket.let_go();
                    return None;
                }
            };
            match progress {
                Progress::Due(dial) => {
                    if self.is_free(Duration::ZERO).await {
                        // Some may have been with a connection until it broke.
                        self.bury_expired();
                    }
                    if let Some(why) = self.session.as_ref().and_then(|session| session.over(broke, runtime.now())) {
                        self.lose_session(why);
                        down.stop();
                        return None;
                    }
                    if link.outbox.books().held == 0 && !self.resumes() && !self.dials_unasked() {
                        down.stop();
                        return None;
                    }
                    link.attempts.store(retries.attempts(), Ordering::Relaxed);
                    link.socket.await_dial(dial);
                }
                Progress::Opened(Opened::Greeted(greeted)) => {
                    let Some(session) = &mut self.session else { return None };
                    let (lost, failed) = match session.judge(&greeted) {
                        Judged::Accepted => return Some(Opened::Greeted(greeted)),
                        Judged::Failed(kind) => (None, Some(kind)),
                        Judged::Refused(kind) => (Some(Loss::Ended), Some(kind)),
                        Judged::Lost(why) => (Some(why), None),
                    };
                    greeted.stream.shut_down();
                    if let Some(why) = lost {
                        self.lose_session(why);
                    }
                    if let Some(kind) = failed {
                        down.why = Arc::new(Error::Handshake { address: link.address.clone(), kind });
                        self.report_failed(retries, down);
                    }
                    if lost.is_some() && link.outbox.books().held == 0 && !self.dials_unasked() {
                        return None;
                    }
                    self.probe(retries, down);
                }
                Progress::Opened(opened) => return Some(opened),
                Progress::Failed => {
                    self.report_failed(retries, down);
                    self.probe(retries, down);
                }
                Progress::GaveUp if self.is_free(Duration::ZERO).await => {
                    self.lose_session(Loss::GaveUp);
                    self.give_up(retries, down.why.clone());
                    let is_new = link.pulse.down(runtime.now(), &down.why, None);
                    self.probe(retries, down);
                    if is_new {
                        self.owner.report(News::Down(down.why.clone()));
                    }
                    self.given_up.as_ref()?;
                }
                Progress::GaveUp => {
                    // Nothing can come back before the letters are taken that came back last.
                    retries.once_more();
                    down.wait(BETWEEN, &runtime);
                }
            }
        }
    }

    fn report_failed(&self, retries: &Retries, down: &Down<Arc<Error>, Opened>) {
        self.owner.report(News::DialFailed { error: down.why.clone(), attempts: retries.attempts() });
    }

    /// Where it was given up, it is dialed once more after a delay, and what comes back meanwhile is told the last error.
    fn probe(&mut self, retries: &mut Retries, down: &mut Down<Arc<Error>, Opened>) {
        let runtime = self.runtime().clone();
        let Some(verdict) = &mut self.given_up else { return };
        (verdict.attempts, verdict.error) = (retries.attempts(), down.why.clone());
        let (now, delay) = (runtime.now(), retries.probe());
        down.wait(delay, &runtime);
        self.link.pulse.down(now, &down.why, now.checked_add(delay));
    }
}
