//! buffstreams with a callback, which borrows each message in its peer's own task. The clients are the same.

use std::iter;
use std::sync::atomic::{AtomicU64, Ordering::AcqRel};
use std::sync::{Arc, mpsc};

use super::buffstreams::{Buffstreams, listen};
use super::{System, framed};
use crate::check::{Check, PeerTally, Received};
use crate::child::Parent;
use crate::plan::Trial;
use crate::{Result, clock};

#[derive(Clone, Copy)]
pub(super) struct Callback;

impl System for Callback {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            // The ids of peers follow each other, so that none of them meet in this table.
            let peers: Arc<[PeerTally]> =
                iter::repeat_with(PeerTally::default).take(trial.connections.next_power_of_two()).collect();
            let (tallies, check, share) = (peers.clone(), Check::of(trial), trial.share());
            let (missing, (done, all)) = (AtomicU64::new(trial.connections as u64), mpsc::channel());

            let (mut listeners, ports) = listen(trial).await?;
            let _serving = listeners.remove(0).serve_in_background(move |peer, message| {
                let count = tallies[peer.id() as usize & (tallies.len() - 1)].take(&check, message);
                if count == share && missing.fetch_sub(1, AcqRel) == 1 {
                    done.send(clock::now())?;
                }
                Ok(())
            });
            parent.ready(&ports);
            // The callback runs on the threads of the runtime: this one can be blocked.
            let end = all.recv()?;
            parent.received(PeerTally::report(peers.iter(), end));
            Ok(())
        })
    }

    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        framed::send(Buffstreams, trial, ports, parent)
    }

    /// A callback that never comes to its end, for each peer. It returns a future: one that blocked would stop the
    /// threads of the runtime, and with them the receiving that is to be seen.
    fn stall(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let (mut listeners, ports) = listen(trial).await?;
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
}
