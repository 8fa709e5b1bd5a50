//! Dead letters that outlive the process.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::{HeaderMap, Subject};
use buffstreams::{Address, DeadLetter, Manager, Outcome, chain};
use futures::stream::{Stream, StreamExt};

use crate::egress::Egress;
use crate::error::Error;
use crate::store::{self, Outbound, Store};

/// The header with the address that a letter was to go to.
pub const ADDRESS: &str = "Buffstreams-Address";
/// The header with what became of it: the text of an [`Outcome`](buffstreams::Outcome).
pub const OUTCOME: &str = "Buffstreams-Outcome";
/// The header with the reason, an error and its causes, in one line.
pub const REASON: &str = "Buffstreams-Reason";
/// The header with the id, the `Nats-Msg-Id`, that a message had in the stream from which [`OnFailure::Move`](crate::OnFailure::Move)
/// took it.
pub const ID: &str = "Buffstreams-Id";

/// How many letters are on their way into the stream at a time.
const AT_A_TIME: usize = 64;

/// Keeps the dead letters of a manager in a JetStream stream, and sends them again when their addresses take messages once more.
///
/// A letter is a message with three headers, [`ADDRESS`], [`OUTCOME`] and [`REASON`].
///
/// ```no_run
/// # use std::time::Duration;
/// # use buffstreams::{Backoff, BoxError, Config, Manager, Tokio};
/// # use buffstreams_nats::{DurableLetters, async_nats};
/// # use async_nats::jetstream::consumer::PullConsumer;
/// # async fn program(jetstream: async_nats::jetstream::Context, consumer: PullConsumer) -> Result<(), BoxError> {
/// let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(30));
/// let config = Config::new().runtime(Tokio::current()).reconnect(backoff.max_elapsed(Duration::from_secs(300)));
/// let manager = Manager::new(config);
///
/// let (letters, dead) = (DurableLetters::new(jetstream, "letters"), manager.dead_letters());
/// tokio::spawn(async move { letters.keep(dead, |letter, error| eprintln!("{}: {error}", letter.address)).await });
/// tokio::spawn(DurableLetters::send_back(consumer, manager.clone()).run());
/// # Ok(()) }
/// ```
pub struct DurableLetters {
    store: Store,
    subject: Result<Subject, String>,
    /// The first part of each letter's id, and the number of the next.
    id: String,
    next: AtomicU64,
}

impl DurableLetters {
    /// Letters into the stream that has this subject. The stream is the program's.
    pub fn new(context: Context, subject: impl Into<String>) -> Self {
        let store = Store::new(context);
        Self { id: store.unique(), store, subject: store::subject(subject), next: AtomicU64::new(0) }
    }

    /// Keeps the letters until there are no more, which is when the manager is gone. Each is published until the stream has it, 64 at
    /// a time; meanwhile the letters behind them wait, and hold on to what they hold on to: see
    /// [`DeadLetters`](buffstreams::DeadLetters). Several may come into the stream in another order.
    ///
    /// What no attempt can store goes to `unstored`: a letter that is too long for the server with its headers, or whose address has an
    /// end of line in it; or all of them, where the subject is none.
    ///
    /// Dropping the future loses the letters that are on their way.
    pub async fn keep(&self, letters: impl Stream<Item = DeadLetter>, mut unstored: impl FnMut(DeadLetter, Error)) {
        let keeping = letters.map(|letter| async move {
            let kept = self.keep_one(&letter).await;
            kept.err().map(|error| (letter, error))
        });
        let mut kept = std::pin::pin!(keeping.buffer_unordered(AT_A_TIME));
        while let Some(failed) = kept.next().await {
            if let Some((letter, error)) = failed {
                unstored(letter, error);
            }
        }
    }

    async fn keep_one(&self, letter: &DeadLetter) -> Result<(), Error> {
        let subject = self.subject.clone().map_err(|subject| Error::Subject { subject })?;
        let id = format!("{}.{}", self.id, self.next.fetch_add(1, Relaxed));
        let mut outbound = Outbound::new(subject, &id, letter.message.clone())?;
        address_to(&mut outbound.headers, Some(&letter.address), letter.outcome, &*letter.error)?;
        self.store.store(&outbound, None).await.map_err(|failed| failed.error)?;
        Ok(())
    }

    /// An [`Egress`] that writes each letter to the address in its headers, and acknowledges it then: so a work queue holds what has
    /// not been sent. A letter that cannot be written comes again, after a second unless [`on_failure`](Egress::on_failure) says
    /// otherwise. It does not become a dead letter once more.
    ///
    /// A message of the stream that is no letter is [`Undelivered`](crate::Undelivered) with [`Error::NoAddress`].
    pub fn send_back(consumer: PullConsumer, manager: Manager) -> Egress {
        Egress::of_letters(consumer, manager)
    }
}

/// Writes the headers of a letter.
pub(crate) fn address_to(
    headers: &mut HeaderMap,
    address: Option<&Address>,
    outcome: Outcome,
    error: &(dyn std::error::Error + 'static),
) -> Result<(), Error> {
    if let Some(address) = address {
        headers.insert(ADDRESS, store::header_value(address.as_str())?);
    }
    headers.insert(OUTCOME, store::header_value(&outcome.to_string())?);
    let reason = chain(error).to_string().replace(['\r', '\n'], " ");
    headers.insert(REASON, store::header_value(&reason)?);
    Ok(())
}

/// The address in the headers of a letter.
pub(crate) fn address(headers: Option<&HeaderMap>) -> Result<Address, Error> {
    let address = headers.and_then(|headers| headers.get(ADDRESS)).ok_or(Error::NoAddress)?;
    Ok(address.as_str().into())
}

impl fmt::Debug for DurableLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableLetters").field("subject", &self.subject).finish_non_exhaustive()
    }
}
