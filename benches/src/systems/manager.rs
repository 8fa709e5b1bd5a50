//! buffstreams with a manager: producers with a sink each, into connections that they share.

use std::time::Duration;

use buffstreams::{Address, Backoff, Manager};
use futures::SinkExt;
use futures::future::try_join_all;

use super::buffstreams::Buffstreams;
use super::runtime::AsyncStd;
use super::{Pace, System, stamped};
use crate::Result;
use crate::child::{Parent, Sent};
use crate::messages::Messages;
use crate::plan::Trial;

pub(super) struct Managed;

const PLAIN: Buffstreams<AsyncStd> = Buffstreams::PLAIN;

/// Delays that never come: no connection breaks.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

fn address(port: &u16) -> Address {
    Address::from(format!("127.0.0.1:{port}"))
}

impl System for Managed {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        PLAIN.receive(trial, parent)
    }

    fn stall(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        PLAIN.stall(trial, parent)
    }

    fn pace(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let (manager, address) = (Manager::new(PLAIN.config(trial.size)), address(&ports[0]));
            manager.dial(&address).await?;
            let mut sink = manager.sink();
            let start = parent.go();
            let mut pace = Pace::new(trial, start);
            while let Some((due, burst)) = pace.next() {
                for number in burst {
                    sink.feed((address.clone(), stamped(trial.size, number, due).into())).await?;
                }
                sink.flush().await?;
            }
            parent.sent(Sent { start, ..Sent::default() });
            Ok(())
        })
    }

    /// Each producer goes round the addresses.
    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let config = PLAIN.config(trial.size);
            let config = match trial.patient {
                true => config.reconnect(Backoff::exponential(FIRST, LONGEST)).message_ttl(LONGEST),
                false => config,
            };
            let (messages, share, manager) = (Messages::of(trial), trial.share(), Manager::new(config));
            let addresses: Vec<_> = ports.iter().map(address).collect();
            for address in &addresses {
                manager.dial(address).await?;
            }
            let start = parent.go();
            let produce = |_| {
                let (mut sink, addresses) = (manager.sink(), addresses.clone());
                async_std::task::spawn(async move {
                    let mut next = addresses.iter().cycle();
                    for number in 0..share {
                        let address = next.next().expect("there is an address").clone();
                        sink.feed((address, messages.bytes(number))).await?;
                    }
                    sink.flush().await
                })
            };
            let producing: Vec<_> = (0..trial.producers).map(produce).collect();
            try_join_all(producing).await?;
            parent.sent(Sent { start, ..Sent::default() });
            Ok(())
        })
    }
}
