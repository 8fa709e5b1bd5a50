//! Writes to the addresses of a manager, and opens those that are not open.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use buffstreams::{Address, Health, Manager};
use bytes::Bytes;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::error::Error;

/// For how long others are asked before an address that gave a message back, as in `Manager::sink_to`.
const ALONE: Duration = Duration::from_secs(1);

/// A manager whose addresses are opened when they are first written to.
pub(crate) struct Writer {
    manager: Manager,
    gates: Mutex<HashMap<Address, Arc<AsyncMutex<Gate>>>>,
    /// When an address gave a message back for the last time that may go to another.
    gave_back: Mutex<HashMap<Address, Instant>>,
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
        Self { manager, gates: Mutex::default(), gave_back: Mutex::default() }
    }

    /// Whether other addresses are to be asked before this one.
    pub(crate) fn is_last(&self, address: &Address) -> bool {
        match self.manager.health(address) {
            Some(Health::Up | Health::Away { .. }) => false,
            // It is dialed in the background, and until it is up it gives everything back.
            Some(Health::Down { next_attempt: Some(_), .. }) => true,
            // Nothing but a message dials it: left alone for good, it would never come back.
            _ => {
                let gave_back = self.gave_back.lock().unwrap_or_else(PoisonError::into_inner);
                gave_back.get(address).is_some_and(|at| at.elapsed() < ALONE)
            }
        }
    }

    /// The address gave back a message that may go to another.
    pub(crate) fn gave_back(&self, address: &Address) {
        let mut gave_back = self.gave_back.lock().unwrap_or_else(PoisonError::into_inner);
        gave_back.insert(address.clone(), Instant::now());
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

    /// Dials, for those who came then, unless that has failed since.
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
