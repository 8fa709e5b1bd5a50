//! Scripted transports: a test says what each poll does, so no test needs a socket, a clock or luck.
//!
//! [`Source`] is read from, [`Target`] is written to, and [`drive`] polls a future to its end. A future that is pending
//! without having asked to be woken is a lost wake-up, and [`drive`] panics at once instead of hanging.

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io::{Error as IoError, ErrorKind, IoSlice, Result as IoResult};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::io::{AsyncRead, AsyncWrite};

/// More polls than any script here needs: a future that takes more spins.
const MANY_POLLS: usize = 10_000_000;

/// What one poll of a [`Source`] does.
#[derive(Clone, Debug)]
pub(crate) enum Read {
    /// Gives these bytes; over several polls, where the reader has less room.
    Bytes(Vec<u8>),
    /// Nothing now: pending, and woken at once.
    Pending,
    /// Nothing, ever: pending, never woken, and still there at the next poll.
    Stall,
    /// Fails.
    Error(ErrorKind),
}

/// Something to read from. At the end of its script is the end of the stream.
#[derive(Debug)]
pub(crate) struct Source(VecDeque<Read>);

impl Source {
    pub(crate) fn new(script: impl IntoIterator<Item = Read>) -> Self {
        Self(script.into_iter().collect())
    }

    /// The whole wire at once.
    pub(crate) fn whole(wire: &[u8]) -> Self {
        Self::split(wire, &[])
    }

    /// The wire cut at these offsets, which rise, with a pending poll after each piece.
    pub(crate) fn split(wire: &[u8], cuts: &[usize]) -> Self {
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([wire.len()]);
        Self::new(starts.zip(ends).flat_map(|(start, end)| [Read::Bytes(wire[start..end].to_vec()), Read::Pending]))
    }

    /// The wire in pieces of these lengths, over and over, with a pending poll after each piece.
    pub(crate) fn pieces(wire: &[u8], lengths: &[usize]) -> Self {
        let mut cuts = Vec::new();
        let mut at = 0;
        for len in lengths.iter().cycle() {
            at += (*len).max(1);
            if at >= wire.len() {
                break;
            }
            cuts.push(at);
        }
        Self::split(wire, &cuts)
    }
}

impl AsyncRead for Source {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<IoResult<usize>> {
        assert!(!buf.is_empty(), "a read into an empty buffer cannot be told from the end");
        loop {
            return match self.0.pop_front() {
                None => Poll::Ready(Ok(0)),
                // An empty piece would be the end of the stream.
                Some(Read::Bytes(bytes)) if bytes.is_empty() => continue,
                Some(Read::Bytes(mut bytes)) => {
                    let n = bytes.len().min(buf.len());
                    buf[..n].copy_from_slice(&bytes[..n]);
                    if n < bytes.len() {
                        self.0.push_front(Read::Bytes(bytes.split_off(n)));
                    }
                    Poll::Ready(Ok(n))
                }
                Some(Read::Pending) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Some(Read::Stall) => {
                    self.0.push_front(Read::Stall);
                    Poll::Pending
                }
                Some(Read::Error(kind)) => Poll::Ready(Err(IoError::from(kind))),
            };
        }
    }
}

/// What one poll of a [`Target`] does. Flushing and closing take no turn, except for `Flush` and `Close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Takes at most this many bytes.
    Take(usize),
    /// Nothing now: pending, and woken at once.
    Pending,
    /// Takes nothing and says so.
    Zero,
    /// Fails.
    Error(ErrorKind),
    /// The next flush fails. Writes pass it by.
    FlushError(ErrorKind),
}

/// What a [`Target`] saw.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Every byte that it took.
    pub(crate) taken: Vec<u8>,
    /// The calls of `poll_write` and `poll_write_vectored`: where each slice was, and how long.
    pub(crate) calls: Vec<Vec<(*const u8, usize)>>,
    pub(crate) flushes: usize,
    pub(crate) closes: usize,
}

/// Something to write to. At the end of its script it takes everything. A clone is the same target, so that a test
/// keeps a view of what the writer was given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target(Rc<RefCell<(VecDeque<Write>, Log)>>);

impl Target {
    pub(crate) fn new(script: impl IntoIterator<Item = Write>) -> Self {
        Self(Rc::new(RefCell::new((script.into_iter().collect(), Log::default()))))
    }

    pub(crate) fn log(&self) -> Ref<'_, Log> {
        Ref::map(self.0.borrow(), |(_, log)| log)
    }
}

impl AsyncWrite for Target {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<IoResult<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<IoResult<usize>> {
        let (script, log) = &mut *self.0.borrow_mut();
        log.calls.push(bufs.iter().map(|buf| (buf.as_ptr(), buf.len())).collect());
        let most = match script.front() {
            None | Some(Write::FlushError(_)) => usize::MAX,
            Some(Write::Take(n)) => *n,
            Some(Write::Pending) => {
                script.pop_front();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Write::Zero) => 0,
            // A transport that broke stays broken; one that was interrupted does not.
            Some(Write::Error(ErrorKind::Interrupted)) => {
                script.pop_front();
                return Poll::Ready(Err(ErrorKind::Interrupted.into()));
            }
            Some(Write::Error(kind)) => return Poll::Ready(Err(IoError::from(*kind))),
        };
        if matches!(script.front(), Some(Write::Take(_))) {
            script.pop_front();
        }
        let before = log.taken.len();
        for buf in bufs {
            let room = most - (log.taken.len() - before);
            log.taken.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        Poll::Ready(Ok(log.taken.len() - before))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<IoResult<()>> {
        let (script, log) = &mut *self.0.borrow_mut();
        log.flushes += 1;
        match script.front() {
            Some(Write::FlushError(kind)) => Poll::Ready(Err(IoError::from(*kind))),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<IoResult<()>> {
        self.0.borrow_mut().1.closes += 1;
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Polls to the end. Panics where the future is pending and nobody will wake it.
pub(crate) fn drive<F: Future>(future: F) -> F::Output {
    poll_times(future, MANY_POLLS).expect("the future spins")
}

/// Polls at most this often, then drops the future. Panics where it is pending and nobody will wake it.
pub(crate) fn poll_times<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    for _ in 0..polls {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        assert!(woken.0.swap(false, Ordering::Relaxed), "pending, and nobody will wake it");
    }
    None
}
