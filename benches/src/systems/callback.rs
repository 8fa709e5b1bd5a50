//! buffstreams with a callback, which borrows each message in its peer's own task.

use std::iter;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use super::buffstreams::{Buffstreams, Home, all_connected};
use crate::Result;
use crate::check::{Check, Inspector, PeerTally, Received};
use crate::child::{Parent, Waiting};
use crate::plan::{Scenario, Trial};

pub(super) fn receive<R: Home>(library: Buffstreams<R>, trial: &Trial, parent: &Parent) -> Result<()> {
    if trial.scenario == Scenario::OpenLoop {
        return receive_timed(library, trial, parent);
    }
    R::block_on(async {
        // The ids of peers follow each other, so that none of them meet in this table.
        let peers: Arc<[PeerTally]> =
            iter::repeat_with(PeerTally::default).take(trial.connections.next_power_of_two()).collect();
        let (tallies, check, share) = (peers.clone(), Check::of(trial), trial.share());
        let waiting = Waiting::of(trial.connections);

        let (mut listeners, ports) = library.listen(trial).await?;
        let serving = listeners.remove(0).serve_in_background(move |peer, message| {
            if tallies[peer.id() as usize & (tallies.len() - 1)].take(&check, message) == share {
                waiting.arrived();
            }
            Ok(())
        });
        parent.ready(&ports);
        parent.closing().await;
        serving.close().await?;
        parent.received(PeerTally::report(peers.iter()));
        Ok(())
    })
}

/// A callback that never comes to its end, for each peer. It returns a future: one that blocked would stop the
/// threads of the runtime, and with them the receiving that is to be seen.
pub(super) fn stall<R: Home>(library: Buffstreams<R>, trial: &Trial, parent: &Parent) -> Result<()> {
    R::block_on(async {
        let (mut listeners, ports) = library.listen(trial).await?;
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
        let _serving = R::spawn(served);
        parent.ready(&ports);
        first.recv()?;
        parent.received(Received::default());
        Ok(())
    })
}

pub(super) fn hold<R: Home>(library: Buffstreams<R>, trial: &Trial, parent: &Parent) -> Result<()> {
    R::block_on(async {
        let (mut listeners, ports) = library.listen(trial).await?;
        parent.ready(&ports);
        let listener = listeners.remove(0);
        let counters = listener.closer();
        let _serving = listener.serve_in_background(|_peer, _message| Ok(()));
        all_connected(trial, &counters).await;
        parent.received(Received::default());
        Ok(())
    })
}

/// One peer whose messages say when they were due: an `Inspector` keeps their times. Nobody else wants its lock.
fn receive_timed<R: Home>(library: Buffstreams<R>, trial: &Trial, parent: &Parent) -> Result<()> {
    R::block_on(async {
        let inspector = Inspector::new(trial, trial.share(), &Waiting::of(trial.connections));
        let inspector = Arc::new(Mutex::new(Some(inspector)));
        let (mut listeners, ports) = library.listen(trial).await?;
        let shared = inspector.clone();
        let serving = listeners.remove(0).serve_in_background(move |_peer, message| {
            if let Some(inspector) = &mut *lock(&shared) {
                inspector.take(message);
            }
            Ok(())
        });
        parent.ready(&ports);
        parent.closing().await;
        serving.close().await?;
        parent.received(Inspector::report(lock(&inspector).take()));
        Ok(())
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
