//! A connection inside which TLS is spoken: one more kind of socket.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use super::Stream;
use crate::endpoint::Endpoint;
use crate::error::TlsError;
use crate::identity::Identity;
use crate::runtime::{Forward, Socket};
use crate::sync::Lock;
use crate::tls::{RECORD, Session};
use crate::wire::{Codec, Start};

/// How many records are given to the socket at once: as much as a writer of frames gives.
const RECORDS: usize = 4;
/// What a record may have over what is in it, in bytes: less than this in each version of TLS.
const OVERHEAD: usize = 64;
/// How much of the wire one read asks for at the least, however little the program has room for: a reader that waits for the end
/// of a long frame has next to none.
const FEW: usize = 4096;
/// How often one poll reads what is nothing for the program before it lets other tasks run.
const READS_PER_POLL: usize = 16;

/// Does the handshake, for whichever side the session is of. `codec` helps to tell a peer that speaks no TLS.
pub(super) async fn secure(raw: Stream, session: Session, codec: Codec) -> Result<Stream, TlsError> {
    let writing = Arc::<Waiting>::default();
    let waker = writing.clone().into();
    let mut handshake = Handshake { raw: raw.0, session, sending: Sending::default(), writing, waker, codec };
    poll_fn(|cx| handshake.poll(cx)).await?;
    let Handshake { raw, session, writing, waker, .. } = handshake;
    let identity = match session.certificates() {
        None => raw.identity(),
        Some(certificates) => {
            let raw = raw.identity().map_or_else(Identity::default, Arc::unwrap_or_clone);
            Some(Arc::new(raw.with_certificates(certificates)))
        }
    };
    // All of the handshake is sent.
    let (session, sending) = (Lock::new(session), Lock::default());
    Ok(Stream::new(Arc::new(TlsSocket { raw, session, sending, writing, waker, identity })))
}

struct Handshake {
    raw: Arc<dyn Socket>,
    session: Session,
    sending: Sending,
    /// As those of the socket that comes of it, which has no other waker from the start.
    writing: Arc<Waiting>,
    waker: Waker,
    codec: Codec,
}

impl Handshake {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        let mut buf = [0; FEW];
        self.writing.forward.set(cx.waker());
        loop {
            self.session.take_wire(&mut self.sending.wire).map_err(TlsError::Io)?;
            let sent = self.sending.poll_send(&*self.raw, &mut Context::from_waker(&self.waker));
            ready!(sent).map_err(TlsError::Io)?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let received = ready!(self.raw.poll_read(cx, &mut buf)).map_err(TlsError::Io)?;
            if let Err(error) = self.session.feed(&buf[..received]) {
                self.tell();
                return Poll::Ready(Err(match error {
                    TlsError::NotTls { .. } => {
                        TlsError::NotTls { looks_like: Start::without_tls(self.codec, self.session.start()) }
                    }
                    error => error,
                }));
            }
        }
    }

    /// Tells the other end why it failed, if the socket takes that at once.
    fn tell(&mut self) {
        if self.session.take_wire(&mut self.sending.wire).is_ok() {
            let _ = self.sending.poll_send(&*self.raw, &mut Context::from_waker(&self.waker));
        }
    }
}

/// The socket. Reading takes only the lock of the session, and never while the system is called.
#[derive(Debug)]
struct TlsSocket {
    raw: Arc<dyn Socket>,
    session: Lock<Session>,
    /// Locked before the session.
    sending: Lock<Sending>,
    /// Who waits to write. No waker of the program is given to the socket while the lock is held.
    writing: Arc<Waiting>,
    /// Always the same for the socket.
    waker: Waker,
    identity: Option<Arc<Identity>>,
}

/// Records on their way to the socket.
#[derive(Debug, Default)]
struct Sending {
    wire: Vec<u8>,
    /// How much of that the socket has taken.
    sent: usize,
    /// Where the records end that hold something of the program, and how much. They are written when they are sent: a part of
    /// one is nothing to the other end.
    records: VecDeque<(usize, usize)>,
    /// How much of the program's is in those: it will be given once more, since it has not been taken.
    ahead: usize,
    /// The end was told.
    is_closed: bool,
}

impl Sending {
    /// Sends all there is.
    fn poll_send(&mut self, raw: &dyn Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.wire.len() {
            match ready!(raw.poll_write(cx, &[IoSlice::new(&self.wire[self.sent..])])) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// How much of the program's has been written since this was asked for last.
    fn written(&mut self) -> usize {
        let mut written = 0;
        while let Some((end, bytes)) = self.records.front()
            && *end <= self.sent
        {
            written += bytes;
            self.records.pop_front();
        }
        self.ahead -= written;
        written
    }

    fn is_sent(&self) -> bool {
        self.sent == self.wire.len()
    }

    /// Begins anew where all is sent, and told; `false` if it is not.
    fn begin_anew(&mut self) -> bool {
        let is_done = self.is_sent() && self.records.is_empty();
        if is_done {
            self.wire.clear();
            self.sent = 0;
        }
        is_done
    }
}

/// Somebody who waits, and whether they were called before they waited.
#[derive(Debug, Default)]
struct Waiting {
    forward: Arc<Forward>,
    was_called: AtomicBool,
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.was_called.store(true, Ordering::SeqCst);
        self.forward.wake_by_ref();
    }
}

impl TlsSocket {
    /// Sends, for somebody who waits if that takes longer.
    fn poll_sending<T>(
        &self,
        cx: &mut Context<'_>,
        send: impl FnOnce(&mut Sending, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        // One that wakes nobody must not take the place of another.
        if cx.waker().will_wake(Waker::noop()) {
            return send(&mut self.sending.lock(), cx);
        }
        self.writing.was_called.store(false, Ordering::SeqCst);
        let sent = send(&mut self.sending.lock(), &mut Context::from_waker(&self.waker));
        if sent.is_pending() {
            self.writing.forward.set(cx.waker());
            if self.writing.was_called.load(Ordering::SeqCst) {
                cx.waker().wake_by_ref();
            }
        }
        sent
    }

    fn take_wire(&self, sending: &mut Sending) -> io::Result<()> {
        self.session.lock().take_wire(&mut sending.wire)
    }

    fn poll_write(&self, sending: &mut Sending, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if sending.is_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if sending.begin_anew() {
            self.take_wire(sending)?;
            self.seal(sending, bufs)?;
        }
        let sent = sending.poll_send(&*self.raw, cx);
        match (sending.written(), sent) {
            (0, Poll::Pending) => Poll::Pending,
            (0, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            // It was something of the session's own, which is out of the way now.
            (0, Poll::Ready(Ok(()))) if bufs.iter().any(|buf| !buf.is_empty()) => self.poll_write(sending, cx, bufs),
            // Whatever comes next is told next.
            (written, _) => Poll::Ready(Ok(written)),
        }
    }

    /// Makes records of what the program writes.
    fn seal(&self, sending: &mut Sending, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let most = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(RECORDS * RECORD);
        sending.wire.reserve(most + RECORDS * OVERHEAD);
        for _ in 0..RECORDS {
            let taken = self.session.lock().seal(bufs, sending.ahead, &mut sending.wire)?;
            if taken == 0 {
                break;
            }
            sending.ahead += taken;
            sending.records.push_back((sending.wire.len(), taken));
        }
        Ok(())
    }

    /// What a read comes to that met an error behind so many bytes: the next read tells it, if there are any.
    fn fail(&self, error: io::Error, filled: usize) -> Poll<io::Result<usize>> {
        if filled == 0 {
            return Poll::Ready(Err(error));
        }
        self.session.lock().fail(error);
        Poll::Ready(Ok(filled))
    }

    /// Tells the other end that nothing more comes.
    fn close(&self, sending: &mut Sending) -> io::Result<()> {
        if !std::mem::replace(&mut sending.is_closed, true) {
            self.session.lock().close();
        }
        self.take_wire(sending)
    }

    /// Tells the other end something, if the socket takes it at once. It cannot be told behind a part of a record: the whole of
    /// that would be read, and yet be sent again on another connection. The other end takes it for what it is, a connection that
    /// was cut short.
    fn tell_at_once(&self, tell: fn(&Self, &mut Sending) -> io::Result<()>) {
        let mut sending = self.sending.lock();
        if sending.is_sent() && tell(self, &mut sending).is_ok() {
            let _ = sending.poll_send(&*self.raw, &mut Context::from_waker(Waker::noop()));
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

impl Drop for TlsSocket {
    fn drop(&mut self) {
        self.tell_at_once(Self::close);
    }
}

impl Socket for TlsSocket {
    /// Fills the buffer as far as the wire has something at once: with a record at a time, small frames would come in small batches.
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let (mut filled, mut more, mut few) = (0, true, [0; FEW]);
        for _ in 0..READS_PER_POLL {
            // Not in the `match`, which would keep the lock that an alert needs.
            let read = self.session.lock().read(&mut buf[filled..]);
            match read {
                Ok(None) => {}
                Ok(Some(0)) if filled == 0 => return Poll::Ready(Ok(0)),
                Ok(Some(read)) => filled += read,
                Err(error) => {
                    // There may be an alert to send.
                    self.tell_at_once(Self::take_wire);
                    return self.fail(error, filled);
                }
            }
            let room = &mut buf[filled..];
            if filled > 0 && (!more || room.len() < FEW) {
                return Poll::Ready(Ok(filled));
            }
            // What comes over the wire is put where what it holds goes afterwards, if there is room for it.
            let len = room.len().min(RECORD);
            let wire = if len < FEW { &mut few[..] } else { &mut room[..len] };
            let received = match self.raw.poll_read(cx, wire) {
                Poll::Ready(Ok(received)) => received,
                Poll::Pending if filled > 0 => return Poll::Ready(Ok(filled)),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return self.fail(error, filled),
            };
            more = received == wire.len();
            let fed = self.session.lock().feed(&wire[..received]);
            fed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        if filled > 0 {
            return Poll::Ready(Ok(filled));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_sending(cx, |sending, cx| self.poll_write(sending, cx, bufs))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sending(cx, |sending, cx| {
            // What the session has to say by itself goes with what is written next: it is nothing to wait for.
            ready!(sending.poll_send(&*self.raw, cx))?;
            if sending.begin_anew() {
                // An idle connection keeps no buffer.
                sending.wire = Vec::new();
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_half_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let told = self.poll_sending(cx, |sending, cx| {
            self.close(sending)?;
            match ready!(sending.poll_send(&*self.raw, cx)) {
                // The other end was quicker, as without TLS.
                Err(error) if is_gone(&error) => Poll::Ready(Ok(())),
                sent => Poll::Ready(sent),
            }
        });
        ready!(told)?;
        self.raw.poll_half_close(cx)
    }

    fn shut_down(&self) {
        self.tell_at_once(Self::close);
        self.raw.shut_down();
    }

    fn take_error(&self) -> Option<io::Error> {
        self.raw.take_error()
    }

    fn is_closed_by_peer(&self) -> bool {
        self.raw.is_closed_by_peer()
    }

    fn has_unread(&self) -> bool {
        self.raw.has_unread()
    }

    fn local(&self) -> io::Result<Endpoint> {
        self.raw.local()
    }

    fn remote(&self) -> io::Result<Endpoint> {
        self.raw.remote()
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.clone()
    }
}

#[cfg(feature = "tls-ring")]
#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::future::join;

    use super::*;
    use crate::config::Config;
    use crate::sync::Calls;
    use crate::tls::ends;

    /// One end of a connection in memory, which takes as many bytes as it is told to.
    #[derive(Debug, Default)]
    struct Raw {
        /// What was written, and not read.
        taken: Arc<Lock<VecDeque<u8>>>,
        other: Arc<Lock<VecDeque<u8>>>,
        room: AtomicUsize,
        /// Who waits to write.
        waiting: Lock<Option<Waker>>,
        /// The one who waits is called at once, before they have gone to wait.
        calls_at_once: AtomicBool,
        half_closed: AtomicBool,
        /// What a read brings when there is nothing more; it waits where this says nothing.
        end: Lock<Option<Result<usize, io::ErrorKind>>>,
    }

    impl Socket for Raw {
        fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
            let mut other = self.other.lock();
            let n = buf.len().min(other.len());
            if n == 0 {
                if let Some(end) = *self.end.lock() {
                    return Poll::Ready(end.map_err(io::Error::from));
                }
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            buf.iter_mut().zip(other.drain(..n)).for_each(|(to, from)| *to = from);
            Poll::Ready(Ok(n))
        }

        fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            assert!(!self.half_closed.load(Ordering::SeqCst), "nothing comes behind the end");
            let n = bufs[0].len().min(self.room.load(Ordering::SeqCst));
            if n == 0 {
                if self.calls_at_once.load(Ordering::SeqCst) {
                    cx.waker().wake_by_ref();
                }
                *self.waiting.lock() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.room.fetch_sub(n, Ordering::SeqCst);
            self.taken.lock().extend(&bufs[0][..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_half_close(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.half_closed.store(true, Ordering::SeqCst);
            Poll::Ready(Ok(()))
        }

        fn shut_down(&self) {}

        fn take_error(&self) -> Option<io::Error> {
            None
        }

        fn is_closed_by_peer(&self) -> bool {
            false
        }

        fn has_unread(&self) -> bool {
            !self.other.lock().is_empty()
        }

        fn local(&self) -> io::Result<Endpoint> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn remote(&self) -> io::Result<Endpoint> {
            self.local()
        }
    }

    /// Both ends of a session, and the socket under the first.
    fn pair() -> (Arc<Raw>, Stream, Stream) {
        let (there, back) = (Arc::default(), Arc::default());
        let raw = |taken: &Arc<_>, other: &Arc<_>| {
            let (taken, other, room) = (Arc::clone(taken), Arc::clone(other), AtomicUsize::new(usize::MAX));
            Arc::new(Raw { taken, other, room, ..Raw::default() })
        };
        let (one, other) = (raw(&there, &back), raw(&back, &there));
        let ((dialer, dialed), codec) = (ends(), Config::new().codec().unwrap());
        let both = join(secure(Stream::new(one.clone()), dialer, codec), secure(Stream::new(other), dialed, codec));
        let (dialer, dialed) = futures::executor::block_on(both);
        let (dialer, dialed) = (dialer.unwrap(), dialed.unwrap());
        one.room.store(0, Ordering::SeqCst);
        (one, dialer, dialed)
    }

    /// Everything that comes, and whether its end was told.
    fn received(stream: &Stream) -> (Vec<u8>, bool) {
        let (mut all, mut buf) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            match stream.0.poll_read(&mut Context::from_waker(Waker::noop()), &mut buf) {
                Poll::Ready(Ok(0)) => return (all, true),
                Poll::Ready(Ok(n)) => all.extend_from_slice(&buf[..n]),
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => return (all, false),
            }
        }
    }

    /// A record is written when the socket has the whole of it, not when it was made, and not when a part of it has gone.
    #[test]
    fn what_is_written_is_what_the_socket_has_in_whole_records() {
        let (raw, dialer, dialed) = pair();
        let message: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let mut cx = Context::from_waker(Waker::noop());
        let (mut written, mut steps, mut waits) = (0, 0, 0);
        let mut came = Vec::new();
        while written < message.len() {
            raw.room.store(1000 + steps * 37 % 20_000, Ordering::SeqCst);
            steps += 1;
            match dialer.0.poll_write(&mut cx, &[IoSlice::new(&message[written..])]) {
                Poll::Ready(n) => written += n.unwrap(),
                Poll::Pending => waits += 1,
            }
            came.extend(received(&dialed).0);
            assert_eq!(came.len(), written, "what is not written cannot be read, and what is can");
        }
        assert!(came == message && waits > 10, "{waits}");
        assert!(dialer.0.poll_flush(&mut cx).is_ready());
    }

    #[test]
    fn who_is_called_before_they_wait_is_called() {
        let (raw, dialer, _dialed) = pair();
        let (calls, waker) = Calls::waker();
        raw.calls_at_once.store(true, Ordering::SeqCst);
        assert!(dialer.0.poll_write(&mut Context::from_waker(&waker), &[IoSlice::new(b"a")]).is_pending());
        assert!(calls.count() > 0);
    }

    #[test]
    fn who_does_not_wait_takes_nobodys_place() {
        let (raw, dialer, dialed) = pair();
        let (calls, waker) = Calls::waker();
        assert!(dialer.0.poll_write(&mut Context::from_waker(&waker), &[IoSlice::new(b"a")]).is_pending());
        let mut noop = Context::from_waker(Waker::noop());
        let registered = raw.waiting.lock().clone().unwrap();
        assert!(dialer.0.poll_flush(&mut noop).is_pending());
        assert_eq!(calls.count(), 0);
        registered.wake();
        assert_eq!(calls.count(), 1);
        raw.room.store(1000, Ordering::SeqCst);
        assert!(matches!(dialer.0.poll_write(&mut noop, &[IoSlice::new(b"a")]), Poll::Ready(Ok(1))));
        assert_eq!(received(&dialed), (b"a".to_vec(), false));
    }

    /// It is told of when it is offered again, and not sent again.
    #[test]
    fn what_a_flush_has_sent_is_written_once() {
        let (raw, dialer, dialed) = pair();
        let mut cx = Context::from_waker(Waker::noop());
        raw.room.store(7, Ordering::SeqCst);
        assert!(dialer.0.poll_write(&mut cx, &[IoSlice::new(b"begun")]).is_pending());
        raw.room.store(1000, Ordering::SeqCst);
        assert!(dialer.0.poll_flush(&mut cx).is_ready());
        assert!(matches!(dialer.0.poll_write(&mut cx, &[IoSlice::new(b"begun")]), Poll::Ready(Ok(5))));
        assert_eq!(received(&dialed), (b"begun".to_vec(), false));
    }

    /// The end is behind all that was begun, and told before the socket is half closed, however often that is asked for.
    #[test]
    fn a_half_close_that_waits_goes_on() {
        let (raw, dialer, dialed) = pair();
        let (calls, waker) = Calls::waker();
        let mut cx = Context::from_waker(&waker);
        raw.room.store(7, Ordering::SeqCst);
        assert!(dialer.0.poll_write(&mut cx, &[IoSlice::new(b"begun")]).is_pending());
        for room in [0, 3, 11, 0] {
            raw.room.store(room, Ordering::SeqCst);
            assert!(dialer.0.poll_half_close(&mut cx).is_pending());
            assert!(!raw.half_closed.load(Ordering::SeqCst));
        }
        raw.waiting.lock().take().unwrap().wake();
        assert_eq!(calls.count(), 1);
        raw.room.store(1000, Ordering::SeqCst);
        assert!(dialer.0.poll_half_close(&mut cx).is_ready());
        assert!(raw.half_closed.load(Ordering::SeqCst));
        assert_eq!(received(&dialed), (b"begun".to_vec(), true));
        assert!(dialer.0.poll_half_close(&mut cx).is_ready());
        let refused =
            dialer.0.poll_write(&mut cx, &[IoSlice::new(b"behind")]).map(|written| written.map_err(|e| e.kind()));
        assert!(matches!(refused, Poll::Ready(Err(io::ErrorKind::BrokenPipe))));
    }

    /// An end that is told behind a part of a record would be a part of that.
    #[test]
    fn a_socket_that_is_dropped_tells_its_end_if_nothing_is_halfway() {
        for halfway in [false, true] {
            let (raw, dialer, dialed) = pair();
            let mut cx = Context::from_waker(Waker::noop());
            raw.room.store(if halfway { 7 } else { 1000 }, Ordering::SeqCst);
            assert_eq!(dialer.0.poll_write(&mut cx, &[IoSlice::new(b"a")]).is_pending(), halfway);
            raw.room.store(1000, Ordering::SeqCst);
            drop(dialer);
            assert_eq!(received(&dialed), (if halfway { Vec::new() } else { b"a".to_vec() }, !halfway));
        }
    }

    #[test]
    fn what_is_idle_keeps_no_buffer() {
        let (raw, _dialer, _dialed) = pair();
        raw.room.store(usize::MAX, Ordering::SeqCst);
        let (session, writing) = (Lock::new(ends().0), Arc::<Waiting>::default());
        let waker = writing.clone().into();
        let socket = TlsSocket { raw, session, sending: Lock::default(), writing, waker, identity: None };
        // It has a hello to send.
        assert!(socket.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready());
        assert_eq!(socket.sending.lock().wire.capacity(), 0);
    }

    /// Who has room for little gets more of the wire all the same, and nothing of that is lost.
    #[test]
    fn little_room_is_no_reason_to_read_little() {
        let (raw, dialer, dialed) = pair();
        raw.room.store(usize::MAX, Ordering::SeqCst);
        let mut cx = Context::from_waker(Waker::noop());
        let message = vec![7; 10_000];
        assert!(matches!(dialer.0.poll_write(&mut cx, &[IoSlice::new(&message)]), Poll::Ready(Ok(10_000))));
        let mut few = [0; 10];
        let polls = (0..).find(|_| dialed.0.poll_read(&mut cx, &mut few).is_ready()).unwrap();
        assert_eq!(polls, 0, "it is there, and it is not read in thousands of pieces");
        assert_eq!(few, [7; 10]);
        assert_eq!(received(&dialed).0.len(), 9_990);
    }

    #[test]
    fn one_read_brings_as_many_records_as_have_come() {
        let (_raw, reader, writer) = pair();
        let mut cx = Context::from_waker(Waker::noop());
        let message: Vec<u8> = (0..3 * RECORD + 7).map(|n| n as u8).collect();
        let written = writer.0.poll_write(&mut cx, &[IoSlice::new(&message)]);
        assert!(matches!(written, Poll::Ready(Ok(written)) if written == message.len()));
        let mut buf = vec![0; 1 << 16];
        let read = reader.0.poll_read(&mut cx, &mut buf);
        assert!(matches!(read, Poll::Ready(Ok(read)) if read == message.len()), "{read:?}");
        assert!(buf.starts_with(&message));
        assert!(reader.0.poll_read(&mut cx, &mut buf).is_pending());
    }

    /// What is wrong comes while a read has bytes already: those that had no room in the buffer of the read before.
    #[test]
    fn what_comes_behind_bytes_is_told_by_the_next_read() {
        use io::ErrorKind::{ConnectionReset, InvalidData, UnexpectedEof};
        // A record whose content nobody has sealed.
        let forged = [23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];
        let cases = [
            (&[][..], false, Some(Err(ConnectionReset)), Err(ConnectionReset)),
            (&[], false, Some(Ok(0)), Err(UnexpectedEof)),
            (&[], true, Some(Ok(0)), Ok(0)),
            // The end was told, and nothing behind that counts.
            (&[], true, Some(Err(ConnectionReset)), Ok(0)),
            (&forged, false, None, Err(InvalidData)),
            (&forged, false, Some(Err(ConnectionReset)), Err(InvalidData)),
        ];
        for (wire, is_closed, end, expected) in cases {
            let (raw, reader, writer) = pair();
            raw.room.store(1000, Ordering::SeqCst);
            let mut cx = Context::from_waker(Waker::noop());
            let (message, mut few, mut buf) = ([7; 1000], [0; 10], vec![0; 1 << 16]);
            assert!(matches!(writer.0.poll_write(&mut cx, &[IoSlice::new(&message)]), Poll::Ready(Ok(1000))));
            assert!(matches!(reader.0.poll_read(&mut cx, &mut few), Poll::Ready(Ok(10))));
            raw.other.lock().extend(wire);
            if is_closed {
                assert!(writer.0.poll_half_close(&mut cx).is_ready());
            }
            *raw.end.lock() = end;
            let told = raw.taken.lock().len();
            let read = reader.0.poll_read(&mut cx, &mut buf);
            assert!(matches!(read, Poll::Ready(Ok(990))), "{read:?} in front of {expected:?}");
            assert_eq!(buf[..990], message[10..]);
            let next = reader.0.poll_read(&mut cx, &mut buf).map_err(|error| error.kind());
            assert_eq!(next, Poll::Ready(expected));
            assert_eq!(raw.taken.lock().len() > told, !wire.is_empty(), "an alert is sent for what is forged");
        }
    }
}
