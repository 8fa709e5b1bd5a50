//! Publishes messages, thousands at a time, whose answers come by one subscription.
//!
//! It does what `publish` of a JetStream context does, without a future, a timer and a channel for each message.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::message::OutboundMessage;
use async_nats::{Client, Message, Subscriber};
use futures::{SinkExt, StreamExt};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use crate::error::Error;
use crate::room::Place;
use crate::store::{Attempts, Outbound, Store, Stored, is_connected};

/// How often it looks for answers that are late, in parts of the time that they have.
const LOOKS: u32 = 8;

/// A message that is to be stored, and its place in the room.
pub(crate) struct Job<A> {
    pub(crate) arrival: A,
    pub(crate) place: Place,
    pub(crate) outbound: Outbound,
    pub(crate) attempts: Attempts,
}

/// What was published, until it is answered.
pub(crate) struct Publisher<A> {
    client: Client,
    /// `None` where the client has ended, and publishes nothing any more.
    answers: Option<Subscriber>,
    /// Of the subject of an answer. The rest is the number of what it answers.
    prefix: String,
    last: u64,
    waiting: HashMap<u64, Waiting<A>>,
    /// How long each may wait.
    timeout: Duration,
    look: Interval,
    /// Those that have waited longer, the first one first.
    late: VecDeque<u64>,
}

struct Waiting<A> {
    job: Job<A>,
    since: Instant,
}

impl<A> Publisher<A> {
    pub(crate) async fn new(store: &Store) -> Self {
        let (client, timeout) = (store.client(), store.timeout());
        let prefix = format!("{}.", client.new_inbox());
        let answers = client.subscribe(format!("{prefix}*")).await.ok();
        let mut look = interval((timeout / LOOKS).max(Duration::from_millis(1)));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (waiting, late) = (HashMap::new(), VecDeque::new());
        Self { client, answers, prefix, last: 0, waiting, timeout, look, late }
    }

    /// Whether there is nothing to wait for.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Hands it to the client of NATS; what becomes of it comes by [`next`](Self::next). Or it comes back at once.
    pub(crate) async fn publish(&mut self, mut job: Job<A>) -> Result<(), (Job<A>, Error)> {
        if self.answers.is_none() || !is_connected(&self.client) {
            return Err((job, Error::Disconnected));
        }
        // It waits when the socket does, and for good when the connection breaks meanwhile.
        let ready = timeout(self.timeout, poll_fn(|cx| self.client.poll_ready_unpin(cx)));
        if !matches!(ready.await, Ok(Ok(()))) {
            return Err((job, Error::Disconnected));
        }
        self.last += 1;
        let (subject, headers, payload) = job.outbound.parts();
        let reply = Some(format!("{}{}", self.prefix, self.last).into());
        match self.client.start_send_unpin(OutboundMessage { subject, payload, reply, headers: Some(headers) }) {
            Ok(()) => {
                job.attempts.published = true;
                self.waiting.insert(self.last, Waiting { job, since: Instant::now() });
                Ok(())
            }
            Err(source) if source.kind() == PublishErrorKind::MaxPayloadExceeded => {
                let error = job.outbound.too_large(source);
                Err((job, error))
            }
            Err(_) => Err((job, Error::Disconnected)),
        }
    }

    /// The next that is answered, or whose answer is late. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> (Job<A>, Result<Stored, Error>) {
        loop {
            while let Some(number) = self.late.pop_front() {
                if let Some(Waiting { job, .. }) = self.waiting.remove(&number) {
                    return (job, Err(Error::Unacknowledged));
                }
            }
            let answers = async { self.answers.as_mut()?.next().await };
            tokio::select! {
                Some(answer) = answers => {
                    if let Some(job) = self.answered(&answer) {
                        let stored = job.outbound.stored(&answer);
                        return (job, stored);
                    }
                }
                _ = self.look.tick(), if !self.waiting.is_empty() => self.find_late(),
                else => std::future::pending().await,
            }
        }
    }

    /// What it is an answer to. One that is late may be for something that is published again by now.
    fn answered(&mut self, answer: &Message) -> Option<Job<A>> {
        let number = answer.subject.strip_prefix(&self.prefix)?.parse().ok()?;
        self.waiting.remove(&number).map(|waiting| waiting.job)
    }

    fn find_late(&mut self) {
        let is_late = |waiting: &Waiting<A>| waiting.since.elapsed() >= self.timeout;
        self.late.extend(self.waiting.iter().filter(|(_, waiting)| is_late(waiting)).map(|(number, _)| number));
        self.late.make_contiguous().sort_unstable();
    }
}
