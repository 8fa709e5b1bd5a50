//! The listener's end of acknowledged sessions as bytes, for a dialer to meet whatever a listener can say.

use std::net::SocketAddr;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, SinkExt, StreamExt};

use crate::error::HandshakeErrorKind;
use crate::observe::{Events, ManagerEvent};
use crate::session::{Control, HANDSHAKE, Hello, Positions, Status, Terms, Welcome};
use crate::sim::testing::{self, Acceptor, Stream};
use crate::{Address, Backoff, Bytes, Config, DeadLetter, DeadLetters, Error, Loss, Manager, Outcome, Session};

pub(super) const TTL: Duration = Duration::from_secs(20);
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// The incarnation of a host.
pub(super) const INCARNATION: u32 = 7;
/// The bytes of one message, with its header. A host has room for one.
pub(super) const FRAME: usize = 44;

/// One that is dialed again for as long as it takes, every 50 ms.
pub(super) fn config() -> Config {
    let every = Duration::from_millis(50);
    Config::new().max_message_size(4096).reconnect(Backoff::exponential(every, every)).session(Session::new().ttl(TTL))
}

pub(super) fn message(n: u8) -> Bytes {
    vec![n; FRAME - 4].into()
}

pub(super) struct Host {
    acceptor: Acceptor,
    pub(super) addr: SocketAddr,
}

impl Host {
    pub(super) async fn new() -> Self {
        Self::at("127.0.0.1:0").await
    }

    pub(super) async fn at(address: &str) -> Self {
        let (acceptor, addr) = Acceptor::bind(&Address::from(address)).await.unwrap();
        Self { acceptor, addr }
    }

    /// The next connection, and what is said there.
    pub(super) async fn accept(&self) -> (Raw, Hello) {
        let accepted = testing::within(Some(90 * SECOND), self.acceptor.accept(&Config::new())).await;
        let mut raw = Raw(accepted.expect("in time").unwrap().0);
        let hello = Hello::parse(&raw.read(HANDSHAKE).await).unwrap().unwrap();
        (raw, hello)
    }

    /// The same, of a new session, which is let in, with room for one message.
    pub(super) async fn begin(&self) -> (Raw, Hello) {
        let (mut raw, hello) = self.accept().await;
        assert!(!hello.resume, "{hello:?}");
        raw.welcome(welcome(&hello, Status::New)).await;
        (raw, hello)
    }

    /// The same, of a session that goes on from these positions, `received` and `taken`.
    pub(super) async fn resume(&self, received: u64, taken: u64) -> (Raw, Hello) {
        let (mut raw, hello) = self.accept().await;
        assert!(hello.resume, "{hello:?}");
        raw.welcome(resumed(&hello, received, taken)).await;
        (raw, hello)
    }
}

/// The answer to that, without a promise of heartbeats.
pub(super) fn welcome(hello: &Hello, status: Status) -> Welcome {
    let (id, epoch) = Hello::echo(&hello.encode());
    let terms = Terms { max_message: 4096, window: FRAME as u32, heartbeat: 0, ttl: TTL.as_millis() as u32 };
    Welcome { status, id, epoch, terms, incarnation: INCARNATION, positions: Positions::default() }
}

pub(super) fn resumed(hello: &Hello, received: u64, taken: u64) -> Welcome {
    let positions = Positions { received, taken, ..Positions::default() };
    Welcome { positions, ..welcome(hello, Status::Resumed) }
}

/// A message as it is sent in a session.
pub(super) fn frame(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u32).to_be_bytes(), message].concat()
}

/// A connection, as bytes.
pub(super) struct Raw(Stream);

impl Raw {
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    pub(super) async fn welcome(&mut self, welcome: Welcome) {
        self.write(&welcome.encode()).await;
    }

    pub(super) async fn say(&mut self, control: Control) {
        self.write(&control.encode()).await;
    }

    pub(super) async fn send(&mut self, message: &[u8]) {
        self.write(&frame(message)).await;
    }

    async fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = testing::within(Some(90 * SECOND), self.0.read_exact(&mut bytes)).await;
        read.expect("in time").unwrap();
        bytes
    }

    pub(super) async fn hears(&mut self, control: Control) {
        let expected = control.encode();
        let heard = self.read(expected.len()).await;
        assert_eq!(heard, expected[..], "{control:?}");
    }

    pub(super) async fn gets(&mut self, n: u8) {
        let frame = self.read(FRAME).await;
        assert_eq!(frame[4..], message(n)[..]);
    }

    /// That the other end takes nothing any more.
    pub(super) async fn ends_deaf(mut self) {
        // The first write is answered with a reset.
        self.write(&[0]).await;
        assert!(self.0.write_all(&[0]).await.is_err());
    }

    /// That the other end has closed it, and nothing comes before.
    pub(super) async fn ends(mut self) {
        let end = testing::within(Some(90 * SECOND), self.0.read(&mut [0; 1])).await;
        assert_eq!(end.expect("in time").unwrap(), 0);
    }
}

/// A manager, and what it tells.
pub(super) struct Told {
    pub(super) manager: Manager,
    pub(super) letters: DeadLetters,
    pub(super) events: Events<ManagerEvent>,
    pub(super) address: Address,
}

impl Told {
    /// One that has dialed, and sends so many messages, of which the host has room for the first.
    pub(super) async fn new(address: impl Into<Address>, config: Config, messages: u8) -> Self {
        let (manager, address) = (Manager::new(config), address.into());
        let (letters, events) = (manager.dead_letters(), manager.events());
        manager.dial(&address).await.unwrap();
        let told = Self { manager, letters, events, address };
        for n in 0..messages {
            told.send(n).await;
        }
        told
    }

    /// Leaves it to the manager.
    pub(super) async fn send(&self, n: u8) {
        self.manager.sink().feed((self.address.clone(), message(n))).await.unwrap();
    }

    pub(super) async fn letter(&mut self) -> DeadLetter {
        testing::within(Some(90 * SECOND), self.letters.next()).await.expect("in time").unwrap()
    }

    pub(super) fn has_no_letter(&mut self) {
        assert!(self.letters.next().now_or_never().is_none());
    }

    /// That message comes back, in doubt for this reason.
    pub(super) async fn in_doubt(&mut self, n: u8, why: Loss) {
        let letter = self.letter().await;
        assert_eq!((&letter.message, letter.outcome), (&message(n), Outcome::InDoubt));
        assert!(matches!(*letter.error, Error::SessionLost { in_doubt: 1, why: w } if w == why), "{:?}", letter.error);
    }

    /// The next event of the kind that is picked.
    pub(super) async fn event<T>(&mut self, mut pick: impl FnMut(ManagerEvent) -> Option<T>) -> T {
        loop {
            let next = testing::within(Some(90 * SECOND), self.events.next()).await;
            if let Some(picked) = pick(next.expect("in time").unwrap()) {
                return picked;
            }
        }
    }

    /// That the session is lost, for this reason.
    pub(super) async fn lost(&mut self, why: Loss) {
        let lost = self.event(|event| match event {
            ManagerEvent::SessionLost { in_doubt, why, .. } => Some((in_doubt, why)),
            _ => None,
        });
        assert_eq!(lost.await, (1, why));
    }

    /// Why the next dial fails that does.
    pub(super) async fn dial_failed(&mut self) -> HandshakeErrorKind {
        let failed = self.event(|event| match event {
            ManagerEvent::DialFailed { error, .. } => match *error {
                Error::Handshake { kind, .. } => Some(kind),
                ref other => panic!("{other:?}"),
            },
            _ => None,
        });
        failed.await
    }
}
