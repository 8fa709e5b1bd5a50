//! The wakers and messages of the program, which a manager wakes and drops: they may panic, and they may come back to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{SECOND, config, dialed};
use crate::foreign::PanicSource;
use crate::observe::Events;
use crate::sim::testing;
use crate::sim::testing::Sim;
use crate::{Address, Config, DeadLetters, Manager, ManagerEvent};

const MESSAGES: usize = 30;
/// Not all of them fit into it as letters.
const QUEUE: usize = 4 << 10;

/// Runs the test on a thread of its own: one that hangs fails.
#[track_caller]
pub(super) fn not_hanging(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    if ended.recv_timeout(Duration::from_secs(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("it hangs");
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Calls the program when it is woken, and when it is dropped.
struct Calling(Box<dyn Fn() + Send + Sync>);

impl Calling {
    fn waker(call: impl Fn() + Send + Sync + 'static) -> Waker {
        Arc::new(Self(Box::new(call))).into()
    }
}

impl Wake for Calling {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A task whose executor is gone: its waker is its last owner. Woken, it is dropped.
struct Orphan {
    _task: Mutex<BoxFuture<'static, ()>>,
}

impl Wake for Orphan {
    fn wake(self: Arc<Self>) {}
}

/// Polls the task once, and leaves it to whatever it waits for.
fn orphan(mut task: BoxFuture<'static, ()>) {
    // The waker that it waits with must be known before there is a task to put behind it.
    let slot = Arc::new(Mutex::new(None));
    let cell = Arc::new(Late(slot.clone()));
    let waker = Waker::from(cell.clone());
    assert!(task.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
    *slot.lock().unwrap() = Some(Orphan { _task: Mutex::new(task) });
}

struct Late(Arc<Mutex<Option<Orphan>>>);

impl Wake for Late {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Late {
    fn drop(&mut self) {
        let orphan = self.0.lock().unwrap().take();
        drop(orphan);
    }
}

/// A message that is memory of the program, which is told when it is dropped.
struct Memory<F: Fn()>(F);

impl<F: Fn()> AsRef<[u8]> for Memory<F> {
    fn as_ref(&self) -> &[u8] {
        &[7; 5000]
    }
}

impl<F: Fn()> Drop for Memory<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn memory(dropped: impl Fn() + Send + 'static) -> Bytes {
    Bytes::from_owner(Memory(dropped))
}

/// A manager of one address that nobody answers at any more.
pub(super) async fn away(config: Config) -> (Manager, Address) {
    let (manager, address, acceptor, far) = dialed(config).await;
    drop((far, acceptor));
    testing::sleep(SECOND).await;
    (manager, address)
}

/// Messages that come back as letters.
async fn bury(manager: &Manager, address: &Address, messages: usize) {
    let mut sink = manager.sink();
    for _ in 0..messages {
        sink.feed((address.clone(), Bytes::from_static(&[7; 1000]))).await.unwrap();
    }
    sink.flush().await.unwrap_err();
}

pub(super) fn panics(events: &mut Events<ManagerEvent>) -> Vec<(Option<Address>, PanicSource, String)> {
    let mut panics = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        if let ManagerEvent::Panicked { address, source, message } = event {
            panics.push((address, source, message));
        }
    }
    panics
}

/// What a program may ask of a manager at any time.
fn ask(manager: &Manager) {
    manager.stats();
    manager.addresses();
    drop(manager.dead_letters());
}

fn poll_with(letters: &mut DeadLetters, waker: &Waker) -> Poll<Option<crate::DeadLetter>> {
    letters.poll_next_unpin(&mut Context::from_waker(waker))
}

#[test]
fn whoever_takes_letters_may_come_back_when_it_is_woken() {
    not_hanging(|| {
        Sim::default().run(async {
            let (manager, address) = away(config().queue_bytes(QUEUE)).await;
            let mut letters = manager.dead_letters();
            let (called, theirs) = (Arc::new(AtomicBool::new(false)), manager.clone());
            let seen = called.clone();
            let waker = Calling::waker(move || {
                ask(&theirs);
                seen.store(true, Ordering::Relaxed);
            });
            assert!(poll_with(&mut letters, &waker).is_pending());
            drop(waker);
            bury(&manager, &address, MESSAGES).await;
            assert!(called.load(Ordering::Relaxed));
        });
    });
}

#[test]
fn whoever_takes_letters_may_come_back_when_another_takes_its_place() {
    not_hanging(|| {
        Sim::default().run(async {
            let manager = Manager::new(config());
            let (mut letters, theirs) = (manager.dead_letters(), manager.clone());
            assert!(poll_with(&mut letters, &Calling::waker(move || ask(&theirs))).is_pending());
            let _another = manager.dead_letters();
            assert!(letters.next().await.is_none());
        });
    });
}

/// It holds the letters and a manager, and waits for the next; its executor is gone.
#[test]
fn a_task_that_takes_letters_may_be_dropped_by_its_last_waker() {
    for replaced in [false, true] {
        not_hanging(move || {
            Sim::default().run(async {
                let (manager, address) = away(config().queue_bytes(QUEUE)).await;
                let (theirs, mut letters) = (manager.clone(), manager.dead_letters());
                orphan(
                    async move {
                        letters.next().await;
                        ask(&theirs);
                    }
                    .boxed(),
                );
                if replaced {
                    drop(manager.dead_letters());
                }
                bury(&manager, &address, MESSAGES).await;
                testing::sleep(SECOND).await;
                assert_eq!(manager.stats().lost, MESSAGES as u64);
            });
        });
    }
}

/// Some are in the queue of a taker that goes, some wait for room in it, and some find nobody.
#[test]
fn a_message_may_come_back_to_the_manager_when_it_is_dropped() {
    not_hanging(|| {
        Sim::default().run(async {
            let (manager, address) = away(config().queue_bytes(20_000)).await;
            let letters = manager.dead_letters();
            for taker in [Some(letters), None] {
                let mut sink = manager.sink();
                for _ in 0..MESSAGES / 3 {
                    let theirs = manager.clone();
                    sink.feed((address.clone(), memory(move || ask(&theirs)))).await.unwrap();
                }
                sink.flush().await.unwrap_err();
                drop(taker);
                testing::sleep(SECOND).await;
            }
            assert_eq!(manager.stats().lost, 2 * (MESSAGES / 3) as u64);
        });
    });
}

#[test]
fn a_waker_that_panics_costs_no_letter() {
    Sim::default().run(async {
        let (manager, address) = away(config().queue_bytes(QUEUE)).await;
        let (mut letters, mut events) = (manager.dead_letters(), manager.events());
        // It is dropped when it is woken, which must not panic twice.
        let woken = AtomicBool::new(false);
        let waker = Calling::waker(move || {
            assert!(woken.swap(true, Ordering::Relaxed), "its executor is gone");
        });
        assert!(poll_with(&mut letters, &waker).is_pending());
        drop(waker);
        bury(&manager, &address, MESSAGES).await;
        for _ in 0..MESSAGES {
            letters.next().await.unwrap();
        }
        let expected = (Some(address), PanicSource::Waker, "its executor is gone".to_owned());
        assert_eq!(panics(&mut events), [expected]);
    });
}

#[test]
fn messages_that_panic_when_they_are_dropped_are_counted_all_the_same() {
    Sim::default().run(async {
        let (manager, address) = away(config().queue_bytes(20_000)).await;
        let (letters, mut events) = (manager.dead_letters(), manager.events());
        for taker in [Some(letters), None] {
            let mut sink = manager.sink();
            for _ in 0..MESSAGES / 3 {
                sink.feed((address.clone(), memory(|| panic!("dropped")))).await.unwrap();
            }
            sink.flush().await.unwrap_err();
            drop(taker);
            testing::sleep(SECOND).await;
        }
        assert_eq!(manager.stats().lost, 2 * (MESSAGES / 3) as u64);
        let panics = panics(&mut events);
        assert_eq!(panics.len(), 2 * (MESSAGES / 3));
        assert!(panics.iter().all(|panic| *panic == (Some(address.clone()), PanicSource::Drop, "dropped".to_owned())));
        // The address goes on.
        bury(&manager, &address, 1).await;
    });
}

/// Some are with the connection, some behind them; the manager is the last of them, or a sink.
#[test]
fn a_manager_may_be_dropped_with_messages_that_panic() {
    for sink_last in [false, true] {
        Sim { capacity: 1024, ..Sim::default() }.run(async {
            let (manager, address, _acceptor, _far) = dialed(config()).await;
            let mut sink = manager.sink();
            for _ in 0..2 {
                for _ in 0..3 {
                    sink.feed((address.clone(), memory(|| panic!("dropped")))).await.unwrap();
                }
                assert!(sink.flush().now_or_never().is_none());
            }
            if sink_last {
                drop(manager);
                drop(sink);
            } else {
                drop(sink);
                drop(manager);
            }
            testing::sleep(SECOND).await;
        });
    }
}
