//! The end of a connection on which something was said last.

use std::future::{Future, poll_fn};
use std::io;
use std::time::Duration;

use futures::AsyncReadExt;

use crate::foreign;
use crate::runtime::{Handle, Task, yield_now};
use crate::session::{Control, ErrorCode};
use crate::transport::Stream;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(1);
/// How many bytes of the other end are thrown away meanwhile: it may have filled a window.
const MOST: usize = 4 << 20;
/// How often it reads before it lets other tasks run.
const READS_IN_A_ROW: usize = 16;

/// Ends a connection so that the last words arrive. Where bytes that nobody has read are left when a socket is closed, the system
/// resets the connection, and the other end may lose what it has not read yet.
pub(crate) async fn part(mut stream: Stream, runtime: &Handle) {
    let parting = async {
        poll_fn(|cx| stream.poll_half_close(cx)).await?;
        let (mut buf, mut thrown_away) = ([0; 4096], 0);
        while thrown_away < MOST {
            for _ in 0..READS_IN_A_ROW {
                match stream.read(&mut buf).await? {
                    0 => return Ok(()),
                    n => thrown_away += n,
                }
            }
            yield_now().await;
        }
        Ok(())
    };
    let _: Option<io::Result<()>> = runtime.within(Some(LIMIT), parting).await;
    stream.shut_down();
}

/// Tells the other end that the session is over, on a connection on which nothing was said since the handshake, and parts.
pub(crate) async fn refuse(mut stream: Stream, code: ErrorCode, runtime: &Handle) {
    let error = Control::Error(code).encode();
    let _ = runtime.within(Some(LIMIT), stream.say(&error)).await;
    part(stream, runtime).await;
}

pub(super) fn part_in_background(stream: Stream, runtime: &Handle) {
    let handle = runtime.clone();
    start(runtime, async move { part(stream, &handle).await });
}

pub(super) fn refuse_in_background(stream: Stream, code: ErrorCode, runtime: &Handle) {
    let handle = runtime.clone();
    start(runtime, async move { refuse(stream, code, &handle).await });
}

/// A runtime may log that it starts a task, and the logger is the program's.
fn start(runtime: &Handle, parting: impl Future<Output = ()> + Send + 'static) {
    let parting = foreign::call(|| runtime.spawn(parting));
    parting.into_iter().for_each(Task::detach);
}
