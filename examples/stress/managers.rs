//! Managers: dialed, written to from many tasks, closed, shut down, dropped and made anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use buffstreams::{Address, Error, Manager};
use fastrand::Rng;
use futures::executor::block_on;
use futures::{FutureExt, StreamExt};

use super::accounts::{Account, Counters};
use super::actors::{Beat, World};
use super::books::violation;
use super::executor::Executor;
use super::faults::{Kind, happened};
use super::foreign;
use super::producers::{self, Sends};
use super::servers::config;
use super::tasks::{Tasks, Wait};

static LAST: AtomicU32 = AtomicU32::new(0);

/// A manager with settings of its own.
pub(crate) fn open(rng: &mut Rng) -> Arc<Account> {
    let config = config()
        .queue_bytes([2 << 10, 20 << 10, 1 << 20][rng.usize(0..3)])
        .reconnect((rng.u32(0..4) > 0).then(foreign::backoff))
        .message_ttl((rng.u32(0..3) == 0).then(|| Duration::from_millis(rng.u64(20..200))));
    let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    let account = Arc::new(Account { manager: Manager::new(config), id, counters: Arc::<Counters>::default() });
    foreign::may_be_called(Arc::downgrade(&account));
    account
}

/// Some time in a manager's life, with its producers, those who take its letters, and its events.
struct Life<'a> {
    world: &'a Arc<World>,
    beat: &'a Beat,
    account: Arc<Account>,
    executors: Vec<Executor>,
    /// No more messages.
    over: Arc<AtomicBool>,
    /// Those who send and those who take letters; and those who only look, who may wait until the manager is gone.
    work: Tasks,
    lookers: Tasks,
}

/// One manager, from its start to its end.
pub(crate) fn episode(world: &Arc<World>, beat: &Beat, rng: &mut Rng) {
    let mut life = Life::begin(world, beat, open(rng));
    life.go_on(rng);
    match rng.u32(0..3) {
        0 => life.drop_it(rng),
        _ => {
            let (account, lookers) = life.end(rng, End::ShutDown);
            drop(account);
            lookers.are_gone(beat, "waits for a manager's lookers");
        }
    }
}

/// An episode of a manager that lives on.
pub(crate) fn episode_of(account: &Arc<Account>, world: &Arc<World>, beat: &Beat, rng: &mut Rng) {
    let mut life = Life::begin(world, beat, account.clone());
    life.go_on(rng);
    // A looker on an ended executor waits for the event that comes with the next dial.
    drop(life.end(rng, End::Close));
}

/// How it ends, as far as anything does.
#[derive(PartialEq)]
enum End {
    ShutDown,
    Close,
}

impl<'a> Life<'a> {
    fn begin(world: &'a Arc<World>, beat: &'a Beat, account: Arc<Account>) -> Self {
        Self {
            world,
            beat,
            account,
            executors: Vec::new(),
            over: Arc::default(),
            work: Tasks::default(),
            lookers: Tasks::default(),
        }
    }

    fn manager(&self) -> &Manager {
        &self.account.manager
    }

    /// Everything at once, for a while.
    fn go_on(&mut self, rng: &mut Rng) {
        for _ in 0..2 {
            let mut executor = Executor::any(rng);
            let events = self.manager().events();
            executor.spawn(self.lookers.task("looker", |step| async move {
                let mut events = events;
                while step.during(Wait::Events, events.next()).await.is_some() {}
            }));
            self.executors.push(executor);
            self.dial(rng);
        }
        self.take_letters(rng);
        for _ in 0..rng.u32(2..6) {
            self.produce(rng);
        }
        for _ in 0..rng.u32(2..12) {
            self.beat.rest(Duration::from_millis(rng.u64(1..120)));
            self.beat.at("looks at a manager");
            self.account.look();
            match rng.u32(0..8) {
                0 => self.dial(rng),
                1 => self.close_one(rng),
                2 | 3 => {
                    self.beat.at("ends an executor");
                    let at = rng.usize(0..self.executors.len());
                    std::mem::replace(&mut self.executors[at], Executor::any(rng)).end();
                    self.produce(rng);
                }
                4 => {
                    happened(Kind::TakerReplaced);
                    self.take_letters(rng);
                }
                5 => self.listen(),
                _ => self.produce(rng),
            }
        }
    }

    fn dial(&self, rng: &mut Rng) {
        let Some((address, _)) = self.world.anybody(rng) else { return };
        self.beat.at("dials");
        let dialing = self.manager().dial(&address);
        if rng.u32(0..6) == 0 {
            happened(Kind::FutureDropped);
            return drop(dialing.now_or_never());
        }
        match block_on(dialing) {
            Ok(()) | Err(Error::Dial { .. } | Error::DialTimeout { .. } | Error::AlreadyOpen { .. }) => {}
            Err(error) => violation(format!("{}: a dial: {error:?}", self.beat.name())),
        }
    }

    fn addresses(&self) -> Vec<Address> {
        self.manager().addresses()
    }

    fn close_one(&self, rng: &mut Rng) {
        let Some(address) = rng.choice(self.addresses()) else { return };
        self.beat.at("closes an address");
        let closing = self.manager().close(address);
        if rng.u32(0..3) == 0 {
            happened(Kind::AddressDropped);
            return drop(closing.now_or_never());
        }
        happened(Kind::AddressClosed);
        let _ = block_on(closing);
    }

    /// The manager knows a listener.
    fn listen(&self) {
        self.beat.at("listens");
        let Ok(listener) = block_on(self.manager().listen("127.0.0.1:0")) else {
            return violation(format!("{}: cannot listen", self.beat.name()));
        };
        self.beat.at("closes a listener of a manager");
        let address = listener.local_addr();
        match block_on(self.manager().close_listener(address)) {
            // Somebody may have dialed whoever had this port before.
            Ok(()) | Err(Error::Timeout { .. }) => {}
            Err(error) => violation(format!("{}: cannot close a listener: {error:?}", self.beat.name())),
        }
    }

    fn take_letters(&mut self, rng: &mut Rng) {
        let (letters, world, counters) =
            (self.manager().dead_letters(), self.world.clone(), self.account.counters.clone());
        let rng_of_taker = rng.fork();
        let at = rng.usize(0..self.executors.len());
        let task = self.work.task("taker", |step| producers::take(step, world, counters, letters, rng_of_taker));
        self.executors[at].spawn(task);
    }

    /// One more who sends.
    fn produce(&mut self, rng: &mut Rng) {
        let at = rng.usize(0..self.executors.len());
        let (account, world, addresses) = (self.account.clone(), self.world.clone(), self.addresses());
        if addresses.is_empty() {
            return self.dial(rng);
        }
        let sends = Sends { account, world, addresses, rng: rng.fork(), over: self.over.clone() };
        let task = match rng.u32(0..5) {
            0 => self.work.task("crowd", |step| producers::crowd(step, sends)),
            1 | 2 => self.work.task("writer", |step| producers::write(step, sends)),
            _ => self.work.task("sink", |step| producers::sink(step, sends)),
        };
        self.executors[at].spawn(task);
    }

    /// Ends everything but the manager, looks at its books, and hands out what is left.
    fn end(mut self, rng: &mut Rng, end: End) -> (Arc<Account>, Tasks) {
        let executors = std::mem::take(&mut self.executors);
        let (before, beside) = (rng.u32(0..3) == 0, rng.bool());
        let close = || match end {
            End::ShutDown => {
                happened(Kind::ManagerShutDown);
                self.beat.at("shuts a manager down");
                drop(block_on(self.manager().shutdown(Duration::from_millis(300))));
            }
            End::Close => {
                for address in self.addresses() {
                    happened(Kind::AddressClosed);
                    self.beat.at("closes an address at the end");
                    let _ = block_on(self.manager().close(address));
                }
            }
        };
        if before {
            self.beat.at("ends executors, then a manager");
            drop(executors);
            close();
        } else if beside {
            self.beat.at("ends executors beside a manager");
            std::thread::scope(|scope| {
                scope.spawn(|| drop(executors));
                close();
            });
        } else {
            // Whatever was offered must come to an end by itself, on executors and at addresses that go on.
            self.over.store(true, Ordering::Relaxed);
            self.last_letters(true);
            close();
            drop(executors);
        }
        self.last_letters(false);
        (self.account.clone(), self.lookers.clone())
    }

    /// Takes the last letters, waits for those who work, and looks at the books. With `alive`, only waits.
    fn last_letters(&self, alive: bool) {
        // It takes the place of the others, and they end.
        let mut letters = self.manager().dead_letters();
        let mut take = || {
            while let Some(Some(letter)) = letters.next().now_or_never() {
                self.account.counters.taken();
                self.world.books.take(&letter);
            }
        };
        self.work.are_gone_while(self.beat, "waits for a manager's producers", &mut take);
        if !alive {
            self.beat.at("looks at the books");
            self.account.settle(take);
        }
    }

    /// Drops everything: whoever sends holds the manager for a while.
    fn drop_it(mut self, rng: &mut Rng) {
        happened(Kind::ManagerDropped);
        let (beat, work, lookers) = (self.beat, self.work.clone(), self.lookers.clone());
        let weak = Arc::downgrade(&self.account);
        let executors = std::mem::take(&mut self.executors);
        beat.at("drops a manager");
        if rng.bool() {
            drop(executors);
            drop(self);
        } else {
            drop(self);
            drop(executors);
        }
        work.are_gone(beat, "waits for a dropped manager's producers");
        lookers.are_gone(beat, "waits for a dropped manager's lookers");
        // A message or a waker that calls the library may hold it for a moment.
        let start = Instant::now();
        while weak.strong_count() > 0 {
            if start.elapsed() > Duration::from_secs(5) {
                return violation(format!("{}: a manager that was dropped is still held", beat.name()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
