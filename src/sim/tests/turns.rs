//! Who writes next, where somebody comes while another writes: over sockets that takes a second thread in that moment.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures::io::AsyncWrite;

use super::outages::config;
use super::waits::{Waiting, one_kb};
use crate::framed::HIGH_WATER;
use crate::queue::{Outbox, Place, Stage};
use crate::session::{Positions, Settled, Side, Terms};
use crate::sync::Calls;

/// A transport that takes everything, and while it does, something happens that only another thread could do.
#[derive(Clone, Default)]
struct Meanwhile(Arc<Mutex<Option<Happens>>>);

type Happens = Box<dyn FnOnce() + Send>;

impl AsyncWrite for Meanwhile {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let happens = self.0.lock().unwrap().take();
        if let Some(happens) = happens {
            happens();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Somebody writes a message of `len` bytes, and in the midst of it `happens` comes about. Returns how often the driver is
/// called.
fn while_somebody_writes(
    len: usize,
    happens: impl FnOnce(&Arc<Outbox<Meanwhile>>, &mut Context<'_>) + Send + 'static,
) -> usize {
    let meanwhile = Meanwhile::default();
    let outbox = Arc::new(Outbox::new(meanwhile.clone(), config().codec().unwrap(), Arc::default()));
    let ((calls, driver), other) = (Calls::waker(), outbox.clone());
    outbox.set_driver(&driver);
    *meanwhile.0.lock().unwrap() = Some(Box::new(move || happens(&other, &mut Context::from_waker(&driver))));
    let ticket = outbox.push(vec![7; len].into(), HIGH_WATER).unwrap();
    let mut place = Place { stage: Stage::Accepted(ticket), ..Place::default() };
    assert!(outbox.poll_over(&mut place, &mut Context::from_waker(Waker::noop())).is_ready());
    let calls = calls.count();
    if calls > 0 {
        assert!(outbox.poll_drive(&mut Context::from_waker(Waker::noop())).is_ready());
        assert_eq!(outbox.books().held, 0);
    }
    calls
}

#[test]
fn a_writer_leaves_to_the_driver_what_others_wait_for() {
    let calls = while_somebody_writes(10, |outbox, cx| {
        let mut place = Place::default();
        outbox.offer(one_kb(2), &mut place).unwrap();
        assert!(outbox.poll_over(&mut place, cx).is_pending());
    });
    assert_eq!(calls, 1);
    // Nobody waits: nobody is called.
    let calls = while_somebody_writes(10, |outbox, _| {
        outbox.push(one_kb(2), usize::MAX).unwrap();
    });
    assert_eq!(calls, 0);
}

#[test]
fn what_is_accepted_and_given_up_is_left_to_the_driver() {
    let calls = while_somebody_writes(10, |outbox, cx| {
        let mut place = Place::default();
        outbox.offer(one_kb(2), &mut place).unwrap();
        assert!(outbox.poll_over(&mut place, cx).is_pending());
        assert!(outbox.abandon(&mut place).is_none());
    });
    assert_eq!(calls, 1);
}

#[test]
fn a_driver_that_finds_somebody_writing_is_called_when_they_have_done() {
    let calls = while_somebody_writes(10, |outbox, cx| {
        outbox.push(one_kb(2), usize::MAX).unwrap();
        assert!(outbox.poll_drive(cx).is_pending());
    });
    assert_eq!(calls, 1);
}

#[test]
fn a_driver_that_waits_for_room_is_called_when_there_is_some_or_somebody_has_to_make_it() {
    for len in [10, HIGH_WATER] {
        // The long one makes room by writing on; the short one is all that its writer waits for.
        let calls = while_somebody_writes(len, |outbox, _| {
            outbox.push(vec![7; HIGH_WATER].into(), usize::MAX).unwrap();
            assert!(!outbox.drives_room(HIGH_WATER));
        });
        assert_eq!(calls, 1);
    }
}

#[test]
fn a_transport_that_somebody_writes_to_is_lost_when_they_have_done() {
    let losing = Arc::new(Mutex::new(None));
    let lost = losing.clone();
    while_somebody_writes(10, move |outbox, _| {
        let outbox = outbox.clone();
        *lost.lock().unwrap() = Some(Waiting::new(async move { outbox.lose().await }));
    });
    let mut losing = losing.lock().unwrap().take().unwrap();
    assert!(losing.poll_if_called().is_ready());
}

/// Whoever settles what came writes the ACK that is due.
#[test]
fn who_writes_an_ack_leaves_to_the_driver_what_others_wait_for() {
    let meanwhile = Meanwhile::default();
    let terms = Terms { max_message: 100, window: 1 << 20, heartbeat: 0, ttl: 1000 };
    let outbox = Outbox::in_session(config().codec().unwrap(), Arc::default(), Side::Listener, 1 << 20);
    let outbox = Arc::new(outbox);
    assert!(outbox.resume_session(&Positions::default(), &terms).is_ok());
    assert!(outbox.resume(meanwhile.clone()));
    let ((calls, driver), other) = (Calls::waker(), outbox.clone());
    outbox.set_driver(&driver);
    *meanwhile.0.lock().unwrap() = Some(Box::new(move || {
        let ticket = other.push("reply".into(), usize::MAX).unwrap();
        let mut place = Place { stage: Stage::Accepted(ticket), ..Place::default() };
        assert!(other.poll_written(&mut place, &mut Context::from_waker(Waker::noop())).is_pending());
    }));
    let unsettled = outbox.received(1, 11).unwrap().unwrap();
    unsettled.settle(&outbox, Settled::Taken);
    assert_eq!((calls.count(), outbox.is_stalled()), (1, true));
}
