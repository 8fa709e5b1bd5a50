//! A dialed connection that works: dialing, sending, receiving, closing, and each error with its figures.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use buffstreams::{Bytes, Config, ConfigError, Connection, Error, FrameErrorKind, Limit, Listener, Writer};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::net::{defaults, resident};
use crate::peers::{BlackHole, Far, Refusing, SOON, Site, config, frame, messages, number, numbered, numbers};
use crate::peers::{run, within};

async fn connected(config: Config, site: &Site) -> (Connection, Far) {
    let (made, far) = futures::join!(Connection::dial(site.addr, config), site.accept());
    (made.expect("dial"), far)
}

/// Sends messages of 64 KiB until that is pending; returns how many messages were accepted.
fn fill(connection: &mut Connection, first: u64) -> u64 {
    let mut next = first;
    while connection.feed(numbered(next, 64 * 1024)).now_or_never().is_some_and(|fed| fed.is_ok()) {
        next += 1;
        assert!(next - first < 4096, "a peer that does not read takes 256 MiB");
    }
    next - first
}

/// As [`fill`], and one message more that is larger than what a kernel may make room for later.
fn overfill(connection: &mut Connection) -> u64 {
    let accepted = fill(connection, 0);
    connection.start_send_unpin(numbered(accepted, 8 << 20)).expect("it never waits");
    accepted + 1
}

#[test]
fn dials_every_kind_of_address() {
    run(async {
        let site = Site::new();
        let port = site.addr.port();
        for address in [site.addr.to_string(), format!("localhost:{port}"), format!(":{port}")] {
            let (made, mut far) = futures::join!(Connection::dial(&address, config()), site.accept());
            let mut connection = made.unwrap_or_else(|error| panic!("{address}: {error:?}"));
            assert_eq!(connection.peer_addr().unwrap(), site.addr, "{address}");
            assert_eq!(connection.local_addr().unwrap(), far.0.peer_addr().unwrap(), "{address}");
            connection.send(address.clone().into()).await.unwrap();
            assert_eq!(far.message().await, address.as_bytes());
        }
    });
}

#[test]
fn tries_every_address_of_a_name() {
    run(async {
        // Where there is no IPv6 there is nothing to try.
        if std::net::TcpListener::bind("[::1]:0").is_err() {
            return;
        }
        let only_six = Site::at("[::1]:0".parse().unwrap(), None);
        let port = only_six.addr.port();
        let (made, mut far) = futures::join!(Connection::dial(format!(":{port}"), config()), only_six.accept());
        let mut connection = made.expect("the second address of `:port`");
        connection.send("six".into()).await.unwrap();
        assert_eq!(far.message().await, b"six");
    });
}

#[test]
fn a_refused_dial_says_so() {
    run(async {
        let refusing = Refusing::new();
        let error = Connection::dial(refusing.addr, config()).await.expect_err("nobody listens");
        let Error::Dial { address, source, .. } = error else { panic!("{error:?}") };
        assert_eq!(address.as_str(), refusing.addr.to_string());
        assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
        for nonsense in ["127.0.0.1", "127.0.0.1:x", ":x", "", ":", "no.such.host.invalid:1"] {
            let error = Connection::dial(nonsense, config()).await.expect_err(nonsense);
            assert!(matches!(error, Error::Dial { .. } | Error::DialTimeout { .. }), "{nonsense}: {error:?}");
        }
    });
}

#[test]
fn a_dial_into_a_black_hole_has_a_deadline() {
    run(async {
        let hole = BlackHole::new();
        let limit = Duration::from_millis(150);
        let start = Instant::now();
        let error = Connection::dial(hole.addr, config().dial_timeout(limit)).await.expect_err("nothing answers");
        assert!(matches!(error, Error::DialTimeout { after, .. } if after == limit), "{error:?}");
        assert!(start.elapsed() >= limit, "{:?}", start.elapsed());
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    });
}

#[test]
fn a_setting_that_cannot_work_is_refused_before_dialing() {
    run(async {
        let nowhere = "no.such.host.invalid:1";
        let error = Connection::dial(nowhere, config().queue_bytes(0)).await.expect_err("zero");
        assert!(matches!(error, Error::Config(ConfigError::Zero { name: "queue_bytes", .. })), "{error:?}");
        let wide = defaults().max_message_size(usize::MAX);
        let error = Connection::dial(nowhere, wide).await.expect_err("no Go varint has that many bits");
        assert!(matches!(error, Error::Config(ConfigError::MessageSize { asked: usize::MAX, .. })), "{error:?}");
    });
}

#[test]
fn feed_waits_for_the_flush_and_send_does_not() {
    run(async {
        let site = Site::new();
        let (mut connection, mut far) = connected(config(), &site).await;
        connection.feed("one".into()).await.unwrap();
        connection.feed(Bytes::new()).await.unwrap();
        // Nothing was written: what is sent by another way comes first.
        connection.flush().await.unwrap();
        assert_eq!(far.message().await, b"one");
        assert_eq!(far.message().await, b"");
        connection.send("two".into()).await.unwrap();
        assert_eq!(far.message().await, b"two");
        connection.close().await.unwrap();
        assert!(far.rest().await.is_empty());
        // It is closed, and says so, and gives the message back.
        let error = connection.send("late".into()).await.expect_err("closed");
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        assert_eq!(error.into_unsent().unwrap(), "late");
        connection.close().await.expect("a second close is no error");
    });
}

#[test]
fn an_oversized_message_comes_back_and_the_sink_works_on() {
    run(async {
        let site = Site::new();
        let (mut connection, mut far) = connected(config().max_message_size(100), &site).await;
        connection.feed(numbered(1, 100)).await.unwrap();
        let error = connection.feed(numbered(2, 101)).await.expect_err("101 bytes");
        assert!(matches!(error, Error::MessageTooLarge { len: 101, max: 100, .. }), "{error:?}");
        assert_eq!(error.into_unsent(), Some(numbered(2, 101)));
        connection.send(numbered(3, 100)).await.unwrap();
        connection.close().await.unwrap();
        assert_eq!(numbers(&far.rest().await), [1, 3]);
    });
}

#[test]
fn replies_end_with_none_after_a_clean_close() {
    run(async {
        let site = Site::new();
        let (mut connection, mut far) = connected(config(), &site).await;
        far.write(&[frame(b"one"), frame(b""), frame(&[7; 100_000])].concat()).await;
        drop(far);
        assert_eq!(connection.next().await.unwrap().unwrap(), "one");
        assert_eq!(connection.next().await.unwrap().unwrap(), "");
        assert_eq!(connection.next().await.unwrap().unwrap(), vec![7; 100_000]);
        assert!(connection.next().await.is_none());
        assert!(connection.next().await.is_none());
    });
}

#[test]
fn a_reply_cut_short_is_truncated_with_its_figures() {
    run(async {
        let site = Site::new();
        for cut in [1, 3, 4, 5, 13] {
            let (mut connection, mut far) = connected(config(), &site).await;
            far.write(&frame(b"0123456789")[..cut]).await;
            drop(far);
            let error = connection.next().await.unwrap().expect_err("a frame that was cut");
            let want = if cut < 4 { 4 } else { 14 };
            assert!(
                matches!(error, Error::Truncated { got, want: w, .. } if got == cut && w == want),
                "{cut}: {error:?}"
            );
            assert!(connection.next().await.is_none());
        }
    });
}

#[test]
fn a_reply_that_is_no_frame_is_an_error_and_closes() {
    run(async {
        let site = Site::new();
        let (mut connection, mut far) = connected(config().max_message_size(1000), &site).await;
        far.write(&[frame(b"good"), frame(&[0; 1001])[..4].to_vec()].concat()).await;
        assert_eq!(connection.next().await.unwrap().unwrap(), "good");
        let error = connection.next().await.unwrap().expect_err("1001 bytes are announced");
        let Error::Frame(error) = error else { panic!("{error:?}") };
        assert_eq!(error.kind, FrameErrorKind::TooLarge { len: 1001, max: 1000 });
        assert!(connection.next().await.is_none());
        // The peer is told by the end of the connection.
        assert!(far.rest().await.is_empty());
    });
}

#[test]
fn a_reply_that_never_ends_has_a_deadline() {
    run(async {
        let site = Site::new();
        let limit = Duration::from_millis(100);
        let (mut connection, mut far) = connected(config().frame_timeout(limit), &site).await;
        far.write(&frame(b"whole")).await;
        assert_eq!(connection.next().await.unwrap().unwrap(), "whole");
        far.write(&frame(b"half")[..6]).await;
        let error = within(SOON, "the frame timeout", connection.next()).await.unwrap().expect_err("half a frame");
        assert!(
            matches!(error, Error::Timeout { what: Limit::FrameTimeout, after, .. } if after == limit),
            "{error:?}"
        );
        assert!(connection.next().await.is_none());
        assert!(far.rest().await.is_empty());
    });
}

#[test]
fn halves_work_in_two_tasks() {
    const MESSAGES: u64 = 5_000;
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let address = listener.local_addr().ip().unwrap();
        let (incoming, outgoing) = listener.split();
        let _echo = async_std::task::spawn(incoming.map(Ok).forward(outgoing));
        let connection = Connection::dial(address, config()).await.unwrap();
        let ends = [connection.local_addr().unwrap(), connection.peer_addr().unwrap()];
        assert_eq!(ends[1], address);
        let (mut read, mut write) = connection.split();
        assert_eq!([read.local_addr().unwrap(), read.peer_addr().unwrap()], ends);
        assert_eq!([write.local_addr().unwrap(), write.peer_addr().unwrap()], ends);
        let sending = async_std::task::spawn(async move {
            for n in 0..MESSAGES {
                write.feed(numbered(n, 8 + n as usize % 9000)).await.unwrap();
            }
            write.close().await.unwrap();
            write
        });
        for n in 0..MESSAGES {
            let message = read.next().await.expect("a reply").unwrap();
            assert_eq!(message, numbered(n, 8 + n as usize % 9000));
        }
        drop(sending.await);
    });
}

#[test]
fn half_closed_reads_the_replies_to_their_end() {
    run(async {
        let site = Site::new();
        let (mut connection, mut far) = connected(config(), &site).await;
        connection.feed(numbered(1, 8)).await.unwrap();
        connection.close().await.unwrap();
        // The peer answers after it has seen the end.
        assert_eq!(numbers(&far.rest().await), [1]);
        let replies: Vec<u8> = (0..1000).flat_map(|n| frame(&numbered(n, 500))).collect();
        let answering = async {
            far.write(&replies).await;
            drop(far);
        };
        let (received, ()) =
            futures::join!(connection.map(|reply| number(&reply.unwrap())).collect::<Vec<_>>(), answering);
        assert_eq!(received, (0..1000).collect::<Vec<_>>());
    });
}

#[test]
fn a_peer_that_stops_reading_makes_the_sink_wait_and_then_fail() {
    run(async {
        let site = Site::small();
        let limit = Duration::from_millis(300);
        let (mut connection, mut far) = connected(config().write_timeout(limit), &site).await;
        let accepted = overfill(&mut connection);
        let start = Instant::now();
        let error = within(SOON, "the write timeout", connection.flush()).await.expect_err("nobody reads");
        assert!(
            matches!(error, Error::Timeout { what: Limit::WriteTimeout, after, .. } if after == limit),
            "{error:?}"
        );
        assert!(start.elapsed() >= limit / 2, "{:?}", start.elapsed());
        // Every message is either whole at the peer or comes back; none is both.
        let unsent: Vec<u64> = connection.take_unsent().iter().map(|message| number(message)).collect();
        assert!(!unsent.is_empty() && unsent.len() <= 3, "60 KiB and a message are held at the most: {unsent:?}");
        let (received, _) = messages(&far.rest().await);
        let received = received.iter().map(|message| number(message));
        assert_eq!(received.chain(unsent).collect::<Vec<_>>(), (0..accepted).collect::<Vec<_>>());
        assert!(connection.take_unsent().is_empty());
    });
}

#[test]
fn a_slow_peer_is_not_a_stalled_one() {
    run(async {
        let site = Site::small();
        let limit = Duration::from_millis(400);
        let (mut connection, mut far) = connected(config().write_timeout(limit), &site).await;
        let accepted = fill(&mut connection, 0);
        let start = Instant::now();
        let slow = async {
            let mut wire = Vec::new();
            // Some bytes now and then, for longer than the limit.
            while start.elapsed() < limit * 3 {
                wire.extend(far.read(32 * 1024).await);
                async_std::task::sleep(limit / 8).await;
            }
            wire.extend(far.rest().await);
            wire
        };
        let sending = async {
            for n in accepted..accepted + 40 {
                connection.send(numbered(n, 64 * 1024)).await.expect("it takes something now and then");
            }
            connection.close().await.unwrap();
        };
        let (wire, ()) = futures::join!(slow, sending);
        assert_eq!(numbers(&wire), (0..accepted + 40).collect::<Vec<_>>());
    });
}

#[test]
fn a_close_has_a_deadline() {
    run(async {
        let site = Site::small();
        let limit = Duration::from_millis(200);
        let (mut connection, mut far) = connected(config().close_timeout(limit), &site).await;
        let accepted = overfill(&mut connection);
        let error = within(SOON, "the close timeout", connection.close()).await.expect_err("nobody reads");
        assert!(
            matches!(error, Error::Timeout { what: Limit::CloseTimeout, after, .. } if after == limit),
            "{error:?}"
        );
        let unsent: Vec<u64> = connection.take_unsent().iter().map(|message| number(message)).collect();
        let received = numbers(&far.rest().await);
        assert_eq!(received.into_iter().chain(unsent).collect::<Vec<_>>(), (0..accepted).collect::<Vec<_>>());
    });
}

#[test]
fn drop_closes_the_socket_at_once() {
    run(async {
        let site = Site::small();
        let (mut connection, mut far) = connected(config(), &site).await;
        fill(&mut connection, 0);
        let start = Instant::now();
        drop(connection);
        assert!(start.elapsed() < Duration::from_secs(1), "a drop does not block");
        far.rest().await;
        // Of two halves it is the last that closes it.
        let (connection, mut far) = connected(config(), &site).await;
        let (read, write) = connection.split();
        drop(read);
        assert!(far.rest().now_or_never().is_none());
        drop(write);
        assert!(far.rest().await.is_empty());
    });
}

/// A socket that is dropped with unread input sends a reset, which destroys what its peer has not received yet.
#[test]
fn unread_replies_do_not_cut_the_last_messages() {
    run(async {
        for round in 0..10 {
            let site = Site::small();
            let (mut connection, mut far) = connected(config(), &site).await;
            far.write(&frame(&[1; 50_000])).await;
            let accepted = fill(&mut connection, 0);
            let closing = async {
                connection.close().await.unwrap();
                drop(connection);
            };
            let reading = async {
                let mut wire = far.read(100_000).await;
                far.write(&frame(&[2; 50_000])).await;
                wire.extend(far.rest().await);
                wire
            };
            let ((), wire) = futures::join!(closing, reading);
            assert_eq!(numbers(&wire), (0..accepted).collect::<Vec<_>>(), "round {round}");
        }
    });
}

#[test]
fn an_accepted_connection_is_not_opened_again() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let address = listener.local_addr().ip().unwrap();
        let mut connections = listener.connections();
        let far = Far(async_std::net::TcpStream::connect(address).await.unwrap());
        let mut connection = connections.next().await.unwrap();
        far.reset();
        assert!(connection.next().await.unwrap().is_err(), "the reset is seen");
        // The first write may go into the dead socket, or not; then it is over.
        let error = loop {
            if let Err(error) = connection.send(numbered(1, 8)).await {
                break error;
            }
        };
        assert!(matches!(error, Error::Write(_) | Error::Closed { .. }), "{error:?}");
        // A message that comes now is given back at once; the one that met the error is held for whoever takes it.
        let error = connection.send(numbered(2, 8)).await.expect_err("it is over");
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        assert_eq!(error.into_unsent(), Some(numbered(2, 8)));
        let error = connection.close().await.expect_err("what is held cannot be delivered");
        assert!(matches!(error, Error::Closed { message: None, .. }), "{error:?}");
        assert_eq!(connection.take_unsent(), [numbered(1, 8)]);
        let error = connection.feed(numbered(3, 100_000)).await.expect_err("it is over, with nothing held, too");
        assert_eq!(error.into_unsent(), Some(numbered(3, 100_000)));
        connection.close().await.expect("there is nothing to deliver");
    });
}

#[test]
fn a_small_message_is_not_held_back_by_the_kernel() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let address = listener.local_addr().ip().unwrap();
        let mut connections = listener.connections();
        let mut connection = Connection::dial(address, config()).await.unwrap();
        let mut accepted = connections.next().await.unwrap();
        // Two small writes and then a wait is what Nagle's algorithm and delayed acknowledgements make slow: 40 ms each.
        let start = Instant::now();
        for n in 0..50 {
            connection.send(numbered(n, 8)).await.unwrap();
            connection.send(numbered(n, 8)).await.unwrap();
            accepted.next().await.unwrap().unwrap();
            accepted.next().await.unwrap().unwrap();
            accepted.send(numbered(n, 8)).await.unwrap();
            connection.next().await.unwrap().unwrap();
        }
        assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    });
}

/// Takes a part of what it is given, as a socket with a full buffer does.
struct Reluctant;

impl futures::AsyncWrite for Reluctant {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len().min(20_001)))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A sender that is always ahead of its peer never sees its queue empty; what was written must go nevertheless.
#[test]
fn a_sink_that_is_never_flushed_holds_no_more_than_is_pending() {
    run(async {
        let mut writer = Writer::new(Reluctant, &config()).unwrap();
        let before = resident();
        for n in 0..600_000 {
            writer.feed(numbered(n, 1000)).await.unwrap();
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 200 << 20, "{} MiB for 60 KiB that are pending", grown >> 20);
    });
}
