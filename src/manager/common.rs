//! What the links of a manager have in common: where their news and their letters go.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::dead_letters::DeadLetterBox;
use crate::config::Config;
use crate::error::{Error, Unsent};
use crate::foreign::{Panic, PanicHook, PanicSource};
use crate::link::{News, Owner};
use crate::observe::{ManagerEvent, Reporter};
use crate::peer::Address;
use crate::queue::{Outcome, Unsettled, Verdict};
use crate::wire::Frames;

/// What the links of one manager have in common.
pub(crate) struct Common {
    pub(crate) config: Config,
    pub(crate) reporter: Arc<Reporter<ManagerEvent>>,
    pub(crate) dead_letters: Arc<DeadLetterBox>,
}

impl Common {
    /// Makes dead letters of the messages: see [`DeadLetterBox::bury`].
    pub(crate) async fn bury(self: Arc<Self>, address: Address, messages: Vec<Bytes>, verdict: Verdict) {
        self.dead_letters.clone().bury(address, messages, verdict).await;
    }

    /// Tells of a panic that was caught.
    pub(crate) fn panicked(&self, address: &Address, source: PanicSource, Panic { message }: Panic) {
        self.reporter.report(ManagerEvent::Panicked { address: Some(address.clone()), source, message });
    }
}

/// The manager, as the link of one address knows it.
pub(crate) struct Owned {
    pub(crate) common: Arc<Common>,
    pub(crate) address: Address,
    /// Is told when it is up again after it was down.
    pub(crate) is_up: Box<dyn Fn() + Send + Sync>,
}

impl Owner for Owned {
    fn report(&self, news: News) {
        let address = self.address.clone();
        let event = match news {
            News::Opened => ManagerEvent::Opened { address },
            News::Broken(error) => ManagerEvent::Broken { address, error },
            News::DialFailed { error, attempts } => ManagerEvent::DialFailed { address, error, attempts },
            News::Down(error) => ManagerEvent::Down { address, error },
            News::Up => ManagerEvent::Up { address },
            News::Resumed { replayed } => ManagerEvent::Resumed { address, replayed: replayed as usize },
            // The one who has closed the address knows.
            News::SessionLost { in_doubt, why } => ManagerEvent::SessionLost { address, in_doubt, why },
        };
        if let ManagerEvent::Up { .. } = event {
            (self.is_up)();
        }
        self.common.reporter.report(event);
    }

    fn probes(&self) -> bool {
        self.common.config.backoff().is_some()
    }

    fn take_back(&self, messages: Vec<Bytes>, verdict: Verdict) -> BoxFuture<'static, ()> {
        self.common.dead_letters.clone().bury_in_turn(self.address.clone(), messages, verdict).boxed()
    }

    fn receive(&self, _: Frames, _: Unsettled) {
        // It takes no messages, and says so: the other end may send none.
    }

    fn panic_hook(&self) -> PanicHook {
        let (common, address) = (self.common.clone(), self.address.clone());
        Arc::new(move |source, panic| common.panicked(&address, source, panic))
    }
}

/// What became of a message, as the error of the producer that sent it to `address` and has a copy of it.
pub(crate) fn untaken(verdict: Verdict, address: Address, message: Option<Unsent>) -> Error {
    match verdict.outcome {
        Outcome::Refused => Error::Refused { message },
        Outcome::InDoubt => {
            let why = match *verdict.error {
                Error::SessionLost { why, .. } => Some(why),
                _ => None,
            };
            Error::InDoubt { message, why }
        }
        _ => Error::NotSent { address, message, source: verdict.error },
    }
}
