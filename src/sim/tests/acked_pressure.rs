//! Acknowledged sessions under pressure: nobody waits for an acknowledgement that waits for him.

use std::time::Duration;

use futures::future::join;
use futures::{SinkExt, StreamExt};

use crate::sim::testing::{self, Sim};
use crate::{Address, Bytes, Config, Connection, Listener, Session};

const LEN: usize = 4000;
const MESSAGES: u32 = 400;

fn config() -> Config {
    Config::new().max_message_size(LEN)
}

/// The inbox of the listener is full, and its program waits until a reply is acknowledged: that acknowledgement is behind
/// messages for which the inbox has no room.
#[test]
fn a_listener_whose_inbox_is_full_reads_on_for_the_acknowledgements_of_its_replies() {
    for capacity in [5_000, 64 << 10] {
        Sim { capacity, ..Sim::default() }.run(async {
            let roomy = config().session(Session::new()).inbox_bytes(64 << 10).queue_bytes(64 << 10);
            let narrow = config().session(Session::new().window_bytes((64 << 10) + LEN + 4));
            let (mut incoming, mut outgoing) = Listener::bind("127.0.0.1:0", roomy).await.unwrap().split();
            let address = Address::from(incoming.local_addr());
            let echo = async {
                for _ in 0..MESSAGES {
                    let (peer, message) = incoming.next().await.unwrap();
                    outgoing.feed((peer, message)).await.unwrap();
                }
                outgoing.flush().await.unwrap();
                let _ = testing::within(Some(Duration::from_secs(60)), incoming.next()).await;
            };
            let talk = async {
                let (mut read, mut write) = Connection::dial(&address, narrow).await.unwrap().split();
                let send = async {
                    for _ in 0..MESSAGES {
                        write.feed(Bytes::from(vec![7; LEN])).await.unwrap();
                    }
                    write.barrier().await.unwrap();
                };
                let receive = async {
                    for _ in 0..MESSAGES {
                        read.next().await.unwrap().unwrap();
                        testing::sleep(Duration::from_millis(10)).await;
                    }
                };
                join(send, receive).await;
            };
            let both = testing::within(Some(Duration::from_secs(300)), join(echo, talk)).await;
            assert!(both.is_some(), "they stand still");
        });
    }
}
