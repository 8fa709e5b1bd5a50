//! Writes to the addresses of a manager, and opens those that are not open.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use buffstreams::{Address, Manager};
use bytes::Bytes;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::error::Error;

/// A manager whose addresses are opened when they are first written to.
pub(crate) struct Writer {
    manager: Manager,
    gates: Mutex<HashMap<Address, Arc<AsyncMutex<Gate>>>>,
}

/// What the messages to one address go through, one behind the other, until they have their places in its queue: none overtakes
/// those that wait while it is dialed.
#[derive(Default)]
struct Gate {
    /// The last dial that failed, and when. It was for all who waited here by then.
    failed: Option<(Instant, Arc<buffstreams::Error>)>,
}

impl Writer {
    pub(crate) fn new(manager: Manager) -> Self {
        Self { manager, gates: Mutex::default() }
    }

    /// Whether the address was given up, and is not up again.
    pub(crate) fn is_down(&self, address: &Address) -> bool {
        self.manager.health(address).is_some_and(|health| health.is_down())
    }

    /// Waits until the kernel has taken the message. Messages are written in the order of the first polls.
    pub(crate) async fn write(&self, address: &Address, message: Bytes) -> Result<(), Error> {
        let (gate, came) = (self.gate(address), Instant::now());
        let mut gate = gate.lock().await;
        let mut write = pin!(self.manager.write(address, message.clone()));
        match futures::poll!(&mut write) {
            // It has its place, and the next one may come.
            Poll::Pending => drop(gate),
            Poll::Ready(Err(buffstreams::Error::NotOpen { .. })) => {
                self.dial(address, &mut gate, came).await?;
                write.set(self.manager.write(address, message));
                if let Poll::Ready(written) = futures::poll!(&mut write) {
                    return Ok(written?);
                }
                drop(gate);
            }
            Poll::Ready(written) => return Ok(written?),
        }
        Ok(write.await?)
    }

    /// Dials, for whoever came then, unless that has failed since.
    async fn dial(&self, address: &Address, gate: &mut Gate, came: Instant) -> Result<(), Error> {
        if let Some((at, error)) = &gate.failed
            && *at >= came
        {
            return Err(Error::Dial(error.clone()));
        }
        match self.manager.dial(address).await {
            Ok(()) | Err(buffstreams::Error::AlreadyOpen { .. }) => Ok(()),
            Err(error) => {
                let error = Arc::new(error);
                gate.failed = Some((Instant::now(), error.clone()));
                Err(Error::Dial(error))
            }
        }
    }

    fn gate(&self, address: &Address) -> Arc<AsyncMutex<Gate>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        match gates.get(address) {
            Some(gate) => gate.clone(),
            None => gates.entry(address.clone()).or_default().clone(),
        }
    }
}
