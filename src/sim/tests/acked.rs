//! Acknowledged sessions: real code, virtual time, connections that break wherever one can.

use std::time::Duration;

use futures::future::join;
use futures::{SinkExt, StreamExt};

use super::cuts::named;
use super::number;
use crate::sim::testing::{self, Cut, Fault, Side, Sim};
use crate::{Address, Backoff, Bytes, Config, Connection, Listener, Session};

const MESSAGES: u32 = 64;
/// Each so many messages are answered by one.
const ANSWERED: u32 = 4;
/// The bytes of the controls that come last: ACK, HEARTBEAT, CLOSE, ACK.
const LAST_CONTROLS: usize = 80;

fn config() -> Config {
    Config::new()
        .reconnect(Backoff::exponential(Duration::from_millis(10), Duration::from_millis(100)))
        .session(Session::new().ttl(Duration::from_secs(120)))
}

fn message(n: u32) -> Bytes {
    let mut bytes = n.to_be_bytes().to_vec();
    bytes.resize(4 + (n % 50) as usize, 7);
    bytes.into()
}

/// What came of one session.
#[derive(Debug, Default)]
struct Came {
    /// What the listener's stream has yielded.
    taken: Vec<u32>,
    /// What the dialer has received.
    answers: Vec<u32>,
    in_doubt: usize,
}

/// Sends all messages through a connection and takes the answers, against a listener that answers each fourth one.
async fn session() -> Came {
    let (mut incoming, mut outgoing) = Listener::bind("127.0.0.1:0", config()).await.unwrap().split();
    let (address, closer) = (Address::from(incoming.local_addr()), incoming.closer());
    let serve = async {
        let mut taken = Vec::new();
        while let Some((peer, message)) = incoming.next().await {
            let n = number(&message);
            if n.is_multiple_of(ANSWERED) {
                outgoing.send((peer, self::message(n))).await.unwrap();
            }
            taken.push(n);
        }
        taken
    };
    let dial = async {
        let connection = loop {
            // The first dial is the program's.
            match Connection::dial(address.clone(), config()).await {
                Ok(connection) => break connection,
                Err(_) => testing::sleep(Duration::from_millis(5)).await,
            }
        };
        let (mut read, mut write) = connection.split();
        let send = async {
            for n in 0..MESSAGES {
                write.feed(message(n)).await.unwrap();
            }
            write.flush().await.unwrap();
            write.barrier().await.unwrap();
            while write.close().await.is_err() {}
        };
        let receive = async {
            let mut answers = Vec::new();
            while let Some(answer) = read.next().await {
                answers.push(number(&answer.unwrap()));
            }
            answers
        };
        let ((), answers) = join(send, receive).await;
        let in_doubt = write.take_in_doubt().len();
        closer.close().await.unwrap();
        (answers, in_doubt)
    };
    let (taken, (answers, in_doubt)) = join(serve, dial).await;
    Came { taken, answers, in_doubt }
}

fn check(came: &Came) {
    assert_eq!(came.taken, (0..MESSAGES).collect::<Vec<_>>());
    assert_eq!(came.answers, (0..MESSAGES).step_by(ANSWERED as usize).collect::<Vec<_>>());
    assert_eq!(came.in_doubt, 0);
}

#[test]
fn each_message_is_taken_once() {
    Sim::default().run(async { check(&session().await) });
}

/// How many bytes each side writes when nothing breaks.
fn lengths() -> [(Side, usize); 2] {
    Sim::default().run(async {
        check(&session().await);
        testing::cables(|cables| {
            let cable = cables[0].lock();
            [Side::Dialer, Side::Acceptor].map(|side| (side, cable.lane(side).0.len()))
        })
    })
}

/// At every byte of either direction, the handshakes included, the first connection ends.
fn cut_everywhere(fault: Fault) {
    for (side, len) in lengths() {
        for after in 0..=len {
            let cut = Cut { connection: 0, side, after, fault };
            named(format_args!("{cut:?}"), || {
                Sim::default().run(async {
                    testing::plan(cut);
                    check(&session().await);
                    // How many controls come last depends on who is faster.
                    let broke = testing::cables(<[_]>::len) > 1;
                    assert!(broke || after + LAST_CONTROLS >= len, "nothing broke");
                });
            });
        }
    }
}

#[test]
fn each_message_is_taken_once_whatever_byte_is_the_last_before_a_fin() {
    cut_everywhere(Fault::Fin);
}

#[test]
fn each_message_is_taken_once_whatever_byte_is_the_last_before_a_reset() {
    cut_everywhere(Fault::Rst);
}

#[test]
fn each_message_is_taken_once_whatever_byte_is_the_last_before_a_stall() {
    cut_everywhere(Fault::Stall);
}
