//! The simulator: a runtime and a network in memory and in virtual time, for tests.

mod cable;
mod network;
#[cfg(all(test, buffstreams_shuttle))]
pub(crate) mod scheduled;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod world;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;

use crate::endpoint::Endpoint;
use crate::foreign;
use crate::runtime::{Acceptor, Handle, Socket, SocketOptions, Timer, sealed, yield_now};
use crate::sync::Lock;
use cable::Cable;
pub use cable::{Fault, Side};
use network::{Backlog, Cut, Network, Which};
use world::{Alarm, What, World, digest, wake};

/// How many bytes each direction of a connection holds that were not read.
const CAPACITY: usize = 64 * 1024;

/// A world for tests: a runtime, a clock and a network in memory, for a program that uses this library.
///
/// [`run`](Self::run) runs the program on the thread that calls it. Listeners, connections and managers whose
/// [`Config::runtime`](crate::Config::runtime) is a clone of this value meet each other there, at any address: an IP
/// address, where port 0 chooses one, or the path of a Unix socket, which has no file here. Time is virtual: it stands
/// still while anything can run, and then jumps to the next timer, so a test of an hour's outage takes a few
/// milliseconds. Connections can be cut, stalled, slowed and parted: see [`link`](Self::link).
///
/// The same seed gives the same run, to the byte: the order in which tasks run, the jitter of delays and whatever else is
/// drawn come from it. [`hash`](Self::hash) tells two runs apart. That holds as long as the program draws nothing elsewhere:
/// no clock, no random numbers and no iteration over a `HashMap` of its own.
///
/// It keeps every byte that was sent until it ends, so a program that sends gigabytes is better tried elsewhere.
///
/// ```
/// use std::time::Duration;
/// use buffstreams::{Config, Connection, Error, Fault, Listener, Side, Sim};
/// use futures::{SinkExt, StreamExt};
///
/// Sim::new().seed(7).run(|sim| async move {
///     let config = Config::new().runtime(sim.clone());
///     let mut listener = Listener::bind("10.0.0.1:5031", config.clone()).await?;
///     let link = sim.link(listener.local_addr());
///     // A far one, whose first connection is reset in the middle of the first message.
///     link.latency(Duration::from_millis(80)).fail_next(Side::Dialer, 5, Fault::Rst);
///     let server = sim.spawn(async move { listener.next().await });
///
///     let mut connection = Connection::dial("10.0.0.1:5031", config).await?;
///     assert!(connection.send(b"a message"[..].into()).await.is_err());
///     connection.flush().await?; // It opens the connection again, and sends what was not sent whole.
///     assert_eq!(server.await.unwrap().1, "a message");
///     assert_eq!(sim.now(), Duration::from_millis(80)); // Of virtual time.
///     Ok::<_, Error>(())
/// })
/// # .unwrap()
/// ```
///
/// The example `simulate` finds a bug in a program's failover, and the seed with which it shows.
///
/// # Panics
///
/// `run` panics, and names the seed, when nothing can run and no timer is set: the program waits for something that is
/// not in the simulator, and would hang for ever. Timers of others, such as a heartbeat, do not hide that: it also panics
/// after a million jumps of the clock during which the program, the future that was given to `run`, was not polled,
/// unless it waits for a timer itself. So give a wait for tasks that take longer than that a [`timeout`](Self::timeout).
/// And it panics after a million polls without any progress of the clock.
///
/// A program that waits for ever and is woken by its own timers meanwhile, as in a loop that sleeps, or in a
/// [`Connection`](crate::Connection) that is opened again without an end, runs as long as these do: a `timeout` bounds it.
#[derive(Clone)]
pub struct Sim(Arc<World>);

impl Sim {
    /// A world in which tasks run first come, first served.
    pub fn new() -> Self {
        Self(Arc::new(World::new(CAPACITY)))
    }

    /// Shuffles the order in which tasks run, and decides what is drawn.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.0.set_seed(seed);
        self
    }

    /// How many bytes each direction of a connection holds that were not read. Default: 64 KiB.
    #[must_use]
    pub fn capacity(self, bytes: usize) -> Self {
        self.0.network(|network| network.usual.capacity = bytes);
        self
    }

    /// Keeps a record of what happens, for [`take_trace`](Self::take_trace).
    #[must_use]
    pub fn traced(self) -> Self {
        self.0.set_traced();
        self
    }

    /// Runs the program to its end, and ends the world with it: what still runs there is dropped. It panics where the program
    /// would never end: see [`Sim`](#panics).
    pub fn run<F: Future>(&self, program: impl FnOnce(Self) -> F) -> F::Output {
        self.run_watched(program, || {})
    }

    /// As [`run`](Self::run); `watch` is called after each poll of a task. It can hold the state of the program against
    /// whatever must be true at every moment.
    pub fn run_watched<F: Future>(&self, program: impl FnOnce(Self) -> F, watch: impl FnMut()) -> F::Output {
        self.0.run(program(self.clone()), watch)
    }

    /// Runs a future in the background. Its output comes from the handle, whose drop leaves the task running.
    ///
    /// # Panics
    ///
    /// The handle panics if the task does, or if the world has ended.
    pub fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Spawned<T> {
        let (done, output) = oneshot::channel();
        let task = async move {
            // Nobody may wait for it.
            let _ = done.send(future.await);
        };
        self.0.spawn(foreign::contain(task).boxed());
        Spawned(output)
    }

    /// Waits, in virtual time.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + Sync + use<> {
        Handle::new(self.clone()).sleep(duration)
    }

    /// Waits for a future, at most for `limit` of virtual time: `None` if that is over.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        Handle::new(self.clone()).within(Some(limit), future).await
    }

    /// Lets the other tasks run.
    pub async fn yield_now(&self) {
        yield_now().await;
    }

    /// How much virtual time has passed.
    pub fn now(&self) -> Duration {
        self.0.elapsed()
    }

    /// The same, as the library sees it.
    pub fn instant(&self) -> Instant {
        self.0.now()
    }

    /// A number that the seed decides.
    pub fn random(&self) -> u64 {
        self.0.draw()
    }

    /// From now on this name is known, with any port. Others have no address.
    pub fn name(&self, name: &str, addr: IpAddr) {
        self.0.network(|network| network.names.insert(name.to_owned(), addr));
    }

    /// The connections to this address, to let something happen to them.
    pub fn link(&self, to: impl Into<Endpoint>) -> SimLink {
        SimLink { world: self.0.clone(), to: to.into() }
    }

    /// A hash of what has happened so far: which task was polled, each jump of the clock, what was drawn, and on which
    /// connection what was opened, accepted, read, written or ended, with each byte that was written. The same run has the
    /// same hash, and two runs that differ in any of these have different ones, as far as 64 bits can tell.
    pub fn hash(&self) -> u64 {
        self.0.hash()
    }

    /// What has happened since the last call, a line for each event that counts for the [`hash`](Self::hash). Empty unless it
    /// is [`traced`](Self::traced).
    pub fn take_trace(&self) -> Vec<String> {
        self.0.take_trace()
    }
}

impl Default for Sim {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sim").field(&self.0).finish()
    }
}

/// The output of a task of a [`Sim`].
#[derive(Debug)]
pub struct Spawned<T>(oneshot::Receiver<T>);

impl<T> Future for Spawned<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.0.poll_unpin(cx).map(|output| output.expect("the task panicked, or its world has ended"))
    }
}

/// The connections of a [`Sim`] to one address.
#[derive(Clone, Debug)]
pub struct SimLink {
    world: Arc<World>,
    to: Endpoint,
}

impl SimLink {
    /// How long each byte is on its way, in each direction, on connections that are made from now on. Default: no time.
    pub fn latency(&self, latency: Duration) -> &Self {
        self.wire(|wire| wire.latency = latency)
    }

    /// How many bytes a second each direction carries, on connections that are made from now on. Default: any number.
    pub fn bandwidth(&self, bytes_per_second: u64) -> &Self {
        self.wire(|wire| wire.bandwidth = Some(bytes_per_second))
    }

    /// How many bytes one read brings at the most, on connections that are made from now on. With 1 every frame comes in
    /// single bytes. Default: no limit.
    pub fn segments(&self, bytes: usize) -> &Self {
        self.wire(|wire| wire.segment = bytes.max(1))
    }

    fn wire(&self, set: impl FnOnce(&mut cable::Wire)) -> &Self {
        self.network(|network| set(network.wires.entry(self.to.clone()).or_insert(network.usual)));
        self
    }

    /// What happens to the next connection that is made, when `side` has written so many bytes.
    pub fn fail_next(&self, side: Side, after: usize, fault: Fault) -> &Self {
        let connection = Which::NextTo(self.to.clone());
        self.network(|network| network.faults.push(Cut { connection, side, after, fault }));
        self
    }

    /// What happens at once to each connection that there is.
    pub fn fail_now(&self, fault: Fault) -> &Self {
        for cable in self.cables() {
            with(&self.world, &cable, |cable| {
                let taken = cable.lane(Side::Dialer).0.len();
                cable.plan(Side::Dialer, taken, fault);
            });
        }
        self
    }

    /// Nothing arrives any more, in either direction, and who dials gets no answer, until it is [healed](Self::heal).
    pub fn part(&self) -> &Self {
        self.network(|network| network.parted.insert(self.to.clone()));
        self.cables().iter().for_each(|cable| with(&self.world, cable, |cable| cable.part(true)));
        self
    }

    /// Who dials gets no answer, until it is [healed](Self::heal). Connections that there are go on.
    pub fn black_hole(&self) -> &Self {
        self.network(|network| network.black_holes.insert(self.to.clone()));
        self
    }

    /// What was parted is connected again, and what was on its way arrives.
    pub fn heal(&self) -> &Self {
        let dialing = self.network(|network| {
            network.parted.remove(&self.to);
            network.black_holes.remove(&self.to);
            std::mem::take(&mut network.dialing)
        });
        wake(dialing);
        self.cables().iter().for_each(|cable| with(&self.world, cable, |cable| cable.part(false)));
        self
    }

    /// How many connections have been made.
    pub fn connections(&self) -> usize {
        self.cables().len()
    }

    fn cables(&self) -> Vec<Arc<Lock<Cable>>> {
        let is_it = |(to, cable): &(Endpoint, Arc<Lock<Cable>>)| (*to == self.to).then(|| cable.clone());
        self.network(|network| network.cables.iter().filter_map(is_it).collect())
    }

    fn network<T>(&self, visit: impl FnOnce(&mut Network) -> T) -> T {
        self.world.network(visit)
    }
}

/// Borrows a cable, notes what of it ends, and wakes those whom that concerns.
fn with<T>(world: &World, cable: &Lock<Cable>, visit: impl FnOnce(&mut Cable) -> T) -> T {
    let (output, calls, number, before, ended) = {
        let mut cable = cable.lock();
        let before = cable.ended();
        (visit(&mut cable), cable.take_calls(), cable.number, before, cable.ended())
    };
    if before != ended {
        let bits = ended.iter().fold(0, |bits, ended| bits << 1 | u64::from(*ended));
        world.trace(What::End, &[number as u64, bits], || format!("connection {number} ends: {ended:?}"));
    }
    wake(calls);
    output
}

impl sealed::Runtime for Sim {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn random(&self, into: &mut [u8]) {
        for chunk in into.chunks_mut(8) {
            chunk.copy_from_slice(&self.0.draw().to_le_bytes()[..chunk.len()]);
        }
    }

    fn timer(&self, at: Instant) -> Pin<Box<dyn Timer>> {
        Box::pin(Alarm::new(self.0.clone(), at))
    }

    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let found = self.0.network(|network| network.names.get(&host).copied());
        let resolved = found.map(|ip| vec![SocketAddr::new(ip, port)]).ok_or_else(|| io::ErrorKind::NotFound.into());
        async {
            // As over a network, the answer is not there at once.
            yield_now().await;
            resolved
        }
        .boxed()
    }

    fn connect(&self, to: Endpoint, _: SocketOptions) -> BoxFuture<'static, io::Result<Arc<dyn Socket>>> {
        let world = self.0.clone();
        async move {
            yield_now().await;
            let made = poll_fn(|cx| {
                world.network(|network| match network.connect(&to) {
                    Some(made) => Poll::Ready(made),
                    None => {
                        network.dialing.push(cx.waker().clone());
                        Poll::Pending
                    }
                })
            });
            let made = made.await;
            let number = made.as_ref().ok().map(|made| made.cable.lock().number);
            let numbers = [digest(to.to_string().as_bytes()), number.map_or(u64::MAX, |number| number as u64)];
            world.trace(What::Connect, &numbers, || format!("connects to {to}: {number:?}"));
            let made = made?;
            wake(made.calls);
            let socket = SimSocket { world, cable: made.cable, side: Side::Dialer, local: made.local, remote: to };
            Ok(Arc::new(socket) as Arc<dyn Socket>)
        }
        .boxed()
    }

    fn listen(&self, at: Endpoint, _: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        let (backlog, local) = self.0.network(|network| network.listen(at))?;
        Ok(Arc::new(SimAcceptor { world: self.0.clone(), backlog, local }))
    }
}

/// One end of a connection. It is closed when it is dropped.
#[derive(Debug)]
struct SimSocket {
    world: Arc<World>,
    cable: Arc<Lock<Cable>>,
    side: Side,
    local: Endpoint,
    remote: Endpoint,
}

impl SimSocket {
    fn visit<T>(&self, visit: impl FnOnce(&mut Cable, Side) -> T) -> T {
        with(&self.world, &self.cable, |cable| visit(cable, self.side))
    }

    fn trace(&self, what: What, verb: &str, number: usize, polled: &Poll<io::Result<usize>>, bytes: u64) {
        let outcome = match polled {
            Poll::Ready(Ok(n)) => *n as u64,
            Poll::Ready(Err(_)) => u64::MAX,
            Poll::Pending => u64::MAX - 1,
        };
        let numbers = [number as u64, self.side as u64, outcome, bytes];
        self.world.trace(what, &numbers, || format!("{} {verb} {polled:?}", self.local));
    }
}

impl Socket for SimSocket {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        #[cfg(test)]
        self.world.does("read", Some(&(self.cable.clone(), self.side)));
        let now = self.world.elapsed();
        let (polled, arrival, number) = self.visit(|cable, side| {
            let polled = cable.poll_read(side, now, cx, buf);
            let arrival = if polled.is_pending() { cable.next_arrival(side, now) } else { None };
            (polled, arrival, cable.number)
        });
        if let Some(at) = arrival {
            self.world.wake_at(at, cx.waker());
        }
        // They are those that were written.
        self.trace(What::Read, "reads", number, &polled, 0);
        polled
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        #[cfg(test)]
        self.world.does("write", Some(&(self.cable.clone(), self.side)));
        let now = self.world.elapsed();
        let (polled, number, bytes) = self.visit(|cable, side| {
            let before = cable.lane(side).0.len();
            let polled = cable.poll_write(side, now, cx, bufs);
            (polled, cable.number, digest(&cable.lane(side).0[before..]))
        });
        self.trace(What::Write, "writes", number, &polled, bytes);
        polled
    }

    fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_half_close(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.visit(Cable::half_close);
        Poll::Ready(Ok(()))
    }

    fn shut_down(&self) {
        self.visit(Cable::shut_down);
    }

    fn take_error(&self) -> Option<io::Error> {
        self.visit(|cable, side| cable.is_reset(side)).then(|| io::ErrorKind::ConnectionReset.into())
    }

    fn is_closed_by_peer(&self) -> bool {
        let now = self.world.elapsed();
        self.visit(|cable, side| cable.is_closed_by_peer(side, now))
    }

    fn has_unread(&self) -> bool {
        let now = self.world.elapsed();
        self.visit(|cable, side| cable.has_unread(side, now))
    }

    fn local(&self) -> io::Result<Endpoint> {
        Ok(self.local.clone())
    }

    fn remote(&self) -> io::Result<Endpoint> {
        if self.visit(|cable, side| cable.is_reset(side)) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(self.remote.clone())
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let now = self.world.elapsed();
        self.visit(|cable, side| cable.close(side, now));
    }
}

/// A listening socket.
#[derive(Debug)]
struct SimAcceptor {
    world: Arc<World>,
    backlog: Arc<Lock<Backlog>>,
    local: Endpoint,
}

impl Acceptor for SimAcceptor {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Arc<dyn Socket>, Endpoint)>> {
        #[cfg(test)]
        self.world.does("accept", None);
        let polled = self.backlog.lock().poll_accept(cx);
        polled.map_ok(|(cable, remote)| {
            let number = cable.lock().number;
            self.world.trace(What::Accept, &[number as u64], || format!("{} accepts connection {number}", self.local));
            let (world, local) = (self.world.clone(), self.local.clone());
            let socket = SimSocket { world, cable, side: Side::Acceptor, local, remote: remote.clone() };
            (Arc::new(socket) as Arc<dyn Socket>, remote)
        })
    }

    fn local(&self) -> io::Result<Endpoint> {
        Ok(self.local.clone())
    }

    fn stop(&self) {
        self.world.network(|network| network.forget(&self.backlog));
        let (refused, calls) = self.backlog.lock().end();
        refused.iter().for_each(|cable| with(&self.world, cable, Cable::reset));
        wake(calls);
    }
}

impl Drop for SimAcceptor {
    fn drop(&mut self) {
        self.stop();
    }
}
