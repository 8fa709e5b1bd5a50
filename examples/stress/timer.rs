//! Time for tasks whose executor may forget them. The timers of async-std keep the waker inside the future that waits: such a
//! task would own itself, and nobody could let it go. These leave it with a thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures::future::{Either, select};

use super::tasks::no_panic;

/// Waits so long.
pub(crate) fn sleep(time: Duration) -> Sleep {
    Sleep { end: Instant::now() + time, alarm: None }
}

/// Waits for this, at most so long.
pub(crate) async fn timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    match select(pin!(future), sleep(limit)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

pub(crate) struct Sleep {
    end: Instant,
    alarm: Option<Arc<Alarm>>,
}

/// Whom to wake.
struct Alarm {
    waker: Mutex<Option<Waker>>,
    is_over: AtomicBool,
}

impl Alarm {
    fn set(&self, waker: Option<Waker>) -> Option<Waker> {
        std::mem::replace(&mut *self.waker.lock().unwrap_or_else(PoisonError::into_inner), waker)
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let end = self.end;
        match &self.alarm {
            Some(alarm) => drop(alarm.set(Some(cx.waker().clone()))),
            None => {
                let alarm = Alarm { waker: Mutex::new(Some(cx.waker().clone())), is_over: AtomicBool::new(false) };
                let alarm = Arc::new(alarm);
                // The thread lives as long as the process.
                let _ = thread_of_all().send((end, alarm.clone()));
                self.alarm = Some(alarm);
            }
        }
        let is_over = self.alarm.as_ref().is_none_or(|alarm| alarm.is_over.load(Ordering::Acquire));
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(alarm) = &self.alarm {
            drop(alarm.set(None));
        }
    }
}

type Order = (Instant, Arc<Alarm>);

fn thread_of_all() -> &'static Sender<Order> {
    static THREAD: OnceLock<Sender<Order>> = OnceLock::new();
    THREAD.get_or_init(|| {
        let (sender, orders) = channel();
        thread::spawn(move || ring(&orders));
        sender
    })
}

fn ring(orders: &Receiver<Order>) {
    let (mut alarms, mut last) = (BTreeMap::<(Instant, u64), Arc<Alarm>>::new(), 0);
    loop {
        let now = Instant::now();
        while let Some(first) = alarms.first_entry()
            && first.key().0 <= now
        {
            let alarm = first.remove();
            alarm.is_over.store(true, Ordering::Release);
            // It may be the last owner of its task, or panic.
            no_panic(|| alarm.set(None).into_iter().for_each(Waker::wake));
        }
        let first = alarms.first_key_value().map(|((end, _), _)| end.saturating_duration_since(now));
        match orders.recv_timeout(first.unwrap_or(Duration::MAX)) {
            Ok((end, alarm)) => {
                last += 1;
                alarms.insert((end, last), alarm);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
