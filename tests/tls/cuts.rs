//! A session that is cut at every byte, in both directions, by FIN and by RST: no end is taken for a clean one, and no message
//! comes twice, or in another order. On the simulator, where a cut is at the byte that was asked for.

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use buffstreams::{
    Bytes, Config, Connection, Error, Event, Fault, Incoming, Listener, Outgoing, Reason, Side, Sim, Tls, TlsError,
    WireFormat, WriteHalf,
};
use futures::{FutureExt, SinkExt, StreamExt};

use super::certificates::Authority;

const SERVER: &str = "10.0.0.1:5031";
const SECOND: Duration = Duration::from_secs(1);
/// Small ones, with every kind of header of a record's length in them: twenty, in some 4 KiB.
const SMALL: &[usize] = &[4, 5, 6, 7, 10, 50, 110, 127, 128, 129, 200, 255, 256, 257, 300, 400, 500, 64, 32, 16];
/// Some that fill a record, or two, to the byte and not.
const LARGE: &[usize] = &[4, 16_380, 16_381, 16_376, 5, 20_000, 40_000, 100, 32_764, 60_000];

/// The same in all runs, so that each has the same bytes in the same places: the signatures are all of one length.
static SIDES: LazyLock<(Tls, Tls)> = LazyLock::new(|| {
    let authority = Authority::new("the authority");
    let (server, client) = (authority.issue("localhost"), authority.issue("a-client"));
    let server = Tls::new().server(server.cert, server.key).unwrap().client_auth(authority.pem()).unwrap();
    let client = Tls::new().roots(authority.pem()).unwrap().identity(client.cert, client.key).unwrap();
    (server, client.server_name("localhost").unwrap())
});

/// What a session came to.
#[derive(Debug, Default)]
struct Outcome {
    /// The peer, and the number of its message.
    received: Vec<(u64, usize)>,
    replies: Vec<usize>,
    /// How the first session that there was ended, for the dialer: `None` is a clean end.
    end: Option<Result<(), Error>>,
    /// And at the other end, in order.
    reasons: Vec<Reason>,
    failed: Vec<Arc<TlsError>>,
    /// How often the first connection was dialed.
    dials: usize,
    /// How many attempts to write failed.
    failures: usize,
    /// How many bytes each end has written in all.
    bytes: [usize; 2],
}

fn config(sim: &Sim, tls: &Tls) -> Config {
    let config = Config::new().runtime(sim.clone()).wire_format(WireFormat::u32_be()).max_message_size(1 << 20);
    config.tls(tls.clone()).dial_timeout(10 * SECOND)
}

fn message(number: usize, len: usize) -> Bytes {
    let mut message = vec![number as u8; len];
    message[..4].copy_from_slice(&(number as u32).to_be_bytes());
    message.into()
}

/// The number of a message that is whole.
fn number(message: &[u8], sizes: &[usize]) -> usize {
    let number = u32::from_be_bytes(*message.first_chunk().unwrap()) as usize;
    assert_eq!(message, self::message(number, sizes[number]));
    number
}

async fn answer(mut incoming: Incoming, mut outgoing: Outgoing, sizes: &'static [usize], seen: Arc<Mutex<Outcome>>) {
    while let Some((peer, message)) = incoming.next().await {
        let number = number(&message, sizes);
        seen.lock().unwrap().received.push((peer.id(), number));
        if number % 4 == 3 {
            // Whoever is gone gets no reply.
            let _ = outgoing.send((peer, message)).await;
        }
    }
}

async fn dial(sim: &Sim, seen: &Mutex<Outcome>) -> Connection {
    loop {
        seen.lock().unwrap().dials += 1;
        match Connection::dial(SERVER, config(sim, &SIDES.1)).await {
            Ok(connection) => return connection,
            Err(Error::Tls { source: TlsError::Ended { .. } | TlsError::Io(_), .. } | Error::Dial { .. }) => {
                assert_eq!(seen.lock().unwrap().dials, 1, "only one connection is cut");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Sends it, over the next connection if one breaks.
async fn put(sink: &mut WriteHalf, message: Bytes, seen: &Mutex<Outcome>) {
    let mut next = Some(message);
    loop {
        let fed = match next.take() {
            Some(message) => sink.feed(message).await,
            None => Ok(()),
        };
        let sent = match fed {
            Ok(()) => sink.flush().await,
            failed => failed,
        };
        match sent {
            Ok(()) => return,
            Err(error) => next = error.into_unsent(),
        }
        let mut seen = seen.lock().unwrap();
        seen.failures += 1;
        assert!(seen.failures <= 2, "only one connection is cut");
    }
}

/// Sends messages of these sizes, and takes the replies to some, over a session that is cut.
fn session(sim: Sim, sizes: &'static [usize], cut: Option<(Side, usize, Fault)>, segment: usize) -> Outcome {
    let (mut outcome, trace) = sim.run(|sim| async move {
        let listener = Listener::bind(SERVER, config(&sim, &SIDES.0)).await.unwrap();
        let (events, closer) = (listener.events(), listener.closer());
        let link = sim.link(listener.local_addr().ip().unwrap());
        link.segments(segment);
        if let Some((side, after, fault)) = cut {
            link.fail_next(side, after, fault);
        }
        let seen = Arc::<Mutex<Outcome>>::default();
        let (incoming, outgoing) = listener.split();
        let answering = sim.spawn(answer(incoming, outgoing, sizes, seen.clone()));

        let (mut replies, mut sink) = dial(&sim, &seen).await.split();
        let reading = sim.spawn({
            let seen = seen.clone();
            async move {
                while let Some(reply) = replies.next().await {
                    match reply {
                        Ok(reply) => seen.lock().unwrap().replies.push(number(&reply, sizes)),
                        Err(error) => {
                            seen.lock().unwrap().end = Some(Err(error));
                            // What comes over the next one has not been asked for.
                            return;
                        }
                    }
                }
                seen.lock().unwrap().end = Some(Ok(()));
            }
        });
        for (number, len) in sizes.iter().enumerate() {
            put(&mut sink, message(number, *len), &seen).await;
            // What is on its way arrives.
            sim.sleep(Duration::from_millis(1)).await;
        }
        let _ = sink.close().await;
        sim.timeout(SECOND, reading).await.expect("the session ends");
        drop(sink);
        closer.close().await.unwrap();
        sim.timeout(100 * SECOND, answering).await.expect("all sessions end");
        let mut events = events;
        let mut outcome = std::mem::take(&mut *seen.lock().unwrap());
        while let Some(Some(event)) = events.next().now_or_never() {
            match event {
                Event::Disconnected { reason, .. } => outcome.reasons.push(reason),
                Event::HandshakeFailed { error, .. } => outcome.failed.push(error),
                _ => {}
            }
        }
        (outcome, sim.take_trace())
    });
    for line in trace {
        let Some((from, written)) = line.split_once(" writes Ready(Ok(") else { continue };
        let side = if from.ends_with(SERVER) { Side::Acceptor } else { Side::Dialer };
        outcome.bytes[side as usize] += written.trim_end_matches(')').parse::<usize>().unwrap();
    }
    outcome
}

impl Outcome {
    /// How many messages did not come. Those that did are in order, and none of them is there twice.
    fn lost(&self, sizes: &[usize]) -> usize {
        assert!(self.received.is_sorted_by(|one, two| one.0 <= two.0 && one.1 < two.1), "{self:?}");
        assert!(self.replies.is_sorted_by(|one, two| one < two), "{self:?}");
        sizes.len() - self.received.len()
    }

    /// Whether one end has taken the end of a session for a clean one before all of it was there.
    fn check_end(&self, side: Side, sizes: &[usize]) {
        // Where it was cut in the handshake there was none.
        match side {
            Side::Dialer if self.failed.is_empty() => assert!(!matches!(self.reasons[0], Reason::Closed), "{self:?}"),
            Side::Acceptor if self.dials == 1 => assert!(!matches!(self.end, Some(Ok(()))), "{self:?}"),
            _ => {}
        }
        let first = self.received.iter().filter(|(peer, _)| *peer == 1).count();
        if let Some(Reason::Closed) = self.reasons.first()
            && self.failed.is_empty()
        {
            assert_eq!(first, sizes.len(), "the first was cut before its end, and is taken for whole: {self:?}");
        }
    }
}

/// How many bytes each end writes when nobody cuts it.
fn whole(sizes: &'static [usize]) -> [usize; 2] {
    let runs = [(); 2].map(|()| session(Sim::new().traced(), sizes, None, usize::MAX));
    for run in &runs {
        assert_eq!(run.lost(sizes), 0);
        assert!(matches!(run.end, Some(Ok(()))), "{run:?}");
        assert!(matches!(run.reasons[..], [Reason::Closed]), "{run:?}");
        assert_eq!((run.dials, run.failures, &run.replies), (1, 0, &(3..sizes.len()).step_by(4).collect()));
    }
    assert_eq!(runs[0].bytes, runs[1].bytes, "each run has the same bytes in the same places");
    runs[0].bytes
}

/// Cuts at every `step`th byte.
fn cut_at_every(step: usize, sizes: &'static [usize], sim: fn() -> Sim) {
    let bytes = whole(sizes);
    for (side, fault) in
        [Side::Dialer, Side::Acceptor].into_iter().flat_map(|side| [(side, Fault::Fin), (side, Fault::Rst)])
    {
        let (mut ran, mut resets) = (0, 0);
        for after in (0..bytes[side as usize]).step_by(step) {
            let outcome = session(sim(), sizes, Some((side, after, fault)), usize::MAX);
            let lost = outcome.lost(sizes);
            // One may be with the kernel when the connection ends.
            assert!(lost <= 1, "{side:?} {fault:?} after {after}: {outcome:?}");
            outcome.check_end(side, sizes);
            ran += 1;
            resets += usize::from(lost > 0 && fault == Fault::Rst && side == Side::Dialer);
        }
        // What is sent is read at once. So only one that was taken to its last byte can be lost with a reset: the others are cut,
        // and sent again.
        let records: usize = sizes.iter().map(|len| (len + 4).div_ceil(16_384)).sum();
        assert!(resets <= records && (step > 1 || ran == bytes[side as usize]), "{resets} of {ran}");
    }
}

#[test]
fn a_session_is_cut_anywhere() {
    cut_at_every(7, SMALL, Sim::new);
}

#[test]
#[ignore = "the same at every byte, for a release build"]
fn a_session_is_cut_everywhere() {
    cut_at_every(1, SMALL, Sim::new);
}

/// The writer waits in the middle of records, and is cut there.
#[test]
fn a_session_is_cut_while_its_writer_waits() {
    cut_at_every(4999, LARGE, || Sim::new().capacity(1000));
}

#[test]
fn a_session_in_single_bytes_is_the_same() {
    let outcome = session(Sim::new(), SMALL, None, 1);
    assert_eq!((outcome.lost(SMALL), outcome.failures, outcome.replies.len()), (0, 0, 5));
    assert!(matches!(outcome.end, Some(Ok(()))) && matches!(outcome.reasons[..], [Reason::Closed]), "{outcome:?}");
    let outcome = session(Sim::new(), LARGE, None, 1);
    assert_eq!((outcome.lost(LARGE), outcome.failures, outcome.replies.len()), (0, 0, 2));
}

#[test]
fn a_session_over_a_narrow_line_is_the_same() {
    for seed in 0..10 {
        let outcome = session(Sim::new().seed(seed).capacity(1000), LARGE, None, 777);
        assert_eq!((outcome.lost(LARGE), outcome.failures, outcome.replies.len()), (0, 0, 2));
        assert!(matches!(outcome.end, Some(Ok(()))) && matches!(outcome.reasons[..], [Reason::Closed]), "{outcome:?}");
    }
}
