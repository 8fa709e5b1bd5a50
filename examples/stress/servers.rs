//! Listeners of every form, each for a while: bound on a port of the system's choice, ended in any way, bound again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use buffstreams::{Bytes, Closer, Config, Connection, Connections, Event, Events, Listener, Peer, Serving};
use fastrand::Rng;
use futures::executor::block_on;
use futures::{FutureExt, SinkExt, StreamExt};

use super::actors::{Beat, Manners, Sign, World};
use super::books::{MAX_MESSAGE, Receiver, violation};
use super::executor::Executor;
use super::faults::{Kind, happened, happened_often};
use super::foreign::{call_back, call_back_later};
use super::proxy::{Plan, Proxy};
use super::tasks::{Step, Tasks, Wait, no_panic};

/// The limits fit episodes of a second.
pub(crate) fn config() -> Config {
    Config::new()
        .max_message_size(MAX_MESSAGE)
        .dial_timeout(Duration::from_secs(2))
        .write_timeout(Duration::from_millis(400))
        .frame_timeout(Duration::from_millis(800))
        .close_timeout(Duration::from_millis(400))
}

/// One listener, from its start to its end.
pub(crate) fn episode(world: &Arc<World>, beat: &Beat, rng: &mut Rng) {
    let Some(listener) = bind(beat, rng) else { return };
    let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
    // Those who receive; and those who look, who may wait until the listener is gone.
    let (tasks, lookers) = (Tasks::default(), Tasks::default());
    let (mut executor, mut serving) = (Executor::any(rng), None);
    let form = rng.u32(0..7);
    // A subscriber would drop what the callbacks leave behind: see `call_back`.
    let drops = rng.bool();
    if !drops || form < 2 {
        let events = listener.events();
        executor.spawn(lookers.task("looker", |step| look(step, events)));
    }
    let (seen, world_of_task) = (see(world), world.clone());
    let (seen_now, seen_later) = (seen.clone(), seen.clone());
    let callback = move |peer: Peer, message: &[u8]| {
        seen_now(peer, message);
        call_back(drops)
    };
    let callback_later = move |peer: Peer, message: Bytes| {
        seen_later(peer, &message);
        call_back_later(drops)
    };
    match form {
        0 => executor.spawn(tasks.task("stream", |step| receive(step, world_of_task, listener))),
        1 => executor.spawn(tasks.task("echo", |step| answer(step, world_of_task, listener))),
        2 => executor.spawn(tasks.task("serve", |step| serve(step, listener.serve(callback)))),
        3 => executor.spawn(tasks.task("serve_async", |step| serve(step, listener.serve_async(callback_later)))),
        4 => serving = Some(listener.serve_in_background(callback)),
        5 => {
            // Its choice was made before: the callback is called in the program's own task.
            executor.spawn(tasks.task("late serve", |step| async move {
                let mut listener = listener;
                if let Some((peer, message)) = step.during(Wait::Listener, listener.next()).await {
                    seen(peer, &message);
                }
                serve(step, listener.serve(callback)).await;
            }));
        }
        _ => {
            // Each connection waits in the runtime's own reactor, which would keep a task whose executor has forgotten it.
            executor = Executor::orderly(rng);
            executor.spawn(tasks.task("connections", |step| connections(step, world_of_task, listener.connections())));
        }
    }
    let manners = if form == 1 { Manners::Answers } else { Manners::Receives };
    let mut signs = vec![world.publish(addr, manners)];
    let mut proxied = None;
    if rng.u32(0..3) == 0
        && let Some((proxy, sign)) = proxy(world, addr, rng.u64(..))
    {
        signs.push(sign);
        proxied = Some(proxy);
    }
    beat.rest(Duration::from_millis(rng.u64(30..700)));
    if rng.bool() {
        signs.clear();
    }
    end(beat, rng, &closer, executor, serving);
    drop(signs);
    if let Some(proxy) = proxied {
        happened_often(Kind::Proxied, proxy.faults());
    }
    tasks.are_gone(beat, "waits for a listener's tasks");
    are_gone(beat, &closer);
    drop(closer);
    lookers.are_gone(beat, "waits for a listener's lookers");
}

fn bind(beat: &Beat, rng: &mut Rng) -> Option<Listener> {
    beat.at("binds");
    let config = config()
        .max_connections(if rng.u32(0..4) == 0 { 6 } else { 1_000 })
        .inbox_bytes(if rng.bool() { 1 << 20 } else { 32 << 10 })
        .queue_bytes(if rng.bool() { 4 << 20 } else { 64 << 10 });
    let bound = block_on(Listener::bind("127.0.0.1:0", config));
    bound.map_err(|error| violation(format!("{}: {error:?}", beat.name()))).ok()
}

/// Ends a listener, in one of the ways there are.
fn end(beat: &Beat, rng: &mut Rng, closer: &Closer, executor: Executor, serving: Option<Serving>) {
    match rng.u32(0..4) {
        // Whoever receives does so to the end.
        0 => {
            happened(Kind::ListenerClosed);
            beat.at("closes a listener");
            let _ = block_on(closer.close());
            if let Some(serving) = serving {
                beat.at("closes a callback");
                let _ = block_on(serving.close());
            }
            beat.rest(Duration::from_millis(rng.u64(0..100)));
            beat.at("ends an executor");
            executor.end();
        }
        // The close begins on an executor that ends.
        1 => {
            let (tasks, closing) = (Tasks::default(), closer.clone());
            // A close has a time limit, and with it a timer: see `timer`.
            let mut other = Executor::orderly(rng);
            other.spawn(tasks.task("closer", |step| async move {
                let _ = step.during(Wait::Close, closing.close()).await;
            }));
            std::thread::sleep(Duration::from_millis(rng.u64(0..20)));
            beat.at("ends two executors");
            other.end();
            executor.end();
            drop(serving);
            beat.at("closes a listener again");
            let _ = block_on(closer.close());
            tasks.are_gone(beat, "waits for a close");
        }
        // Whoever receives is gone before.
        _ => {
            happened(Kind::ListenerDropped);
            beat.at("drops a listener");
            drop(serving);
            executor.end();
            beat.at("closes what an executor has left");
            let _ = block_on(closer.close());
        }
    }
}

/// No connection is left of a listener that has ended.
fn are_gone(beat: &Beat, closer: &Closer) {
    beat.at("waits for connections to end");
    let start = Instant::now();
    while closer.stats().connections > 0 {
        if start.elapsed() > Duration::from_secs(10) {
            return violation(format!("{}: an ended listener has connections: {:?}", beat.name(), closer.stats()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A proxy in front of it, which breaks connections.
fn proxy(world: &Arc<World>, target: SocketAddr, seed: u64) -> Option<(Proxy, Sign)> {
    let proxy = Proxy::start(target, u64::MAX, move |n| Plan::seeded(seed, n, 20_000)).ok()?;
    let sign = world.publish(proxy.addr, Manners::Bad);
    Some((proxy, sign))
}

/// What a callback sees goes into the books. No lock is held when it panics.
fn see(world: &Arc<World>) -> impl Fn(Peer, &[u8]) + Clone + Send + Sync + 'static {
    let (world, receiver) = (world.clone(), Arc::new(Mutex::new(Receiver::default())));
    move |peer, message| {
        let mut receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.receive(&world.books, peer.id(), message);
    }
}

async fn serve(step: Step, serving: impl Future<Output = Result<(), buffstreams::Error>>) {
    let _ = step.during(Wait::Listener, serving).await;
}

async fn look(step: Step, mut events: Events<Event>) {
    while step.during(Wait::Events, events.next()).await.is_some() {}
}

async fn receive(step: Step, world: Arc<World>, mut listener: Listener) {
    let mut receiver = Receiver::default();
    while let Some((peer, message)) = step.during(Wait::Listener, listener.next()).await {
        receiver.receive(&world.books, peer.id(), &message);
    }
}

pub(crate) async fn answer(step: Step, world: Arc<World>, listener: Listener) {
    let mut receiver = Receiver::default();
    let (mut incoming, mut outgoing) = listener.split();
    while let Some((peer, message)) = step.during(Wait::Listener, incoming.next()).await {
        receiver.receive(&world.books, peer.id(), &message);
        if step.during(Wait::Other, outgoing.feed((peer, message))).await.is_err() {
            return violation("an answer was refused".into());
        }
        if fastrand::u32(0..64) == 0 {
            // Those who do not read would hold it up.
            let _ = outgoing.flush().now_or_never();
        }
    }
}

async fn connections(step: Step, world: Arc<World>, connections: Connections) {
    let each = |(number, connection)| converse(world.clone(), number, connection);
    step.during(Wait::Listener, (futures::stream::iter(0..).zip(connections)).for_each_concurrent(None, each)).await;
}

/// Answers some messages, and goes in one of several ways.
async fn converse(world: Arc<World>, number: u64, mut connection: Connection) {
    let mut receiver = Receiver::default();
    for _ in 0..number % 40 * 20 {
        let Some(Ok(message)) = connection.next().await else { return };
        receiver.receive(&world.books, number, &message);
        if connection.feed(message).await.is_err() {
            return;
        }
    }
    match number % 3 {
        0 => drop(connection.flush().now_or_never()),
        1 => drop(connection.close().await),
        _ => {}
    }
}

/// A listener that lives as long as all the others together.
pub(crate) fn lasting(world: &Arc<World>, beat: &Beat, rng: &mut Rng) -> Option<Lasting> {
    let listener = bind(beat, rng)?;
    let sign = world.publish(listener.local_addr().ip().unwrap(), Manners::Answers);
    let (closer, tasks, world) = (listener.closer(), Tasks::default(), world.clone());
    let mut executor = Executor::async_std();
    executor.spawn(tasks.task("lasting echo", |step| answer(step, world, listener)));
    Some(Lasting { closer, executor: Some(executor), tasks, _sign: sign })
}

pub(crate) struct Lasting {
    closer: Closer,
    executor: Option<Executor>,
    tasks: Tasks,
    _sign: Sign,
}

impl Lasting {
    /// It goes on.
    pub(crate) fn look(&self, beat: &Beat) {
        beat.rest(Duration::from_millis(100));
        if self.tasks.count() == 0 {
            violation("the lasting listener has ended".into());
        }
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        let closed = no_panic(|| block_on(self.closer.close()));
        if closed.is_none() {
            violation("a panic came out of the lasting listener's close".into());
        }
        drop(self.executor.take());
    }
}
