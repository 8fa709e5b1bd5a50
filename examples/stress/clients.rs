//! Connections that are dialed, broken, half closed, and dropped in the middle of a flush.

use std::sync::Arc;
use std::time::Duration;

use async_std::future::timeout;
use buffstreams::{Backoff, Connection, Error};
use fastrand::Rng;
use futures::{FutureExt, SinkExt, StreamExt, future};

use super::actors::{Beat, Manners, World};
use super::books::{Producer, Receiver, violation};
use super::executor::Executor;
use super::faults::{Kind, happened};
use super::servers::config;
use super::tasks::{Step, Tasks, Wait};

/// How long a client waits for an answer, or for room.
const PATIENCE: Duration = Duration::from_millis(200);

/// Some clients at once, for a while.
pub(crate) fn episode(world: &Arc<World>, beat: &Beat, rng: &mut Rng) {
    let tasks = Tasks::default();
    // A connection waits in the runtime's own reactor, which would keep a task whose executor has forgotten it.
    let mut executor = Executor::orderly(rng);
    for _ in 0..rng.u32(1..12) {
        let (world, rng) = (world.clone(), rng.fork());
        executor.spawn(tasks.task("client", |step| client(step, world, rng)));
    }
    let patience = rng.u32(1..60);
    beat.at("waits for clients");
    for _ in 0..patience {
        if tasks.count() == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    beat.at("ends an executor of clients");
    executor.end();
    tasks.are_gone(beat, "waits for clients that were dropped");
}

/// A connection, and what was given to it.
struct Client {
    world: Arc<World>,
    rng: Rng,
    producer: Arc<Producer>,
    connection: Connection,
}

async fn client(step: Step, world: Arc<World>, mut rng: Rng) {
    let Some((address, manners)) = world.anybody(&mut rng) else { return };
    let backoff = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(20));
    let backoff = backoff.max_elapsed(Duration::from_millis(100));
    let config = config().reconnect(rng.bool().then_some(backoff));
    let Ok(connection) = step.during(Wait::Other, Connection::dial(address, config)).await else { return };
    let producer = world.books.producer(0);
    let mut client = Client { world, rng, producer, connection };
    for _ in 0..client.rng.u32(1..20) {
        step.during(Wait::Other, client.send()).await;
        if manners == Manners::Answers {
            step.during(Wait::Other, client.receive()).await;
        }
    }
    match client.rng.u32(0..4) {
        0 => {
            step.during(Wait::Other, client.send()).await;
            let _ = client.connection.flush().now_or_never();
            happened(Kind::ConnectionDropped);
        }
        1 => {
            let _ = step.during(Wait::Close, client.connection.close()).await;
            happened(Kind::HalfClosed);
            let read_to_end = client.connection.for_each(|_| future::ready(()));
            let _ = step.during(Wait::Other, timeout(PATIENCE, read_to_end)).await;
        }
        2 => {
            let (mut read, mut write) = client.connection.split();
            let reading = async { while read.next().await.is_some() {} };
            let both = future::join(timeout(PATIENCE, reading), timeout(PATIENCE, write.close()));
            let _ = step.during(Wait::Other, both).await;
        }
        _ => {}
    }
}

impl Client {
    /// Sends some. What comes back was not sent.
    async fn send(&mut self) {
        for _ in 0..self.rng.u32(1..60) {
            let (number, message) = self.producer.next(&self.world.books, &mut self.rng);
            match timeout(PATIENCE, self.connection.feed(message)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return self.came_back(Some(number), error),
                Err(_) => return self.producer.unsent(number, "a connection's wait for room"),
            }
        }
        if let Ok(Err(error)) = timeout(PATIENCE, self.connection.flush()).await {
            self.came_back(None, error);
        }
    }

    /// The error has the message that there was no room for; some of those before come back when they are asked for.
    fn came_back(&mut self, number: Option<u32>, error: Error) {
        let kept = format!("{error:?}");
        match (number, error.into_unsent()) {
            (Some(number), Some(_)) => self.producer.unsent(number, "a connection's error"),
            (Some(_), None) => violation(format!("a connection's error has no message: {kept}")),
            (None, _) => {}
        }
        if self.rng.bool() {
            for message in self.connection.take_unsent() {
                happened(Kind::TakenBack);
                self.producer.came_back(&message, "what a connection had not sent");
            }
        }
    }

    /// Reads what has been answered so far.
    async fn receive(&mut self) {
        let mut receiver = Receiver::default();
        while let Ok(Some(Ok(message))) = timeout(Duration::from_millis(5), self.connection.next()).await {
            receiver.look(&self.world.books, 0, &message);
        }
    }
}
