//! Dead letters into a stream, and back to their addresses.

use std::collections::BTreeSet;
use std::time::Duration;

use buffstreams::{Address, Bytes, DeadLetters, Listener, Manager};
use buffstreams_nats::{ADDRESS, DurableLetters, Egress, Error, OUTCOME, OnFailure, REASON, async_nats};
use futures::{SinkExt, StreamExt};

use crate::server::{Folder, Port, Server, config, consumer, everything, soon, stream, until};

/// A manager that is given messages for an address where nobody is any more, and what it has of them.
async fn dead(address: &Address, messages: impl IntoIterator<Item = String>) -> (Manager, DeadLetters) {
    let manager = Manager::new(config());
    let listener = Listener::bind(address, config()).await.unwrap();
    manager.dial(address).await.unwrap();
    drop(listener);
    until("end", async || {
        let gone = manager.write(address, Bytes::from_static(b"gone?")).await;
        gone.is_err().then_some(())
    })
    .await;
    let letters = manager.dead_letters();
    let (mut sink, address) = (manager.sink(), address.clone());
    let messages: Vec<_> = messages.into_iter().collect();
    tokio::spawn(async move {
        for message in messages {
            sink.feed((address.clone(), message.into())).await.unwrap();
        }
        // The error is that they are dead letters.
        sink.close().await.unwrap_err();
    });
    (manager, letters)
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_kept_with_their_address_and_reason_and_go_there_when_somebody_is_there() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let kept = stream(&jetstream, "letters", 1).await;
    let mut pulled = consumer(&kept).await;
    let port = Port::new();
    let address = Address::from(port.address());
    let all: BTreeSet<_> = (0..100).map(|number| number.to_string()).collect();
    let (manager, dead_letters) = dead(&address, all.clone()).await;
    let letters = DurableLetters::new(jetstream.clone(), "letters.lost");
    let keeping = tokio::spawn(async move {
        letters.keep(dead_letters, |letter, error| panic!("{letter:?}: {error}")).await;
    });
    let count = async || kept.get_info().await.unwrap().state.messages;
    until("letters", async || (count().await == 100).then_some(())).await;
    let found = everything(&kept).await;
    assert!(found.iter().all(|(subject, ..)| subject == "letters.lost"));
    let found: BTreeSet<_> = found.iter().map(|(.., message)| String::from_utf8_lossy(message).into_owned()).collect();
    assert_eq!(found, all);
    let raw = kept.get_raw_message(1).await.unwrap();
    let header = |name: &str| raw.headers.get(name).unwrap().as_str();
    assert_eq!(header(ADDRESS), address.as_str());
    assert_eq!(header(OUTCOME), "the connection broke and could not be opened again");
    let reason = format!("cannot connect to {address}: Connection refused");
    assert!(header(REASON).starts_with(&reason), "{}", header(REASON));

    // The manager is gone, and with it its letters: what is kept is not.
    drop(manager);
    soon("end", keeping).await.unwrap();
    let egress = DurableLetters::send_back(pulled.clone(), Manager::new(config()));
    let egress = egress.on_failure(|_| OnFailure::Again(Duration::from_millis(50)));
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    until("failures", async || (handle.stats().again >= 100).then_some(())).await;
    let receiver = Listener::bind(&address, config()).await.unwrap();
    let received: Vec<_> = soon("letters", receiver.take(100).map(|(_, message)| message).collect()).await;
    let received: BTreeSet<_> = received.iter().map(|message| String::from_utf8_lossy(message).into_owned()).collect();
    assert_eq!(received, all);
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
    assert_eq!((handle.stats().written, pulled.info().await.unwrap().num_ack_pending), (100, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_no_stream_can_keep_is_given_to_the_program() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let folder = Folder::new();
    let address = Address::from(format!("unix:{}/a\nb", folder.path()));
    let (_manager, mut dead_letters) = dead(&address, ["one".to_owned()]).await;
    let mut failed = Vec::new();
    let letter = soon("letter", dead_letters.next()).await.unwrap();
    let letters = DurableLetters::new(jetstream.clone(), "letters");
    letters.keep(futures::stream::iter([letter.clone()]), |letter, error| failed.push((letter, error))).await;
    let letters = DurableLetters::new(jetstream, "letters.>");
    letters.keep(futures::stream::iter([letter]), |letter, error| failed.push((letter, error))).await;
    assert!(failed.iter().all(|(letter, _)| letter.message == "one"));
    assert!(matches!(&failed[0].1, Error::Header { value, .. } if *value == address.as_str()), "{failed:?}");
    assert!(matches!(&failed[1].1, Error::Subject { subject, .. } if subject == "letters.>"), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_letter_has_no_address() {
    let Some(server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let kept = stream(&jetstream, "letters", 1).await;
    let pulled: async_nats::jetstream::consumer::PullConsumer = consumer(&kept).await;
    jetstream.publish("letters", "no letter".into()).await.unwrap().await.unwrap();
    let (sender, mut failures) = futures::channel::mpsc::unbounded();
    let egress: Egress = DurableLetters::send_back(pulled, Manager::new(config()));
    let egress = egress.on_failure(move |undelivered| {
        let is_it = matches!(undelivered.error, Error::NoAddress) && undelivered.address.is_none();
        sender.unbounded_send((is_it, undelivered.message.clone())).unwrap();
        OnFailure::Terminate
    });
    let handle = egress.handle();
    let running = tokio::spawn(egress.run());
    assert_eq!(soon("failure", failures.next()).await.unwrap(), (true, "no letter".into()));
    handle.stop();
    soon("end", running).await.unwrap().unwrap();
}
