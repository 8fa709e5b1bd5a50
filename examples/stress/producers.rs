//! Who sends through a manager, and who takes its dead letters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_std::task::yield_now;
use buffstreams::{Address, Bytes, DeadLetters, Error};
use fastrand::Rng;
use futures::future::join_all;
use futures::{FutureExt, SinkExt, StreamExt};

use super::accounts::{Account, Counters};
use super::actors::World;
use super::books::{MAX_MESSAGE, Producer, violation};
use super::faults::{Kind, happened};
use super::tasks::{Step, Wait};
use super::timer::{sleep, timeout};

/// What one who sends needs.
pub(crate) struct Sends {
    pub(crate) account: Arc<Account>,
    pub(crate) world: Arc<World>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) rng: Rng,
    /// Nothing more is to be offered.
    pub(crate) over: Arc<AtomicBool>,
}

impl Sends {
    fn go_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn producer(&self) -> Arc<Producer> {
        self.world.books.producer(self.account.id)
    }

    /// A message to offer.
    fn next(&mut self, producer: &Producer) -> (u32, Bytes) {
        self.account.counters.offer();
        producer.next(&self.world.books, &mut self.rng)
    }

    fn address(&mut self) -> Address {
        let at = self.rng.usize(0..self.addresses.len());
        self.addresses[at].clone()
    }

    /// What was offered came back, and was not sent.
    fn came_back(&self, producer: &Producer, number: u32, error: Error) {
        let was_accepted = matches!(error, Error::NotSent { .. });
        let known = matches!(error, Error::NotSent { .. } | Error::NotOpen { .. } | Error::MessageTooLarge { .. });
        let kept = format!("{error:?}");
        if !known || error.into_unsent().is_none() {
            return violation(format!("a message did not come back with its error: {kept}"));
        }
        producer.unsent(number, "an error");
        if was_accepted {
            self.account.counters.returned();
        }
    }

    /// Lets others run: nothing else here may ever wait.
    async fn rest(&mut self) {
        match self.rng.u32(0..16) {
            0 => sleep(Duration::from_millis(1)).await,
            _ => yield_now().await,
        }
    }

    /// Whether no address is of use any more; waits a little, so that an outage is not spent on errors.
    async fn is_over(&self) -> bool {
        sleep(Duration::from_millis(2)).await;
        let open = self.account.manager.addresses();
        !self.addresses.iter().any(|address| open.contains(address))
    }
}

/// Writes one message after the other to one address, until it is closed. Some writes are given up.
pub(crate) async fn write(step: Step, mut sends: Sends) {
    let (producer, address) = (sends.producer(), sends.address());
    sends.addresses = vec![address.clone()];
    while sends.go_on() {
        let (number, message) = sends.next(&producer);
        let writing = sends.account.manager.write(&address, message);
        let limit = Duration::from_millis(sends.rng.u64(0..30));
        let written = match sends.rng.u32(0..8) {
            0 => {
                let written = writing.now_or_never();
                happened(Kind::FutureDropped);
                written
            }
            1 => {
                let written = step.during(Wait::Write, timeout(limit, writing)).await;
                happened(Kind::WriteGivenUp);
                written
            }
            _ => Some(step.during(Wait::Write, writing).await),
        };
        match written {
            Some(Ok(())) => sends.account.counters.accepted(),
            Some(Err(error)) => {
                sends.came_back(&producer, number, error);
                if sends.is_over().await {
                    return;
                }
            }
            // Whether it was accepted is not known.
            None => {}
        }
        sends.rest().await;
    }
}

/// Many writes at once, each of which is given up after a time.
pub(crate) async fn crowd(step: Step, mut sends: Sends) {
    let address = sends.address();
    let requests: Vec<_> = (0..sends.rng.u32(1..200))
        .map(|_| {
            let producer = sends.producer();
            let (number, message) = sends.next(&producer);
            (producer, number, message, Duration::from_millis(sends.rng.u64(1..40)))
        })
        .collect();
    let sends = &sends;
    let writes = requests.into_iter().map(|(producer, number, message, limit)| {
        let writing = sends.account.manager.write(&address, message);
        async move {
            match timeout(limit, writing).await {
                Some(Ok(())) => sends.account.counters.accepted(),
                Some(Err(error)) => sends.came_back(&producer, number, error),
                None => happened(Kind::WriteGivenUp),
            }
        }
    });
    step.during(Wait::Write, join_all(writes)).await;
}

/// Feeds a sink, to several addresses in turn, until none of them is of use. Now and then it takes another sink.
pub(crate) async fn sink(step: Step, mut sends: Sends) {
    let mut producer = sends.producer();
    let mut sink = sends.account.manager.sink();
    while sends.go_on() {
        let (batch, address) = (sends.rng.u32(1..150), sends.address());
        for _ in 0..batch {
            let (number, message) = sends.next(&producer);
            let fed = step.during(Wait::Flush, timeout(Duration::from_secs(1), sink.feed((address.clone(), message))));
            match fed.await {
                Some(Ok(())) => sends.account.counters.accepted(),
                Some(Err(error)) => {
                    sends.came_back(&producer, number, error);
                    if sends.is_over().await {
                        return;
                    }
                    break;
                }
                // It was dropped before the sink had the message.
                None => producer.unsent(number, "a wait for room"),
            }
        }
        let flushed = match sends.rng.u32(0..6) {
            0 => {
                happened(Kind::FutureDropped);
                sink.flush().now_or_never()
            }
            1 => {
                sink = sends.account.manager.sink();
                producer = sends.producer();
                None
            }
            2 => {
                let closed = step.during(Wait::Flush, sink.close()).await;
                sink = sends.account.manager.sink();
                producer = sends.producer();
                Some(closed)
            }
            3 => {
                happened(Kind::TooLarge);
                let refused = sink.send((address.clone(), vec![0; MAX_MESSAGE + 1].into())).now_or_never();
                let refused = refused.and_then(Result::err).is_none_or(|error| error.into_unsent().is_some());
                if !refused {
                    violation("a message that was too large did not come back".into());
                }
                None
            }
            _ => Some(step.during(Wait::Flush, sink.flush()).await),
        };
        match flushed {
            None | Some(Ok(())) => {}
            Some(Err(Error::NotSent { .. } | Error::NotOpen { .. })) => {
                if sends.is_over().await {
                    return;
                }
            }
            Some(Err(error)) => return violation(format!("a flush: {error:?}")),
        }
        sends.rest().await;
    }
}

/// Takes dead letters, at any speed, for a while or to the end.
pub(crate) async fn take(
    step: Step,
    world: Arc<World>,
    counters: Arc<Counters>,
    mut letters: DeadLetters,
    mut rng: Rng,
) {
    let (most, slow) = (if rng.bool() { rng.u32(0..200) } else { u32::MAX }, rng.bool());
    for _ in 0..most {
        let Some(letter) = step.during(Wait::Letters, letters.next()).await else { return };
        counters.taken();
        world.books.take(&letter);
        if slow && rng.u32(0..16) == 0 {
            sleep(Duration::from_millis(rng.u64(0..10))).await;
        }
    }
    happened(Kind::TakerGoes);
}
