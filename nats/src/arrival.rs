//! What an ingress takes, and whom it tells when the stream has it.

use buffstreams::{Delivery, Peer};
use bytes::Bytes;

/// A message that has arrived, and somebody who may wait to hear what becomes of it. It is told once, by one of the two.
pub(crate) trait Arrival: Send + 'static {
    fn peer(&self) -> Peer;
    fn message(&self) -> &Bytes;
    /// What it is called wherever it comes from, if it is called anything.
    fn id(&self) -> Option<String> {
        None
    }
    /// The stream has it, by a quorum of its replicas.
    fn stored(self);
    /// It is given up. Whether the stream has it all the same is known, unless it is in doubt.
    fn unstored(self, in_doubt: bool);
}

/// Of a listener without acknowledgements: nobody waits.
impl Arrival for (Peer, Bytes) {
    fn peer(&self) -> Peer {
        self.0
    }

    fn message(&self) -> &Bytes {
        &self.1
    }

    fn stored(self) {}

    fn unstored(self, _in_doubt: bool) {}
}

/// Of a listener of acknowledged sessions: its sender waits.
impl Arrival for Delivery {
    fn peer(&self) -> Peer {
        self.peer()
    }

    fn message(&self) -> &Bytes {
        self.message()
    }

    fn id(&self) -> Option<String> {
        self.id().map(|id| id.to_string())
    }

    fn stored(self) {
        self.ack();
    }

    fn unstored(self, in_doubt: bool) {
        // What is dropped is in doubt at its sender.
        if !in_doubt {
            self.refuse();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use futures::{StreamExt, join};

    use super::*;
    use crate::{Ingress, server};

    /// One whose sender waits.
    struct Waited(Peer, Bytes, Arc<Mutex<Vec<String>>>);

    impl Waited {
        fn tell(&self, what: &str) {
            self.2.lock().unwrap().push(format!("{} {what}", String::from_utf8_lossy(&self.1)));
        }
    }

    impl Arrival for Waited {
        fn peer(&self) -> Peer {
            self.0
        }

        fn message(&self) -> &Bytes {
            &self.1
        }

        fn stored(self) {
            self.tell("stored");
        }

        fn unstored(self, in_doubt: bool) {
            self.tell(if in_doubt { "in doubt" } else { "unstored" });
        }
    }

    /// Kept here because it sees each of the two ends of an arrival.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_sender_is_told_when_the_stream_has_the_message_and_not_before() {
        let Some(mut nats) = server::Server::start() else { return };
        let jetstream = nats.jetstream().await;
        let orders = server::stream(&jetstream, "orders", 1).await;
        let ingress = Ingress::by(jetstream, |_peer, message| match message {
            b"bad" => "no subject".to_owned(),
            _ => "orders".to_owned(),
        });
        nats.kill();
        let listener = server::listen().await;
        let (address, closer, told) = (listener.local_addr(), listener.closer(), Arc::default());
        let arrivals = listener.map(|(peer, message)| Waited(peer, message, Arc::clone(&told)));
        let running = ingress.take_all(arrivals);
        let client = async {
            server::send(address, ["good", "bad"].map(str::to_owned)).await;
            closer.close().await.unwrap();
            let what = async || (ingress.stats().unstored == 1).then_some(());
            server::until("refusal", what).await;
            assert_eq!(*told.lock().unwrap(), ["bad unstored"]);
            assert_eq!(ingress.stats().in_flight, 1);
            nats.restart();
        };
        tokio::time::timeout(Duration::from_secs(60), async { join!(running, client) }).await.expect("no end");
        assert_eq!(*told.lock().unwrap(), ["bad unstored", "good stored"]);
        assert_eq!(server::everything(&orders).await.len(), 1);
    }
}
