//! What one who dials knows of a session: its name, and how often it was greeted.

use std::time::{Duration, Instant};

use super::handshake::{Greeted, Greeting};
use crate::config::Config;
use crate::endpoint::Endpoint;
use crate::error::{HandshakeErrorKind, Loss};
use crate::peer::Address;
use crate::runtime::Handle;
use crate::session::{
    Answer, ErrorCode, Hello, Positions, Session, SessionId, Status, Terms, VERSION, Welcome, next_epoch,
};
use crate::wire::Codec;

/// The longest pause that the other end can ask for, in BUSY and GOAWAY. It has 32 bits for it, which are 49 days: nobody is to
/// be kept away for that long by a mistake, or on purpose.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The session of one who dials.
pub(crate) struct Dialed {
    runtime: Handle,
    terms: Terms,
    codec: Codec,
    ttl: Duration,
    known: Option<Known>,
    /// BUSY came: nothing is dialed before.
    busy_until: Option<Instant>,
    /// GOAWAY came: no new session is dialed before.
    away_until: Option<Instant>,
}

/// A session that the other end knows.
struct Known {
    id: SessionId,
    /// Of the last attempt.
    epoch: u32,
    incarnation: u32,
    ttl: Duration,
    /// Where it was made: another one behind the same name is another listener.
    endpoint: Option<Endpoint>,
}

/// What an answer comes to.
pub(crate) enum Judged {
    Accepted,
    /// Another attempt may do better.
    Failed(HandshakeErrorKind),
    /// The other end lets this one in no more: the session is over, and another attempt, at a new one, may do better.
    Refused(HandshakeErrorKind),
    /// The session is over.
    Lost(Loss),
}

impl Dialed {
    pub(crate) fn new(session: &Session, config: &Config, codec: Codec, window: u32) -> Self {
        let terms = Terms { window, ..session.terms(codec.max()) };
        let runtime = config.runtime.clone();
        Self { runtime, terms, codec, ttl: session.ttl, known: None, busy_until: None, away_until: None }
    }

    pub(crate) fn terms(&self) -> Terms {
        self.terms
    }

    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// Whether the other end knows the session.
    pub(crate) fn is_established(&self) -> bool {
        self.known.is_some()
    }

    /// The session is over.
    pub(crate) fn forget(&mut self) {
        self.known = None;
    }

    /// The other end takes no more in this session, and is to be left alone for so many ms before the next.
    pub(crate) fn goes_away(&mut self, ms: u32) {
        self.away_until = Some(self.after(Duration::from_millis(ms.into())));
    }

    fn after(&self, pause: Duration) -> Instant {
        self.runtime.now() + pause.min(LONGEST_PAUSE)
    }

    /// When the other end may be dialed at the earliest, as it has said.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        let away = self.away_until.filter(|_| self.known.is_none());
        self.busy_until.max(away)
    }

    /// When the session ends by itself, which has been without a connection since `broke`.
    pub(crate) fn expires(&self, broke: Instant) -> Option<Instant> {
        broke.checked_add(self.known.as_ref()?.ttl)
    }

    /// Why the session, which has been without a connection since `broke`, is over by now, if it is.
    pub(crate) fn over(&self, broke: Instant, now: Instant) -> Option<Loss> {
        let known = self.known.as_ref()?;
        if next_epoch(known.epoch).is_none() {
            // The next could not be told from those before.
            return Some(Loss::Fenced);
        }
        self.expires(broke).filter(|at| *at <= now).map(|_| Loss::Expired)
    }

    /// What is said on the next connection. As long as no WELCOME has come each attempt has a name of its own: a HELLO that
    /// comes late must not make a session that somebody comes back to.
    pub(crate) fn greeting(&mut self, address: &Address, positions: Positions) -> Greeting {
        let hello = match &mut self.known {
            None => {
                let id = loop {
                    let mut bytes = [0; 16];
                    self.runtime.fill_random(&mut bytes);
                    if let Some(id) = SessionId::new(bytes) {
                        break id;
                    }
                };
                Hello { resume: false, id, epoch: 1, terms: self.terms, positions: Positions::default() }
            }
            Some(known) => {
                // One that has had the last is over.
                known.epoch = next_epoch(known.epoch).unwrap_or(known.epoch);
                Hello { resume: true, id: known.id, epoch: known.epoch, terms: self.terms, positions }
            }
        };
        let endpoint = self.known.as_ref().and_then(|known| known.endpoint.clone());
        Greeting { address: address.clone(), endpoint, hello }
    }

    /// What the answer comes to.
    pub(crate) fn judge(&mut self, Greeted { stream, hello, answer }: &Greeted) -> Judged {
        let welcome = match answer {
            Answer::Error(code) => return Judged::Lost(lost_by(*code)),
            Answer::Welcome(welcome) => *welcome,
        };
        match welcome.status {
            Status::New | Status::Resumed if !self.terms.can_send_to(welcome.terms) => {
                Judged::Refused(self.limits(&welcome))
            }
            Status::New | Status::Resumed => {
                let ttl = self.ttl.min(Duration::from_millis(welcome.terms.ttl.into()));
                let Hello { id, epoch, .. } = *hello;
                self.busy_until = None;
                if welcome.status == Status::New {
                    self.away_until = None;
                }
                // A Unix socket is found by the path that it was dialed by, which need not be the one that it was bound to.
                let endpoint = stream.peer_addr().ok().filter(|endpoint| endpoint.ip().is_some());
                self.known = Some(Known { id, epoch, incarnation: welcome.incarnation, ttl, endpoint });
                Judged::Accepted
            }
            Status::Unknown => match &self.known {
                Some(known) if known.incarnation == welcome.incarnation => Judged::Lost(Loss::Expired),
                Some(_) => Judged::Lost(Loss::Restarted),
                None => Judged::Failed(HandshakeErrorKind::Unknown),
            },
            // Somebody else has it, with a higher number.
            Status::Fenced => Judged::Lost(Loss::Fenced),
            Status::Busy => {
                let retry_in = Duration::from_millis(welcome.terms.ttl.into());
                self.busy_until = Some(self.after(retry_in));
                Judged::Failed(HandshakeErrorKind::Busy { retry_in })
            }
            Status::Version(theirs) => Judged::Refused(HandshakeErrorKind::Version { ours: VERSION, theirs }),
            Status::Limits => Judged::Refused(self.limits(&welcome)),
            Status::Denied => Judged::Refused(HandshakeErrorKind::Denied),
        }
    }

    fn limits(&self, welcome: &Welcome) -> HandshakeErrorKind {
        let [ours, theirs] = [self.terms, welcome.terms].map(|terms| terms.max_message as usize);
        HandshakeErrorKind::Limits { ours, theirs }
    }
}

/// Why a session is lost that the other end has ended so.
pub(crate) fn lost_by(code: ErrorCode) -> Loss {
    if code == ErrorCode::Gone { Loss::Ended } else { Loss::Violation(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept here because it takes so many connections to come there.
    #[test]
    fn a_session_whose_epochs_are_used_up_is_lost() {
        let (session, config) = (Session::new(), Config::new());
        let mut dialed = Dialed::new(&session, &config, config.codec().unwrap(), 0);
        let address = Address::from("127.0.0.1:1");
        let (now, ttl) = (Instant::now(), Duration::from_secs(20));
        assert_eq!((dialed.over(now, now + ttl), dialed.expires(now)), (None, None), "there is none");
        let id = SessionId::new([1; 16]).unwrap();
        let epoch = u32::MAX - 2;
        dialed.known = Some(Known { id, epoch, incarnation: 1, ttl, endpoint: None });
        let again = dialed.greeting(&address, Positions::default()).hello;
        assert_eq!((again.resume, again.id, again.epoch), (true, id, u32::MAX - 1));
        assert_eq!(dialed.over(now, now), None);
        assert_eq!(dialed.over(now, now + ttl), Some(Loss::Expired));
        assert_eq!(dialed.greeting(&address, Positions::default()).hello.epoch, u32::MAX);
        assert_eq!(dialed.over(now, now), Some(Loss::Fenced));
    }
}
