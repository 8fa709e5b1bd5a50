//! One peer that never stops sending, and a hundred that say a word now and then.

use std::cell::OnceCell;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{FutureExt, SinkExt, StreamExt};

use crate::sim::testing;
use crate::sim::testing::Sim;
use crate::{Address, Closer, Config, Connection, Listener, WireFormat};

const QUIET: usize = 100;
const ROUNDS: usize = 20;

/// How many messages of the firehose come between a quiet peer's word and its reception, at the most.
fn longest_wait(seed: Option<u64>) -> usize {
    Sim { capacity: 1 << 20, seed, traced: false }.run(async {
        // Room for two reads of the firehose, and there is always more to read.
        let config = Config::new().wire_format(WireFormat::u32_be()).inbox_bytes(2 * 66 * 1024);
        let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
        let address = Address::from(listener.local_addr());
        let mut quiet = Vec::new();
        for _ in 0..QUIET {
            quiet.push(Connection::dial(&address, config.clone()).await.unwrap());
        }
        let mut firehose = Connection::dial(&address, config).await.unwrap();
        let _pouring =
            testing::spawn(async move { while firehose.feed(Bytes::from_static(&[0; 1024])).await.is_ok() {} });
        for _ in 0..1_000 {
            listener.next().await.unwrap();
        }
        let mut longest = 0;
        for round in 0..ROUNDS {
            for peer in &mut quiet {
                peer.send(Bytes::copy_from_slice(&[round as u8; 10])).await.unwrap();
            }
            let (mut heard, mut poured) = (0, 0);
            while heard < QUIET {
                let (_, message) = listener.next().await.unwrap();
                match message.len() {
                    10 => {
                        assert_eq!(message[0], round as u8, "each is heard in its round");
                        heard += 1;
                        longest = longest.max(poured);
                    }
                    _ => poured += 1,
                }
            }
        }
        longest
    })
}

#[test]
fn quiet_peers_are_served_in_every_round() {
    // A read of the firehose holds 64 messages: of the one that is being taken, and of two in the inbox.
    let longest = longest_wait(None);
    assert!(longest <= 3 * 64, "{longest} messages of the firehose before a quiet peer's");
    // Where tasks run in any order, a quiet peer's may well be the last for a while.
    for seed in 0..20 {
        let longest = longest_wait(Some(seed));
        assert!(longest <= 6 * 64, "{longest} messages of the firehose before a quiet peer's, with seed {seed}");
    }
}

/// Who accepts lets others run now and then, although one connects after the other: on a runtime of one thread nobody else could.
#[test]
fn those_who_connect_at_once_are_not_all_accepted_in_one_turn() {
    const MANY: u64 = 100;
    for closes in [false, true] {
        let closer = OnceCell::<Closer>::new();
        let (mut before, mut most) = (0, 0);
        let watch = || {
            let accepted = closer.get().map_or(0, |closer| closer.stats().accepted);
            (before, most) = (accepted, most.max(accepted - before));
        };
        let connect = async {
            let mut listener = Listener::bind("127.0.0.1:0", Config::new()).await.unwrap();
            let at = listener.local_addr();
            assert!(closer.set(listener.closer()).is_ok());
            assert!(listener.next().now_or_never().is_none());
            let connections = join_all((0..MANY).map(|_| Connection::dial(&at, Config::new()))).await;
            // Now they wait in the system's queue.
            if closes {
                let close = closer.get().unwrap().close();
                drop(connections);
                close.await.unwrap();
            } else {
                testing::sleep(Duration::from_millis(1)).await;
                drop(connections);
            }
        };
        Sim::default().run_watched(connect, watch);
        assert_eq!((before, most), (MANY, 5), "accepted, and in one turn at the most; closes: {closes}");
    }
}
