//! Wakers that panic, that come back to the library, or that are the last owners of what they wake.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use futures::task::{ArcWake, waker};
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{ANYWHERE, SECOND, config, dialed};
use crate::foreign::PanicHook;
use crate::framed::HIGH_WATER;
use crate::queue::{ITEM, Outbox, Place, Sender, Share, inbox};
use crate::sim::testing;
use crate::sim::testing::Sim;
use crate::{Address, Listener, Manager, ManagerEvent, PanicSource};

/// A small socket, in a thread of its own: where a lock is taken twice, that hangs for ever.
fn run<F: Future<Output = ()>>(main: impl FnOnce() -> F + Send + 'static) {
    let (done, ended) = channel();
    let running = thread::spawn(move || {
        Sim { capacity: 1024, ..Sim::default() }.run(main());
        // Whoever waits for it may have given up.
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(20)) {
        Ok(()) | Err(RecvTimeoutError::Disconnected) => running.join().unwrap(),
        Err(RecvTimeoutError::Timeout) => panic!("it hangs"),
    }
}

/// A task whose executor is gone: its last owner is the waker that somebody holds.
struct Task(Mutex<Option<BoxFuture<'static, ()>>>);

impl ArcWake for Task {
    fn wake_by_ref(_: &Arc<Self>) {}
}

/// It waits, and is owned by whoever will wake it.
#[track_caller]
fn abandon(future: impl Future<Output = ()> + Send + 'static) {
    let task = Arc::new(Task(Mutex::new(Some(future.boxed()))));
    let mut future = task.0.lock().unwrap().take().unwrap();
    assert!(future.as_mut().poll(&mut Context::from_waker(&waker(task.clone()))).is_pending());
    *task.0.lock().unwrap() = Some(future);
    assert!(Arc::strong_count(&task) > 1);
}

/// Looks at the books when it is woken, and when it is dropped.
struct Looks(Manager);

impl ArcWake for Looks {
    fn wake_by_ref(looks: &Arc<Self>) {
        looks.0.stats();
    }
}

impl Drop for Looks {
    fn drop(&mut self) {
        self.0.stats();
    }
}

/// Panics when it is woken, and when it is dropped.
struct Panics;

impl ArcWake for Panics {
    fn wake_by_ref(_: &Arc<Self>) {
        panic!("the executor is gone");
    }
}

/// Fills the queue of a peer that takes nothing.
async fn fill(manager: &Manager, address: &Address) {
    for _ in 0..4 {
        let mut sink = manager.sink();
        sink.feed((address.clone(), Bytes::from(vec![7; 62_000]))).await.unwrap();
        // Nobody waits for it.
        assert!(sink.flush().now_or_never().is_none());
        testing::yield_now().await;
    }
}

/// Everything that waits for the address gets what it waits for.
async fn read_all(far: &mut testing::Stream, manager: &Manager) {
    let mut buffer = vec![0; 4096];
    while manager.stats().total.held > 0 {
        assert!(far.read(&mut buffer).await.unwrap() > 0);
    }
}

fn blocker() -> Bytes {
    vec![7; 2000].into()
}

#[test]
fn a_sink_that_is_owned_by_the_waker_of_its_flush_ends_with_it() {
    for for_room in [false, true] {
        run(move || async move {
            let (manager, address, _acceptor, mut far) = dialed(config()).await;
            let mut first = Box::pin(manager.write(&address, blocker()));
            assert!((&mut first).now_or_never().is_none());
            if for_room {
                fill(&manager, &address).await;
            }
            for _ in 0..3 {
                let (mut sink, address) = (manager.sink(), address.clone());
                abandon(async move { sink.send((address, Bytes::from_static(b"flushed"))).await.unwrap() });
            }
            read_all(&mut far, &manager).await;
            first.await.unwrap();
            manager.write(&address, Bytes::from_static(b"after it")).await.unwrap();
        });
    }
}

#[test]
fn a_sink_of_replies_that_is_owned_by_the_waker_of_its_flush_ends_with_it() {
    for ends in [false, true] {
        run(move || async move {
            let (mut incoming, mut outgoing) = Listener::bind(ANYWHERE, config()).await.unwrap().split();
            let mut far = testing::dial(&incoming.closer().local_addr().into(), &config()).await.unwrap();
            far.write_all(&[0, 0, 0, 1, 7]).await.unwrap();
            let (peer, _) = incoming.next().await.unwrap();
            abandon(async move { outgoing.send((peer, blocker())).await.unwrap() });
            if ends {
                drop(far);
                let closer = incoming.closer();
                drop(incoming);
                assert_eq!(closer.stats().connections, 0);
            } else {
                far.read_exact(&mut [0; 2004]).await.unwrap();
                testing::sleep(SECOND).await;
                assert_eq!(incoming.closer().stats().connections, 1);
            }
        });
    }
}

/// Woken, replaced, and dropped because the wait is given up.
#[test]
fn a_waker_may_look_at_the_queue_that_wakes_or_drops_it() {
    for for_room in [false, true] {
        run(move || async move {
            let (manager, address, _acceptor, mut far) = dialed(config()).await;
            let mut first = Box::pin(manager.write(&address, blocker()));
            assert!((&mut first).now_or_never().is_none());
            if for_room {
                fill(&manager, &address).await;
            }
            let poll = |future: &mut BoxFuture<'_, _>| {
                let looks = waker(Arc::new(Looks(manager.clone())));
                let polled: Poll<Result<(), crate::Error>> = future.as_mut().poll(&mut Context::from_waker(&looks));
                polled
            };
            let mut waits = manager.write(&address, blocker()).boxed();
            let mut gives_up = manager.write(&address, blocker()).boxed();
            for _ in 0..2 {
                assert!(poll(&mut waits).is_pending());
                assert!(poll(&mut gives_up).is_pending());
            }
            drop(gives_up);
            read_all(&mut far, &manager).await;
            assert!(matches!(poll(&mut waits), Poll::Ready(Ok(()))));
            let mut closing = manager.close(&address).boxed();
            assert!(poll(&mut closing).is_pending());
            drop(far);
            closing.await.unwrap();
        });
    }
}

/// Who waits beside it, the close and the drop do not notice; a subscriber is told.
#[test]
fn a_waker_that_panics_ends_nothing_but_its_own_wait() {
    for for_room in [false, true] {
        run(move || async move {
            let (manager, address, _acceptor, mut far) = dialed(config()).await;
            let mut events = manager.events();
            let mut first = Box::pin(manager.write(&address, blocker()));
            assert!((&mut first).now_or_never().is_none());
            if for_room {
                fill(&manager, &address).await;
            }
            let mut panics = manager.write(&address, blocker()).boxed();
            assert!(panics.as_mut().poll(&mut Context::from_waker(&waker(Arc::new(Panics)))).is_pending());
            let (written, ()) = futures::join!(manager.write(&address, blocker()), read_all(&mut far, &manager));
            written.unwrap();
            first.await.unwrap();
            match events.next().await {
                Some(ManagerEvent::Panicked { address: Some(of), source: PanicSource::Waker, message }) => {
                    assert_eq!(of, address);
                    assert_eq!(message, "the executor is gone");
                }
                other => panic!("{other:?}"),
            }
            // It was written all the same.
            panics.await.unwrap();

            let mut panics = manager.close(&address).boxed();
            assert!(panics.as_mut().poll(&mut Context::from_waker(&waker(Arc::new(Panics)))).is_pending());
            drop(panics);
            manager.write(&address, blocker()).await.unwrap_err();
            drop(manager);
            assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
        });
    }
}

/// A transport that takes nothing until it is told to.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicBool>);

impl AsyncWrite for Gate {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.0.load(Relaxed) { Poll::Ready(Ok(buf.len())) } else { Poll::Pending }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The memory of a message, or a waker, of a program that looks at the queue where it is dropped or woken.
struct Owner(Arc<Outbox<Gate>>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &[7; 100]
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.books();
    }
}

impl ArcWake for Owner {
    fn wake_by_ref(owner: &Arc<Self>) {
        owner.0.books();
    }
}

fn outbox() -> (Arc<Outbox<Gate>>, Gate) {
    let gate = Gate::default();
    (Arc::new(Outbox::new(gate.clone(), config().codec().unwrap(), Arc::default())), gate)
}

#[test]
fn the_memory_of_a_message_may_look_at_the_queue_that_drops_it() {
    run(|| async {
        let (outbox, _) = outbox();
        outbox.push(Bytes::from_owner(Owner(outbox.clone())), usize::MAX).unwrap();
        assert_eq!(outbox.books().held, 1);
        outbox.close();
        outbox.push(Bytes::from_owner(Owner(outbox.clone())), usize::MAX).unwrap_err();
    });
}

#[test]
fn the_waker_of_a_driver_may_look_at_the_queue_that_wakes_or_drops_it() {
    run(|| async {
        let (outbox, gate) = outbox();
        outbox.push(Bytes::from_static(b"held"), usize::MAX).unwrap();
        for _ in 0..2 {
            outbox.set_driver(&waker(Arc::new(Owner(outbox.clone()))));
        }
        outbox.leave_to_driver();
        outbox.set_driver(&waker(Arc::new(Owner(outbox.clone()))));
        gate.0.store(true, Relaxed);
        assert!(outbox.poll_drive(&mut Context::from_waker(Waker::noop())).is_ready());
        outbox.call_driver();
    });
}

#[test]
fn a_waker_that_waits_for_room_or_the_end_may_look_at_the_queue() {
    run(|| async {
        let (outbox, gate) = outbox();
        let cx_of = |owner: Arc<Owner>| waker(owner);
        outbox.push(vec![7; 1 << 20].into(), usize::MAX).unwrap();
        // It is being written.
        outbox.try_room(HIGH_WATER);
        outbox.push(vec![7; 1 << 16].into(), usize::MAX).unwrap();
        let (mut place, mut closed, mut lost) = (Place::default(), outbox.closed().boxed(), outbox.lose().boxed());
        for _ in 0..2 {
            let waker = cx_of(Arc::new(Owner(outbox.clone())));
            let mut cx = Context::from_waker(&waker);
            assert!(outbox.poll_room(HIGH_WATER, &mut place, &mut cx).is_pending());
            assert!(closed.as_mut().poll(&mut cx).is_pending());
        }
        gate.0.store(true, Relaxed);
        assert!(outbox.poll_drive(&mut Context::from_waker(Waker::noop())).is_ready());
        outbox.close();
        assert!((&mut closed).now_or_never().is_some() && (&mut lost).now_or_never().is_some());
        assert!(outbox.poll_room(HIGH_WATER, &mut place, &mut Context::from_waker(Waker::noop())).is_ready());
    });
}

/// It is long enough to be written from where it lies, and is dropped when that is done.
#[test]
fn the_memory_of_a_message_that_panics_is_no_fault_of_the_connection() {
    struct Bomb;

    impl AsRef<[u8]> for Bomb {
        fn as_ref(&self) -> &[u8] {
            &[7; 10_000]
        }
    }

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the memory");
        }
    }

    run(|| async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let mut sink = manager.sink();
        sink.feed((address.clone(), Bytes::from_owner(Bomb))).await.unwrap();
        let (flushed, ()) = futures::join!(sink.flush(), async {
            far.read_exact(&mut [0; 10_004]).await.unwrap();
        });
        flushed.unwrap();
        manager.write(&address, Bytes::from_static(b"after it")).await.unwrap();
        assert_eq!(manager.stats().total.written, 2);
    });
}

/// A part of an inbox, which looks at it where it is dropped or woken.
struct Holds(Share);

impl ArcWake for Holds {
    fn wake_by_ref(holds: &Arc<Self>) {
        holds.0.is_all();
    }
}

#[test]
fn a_waker_that_waits_for_an_inbox_may_look_at_it() {
    run(|| async {
        let (mut sender, _receiver) = inbox::<()>(3 * ITEM, None);
        let share = |sender: &mut Sender<()>| {
            let reserved = sender.poll_reserve(ITEM, &mut Context::from_waker(Waker::noop()));
            let Poll::Ready(share) = reserved else { panic!("there is room") };
            share
        };
        let (first, second, third) = (share(&mut sender), share(&mut sender), share(&mut sender));
        let mut waits = sender.clone();
        let mut behind = sender.clone();
        for holds in [second, third] {
            let waker = waker(Arc::new(Holds(holds)));
            assert!(waits.poll_reserve(3 * ITEM, &mut Context::from_waker(&waker)).is_pending());
            assert!(behind.poll_reserve(ITEM, &mut Context::from_waker(&waker)).is_pending());
        }
        drop(first);
        drop(waits);
        assert!(behind.poll_reserve(ITEM, &mut Context::from_waker(Waker::noop())).is_ready());
    });
}

#[test]
fn a_consumer_whose_waker_panics_or_owns_it_is_no_fault_of_who_sends() {
    run(|| async {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tells = told.clone();
        let panicked: PanicHook = Arc::new(move |source, panic| tells.lock().unwrap().push((source, panic.message)));
        let (mut sender, mut receiver) = inbox(ITEM, Some(panicked));
        let mut send = |item: u8| {
            let reserved = sender.poll_reserve(0, &mut Context::from_waker(Waker::noop()));
            let Poll::Ready(share) = reserved else { panic!("it needs no room") };
            sender.send(item, share).is_ok()
        };
        let panics = waker(Arc::new(Panics));
        assert!(receiver.next().poll_unpin(&mut Context::from_waker(&panics)).is_pending());
        assert!(send(1));
        assert_eq!(receiver.next().await.unwrap().item, 1);
        assert_eq!(*told.lock().unwrap(), [(PanicSource::Waker, "the executor is gone".to_owned())]);
        abandon(async move { drop(receiver.next().await) });
        assert!(send(2));
        assert!(!send(3));
    });
}
