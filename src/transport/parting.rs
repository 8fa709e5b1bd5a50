//! The end of a connection on which something was said last.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::AsyncRead;

use super::Stream;
use crate::foreign;
use crate::runtime::{Handle, Task};

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(1);
/// How many bytes of the other end are thrown away meanwhile: it may have filled a window.
const MOST: usize = 4 << 20;
/// How often it reads before it lets other tasks run.
const READS_IN_A_ROW: usize = 16;

impl Stream {
    /// Says the last words, where they are not said yet, and ends the connection so that they arrive. Where bytes that nobody has
    /// read are left when a socket is closed, the system resets the connection, and the other end may lose what it has not read
    /// yet.
    pub(crate) async fn part(mut self, last: &[u8], runtime: &Handle) {
        let _: Option<io::Result<()>> = runtime.within(Some(LIMIT), pin!(self.say_last(last))).await;
        self.shut_down();
    }

    /// The same, without a limit of time.
    async fn say_last(&mut self, last: &[u8]) -> io::Result<()> {
        self.say(last).await?;
        poll_fn(|cx| self.poll_half_close(cx)).await?;
        let mut thrown_away = 0;
        poll_fn(|cx| self.poll_throw_away(&mut thrown_away, cx)).await
    }

    /// The same, in a task that holds something until then: the place of the connection.
    pub(crate) fn part_in_background(self, last: Vec<u8>, held: impl Send + 'static, runtime: &Handle) {
        let handle = runtime.clone();
        let parting = async move {
            self.part(&last, &handle).await;
            drop(held);
        };
        // A runtime may log that it starts a task, and the logger is the program's.
        let parting = foreign::call(|| runtime.spawn(parting));
        parting.into_iter().for_each(Task::detach);
    }

    /// Reads until the other end closes as well, or has sent as much as is read.
    fn poll_throw_away(&mut self, thrown_away: &mut usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Not a part of the task, which is made for each connection that is refused.
        let mut buf = [0; 4096];
        for _ in 0..READS_IN_A_ROW {
            match ready!(Pin::new(&mut *self).poll_read(cx, &mut buf)) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(n) => *thrown_away += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            if *thrown_away >= MOST {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
