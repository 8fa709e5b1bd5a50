//! A TLS session: bytes of the wire go in and come out, and so do those of the program. It knows no socket.

use std::io::{self, IoSlice, Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{CertificateError, Connection, PeerIncompatible};

use crate::error::TlsError;

/// How much of what the program writes is in one record, at most: RFC 8446, 5.1.
pub(crate) const RECORD: usize = 16 * 1024;
/// How many of the first bytes are kept during a handshake, to tell what it is if it is no TLS.
const START: usize = 1024;
/// How many pieces are put into one record at the most.
const MAX_PIECES: usize = 32;

/// A session, from its handshake on.
#[derive(Debug)]
pub(crate) struct Session {
    tls: Connection,
    /// What was received and had no room in the session, until the program has read what there is.
    left: Vec<u8>,
    /// How many bytes were received.
    received: u64,
    /// The first of them, until the handshake is over.
    start: Vec<u8>,
    /// The other end broke the rules, which is told when the program has read what came before that.
    broken: Option<TlsError>,
}

impl Session {
    pub(super) fn new(tls: Connection) -> Self {
        Self { tls, left: Vec::new(), received: 0, start: Vec::new(), broken: None }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Takes what has been received, [`RECORD`] bytes at the most; nothing is the end. The error is that the handshake failed, and
    /// then nothing more is to be fed. What goes wrong later is told by [`read`](Self::read). Either way there may be an alert to
    /// send.
    pub(crate) fn feed(&mut self, input: &[u8]) -> Result<(), TlsError> {
        self.received += input.len() as u64;
        if self.is_handshaking() {
            let few = input.len().min(START - self.start.len());
            self.start.extend_from_slice(&input[..few]);
            if input.is_empty() {
                return Err(match self.is_foreign() {
                    true => TlsError::NotTls { looks_like: None },
                    false => TlsError::Ended { received: self.received },
                });
            }
        }
        let absorbed = self.absorb(input);
        if self.is_handshaking() {
            return absorbed;
        }
        self.start = Vec::new();
        // Messages may have come with the last of the handshake, and in front of what is wrong.
        self.broken = absorbed.err();
        Ok(())
    }

    /// What the other end began with.
    pub(crate) fn start(&self) -> &[u8] {
        &self.start
    }

    /// It did not begin with a handshake, or an alert, of any version of TLS.
    fn is_foreign(&self) -> bool {
        !matches!(self.start.as_slice(), [] | [0x15 | 0x16] | [0x15 | 0x16, 3, ..])
    }

    fn absorb(&mut self, mut input: &[u8]) -> Result<(), TlsError> {
        loop {
            // Nothing is taken behind the other end's `close_notify`.
            let taken = self.tls.read_tls(&mut input).map_err(TlsError::Io)?;
            let state = self.tls.process_new_packets().map_err(|error| self.judge(error))?;
            if input.is_empty() || taken == 0 {
                return Ok(());
            }
            if state.plaintext_bytes_to_read() >= RECORD {
                self.left = input.to_vec();
                return Ok(());
            }
        }
    }

    /// Reads what there is for the program. 0 bytes are the end that the other one has told of, and `None` says that more has to
    /// be fed first. The error is an end that it has not told of, or that it broke the rules.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.tls.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(Some),
            }
            if let Some(error) = self.broken.take() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            if self.left.is_empty() {
                return Ok(None);
            }
            let left = std::mem::take(&mut self.left);
            self.broken = self.absorb(&left).err();
        }
    }

    /// Puts a record of what the program writes, behind the first `skip` bytes of it, onto the end of `wire`. Returns how many bytes
    /// it took; 0 when there is no more.
    pub(crate) fn seal(&mut self, bufs: &[IoSlice<'_>], mut skip: usize, wire: &mut Vec<u8>) -> io::Result<usize> {
        let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
        let (mut used, mut room) = (0, RECORD);
        for buf in bufs {
            let passed = skip.min(buf.len());
            skip -= passed;
            let buf = &buf[passed..];
            if buf.is_empty() {
                continue;
            }
            let take = buf.len().min(room);
            pieces[used] = IoSlice::new(&buf[..take]);
            (used, room) = (used + 1, room - take);
            if used == MAX_PIECES || room == 0 {
                break;
            }
        }
        let taken = self.tls.writer().write_vectored(&pieces[..used])?;
        self.take_wire(wire)?;
        Ok(taken)
    }

    /// Puts what the session has to send by itself onto the end of `wire`: a part of the handshake, an alert, an update of keys.
    pub(crate) fn take_wire(&mut self, wire: &mut Vec<u8>) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(wire)?;
        }
        Ok(())
    }

    /// Ends the sending direction; what tells the other end is for [`take_wire`](Self::take_wire).
    pub(crate) fn close(&mut self) {
        self.tls.send_close_notify();
    }

    /// The certificates of the other end, if it has shown any.
    pub(crate) fn certificates(&self) -> Option<Vec<Vec<u8>>> {
        Some(self.tls.peer_certificates()?.iter().map(|certificate| certificate.to_vec()).collect())
    }

    /// What the error comes to for the program.
    fn judge(&self, error: rustls::Error) -> TlsError {
        use rustls::Error as E;
        if self.is_handshaking() && self.is_foreign() {
            return TlsError::NotTls { looks_like: None };
        }
        match error {
            E::AlertReceived(alert) => TlsError::Refused { alert: format!("{alert:?}") },
            E::NoCertificatesPresented => TlsError::NoCertificate,
            E::InvalidCertificate(error) => of_certificate(error),
            E::NoApplicationProtocol => TlsError::Incompatible { what: "the application protocol".to_owned() },
            E::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                TlsError::Incompatible { what: "the ways to sign".to_owned() }
            }
            E::PeerIncompatible(what) => TlsError::Incompatible { what: format!("{what:?}") },
            error => TlsError::Violation { what: error.to_string() },
        }
    }
}

fn of_certificate(error: CertificateError) -> TlsError {
    use CertificateError as E;
    match error {
        E::ExpiredContext { not_after, .. } => TlsError::Expired { not_after: time(not_after) },
        E::NotValidYetContext { not_before, .. } => TlsError::NotValidYet { not_before: time(not_before) },
        E::NotValidForNameContext { expected, presented } => {
            let expected = match expected {
                ServerName::DnsName(name) => name.as_ref().to_owned(),
                ServerName::IpAddress(address) => std::net::IpAddr::from(address).to_string(),
                other => format!("{other:?}"),
            };
            TlsError::WrongName { expected, presented: presented.iter().map(|name| bare(name)).collect() }
        }
        E::UnknownIssuer => TlsError::UnknownIssuer,
        error => TlsError::BadCertificate { reason: error.to_string() },
    }
}

/// A name of a certificate: it comes as `DnsName("localhost")`, or `IpAddress(127.0.0.1)`.
fn bare(presented: &str) -> String {
    let inner = presented.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')'));
    inner.unwrap_or(presented).trim_matches('"').to_owned()
}

fn time(time: UnixTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.as_secs())
}
