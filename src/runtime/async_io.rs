//! The reactor of `async-io`, which async-std and smol share.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use async_io::{Async, Timer};
use socket2::Socket as Os;

use super::forward::Forward;
use super::os::{Direction, Reactor, Source, attempt};

/// It starts by itself, and there is one for the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct AsyncIo;

impl Reactor for AsyncIo {
    type Source = Async<Os>;

    fn register(&self, socket: Os) -> io::Result<Async<Os>> {
        Async::new_nonblocking(socket)
    }
}

impl Source for Async<Os> {
    fn socket(&self) -> &Os {
        self.get_ref()
    }

    #[inline]
    fn poll_io<T>(
        &self,
        direction: Direction,
        forward: &Arc<Forward>,
        cx: &mut Context<'_>,
        mut io: impl FnMut(&Os) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            if let Poll::Ready(result) = attempt(self.get_ref(), &mut io) {
                return Poll::Ready(result);
            }
            forward.set(cx.waker());
            let waker = Waker::from(forward.clone());
            let cx = &mut Context::from_waker(&waker);
            let mut poll_ready = || match direction {
                Direction::Read | Direction::Accept => self.poll_readable(cx),
                Direction::Write => self.poll_writable(cx),
            };
            // An event that the reactor tells of at once is mostly the one that woke this task before, and was dealt with. If it is a
            // new one, it comes again: the socket is ready when the reactor is asked to watch it.
            ready!(poll_ready())?;
            ready!(poll_ready())?;
        }
    }
}

pub(super) struct AsyncIoTimer(Timer);

impl AsyncIoTimer {
    pub(super) fn at(at: Instant) -> Self {
        Self(Timer::at(at))
    }
}

impl Future for AsyncIoTimer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

impl super::Timer for AsyncIoTimer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.0.set_at(at);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_socket_is_read_twice_for_what_is_waited_for_once() {
        let (ours, mut theirs) = Os::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        ours.set_nonblocking(true).unwrap();
        let (source, forward) = (AsyncIo.register(ours).unwrap(), Arc::<Forward>::default());
        for _ in 0..20 {
            let (mut reads, mut is_sent) = (0, false);
            let read = poll_fn(|cx| {
                let polled = source.poll_io(Direction::Read, &forward, cx, |mut socket| {
                    reads += 1;
                    socket.read(&mut [0; 8])
                });
                if polled.is_pending() && !std::mem::replace(&mut is_sent, true) {
                    theirs.write_all(b"message").unwrap();
                }
                polled
            });
            assert_eq!(async_io::block_on(read).unwrap(), 7);
            assert_eq!(reads, 2, "one finds that nothing is there, and one what has come");
        }
    }
}
