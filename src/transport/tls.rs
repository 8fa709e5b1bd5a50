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
/// How much of the wire one read asks for at the least, however little the program has room for: whoever waits for the end of a
/// long frame has next to none.
const FEW: usize = 4096;
/// How often one poll reads what is nothing for the program before it lets other tasks run.
const READS_PER_POLL: usize = 16;

/// Does the handshake, for whichever side the session is of. `codec` helps to tell a peer that speaks no TLS.
pub(super) async fn secure(raw: Stream, session: Session, codec: Codec) -> Result<Stream, TlsError> {
    let mut handshake = Handshake { raw: raw.0, session, sending: Sending::default(), codec };
    poll_fn(|cx| handshake.poll(cx)).await?;
    let Handshake { raw, session, sending, .. } = handshake;
    let identity = match session.certificates() {
        None => raw.identity(),
        Some(certificates) => {
            let raw = raw.identity().map_or_else(Identity::default, Arc::unwrap_or_clone);
            Some(Arc::new(raw.with_certificates(certificates)))
        }
    };
    let (session, sending, writing) = (Lock::new(session), Lock::new(sending), Arc::<Waiting>::default());
    let waker = writing.clone().into();
    Ok(Stream::new(Arc::new(TlsSocket { raw, session, sending, writing, waker, identity })))
}

struct Handshake {
    raw: Arc<dyn Socket>,
    session: Session,
    sending: Sending,
    codec: Codec,
}

impl Handshake {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        let mut buf = [0; 4096];
        loop {
            self.session.take_wire(&mut self.sending.wire).map_err(TlsError::Io)?;
            ready!(self.sending.poll_send(&*self.raw, cx)).map_err(TlsError::Io)?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let received = ready!(self.raw.poll_read(cx, &mut buf)).map_err(TlsError::Io)?;
            if let Err(error) = self.session.feed(&buf[..received]) {
                self.tell(cx);
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
    fn tell(&mut self, cx: &mut Context<'_>) {
        if self.session.take_wire(&mut self.sending.wire).is_ok() {
            let _ = self.sending.poll_send(&*self.raw, cx);
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

    /// Begins anew where all is sent, and told; `false` if it is not. An idle connection keeps no buffer.
    fn begin_anew(&mut self) -> bool {
        let is_done = self.is_sent() && self.records.is_empty();
        if is_done {
            (self.wire, self.sent) = (Vec::new(), 0);
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

    /// Tells the other end that nothing more comes.
    fn close(&self, sending: &mut Sending) -> io::Result<()> {
        if !std::mem::replace(&mut sending.is_closed, true) {
            self.session.lock().close();
        }
        self.take_wire(sending)
    }

    /// The same, if the socket takes it at once. It cannot be told behind a part of a record: the other end takes that for what
    /// it is, a connection that was cut short.
    fn close_at_once(&self) {
        let mut sending = self.sending.lock();
        if sending.is_sent() && self.close(&mut sending).is_ok() {
            let _ = sending.poll_send(&*self.raw, &mut Context::from_waker(Waker::noop()));
        }
    }
}

impl Drop for TlsSocket {
    fn drop(&mut self) {
        self.close_at_once();
    }
}

impl Socket for TlsSocket {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut few = [0; FEW];
        for _ in 0..READS_PER_POLL {
            let read = self.session.lock().read(buf);
            match read {
                Ok(None) => {}
                Ok(Some(read)) => return Poll::Ready(Ok(read)),
                Err(error) => {
                    // There may be an alert to send.
                    let mut sending = self.sending.lock();
                    if self.take_wire(&mut sending).is_ok() {
                        let _ = sending.poll_send(&*self.raw, &mut Context::from_waker(&self.waker));
                    }
                    return Poll::Ready(Err(error));
                }
            }
            // What comes over the wire is put where what it holds goes afterwards, if there is room for it.
            let len = buf.len().min(RECORD);
            let wire = if len < FEW { &mut few[..] } else { &mut buf[..len] };
            let received = ready!(self.raw.poll_read(cx, wire))?;
            let fed = self.session.lock().feed(&wire[..received]);
            fed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_sending(cx, |sending, cx| self.poll_write(sending, cx, bufs))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sending(cx, |sending, cx| {
            self.take_wire(sending)?;
            ready!(sending.poll_send(&*self.raw, cx))?;
            sending.begin_anew();
            Poll::Ready(Ok(()))
        })
    }

    fn poll_half_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let told = self.poll_sending(cx, |sending, cx| {
            self.close(sending)?;
            sending.poll_send(&*self.raw, cx)
        });
        ready!(told)?;
        self.raw.poll_half_close(cx)
    }

    fn shut_down(&self) {
        self.close_at_once();
        self.raw.shut_down();
    }

    fn take_error(&self) -> Option<io::Error> {
        self.raw.take_error()
    }

    fn is_closed_by_peer(&self) -> bool {
        self.raw.is_closed_by_peer()
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
