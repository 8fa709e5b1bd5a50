//! Messages that stay with the program when they are sent: the same wire, waits and errors as those of `feed`.

use std::io::ErrorKind;

use buffstreams::{Address, Connection, Error, ManagerSink, WireFormat, Writer};
use futures::{FutureExt, SinkExt, StreamExt};
use proptest::prelude::*;

use crate::counting::allocations;
use crate::peers::{SOON, Site, dialed, numbered, numbers, run, within};
use crate::samples::{bodies, body, config, encode, formats};
use crate::script::{Target, Write, drive};

/// Around where a message is chained, and where one is no longer copied behind the others.
const LENGTHS: [usize; 9] = [0, 1, 200, 4095, 4096, 65_535, 65_536, 100_000, 3];

/// Feeds it to the writer in place, and waits where it has to. Returns how often that was.
fn feed(writer: &mut Writer<Target>, message: &[u8]) -> Result<usize, Error> {
    let mut waits = 0;
    while !writer.try_feed(message)? {
        drive(writer.ready())?;
        waits += 1;
    }
    Ok(waits)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn in_place_writes_what_a_feed_writes(
        picks in proptest::collection::vec((0..LENGTHS.len(), any::<bool>()), 0..12),
        format in proptest::sample::select(formats()),
        most in 1..70_000usize,
    ) {
        let target = Target::new([Write::Pending, Write::Take(most), Write::Pending]);
        let mut writer = Writer::new(target.clone(), &config(format, 1 << 20)).unwrap();
        let mut sent = Vec::new();
        for (pick, in_place) in picks {
            let message = body(LENGTHS[pick]);
            let fed = if in_place { feed(&mut writer, &message).map(drop) } else { drive(writer.feed(message.clone())) };
            match fed {
                Ok(()) => sent.push(message),
                Err(Error::MessageTooLarge { message: back, .. }) => prop_assert_eq!(back.into_inner(), message),
                Err(error) => panic!("{error:?}"),
            }
        }
        drive(writer.close()).unwrap();
        prop_assert!(target.log().taken == encode(format, 1 << 20, &sent));
    }
}

#[test]
fn it_waits_at_the_mark_and_ready_waits_for_room() {
    let target = Target::new([Write::Pending, Write::Pending, Write::Take(10), Write::Pending]);
    let mut writer = Writer::new(target.clone(), &config(WireFormat::u32_be(), 1 << 20)).unwrap();
    let mut held = 0;
    while writer.try_feed(&body(1000)).unwrap() {
        held += 1;
        assert!(held <= 62, "it does not wait");
    }
    assert_eq!(held, 62);
    assert!(target.log().calls.is_empty(), "nothing is written without a poll");
    assert_eq!(feed(&mut writer, &body(1)).unwrap(), 1, "one wait is enough");
    drive(writer.flush()).unwrap();
    assert_eq!(target.log().taken.len(), 62 * 1004 + 5);
}

#[test]
fn an_error_has_a_copy_of_the_message() {
    let script = [Write::Take(10), Write::Pending, Write::Error(ErrorKind::ConnectionReset)];
    let mut writer = Writer::new(Target::new(script), &config(WireFormat::u32_be(), 1000)).unwrap();
    let error = writer.try_feed(&body(1001)).unwrap_err();
    assert!(matches!(error, Error::MessageTooLarge { len: 1001, max: 1000, .. }), "{error:?}");
    assert_eq!(error.into_unsent(), Some(body(1001)));
    while writer.try_feed(&body(1000)).unwrap() {}
    drive(writer.ready()).expect("it is told with a message");
    let error = writer.try_feed(&body(7)).unwrap_err();
    assert!(matches!(error, Error::NotWritten { .. }), "{error:?}");
    assert_eq!(error.into_unsent(), Some(body(7)));
    let error = writer.try_feed(&body(8)).unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    assert_eq!(error.into_unsent(), Some(body(8)));
    assert_eq!(writer.into_unsent(), vec![body(1000); 62]);
}

#[test]
fn a_message_in_place_allocates_nothing() {
    let mut io = futures::io::sink();
    let mut writer = Writer::new(&mut io, &config(WireFormat::buffstreams(), 1 << 20)).unwrap();
    let messages = bodies(&[0, 16, 110, 1000, 20_000]);
    let mut feed_all = || {
        for message in messages.iter().cycle().take(1000) {
            while !writer.try_feed(message).unwrap() {
                writer.ready().now_or_never().unwrap().unwrap();
            }
        }
    };
    feed_all();
    let ((), count) = allocations(feed_all);
    assert_eq!(count.allocated, 0);
}

/// What a large message needs goes with it.
#[test]
fn a_large_message_in_place_keeps_no_buffer_of_its_size() {
    let mut io = futures::io::sink();
    let large = body(8 << 20);
    let (writer, count) = allocations(|| {
        let mut writer = Writer::new(&mut io, &config(WireFormat::u32_be(), 16 << 20)).unwrap();
        assert!(writer.try_feed(&large).unwrap());
        writer.flush().now_or_never().unwrap().unwrap();
        writer
    });
    assert!(count.kept <= 256 << 10, "{count:?}");
    drop(writer);
}

#[test]
fn a_connection_waits_for_a_peer_that_does_not_read_and_everything_arrives() {
    run(async {
        let site = Site::small();
        let (connection, far) = futures::join!(Connection::dial(site.addr, crate::peers::config()), site.accept());
        let (mut connection, mut far) = (connection.unwrap(), far);
        let mut accepted = 0;
        loop {
            if connection.try_feed(&numbered(accepted, 5000)).unwrap() {
                accepted += 1;
            } else if connection.ready().now_or_never().is_none() {
                break;
            }
        }
        assert!(!connection.try_feed(&numbered(accepted, 5000)).unwrap(), "the wait was dropped");
        let sending = async {
            connection.ready().await.unwrap();
            assert!(connection.try_feed(&numbered(accepted, 5000)).unwrap(), "one wait is enough");
            connection.close().await.unwrap();
        };
        let ((), wire) = futures::join!(sending, far.rest());
        assert_eq!(numbers(&wire), (0..=accepted).collect::<Vec<_>>());
        let error = connection.try_feed(b"late").unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        assert_eq!(error.into_unsent(), Some("late".into()));
    });
}

/// A message is held, or it is in the error that says why not, as with `feed`.
#[test]
fn in_place_while_the_connection_is_down() {
    run(async {
        let site = Site::new();
        let (connection, far) = futures::join!(Connection::dial(site.addr, crate::peers::config()), site.accept());
        let (connection, far) = (connection.unwrap(), far);
        let (mut read, mut connection) = connection.split();
        site.leave();
        drop(far);
        assert!(read.next().await.is_none());
        connection.send(numbered(0, 1000)).await.expect_err("nobody listens");
        let mut accepted = 1;
        while connection.try_feed(&numbered(accepted, 1000)).expect("there is room, or it waits") {
            accepted += 1;
        }
        assert_eq!(accepted, 62, "60 KiB are held");
        for _ in 0..3 {
            assert!(!connection.try_feed(&numbered(accepted, 1000)).expect("it waits"));
            within(SOON, "the dial", connection.ready()).await.expect("it is told with a message");
            let error = connection.try_feed(&numbered(accepted, 1000)).expect_err("nobody listens");
            let Error::NotSent { source, message, .. } = error else { panic!("{error:?}") };
            assert!(matches!(*source, Error::Dial { .. }), "{source:?}");
            assert_eq!(message.unwrap().into_inner(), numbered(accepted, 1000));
        }
        site.come_back();
        let sending = async {
            assert!(!connection.try_feed(&numbered(accepted, 1000)).unwrap());
            connection.ready().await.unwrap();
            assert!(connection.try_feed(&numbered(accepted, 1000)).unwrap(), "it is opened again");
            connection.close().await.unwrap();
        };
        let ((), wire) = futures::join!(sending, async { site.accept().await.rest().await });
        assert_eq!(numbers(&wire), (0..=accepted).collect::<Vec<_>>());
    });
}

/// What it comes to at once, but for the moments in which it lets other tasks run.
fn soon(sink: &mut ManagerSink) -> Option<()> {
    (0..3).find_map(|_| sink.ready().now_or_never()).map(Result::unwrap)
}

#[test]
fn the_sink_of_a_manager_takes_messages_in_place_for_each_address() {
    run(async {
        let (site, other) = (Site::small(), Site::new());
        let (manager, mut far) = dialed(crate::peers::config().max_message_size(5000), &site).await;
        let (address, second) = (Address::from(site.addr), Address::from(other.addr));
        let mut sink = manager.sink();
        let unsent = |error: Error| error.into_unsent().map(|message| message.len());
        let error = sink.try_feed(&second, &body(10)).unwrap_err();
        assert!(matches!(&error, Error::NotOpen { address, .. } if *address == second), "{error:?}");
        assert_eq!(unsent(error), Some(10));
        let error = sink.try_feed(&address, &body(5001)).unwrap_err();
        assert!(matches!(error, Error::MessageTooLarge { len: 5001, max: 5000, .. }), "{error:?}");
        assert_eq!(unsent(error), Some(5001));
        let (opened, mut far_second) = futures::join!(manager.dial(other.addr), other.accept());
        opened.unwrap();
        let mut accepted = 0;
        loop {
            if sink.try_feed(&address, &numbered(accepted, 5000)).unwrap() {
                accepted += 1;
            } else if soon(&mut sink).is_none() {
                break;
            }
        }
        // The sink is full, whatever address the next is for.
        assert!(!sink.try_feed(&second, b"to the other").unwrap());
        let sending = async {
            sink.ready().await.unwrap();
            assert!(sink.try_feed(&second, &numbered(7, 8)).unwrap());
            assert!(sink.try_feed(&address, &numbered(accepted, 5000)).unwrap());
            sink.close().await.unwrap();
            let error = sink.try_feed(&address, b"late").unwrap_err();
            assert!(matches!(&error, Error::Closed { .. }), "{error:?}");
            assert_eq!(unsent(error), Some(4));
            manager.shutdown(SOON).await;
        };
        let receiving = async {
            let wires = futures::join!(far.rest(), far_second.rest());
            // The manager waits for these ends to close.
            drop((far, far_second));
            wires
        };
        let ((), (wire, wire_second)) = futures::join!(sending, receiving);
        assert_eq!(numbers(&wire), (0..=accepted).collect::<Vec<_>>());
        assert_eq!(numbers(&wire_second), [7]);
    });
}
