//! buffstreams with a manager: producers with a sink each, into connections that they share.

use std::time::Duration;

use buffstreams::{Address, Backoff, Manager};
use futures::SinkExt;
use futures::future::try_join_all;

use super::System;
use super::buffstreams::{Buffstreams, config};
use crate::Result;
use crate::child::{Parent, Sent};
use crate::messages::Messages;
use crate::plan::Trial;

pub(super) struct Managed;

/// Delays that never come: no connection breaks.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

impl System for Managed {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        Buffstreams.receive(trial, parent)
    }

    /// Each producer goes round the addresses.
    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let config = config(trial.size);
            let config = match trial.patient {
                true => config.reconnect(Backoff::exponential(FIRST, LONGEST)).message_ttl(LONGEST),
                false => config,
            };
            let (messages, share, manager) = (Messages::of(trial), trial.share(), Manager::new(config));
            let address = |port: &u16| Address::from(format!("127.0.0.1:{port}"));
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
