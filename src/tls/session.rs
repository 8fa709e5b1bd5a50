//! A TLS session: bytes of the wire go in and come out, and so do those of the program. It knows no socket.

use std::io::{self, IoSlice, Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{CertificateError, Connection, PeerIncompatible};

use crate::error::TlsError;

#[cfg(all(test, feature = "tls-ring"))]
pub(crate) use tests::ends;

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
    /// What a read has met behind bytes that it has brought, which is told then as well.
    failed: Option<io::Error>,
}

impl Session {
    pub(super) fn new(tls: Connection) -> Self {
        Self { tls, left: Vec::new(), received: 0, start: Vec::new(), broken: None, failed: None }
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

    /// Reads all that there is for the program. 0 bytes are the end that the other one has told of, and `None` says that more has
    /// to be fed first. The error is an end that it has not told of, that it broke the rules, or why the socket
    /// [failed](Self::fail).
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let mut filled = 0;
        loop {
            match self.tls.reader().read(&mut buf[filled..]) {
                Ok(read) if read > 0 && filled + read < buf.len() => {
                    filled += read;
                    continue;
                }
                Ok(read) => return Ok(Some(filled + read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An end that was kept is this one.
                Err(error) if filled == 0 => return Err(self.failed.take().unwrap_or(error)),
                // It is told when what came before has been taken.
                Err(_) => {}
            }
            if !self.left.is_empty() {
                let left = std::mem::take(&mut self.left);
                self.broken = self.absorb(&left).err();
                continue;
            }
            if filled > 0 {
                return Ok(Some(filled));
            }
            if let Some(error) = self.broken.take() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            return self.failed.take().map_or(Ok(None), Err);
        }
    }

    /// Keeps an error for [`read`](Self::read) to tell behind all that has been fed: of the socket, or that `read` has told to
    /// somebody who has bytes to give away first.
    pub(crate) fn fail(&mut self, error: io::Error) {
        self.failed = Some(error);
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

#[cfg(feature = "tls-ring")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Tls;

    /// Both ends of a session that is yet to begin: who dials, and who was dialed.
    pub(crate) fn ends() -> (Session, Session) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (own.cert.pem(), own.signing_key.serialize_pem());
        let tls = Tls::new().server(&cert, key).unwrap().roots(&cert).unwrap();
        (tls.dial("localhost").unwrap(), tls.accept().unwrap())
    }

    fn wire(session: &mut Session) -> Vec<u8> {
        let mut wire = Vec::new();
        session.take_wire(&mut wire).unwrap();
        wire
    }

    fn shaken() -> (Session, Session) {
        let (mut dialer, mut dialed) = ends();
        while dialer.is_handshaking() || dialed.is_handshaking() {
            dialed.feed(&wire(&mut dialer)).unwrap();
            dialer.feed(&wire(&mut dialed)).unwrap();
        }
        (dialer, dialed)
    }

    /// Seals all of it.
    fn sealed(session: &mut Session, bufs: &[&[u8]]) -> (Vec<u8>, Vec<usize>) {
        let bufs: Vec<_> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        let (mut wire, mut records) = (Vec::new(), Vec::new());
        loop {
            match session.seal(&bufs, records.iter().sum(), &mut wire).unwrap() {
                0 => return (wire, records),
                taken => records.push(taken),
            }
        }
    }

    fn read_all(session: &mut Session, buf: usize) -> (Vec<u8>, io::Result<Option<usize>>) {
        let (mut all, mut buf) = (Vec::new(), vec![0; buf]);
        loop {
            match session.read(&mut buf) {
                Ok(Some(n @ 1..)) => all.extend_from_slice(&buf[..n]),
                end => return (all, end),
            }
        }
    }

    #[test]
    fn more_than_a_record_is_fed_at_once() {
        let (mut dialer, mut dialed) = shaken();
        let message: Vec<u8> = (0..5 * RECORD as u32 + 7).map(|n| n as u8).collect();
        let (mut wire, records) = sealed(&mut dialer, &[&message]);
        assert_eq!(records, [RECORD, RECORD, RECORD, RECORD, RECORD, 7]);
        dialer.close();
        dialer.take_wire(&mut wire).unwrap();
        dialed.feed(&wire).unwrap();
        assert!(!dialed.left.is_empty(), "a session holds little more than a record");
        let (all, end) = read_all(&mut dialed, 1000);
        assert!(all == message && matches!(end, Ok(Some(0))), "{end:?}");
    }

    #[test]
    fn all_that_was_fed_is_read_at_once() {
        let (mut dialer, mut dialed) = shaken();
        let message: Vec<u8> = (0..5 * RECORD as u32 + 7).map(|n| n as u8).collect();
        dialed.feed(&sealed(&mut dialer, &[&message]).0).unwrap();
        let mut buf = vec![0; message.len() + 1];
        assert_eq!(dialed.read(&mut buf).unwrap(), Some(message.len()));
        assert!(buf.starts_with(&message));
        assert_eq!(dialed.read(&mut buf).unwrap(), None);
    }

    #[test]
    fn why_the_socket_failed_is_told_once_behind_what_was_fed() {
        // In one record, and in more of them than a session holds.
        for len in [8, 3 * RECORD] {
            let (mut dialer, mut dialed) = shaken();
            dialed.feed(&sealed(&mut dialer, &[&vec![7; len]]).0).unwrap();
            dialed.fail(io::ErrorKind::ConnectionReset.into());
            let (all, end) = read_all(&mut dialed, 4 * RECORD);
            assert_eq!((all.len(), end.unwrap_err().kind()), (len, io::ErrorKind::ConnectionReset));
            assert!(matches!(dialed.read(&mut [0; 10]), Ok(None)));
        }
    }

    #[test]
    fn many_pieces_become_records_and_what_was_sealed_is_passed_over() {
        let (mut dialer, mut dialed) = shaken();
        let pieces: Vec<Vec<u8>> = (0..3 * MAX_PIECES as u8).map(|n| vec![n; usize::from(n)]).collect();
        let bufs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let (wire, records) = sealed(&mut dialer, &bufs);
        assert_eq!(records.len(), 3);
        dialed.feed(&wire).unwrap();
        let (all, end) = read_all(&mut dialed, 1);
        assert!(all == pieces.concat() && matches!(end, Ok(None)), "{end:?}");
        // Nothing is no record, which would be taken for the end of something.
        assert_eq!(sealed(&mut dialer, &[b"", b""]), (Vec::new(), Vec::new()));
    }

    #[test]
    fn an_end_is_clean_if_it_was_told_and_not_otherwise() {
        for tells in [true, false] {
            let (mut dialer, mut dialed) = shaken();
            let (mut wire, _) = sealed(&mut dialer, &[b"the last"]);
            if tells {
                dialer.close();
                dialer.take_wire(&mut wire).unwrap();
            }
            dialed.feed(&wire).unwrap();
            dialed.feed(&[]).unwrap();
            match read_all(&mut dialed, 100) {
                (all, Ok(Some(0))) => assert!(tells && all == b"the last"),
                (all, Err(error)) => {
                    assert!(!tells && all == b"the last" && error.kind() == io::ErrorKind::UnexpectedEof, "{error:?}");
                }
                (_, end) => panic!("{end:?}"),
            }
        }
    }

    #[test]
    fn what_came_before_a_rule_was_broken_is_read_and_then_that_is_told_once() {
        let (mut dialer, mut dialed) = ends();
        dialed.feed(&wire(&mut dialer)).unwrap();
        dialer.feed(&wire(&mut dialed)).unwrap();
        // All in one piece: the end of the handshake, two records, and one that was changed.
        let mut all = wire(&mut dialer);
        let (first, second) = (sealed(&mut dialer, &[&[1; RECORD]]).0, sealed(&mut dialer, &[b"second"]).0);
        let mut third = sealed(&mut dialer, &[b"third"]).0;
        *third.last_mut().unwrap() ^= 1;
        all.extend([first, second, third].concat());
        dialed.feed(&all).unwrap();
        assert!(!dialed.is_handshaking() && dialed.start.capacity() == 0);
        let (came, end) = read_all(&mut dialed, 100);
        assert!(came == [&[1; RECORD][..], b"second"].concat());
        let error = end.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let why = error.get_ref().unwrap().downcast_ref::<TlsError>();
        assert!(matches!(why, Some(TlsError::Violation { .. })), "{error:?}");
        assert!(!wire(&mut dialed).is_empty(), "there is an alert");
    }

    #[test]
    fn what_is_no_tls_is_told_by_its_first_bytes_however_they_come() {
        for (bytes, is_foreign) in [
            (&b"SSH-2.0-x\r\n"[..], true),
            (&[22, 0, 0, 1, 2, 3, 4, 5, 6], true),
            (&[21, 0, 0, 1, 2, 3], true),
            (&[22, 3, 1, 0xff, 0xff, 0], false),
        ] {
            let (_, mut dialed) = ends();
            let failed = bytes.iter().find_map(|byte| dialed.feed(&[*byte]).err()).unwrap();
            assert_eq!(matches!(failed, TlsError::NotTls { .. }), is_foreign, "{failed:?}");
            assert!(bytes.starts_with(dialed.start()) && !dialed.start().is_empty());
        }
        // The end, where there is little to tell from.
        for (bytes, is_foreign) in
            [(&b"SSH"[..], true), (&[22], false), (&[22, 3, 1], false), (&[22, 0], true), (&[], false)]
        {
            let (_, mut dialed) = ends();
            // What no record begins with is refused at once.
            let refused = if bytes.is_empty() { None } else { dialed.feed(bytes).err() };
            let failed = refused.unwrap_or_else(|| dialed.feed(&[]).unwrap_err());
            assert_eq!(matches!(failed, TlsError::NotTls { .. }), is_foreign, "{failed:?}");
            let received = bytes.len() as u64;
            assert!(is_foreign || matches!(failed, TlsError::Ended { received: of } if of == received), "{failed:?}");
        }
    }

    #[test]
    fn the_names_of_a_certificate_are_told_bare() {
        assert_eq!(bare("DnsName(\"localhost\")"), "localhost");
        assert_eq!(bare("IpAddress(127.0.0.1)"), "127.0.0.1");
        assert_eq!(bare("whatever"), "whatever");
    }
}
