//! The outbox of a peer's replies, which is made when there is something for it: most peers are never answered, and an outbox is the
//! largest part of what a peer costs.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use crate::foreign;
use crate::queue::{Outbox, Rules};
use crate::sync::Lock;
use crate::transport::Stream;
use crate::wire::Codec;

/// It is made where it is used as what it is. For what its peer's task does all the time there are methods here, which do without.
pub(crate) struct LateOutbox {
    made: OnceLock<Box<Outbox<Stream>>>,
    /// `None` when it is made, or is being made.
    unmade: Lock<Option<Unmade>>,
}

/// What an outbox is made of.
struct Unmade {
    /// `None` where it is closed: then there is nothing to write.
    stream: Option<Stream>,
    codec: Codec,
    rules: Arc<Rules<Stream>>,
    driver: Option<Waker>,
}

impl LateOutbox {
    pub(crate) fn new(stream: Stream, codec: Codec, rules: Arc<Rules<Stream>>) -> Self {
        let unmade = Unmade { stream: Some(stream), codec, rules, driver: None };
        Self { made: OnceLock::new(), unmade: Lock::new(Some(unmade)) }
    }

    /// The outbox, if there is one.
    #[inline]
    pub(crate) fn made(&self) -> Option<&Outbox<Stream>> {
        self.made.get().map(|outbox| &**outbox)
    }

    /// Registers the driver. Returns the outbox, if there is one for it to look after.
    pub(crate) fn set_driver(&self, waker: &Waker) -> Option<&Outbox<Stream>> {
        let registered = self.while_unmade(|unmade| match &mut unmade.driver {
            // It is the runtime's own, which is no code of the program.
            Some(driver) => driver.clone_from(waker),
            none => *none = Some(waker.clone()),
        });
        if registered.is_some() {
            return None;
        }
        self.outbox().set_driver(waker);
        Some(self.outbox())
    }

    /// Lets the driver look around.
    pub(crate) fn call_driver(&self) {
        match self.while_unmade(|unmade| unmade.driver.take()) {
            Some(driver) => drop(driver.map(foreign::wake)),
            None => self.outbox().call_driver(),
        }
    }

    /// Accepts nothing more. Returns the outbox, if there is one; if not, nothing else is left to do.
    pub(crate) fn close(&self) -> Option<&Outbox<Stream>> {
        if let Some(stream) = self.while_unmade(|unmade| unmade.stream.take()) {
            // It may be the last clone, and drop the waker that the socket has kept.
            let _ = foreign::dispose(stream);
            return None;
        }
        self.outbox().close();
        Some(self.outbox())
    }

    /// Waits until nothing more is accepted.
    pub(crate) async fn closed(&self) {
        if self.while_unmade(|unmade| unmade.stream.is_none()) != Some(true) {
            self.outbox().closed().await;
        }
    }

    /// What `visit` returns, if there is no outbox.
    fn while_unmade<T>(&self, visit: impl FnOnce(&mut Unmade) -> T) -> Option<T> {
        if self.made().is_some() {
            return None;
        }
        self.unmade.lock().as_mut().map(visit)
    }

    #[inline]
    fn outbox(&self) -> &Outbox<Stream> {
        self.made.get_or_init(|| self.make())
    }

    #[cold]
    fn make(&self) -> Box<Outbox<Stream>> {
        let unmade = self.unmade.lock().take();
        let Unmade { stream, codec, rules, driver } = unmade.expect("it is made once");
        let outbox = match stream {
            Some(stream) => Outbox::new(stream, codec, rules),
            None => {
                let closed = Outbox::down(codec, rules);
                closed.close();
                closed
            }
        };
        if let Some(driver) = driver {
            outbox.set_driver(&driver);
        }
        Box::new(outbox)
    }
}

impl From<Outbox<Stream>> for LateOutbox {
    /// One that is made already.
    fn from(outbox: Outbox<Stream>) -> Self {
        Self { made: OnceLock::from(Box::new(outbox)), unmade: Lock::new(None) }
    }
}

impl Deref for LateOutbox {
    type Target = Outbox<Stream>;

    #[inline]
    fn deref(&self) -> &Outbox<Stream> {
        self.outbox()
    }
}
