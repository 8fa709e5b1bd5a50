//! The messages of a durable consumer, as many at a time as there is room for.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Batch;
use futures::StreamExt;
use futures::stream::{self, Stream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::room::{Place, Room};

/// How long the server keeps a request when there is nothing to pull. As long a stop may take.
const EXPIRES: Duration = Duration::from_secs(1);
/// How much later its end may come. After that the server is taken to have forgotten the request, as when it was ended.
const GRACE: Duration = Duration::from_secs(1);
/// After how long a request that failed is made again.
const PAUSE: Duration = Duration::from_millis(250);

/// One request at a time, for no more than there is room for.
struct Pull<'a> {
    consumer: &'a PullConsumer,
    room: &'a Room,
    stopped: watch::Receiver<bool>,
    request: Option<Request>,
    /// The last request failed and brought nothing: the next message may be larger than the room, and must come alone.
    alone: bool,
    /// The last request had no answer. While there is no connection the client keeps what it is asked for; so what is asked is
    /// nothing that makes the server send messages, to whom nobody would listen by then.
    is_unanswered: bool,
}

struct Request {
    batch: Batch,
    until: Instant,
    is_empty: bool,
}

/// Its end, after `stopped`, comes when all that was asked for has come. Dropping a future of `next` loses nothing.
pub(crate) fn messages<'a>(
    consumer: &'a PullConsumer,
    room: &'a Room,
    stopped: watch::Receiver<bool>,
) -> impl Stream<Item = (Message, Place)> + 'a {
    let pull = Pull { consumer, room, stopped, request: None, alone: false, is_unanswered: false };
    stream::unfold(pull, |mut pull| async move { pull.next().await.map(|next| (next, pull)) })
}

impl Pull<'_> {
    async fn next(&mut self) -> Option<(Message, Place)> {
        loop {
            if let Some(request) = &mut self.request {
                match timeout_at(request.until, request.batch.next()).await {
                    Ok(Some(Ok(message))) => {
                        (request.is_empty, self.alone) = (false, false);
                        let place = self.room.take(message.length);
                        return Some((message, place));
                    }
                    Ok(Some(Err(error))) => {
                        let is_empty = request.is_empty;
                        self.request = None;
                        self.failed(is_empty, &*error).await;
                    }
                    Ok(None) => self.request = None,
                    Err(_) => (self.request, self.is_unanswered) = (None, true),
                }
            } else {
                let mut stopped = self.stopped.clone();
                let room = tokio::select! {
                    biased;
                    Ok(_) = stopped.wait_for(|stopped| *stopped) => return None,
                    room = self.until_ready() => room,
                };
                self.ask(room).await;
            }
        }
    }

    /// Waits until the consumer is there, and there is room.
    async fn until_ready(&mut self) -> (usize, usize) {
        while self.is_unanswered {
            match self.consumer.get_info().await {
                Ok(_) => self.is_unanswered = false,
                Err(error) => {
                    log::debug!(target: "buffstreams", "the consumer does not answer: {}", buffstreams::chain(&error));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        self.room.for_many(self.alone).await
    }

    async fn ask(&mut self, (messages, bytes): (usize, usize)) {
        let batch = self.consumer.batch().expires(EXPIRES);
        let batch = if self.alone { batch.max_messages(1) } else { batch.max_messages(messages).max_bytes(bytes) };
        match batch.messages().await {
            Ok(batch) => {
                let until = Instant::now() + EXPIRES + GRACE;
                self.request = Some(Request { batch, until, is_empty: true });
            }
            Err(error) => self.failed(true, &error).await,
        }
    }

    /// That the bytes asked for are used up is an error as well, and the usual end of a request.
    async fn failed(&mut self, is_empty: bool, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        if !is_empty {
            return;
        }
        log::debug!(target: "buffstreams", "a pull has failed: {}", buffstreams::chain(error));
        if self.alone {
            tokio::time::sleep(PAUSE).await;
        }
        self.alone = true;
    }
}
