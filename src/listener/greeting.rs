//! What comes before anybody is a peer, in a task: the handshake of TLS, and that of a session. Who does not come to its end is
//! no peer.

use std::future::{Future, pending};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, Either, select};
use futures::{AsyncReadExt, FutureExt};

use super::handshakes::Handshake;
use super::member::Member;
use super::peers::{Guest, Running, Seat};
use super::place::Place;
use super::principal::Principal;
use super::received::Arrival;
use super::seating::{Offer, Seating, Taken};
use super::sessions::{BUSY, Judged, SessionTable};
use super::{peer_task, session_task, tombstone};
use crate::endpoint::Endpoint;
use crate::error::HandshakeErrorKind;
#[cfg(feature = "tls")]
use crate::error::TlsError;
use crate::foreign::{self, PanicSource};
use crate::observe::{Event, in_peer_span};
use crate::queue::Sender;
use crate::session::{ErrorCode, HANDSHAKE, Hello, Key, MAGIC, Status, VERSION, Violation};
use crate::sync::Signal;
#[cfg(feature = "tls")]
use crate::transport;
use crate::transport::Stream;
use crate::wire::stranger;

/// How many unfinished handshakes there may be, where there is no TLS, which has a setting for it.
const MAX_HANDSHAKES: usize = 1024;
/// How long the task of a session may take until it takes a newer connection.
const TURN: Duration = Duration::from_secs(1);

/// Why somebody is no peer.
enum Failed {
    #[cfg(feature = "tls")]
    Tls(TlsError),
    Session(HandshakeErrorKind),
}

/// Takes in somebody who has connected: at once, where nothing has to be said before.
pub(crate) fn begin(running: &Running, guest: Guest, inbox: Sender<Arrival>) {
    if !running.greets() {
        return admit_plain(running, guest, inbox);
    }
    let Some(unfinished) = Unfinished::begin(running, guest.stream.clone()) else { return };
    let number = unfinished.number;
    // It has no part in what runs: a listener that is gone does not wait for those who part.
    let panicked = running.shared().clone();
    // What the program has given to `Tls::from_rustls` may panic.
    let shake = foreign::run(shake(unfinished, guest, inbox), drop).map(move |ended| {
        if let Err(panic) = ended {
            panicked.panicked(None, PanicSource::Task, panic);
        }
    });
    // Without the lock: the runtime logs that it starts a task, and the logger is the program's.
    match foreign::call(|| running.config.runtime.spawn(shake)) {
        Ok(task) => running.handshakes.started(number, task),
        Err(panic) => running.panicked(None, PanicSource::Logger, panic),
    }
}

fn most_handshakes(running: &Running) -> usize {
    #[cfg(feature = "tls")]
    if let Some(tls) = &running.config.tls {
        return tls.handshakes();
    }
    let _ = running;
    MAX_HANDSHAKES
}

/// Finishes the handshake of this number, whatever becomes of its task.
struct Unfinished {
    running: Running,
    number: u64,
    /// How many there may be.
    most: usize,
}

impl Unfinished {
    /// Takes it in; the oldest gives way, where there are as many as there may be. `None` where the listener is gone.
    fn begin(running: &Running, stream: Stream) -> Option<Self> {
        let most = most_handshakes(running);
        let (number, oldest) = running.handshakes.begin(Handshake::new(stream), most)?;
        if let Some(oldest) = oldest {
            oldest.give_way();
        }
        Some(Self { running: running.clone(), number, most })
    }

    /// `None` if it had to give way, or was cut.
    fn finish(&self) -> Option<Handshake> {
        self.running.handshakes.finish(self.number)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(handshake) = self.finish() {
            handshake.cut();
        }
    }
}

/// What a handshake has led to.
enum Greeted {
    Plain(Stream),
    Session(Stream, Hello),
    /// A HELLO that cannot be.
    Refused(Stream, Refusal),
}

/// What one who is not let in is told, and what is told of that.
struct Refusal {
    answer: Vec<u8>,
    kind: HandshakeErrorKind,
}

/// What follows a handshake.
enum Next<'a> {
    Over,
    /// It is known when this has been waited for.
    Later(BoxFuture<'a, Option<(Guest, Refusal)>>),
    Refused(Guest, Refusal),
}

/// The task is made for each who connects, and its size is what they cost: what few of them come to is in a box, what it is given is
/// there once, and nothing is kept over a wait that is not needed behind it.
fn shake(unfinished: Unfinished, guest: Guest, inbox: Sender<Arrival>) -> impl Future<Output = ()> + Send {
    let running = unfinished.running.clone();
    let Guest { place, stream, from } = guest;
    async move {
        let greeted = in_time(&running, pin!(greet(&running, stream))).await;
        let answered = match next(&running, &unfinished, greeted, (place, from), inbox) {
            Next::Over => None,
            Next::Later(later) => later.await,
            Next::Refused(guest, refusal) => Some((guest, refusal)),
        };
        let Some((Guest { place, stream, from }, Refusal { answer, kind })) = answered else { return };
        tell(&running, from, Failed::Session(kind));
        let runtime = running.config.runtime.clone();
        drop((unfinished, running));
        stream.part(&answer, &runtime).await;
        drop(place);
    }
}

fn next<'a>(
    running: &'a Running,
    unfinished: &Unfinished,
    greeted: Result<Greeted, Failed>,
    (place, from): (Place, Endpoint),
    inbox: Sender<Arrival>,
) -> Next<'a> {
    let error = match (unfinished.finish(), greeted) {
        (Some(handshake), Ok(greeted)) => {
            handshake.let_go();
            return match greeted {
                Greeted::Plain(stream) => {
                    admit_plain(running, Guest { place, stream, from }, inbox);
                    Next::Over
                }
                Greeted::Session(stream, hello) => welcome(running, Guest { place, stream, from }, hello, inbox),
                Greeted::Refused(stream, refusal) => Next::Refused(Guest { place, stream, from }, refusal),
            };
        }
        (Some(handshake), Err(error)) => {
            handshake.cut();
            error
        }
        (None, _) if running.handshakes.have_ended() => return Next::Over,
        (None, _) => gave_way(running, unfinished.most),
    };
    // A program that hears of it finds room.
    drop(place);
    tell(running, from, error);
    Next::Over
}

fn gave_way(running: &Running, max_handshakes: usize) -> Failed {
    #[cfg(feature = "tls")]
    if running.config.tls.is_some() {
        return Failed::Tls(TlsError::GaveWay { max_handshakes });
    }
    let _ = running;
    Failed::Session(HandshakeErrorKind::GaveWay { max_handshakes })
}

fn tell(running: &Running, from: Endpoint, failed: Failed) {
    running.reporter.report(match failed {
        #[cfg(feature = "tls")]
        Failed::Tls(error) => Event::HandshakeFailed { from, error: Arc::new(error) },
        Failed::Session(kind) => Event::SessionRefused { from, kind },
    });
}

/// TLS, and what is said first in a session, as far as they are set.
async fn greet(running: &Running, stream: Stream) -> Result<Greeted, Failed> {
    #[cfg(feature = "tls")]
    let stream = match &running.config.tls {
        // In a box: without TLS, nobody makes room for it.
        Some(tls) => Box::pin(transport::secure_accepted(stream, tls, running.codec)).await.map_err(Failed::Tls)?,
        None => stream,
    };
    let Some(table) = &running.sessions else { return Ok(Greeted::Plain(stream)) };
    hello(stream, table).await
}

/// Reads a HELLO, and the byte behind it, which may not be there.
async fn hello(mut stream: Stream, table: &SessionTable) -> Result<Greeted, Failed> {
    let (mut bytes, mut got) = ([0; HANDSHAKE + 1], 0);
    let kind = loop {
        match Hello::parse_all(&bytes[..got]) {
            Ok(Some(hello)) => return Ok(Greeted::Session(stream, hello)),
            Ok(None) => {}
            Err(Violation::Magic { .. }) if table.settings.or_plain && bytes[0] != MAGIC[0] => {
                return Ok(Greeted::Plain(stream.unread(&bytes[..got])));
            }
            Err(violation) => {
                let kind = refused(violation, &bytes[..got]);
                match refusal(table, violation, &bytes) {
                    Some(answer) => return Ok(Greeted::Refused(stream, Refusal { answer, kind })),
                    None => break kind,
                }
            }
        }
        match stream.read(&mut bytes[got..]).await {
            Ok(0) => break HandshakeErrorKind::Truncated { got },
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break HandshakeErrorKind::Io(error.kind()),
        }
    };
    Err(Failed::Session(kind))
}

/// What the other end is told of its HELLO; a stranger is told nothing.
fn refusal(table: &SessionTable, violation: Violation, bytes: &[u8]) -> Option<Vec<u8>> {
    let status = match violation {
        Violation::Version(_) => Status::Version(VERSION),
        Violation::Limits => Status::Limits,
        violation => {
            let code = violation.code()?;
            return Some(crate::session::Control::Error(code).encode().to_vec());
        }
    };
    Some(table.refusal(status, bytes).encode().to_vec())
}

fn refused(violation: Violation, received: &[u8]) -> HandshakeErrorKind {
    match violation {
        Violation::Magic { .. } => HandshakeErrorKind::NotASession { looks_like: stranger(received) },
        Violation::Version(theirs) => HandshakeErrorKind::Version { ours: VERSION, theirs },
        violation => HandshakeErrorKind::Violation(violation.code().unwrap_or(ErrorCode::Malformed)),
    }
}

/// A handshake has `dial_timeout`. When the listener closes it has `close_timeout` at the most, as has a peer who is silent.
async fn in_time<F>(running: &Running, greeted: Pin<&mut F>) -> Result<Greeted, Failed>
where
    F: Future<Output = Result<Greeted, Failed>>,
{
    let config = &running.config;
    let closes = async {
        running.closing.wait().await;
        match config.close_timeout {
            Some(after) => config.runtime.sleep(after).await,
            None => pending().await,
        }
    };
    let greeted = config.runtime.within(config.dial_timeout, greeted);
    let late = |limit: Option<Duration>| {
        let after = limit.unwrap_or_default();
        #[cfg(feature = "tls")]
        if config.tls.is_some() {
            return Err(Failed::Tls(TlsError::Timeout { after }));
        }
        Err(Failed::Session(HandshakeErrorKind::Timeout { after }))
    };
    match select(pin!(greeted), pin!(closes)).await {
        Either::Left((Some(greeted), _)) => greeted,
        Either::Left((None, _)) => late(config.dial_timeout),
        Either::Right(_) => late(config.close_timeout),
    }
}

/// A peer without a session.
fn admit_plain(running: &Running, Guest { place, stream, from }: Guest, inbox: Sender<Arrival>) {
    let peer = running.next_peer(&from);
    let member = Member::new(peer, stream.clone(), running.plain_codec, running.rules.clone());
    running.admit(&member, stream.clone(), || {
        let seat = Seat::new(running.clone(), place);
        let task = peer_task::run(seat, member.clone(), stream, inbox);
        running.config.runtime.spawn(in_peer_span(&running.local_addr, peer, task))
    });
}

/// Somebody who has said HELLO: a new session, or one that goes on. If not, what they are told.
fn welcome(running: &Running, mut guest: Guest, hello: Hello, inbox: Sender<Arrival>) -> Next<'_> {
    let Some(table) = running.sessions.clone() else { return Next::Over };
    let identity = guest.stream.identity();
    let key = Key { identity: Principal::of(identity.as_deref()), id: hello.id };
    // Before the table is asked: somebody may have to go for a new peer.
    let fits = table.terms.can_send_to(hello.terms) && hello.terms.can_send_to(table.terms);
    let mut judged = if fits { table.judge(&key, &hello) } else { Judged::Refused(Status::Limits) };
    loop {
        match judged {
            Judged::New => match begin_session(running, &table, &key, guest, hello, inbox.clone()) {
                Ok(()) => return Next::Over,
                Err((instead, back)) => (judged, guest) = (instead, back),
            },
            Judged::Known(member) => {
                let offered = async move {
                    let back = offer(running, &member, guest, hello).await.err();
                    drop(inbox);
                    back.map(|guest| (guest, unwelcome(&table, &hello, Status::Busy)))
                };
                return Next::Later(offered.boxed());
            }
            Judged::Tombstone(positions) => {
                drop(inbox);
                // It is no peer, and is cut with the handshakes.
                let Some(unfinished) = Unfinished::begin(running, guest.stream.clone()) else { return Next::Over };
                let served = async move {
                    tombstone::serve(running, &table, &key, guest, &hello, positions).await;
                    // Or its end would cut what it goes on in.
                    if let Some(handshake) = unfinished.finish() {
                        handshake.let_go();
                    }
                    None
                };
                return Next::Later(served.boxed());
            }
            Judged::Refused(status) => return Next::Refused(guest, unwelcome(&table, &hello, status)),
        }
    }
}

fn unwelcome(table: &SessionTable, hello: &Hello, status: Status) -> Refusal {
    let answer = table.welcome(hello, status, Default::default()).encode().to_vec();
    Refusal { answer, kind: refused_with(status, table.terms.max_message, hello.terms.max_message) }
}

/// Starts the task of a new session. The error is what is to be done instead.
fn begin_session(
    running: &Running,
    table: &Arc<SessionTable>,
    key: &Key<Principal>,
    guest: Guest,
    hello: Hello,
    inbox: Sender<Arrival>,
) -> Result<(), (Judged, Guest)> {
    let seating = Seating::new(key.clone(), table.ttl(&hello.terms), table.incarnation);
    let peer = running.next_peer(&guest.from);
    let member = Member::of_session(peer, running.codec, running.session_rules.clone(), table.terms.window, seating);
    if hello.terms.window == 0 {
        // It takes no messages, as a manager: what is sent to it is undelivered at once.
        member.outbox.close();
    }
    if let Err(instead) = table.insert(&member, &hello) {
        return Err((instead, guest));
    }
    let Guest { place, stream, from } = guest;
    let offer = Offer { place, stream: stream.clone(), from, hello, taken: Taken::default() };
    let admitted = running.admit(&member, stream, || {
        let task = session_task::run(running.clone(), table.clone(), member.clone(), offer, inbox);
        running.config.runtime.spawn(in_peer_span(&running.local_addr, peer, task))
    });
    if !admitted {
        table.remove(key);
    }
    Ok(())
}

/// Offers a connection to the task of its session, which has it when its turn is over.
async fn offer(running: &Running, member: &Arc<Member>, guest: Guest, hello: Hello) -> Result<(), Guest> {
    let Guest { place, stream, from } = guest;
    let Some(seating) = &member.session else { return Err(Guest { place, stream, from }) };
    let (taken, epoch) = (Signal::default(), hello.epoch);
    let offer = Box::new(Offer { place, stream, from, hello, taken: Taken(taken.clone()) });
    let back = |offer: Box<Offer>| {
        let Offer { place, stream, from, .. } = *offer;
        Guest { place, stream, from }
    };
    match seating.offer(offer) {
        Ok(older) => drop(older),
        Err(offer) => return Err(back(offer)),
    }
    member.outbox.call_driver();
    if running.config.runtime.within(Some(TURN), taken.wait()).await.is_some() {
        return Ok(());
    }
    match seating.withdraw(epoch) {
        Some(offer) => Err(back(offer)),
        None => Ok(()),
    }
}

/// What is told of somebody who got this answer.
fn refused_with(status: Status, ours: u32, theirs: u32) -> HandshakeErrorKind {
    match status {
        Status::Limits => HandshakeErrorKind::Limits { ours: ours as usize, theirs: theirs as usize },
        Status::Busy => HandshakeErrorKind::Busy { retry_in: BUSY },
        Status::Fenced => HandshakeErrorKind::Fenced,
        Status::New | Status::Resumed | Status::Unknown | Status::Version(_) => HandshakeErrorKind::Unknown,
        Status::Denied => HandshakeErrorKind::Denied,
    }
}
