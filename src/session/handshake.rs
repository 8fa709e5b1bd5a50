//! The first 88 bytes of either end: who they are, what they let the other do, and how far they have come.

use std::fmt;

use super::wire::{Control, ErrorCode, Frame, MAX_MESSAGE, Side, Violation, array, read_u32, read_u64};

/// The first bytes of either handshake. In no format does a plain frame of up to 88 bytes begin with them.
pub(crate) const MAGIC: [u8; 12] = *b"\xf5buffstreams";
/// The version of this protocol.
pub(crate) const VERSION: u8 = 1;
/// The bytes of a handshake, either way.
pub(crate) const HANDSHAKE: usize = 88;
/// The shortest promise of a sign of life, in ms: shorter ones would be all that an end does.
pub(crate) const MIN_HEARTBEAT: u32 = 100;

/// The name of a session: 16 random bytes, and never all 0. A peer that knows it can take the session over.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId([u8; 16]);

impl SessionId {
    pub(crate) fn new(random: [u8; 16]) -> Option<Self> {
        (random != [0; 16]).then_some(Self(random))
    }

    /// The bytes, which nobody else may see.
    pub(crate) fn secret(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for SessionId {
    /// It is a secret: a log gets as much as tells two of them apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}…")
    }
}

/// What an end lets the other do, and promises itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The longest message that I accept, in bytes.
    pub(crate) max_message: u32,
    /// The bytes untaken that I accept. 0: I take no messages.
    pub(crate) window: u32,
    /// I send something at least so often, in ms. 0: no promise.
    pub(crate) heartbeat: u32,
    /// How long I keep the session without a connection, in ms.
    pub(crate) ttl: u32,
}

impl Terms {
    fn check(self) -> Result<(), Violation> {
        let heartbeat = self.heartbeat == 0 || self.heartbeat >= MIN_HEARTBEAT;
        let fits = (1..=MAX_MESSAGE).contains(&self.max_message) && heartbeat;
        if fits { Ok(()) } else { Err(Violation::Limits) }
    }

    /// Whether all messages that I may send, which are as long as those that I accept, are taken by an end of these terms. Who
    /// takes none at all cannot be sent one that is too long.
    pub(crate) fn can_send_to(self, theirs: Self) -> bool {
        self.max_message <= theirs.max_message || theirs.window == 0
    }
}

/// How far an end has come in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    /// The lowest of my messages that I still hold.
    pub(crate) acked: u64,
    /// One past the highest of them that was ever handed whole to a connection.
    pub(crate) sent: u64,
    /// One past the last of yours that I have.
    pub(crate) received: u64,
    /// The lowest of yours that you have to keep.
    pub(crate) taken: u64,
}

impl Positions {
    fn check(self, is_new: bool) -> Result<(), Violation> {
        let zero = self == Self::default();
        let possible = self.acked <= self.sent && self.taken <= self.received && (zero || !is_new);
        if possible { Ok(()) } else { Err(Violation::Position) }
    }
}

/// The first 88 bytes of the end that dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The dialer has had a WELCOME of this session.
    pub(crate) resume: bool,
    /// Each attempt at a new session has another: one that comes late must not make a session that somebody comes back to.
    pub(crate) id: SessionId,
    /// Counts the connections of the session, from 1.
    pub(crate) epoch: u32,
    pub(crate) terms: Terms,
    pub(crate) positions: Positions,
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HANDSHAKE] {
        let mut bytes = [0; HANDSHAKE];
        bytes[13] = self.resume.into();
        write_rest(&mut bytes, self.id.0, self.epoch, self.terms, self.positions);
        bytes
    }

    /// Reads it from the start of `input`; `None` when its end has not been received. A stranger is told by the first byte that
    /// cannot be, and another version by its byte, whatever comes behind: its handshake may have another length.
    pub(crate) fn parse(input: &[u8]) -> Result<Option<Self>, Violation> {
        check_magic(input)?;
        match input.get(12) {
            Some(&version) if version != VERSION => return Err(Violation::Version(version)),
            _ => {}
        }
        let Some(bytes) = input.first_chunk::<HANDSHAKE>() else { return Ok(None) };
        let (id, epoch) = Self::echo(bytes);
        let flags = bytes[13];
        let id = SessionId::new(id).ok_or(Violation::Malformed)?;
        if flags > 1 || bytes[14..16] != [0; 2] || epoch == 0 || bytes[52..56] != [0; 4] {
            return Err(Violation::Malformed);
        }
        let (terms, positions) = read_rest(bytes);
        terms.check()?;
        let resume = flags == 1;
        positions.check(!resume)?;
        Ok(Some(Self { resume, id, epoch, terms, positions }))
    }

    /// The same of all that has come: a dialer says nothing more before it has the answer.
    pub(crate) fn parse_all(input: &[u8]) -> Result<Option<Self>, Violation> {
        let hello = Self::parse(input)?;
        if input.len() > HANDSHAKE { Err(Violation::Malformed) } else { Ok(hello) }
    }

    /// What a WELCOME repeats of a HELLO, also of one that is refused for its limits: id and epoch.
    pub(crate) fn echo(bytes: &[u8]) -> ([u8; 16], u32) {
        (array(bytes, 16), read_u32(bytes, 32))
    }
}

/// What became of a HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    New,
    Resumed,
    /// There is no such session, or none any more, or it is somebody else's.
    Unknown,
    /// A newer connection has the session.
    Fenced,
    /// Come again after so many ms.
    Busy,
    /// The version of the HELLO is not spoken here; this is the highest that is.
    Version(u8),
    /// The two limits of a message's length do not fit, or a limit is none.
    Limits,
    Denied,
}

impl Status {
    fn byte(self) -> u8 {
        match self {
            Self::New => 0,
            Self::Resumed => 1,
            Self::Unknown => 2,
            Self::Fenced => 3,
            Self::Busy => 4,
            Self::Version(_) => 5,
            Self::Limits => 6,
            Self::Denied => 7,
        }
    }

    fn read(byte: u8, version: u8) -> Result<Self, Violation> {
        let status = match byte {
            0 => Self::New,
            1 => Self::Resumed,
            2 => Self::Unknown,
            3 => Self::Fenced,
            4 => Self::Busy,
            5 => return Ok(Self::Version(version)),
            6 => Self::Limits,
            7 => Self::Denied,
            _ => return Err(Violation::Malformed),
        };
        if version == VERSION { Ok(status) } else { Err(Violation::Malformed) }
    }
}

/// The first 88 bytes of the end that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) status: Status,
    /// Those of the HELLO.
    pub(crate) id: [u8; 16],
    pub(crate) epoch: u32,
    /// With [`Status::Busy`], `ttl` is the ms after which to come again.
    pub(crate) terms: Terms,
    /// Random, one for each listener that was bound: another one has forgotten all sessions.
    pub(crate) incarnation: u32,
    pub(crate) positions: Positions,
}

impl Welcome {
    pub(crate) fn encode(&self) -> [u8; HANDSHAKE] {
        let mut bytes = [0; HANDSHAKE];
        bytes[13] = self.status.byte();
        write_rest(&mut bytes, self.id, self.epoch, self.terms, self.positions);
        bytes[52..56].copy_from_slice(&self.incarnation.to_be_bytes());
        if let Status::Version(version) = self.status {
            bytes[12] = version;
        }
        bytes
    }

    /// Reads it from the start of `input`; `None` when its end has not been received.
    fn parse(input: &[u8]) -> Result<Option<Self>, Violation> {
        check_magic(input)?;
        let Some(bytes) = input.first_chunk::<HANDSHAKE>() else { return Ok(None) };
        let status = Status::read(bytes[13], bytes[12])?;
        let (id, epoch) = Hello::echo(bytes);
        let (terms, positions) = read_rest(bytes);
        let welcome = Self { status, id, epoch, terms, incarnation: read_u32(bytes, 52), positions };
        if matches!(status, Status::Version(_)) {
            return Ok(Some(welcome)); // Another version decides what the rest is.
        }
        if bytes[14..16] != [0; 2] {
            return Err(Violation::Malformed);
        }
        if matches!(status, Status::New | Status::Resumed) {
            terms.check()?;
        }
        positions.check(status != Status::Resumed)?;
        Ok(Some(welcome))
    }

    /// Whether it can be the answer to this HELLO.
    fn check(&self, hello: &Hello) -> Result<(), Violation> {
        let known = matches!(self.status, Status::Version(_)) || (self.id == hello.id.0 && self.epoch == hello.epoch);
        let other = if hello.resume { Status::New } else { Status::Resumed };
        if known && self.status != other { Ok(()) } else { Err(Violation::Malformed) }
    }
}

/// What a dialer reads first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Welcome(Welcome),
    /// There is no WELCOME: the HELLO was a violation, and the session is over.
    Error(ErrorCode),
}

impl Answer {
    /// Reads the answer to this HELLO from the start of `input`; `None` when its end has not been received.
    pub(crate) fn parse(input: &[u8], hello: &Hello) -> Result<Option<Self>, Violation> {
        if input.first() == Some(&0x80) {
            return match Frame::parse(input, 0, Side::Listener)? {
                Some((Frame::Control(Control::Error(code)), _)) => Ok(Some(Self::Error(code))),
                Some(_) => Err(Violation::Malformed),
                None => Ok(None),
            };
        }
        let Some(welcome) = Welcome::parse(input)? else { return Ok(None) };
        welcome.check(hello)?;
        Ok(Some(Self::Welcome(welcome)))
    }
}

fn check_magic(input: &[u8]) -> Result<(), Violation> {
    match input.iter().zip(MAGIC).position(|(byte, magic)| *byte != magic) {
        Some(at) => Err(Violation::Magic { at }),
        None => Ok(()),
    }
}

/// What both handshakes have at the same place.
fn write_rest(bytes: &mut [u8; HANDSHAKE], id: [u8; 16], epoch: u32, terms: Terms, positions: Positions) {
    bytes[..12].copy_from_slice(&MAGIC);
    bytes[12] = VERSION;
    bytes[16..32].copy_from_slice(&id);
    let small = [epoch, terms.max_message, terms.window, terms.heartbeat, terms.ttl];
    for (field, value) in bytes[32..52].chunks_exact_mut(4).zip(small) {
        field.copy_from_slice(&value.to_be_bytes());
    }
    let large = [positions.acked, positions.sent, positions.received, positions.taken];
    for (field, value) in bytes[56..].chunks_exact_mut(8).zip(large) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

fn read_rest(bytes: &[u8; HANDSHAKE]) -> (Terms, Positions) {
    let small = |at| read_u32(bytes, at);
    let large = |at| read_u64(bytes, at);
    let terms = Terms { max_message: small(36), window: small(40), heartbeat: small(44), ttl: small(48) };
    (terms, Positions { acked: large(56), sent: large(64), received: large(72), taken: large(80) })
}
