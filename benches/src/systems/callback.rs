//! buffstreams with a callback, which borrows each message in its peer's own task. The clients are the same.

use std::iter;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use futures::executor::block_on;

use super::buffstreams::{Buffstreams, all_connected, listen};
use super::runtime::AsyncStd;
use super::{System, framed};
use crate::Result;
use crate::check::{Check, Inspector, PeerTally, Received};
use crate::child::{Parent, Waiting};
use crate::plan::{Scenario, Trial};

#[derive(Clone, Copy)]
pub(super) struct Callback;

impl System for Callback {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        if trial.scenario == Scenario::OpenLoop {
            return receive_timed(trial, parent);
        }
        async_std::task::block_on(async {
            // The ids of peers follow each other, so that none of them meet in this table.
            let peers: Arc<[PeerTally]> =
                iter::repeat_with(PeerTally::default).take(trial.connections.next_power_of_two()).collect();
            let (tallies, check, share) = (peers.clone(), Check::of(trial), trial.share());
            let waiting = Waiting::of(trial.connections);

            let (mut listeners, ports) = listen::<AsyncStd>(trial).await?;
            let serving = listeners.remove(0).serve_in_background(move |peer, message| {
                if tallies[peer.id() as usize & (tallies.len() - 1)].take(&check, message) == share {
                    waiting.arrived();
                }
                Ok(())
            });
            parent.ready(&ports);
            // The callback runs on the threads of the runtime: this one can be blocked.
            block_on(parent.closing());
            serving.close().await?;
            parent.received(PeerTally::report(peers.iter()));
            Ok(())
        })
    }

    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        framed::send(Buffstreams::<AsyncStd>::HERE, trial, ports, parent)
    }

    fn pace(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        framed::pace(Buffstreams::<AsyncStd>::HERE, trial, ports, parent)
    }

    fn dial(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        framed::dial(Buffstreams::<AsyncStd>::HERE, trial, ports, parent)
    }

    /// A callback that never comes to its end, for each peer. It returns a future: one that blocked would stop the
    /// threads of the runtime, and with them the receiving that is to be seen.
    fn stall(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let (mut listeners, ports) = listen::<AsyncStd>(trial).await?;
            let (taken, first) = mpsc::channel();
            let served = listeners.remove(0).serve_async(move |_peer, message| {
                let taken = taken.send(());
                async move {
                    taken?;
                    futures::future::pending::<()>().await;
                    drop(message);
                    Ok(())
                }
            });
            let _serving = async_std::task::spawn(served);
            parent.ready(&ports);
            first.recv()?;
            parent.received(Received::default());
            Ok(())
        })
    }

    fn hold(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let (mut listeners, ports) = listen::<AsyncStd>(trial).await?;
            parent.ready(&ports);
            let listener = listeners.remove(0);
            let counters = listener.closer();
            let _serving = listener.serve_in_background(|_peer, _message| Ok(()));
            all_connected(trial, &counters).await;
            parent.received(Received::default());
            Ok(())
        })
    }
}

/// One peer whose messages say when they were due: an `Inspector` keeps their times. Nobody else wants its lock.
fn receive_timed(trial: &Trial, parent: &Parent) -> Result<()> {
    async_std::task::block_on(async {
        let inspector = Inspector::new(trial, trial.share(), &Waiting::of(trial.connections));
        let inspector = Arc::new(Mutex::new(Some(inspector)));
        let (mut listeners, ports) = listen::<AsyncStd>(trial).await?;
        let shared = inspector.clone();
        let serving = listeners.remove(0).serve_in_background(move |_peer, message| {
            if let Some(inspector) = &mut *lock(&shared) {
                inspector.take(message);
            }
            Ok(())
        });
        parent.ready(&ports);
        block_on(parent.closing());
        serving.close().await?;
        parent.received(Inspector::report(lock(&inspector).take()));
        Ok(())
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
