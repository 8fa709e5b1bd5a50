//! Code of the program that runs in tasks of the library: callbacks, their errors and futures, delays, and the owners of
//! messages. All of it panics now and then, or calls the library.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use buffstreams::{Backoff, BoxError, Bytes, Error};
use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt};

use super::accounts::Account;
use super::books;
use super::faults::{Kind, Planted, chance, choice, happened, is_left_out, one_in, plant};

/// A payload that panics when it is dropped.
pub(crate) struct Payload;

impl Drop for Payload {
    fn drop(&mut self) {
        plant(Kind::PayloadPanics);
    }
}

/// What a callback does, once it has seen the message. With `drops`, what it leaves behind may panic when it is dropped:
/// where the events have a subscriber, that could be the program's own.
pub(crate) fn call_back(drops: bool) -> Result<(), BoxError> {
    const RARELY: u64 = 3000;
    if chance(Kind::CallbackPanics, RARELY) {
        plant(Kind::CallbackPanics);
    }
    if chance(Kind::PayloadPanics, RARELY) {
        std::panic::panic_any(Payload);
    }
    if chance(Kind::ErrorOfCallback, RARELY) {
        happened(Kind::ErrorOfCallback);
        return Err(Box::new(Failure { drops: false }));
    }
    if drops && chance(Kind::ErrorPanics, RARELY) {
        return Err(Box::new(Failure { drops: true }));
    }
    Ok(())
}

/// As [`call_back`], with a future.
pub(crate) fn call_back_later(drops: bool) -> BoxFuture<'static, Result<(), BoxError>> {
    const RARELY: u64 = 1000;
    if chance(Kind::FuturePanics, RARELY) {
        return async { plant(Kind::FuturePanics) }.boxed();
    }
    if chance(Kind::FutureDropPanics, RARELY) {
        return Grenade(async_std::task::sleep(Duration::from_millis(3)).boxed()).boxed();
    }
    if one_in(200) {
        return async_std::task::sleep(Duration::from_millis(1)).map(Ok).boxed();
    }
    futures::future::ready(call_back(drops)).boxed()
}

/// A callback's error, which cannot be printed.
struct Failure {
    drops: bool,
}

impl fmt::Debug for Failure {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::panic::panic_any(Planted)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::panic::panic_any(Planted)
    }
}

impl std::error::Error for Failure {}

impl Drop for Failure {
    fn drop(&mut self) {
        if self.drops {
            plant(Kind::ErrorPanics);
        }
    }
}

/// A callback's future that panics when it is dropped, be it at its end or before.
struct Grenade(BoxFuture<'static, ()>);

impl Future for Grenade {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl Drop for Grenade {
    fn drop(&mut self) {
        plant(Kind::FutureDropPanics);
    }
}

/// Delays that panic now and then, for a manager: a connection would ask for them in the program's own task.
pub(crate) fn backoff() -> Backoff {
    let made = || {
        if chance(Kind::BackoffPanics, 24) {
            plant(Kind::BackoffPanics);
        }
        Delays { left: 12 }
    };
    Backoff::from_fn(made).max_elapsed(Duration::from_millis(800)).stable_after(Duration::from_millis(50))
}

struct Delays {
    left: u32,
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if chance(Kind::DelaysPanic, 48) {
            plant(Kind::DelaysPanic);
        }
        self.left = self.left.checked_sub(1)?;
        Some(Duration::from_millis(choice() % 20))
    }
}

impl Drop for Delays {
    fn drop(&mut self) {
        if chance(Kind::DelaysDropPanics, 24) {
            plant(Kind::DelaysDropPanics);
        }
    }
}

/// A message that calls the library when its last part is dropped, wherever that is.
pub(crate) fn comes_back(message: Vec<u8>) -> Bytes {
    Bytes::from_owner(Owner(message))
}

struct Owner(Vec<u8>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if !is_left_out(Kind::MessageComesBack)
            && let Some(account) = one_of_the_homes()
        {
            come_back(|| {
                happened(Kind::MessageComesBack);
                let manager = &account.manager;
                drop(manager.stats());
                let Some(address) = manager.addresses().into_iter().next() else { return };
                match choice() % 512 {
                    0..200 => drop(manager.events()),
                    200..400 => {
                        account.counters.offer();
                        let written = manager.write(address, books::anonymous()).now_or_never();
                        if let Some(Err(Error::NotSent { .. })) = written {
                            account.counters.returned();
                        }
                    }
                    400..511 => {
                        account.counters.offer();
                        let _ = manager.sink().feed((address, books::anonymous())).now_or_never();
                    }
                    _ => drop(manager.close(address).now_or_never()),
                }
            });
        }
    }
}

/// What a waker may do: it looks at some manager.
pub(crate) fn look_around() {
    if let Some(account) = one_of_the_homes() {
        come_back(|| {
            happened(Kind::WakerComesBack);
            drop(account.manager.stats());
        });
    }
}

/// What is called back, kept from going round in circles.
fn come_back(call: impl FnOnce()) {
    thread_local!(static INSIDE: Cell<bool> = const { Cell::new(false) });
    if !INSIDE.replace(true) {
        call();
        INSIDE.set(false);
    }
}

static HOMES: Mutex<Vec<Weak<Account>>> = Mutex::new(Vec::new());

/// Messages and wakers may call this manager from now on.
pub(crate) fn may_be_called(account: Weak<Account>) {
    let mut homes = HOMES.lock().unwrap_or_else(PoisonError::into_inner);
    homes.retain(|home| home.strong_count() > 0);
    homes.push(account);
}

fn one_of_the_homes() -> Option<Arc<Account>> {
    let home = {
        let homes = HOMES.lock().unwrap_or_else(PoisonError::into_inner);
        homes.get(choice() as usize % homes.len().max(1)).cloned()
    };
    home?.upgrade()
}
