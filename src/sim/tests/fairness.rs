//! One peer that never stops sending, and a hundred that say a word now and then.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};

use crate::sim::testing;
use crate::sim::testing::Sim;
use crate::{Address, Config, Connection, Listener, WireFormat};

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
