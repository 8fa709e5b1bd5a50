//! A session that is over, whose peer comes back all the same: it has missed the end. It may miss it again, so it is remembered as
//! long as before.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::peers::{Guest, Running};
use super::principal::Principal;
use super::sessions::SessionTable;
use crate::link::{Attached, Break, Came};
use crate::queue::Outbox;
use crate::session::{Control, ErrorCode, Hello, Key, Positions, Side, Status, Violation};
use crate::transport::Stream;

/// Says once more that all is over, until the peer has heard it.
pub(crate) async fn serve(
    running: &Running,
    table: &Arc<SessionTable>,
    key: &Key<Principal>,
    guest: Guest,
    hello: &Hello,
    positions: Positions,
) {
    let Guest { place, mut stream, .. } = guest;
    let outbox = Outbox::tombstone(running.codec, running.session_rules.clone(), &positions);
    let config = &running.config;
    let told = config.runtime.within(config.dial_timeout, async {
        let (positions, _) = outbox.resume_session(&hello.positions, &hello.terms)?;
        let welcome = table.welcome(hello, Status::Resumed, positions).encode();
        if stream.say(&welcome).await.is_err() {
            return Ok(());
        }
        let mut attached =
            Attached::new(stream.clone(), Side::Dialer, running.codec, config, &table.terms, &hello.terms);
        outbox.resume(stream.clone());
        poll_fn(|cx| poll_end(&mut attached, &outbox, cx)).await
    });
    let told = told.await;
    outbox.lose().await;
    if let Some(Err(violation)) = told {
        let code = violation.code().unwrap_or(ErrorCode::Malformed);
        table.remove(key);
        return stream.part_in_background(Control::Error(code).encode().to_vec(), place, &config.runtime);
    }
    stream.shut_down();
    table.detach(key, hello.epoch, positions.received, 0);
    drop((stream, place));
}

/// Waits until the connection ends.
fn poll_end(attached: &mut Attached, outbox: &Outbox<Stream>, cx: &mut Context<'_>) -> Poll<Result<(), Violation>> {
    outbox.set_driver(cx.waker());
    loop {
        match std::task::ready!(attached.poll(outbox, true, cx)) {
            Came::Control | Came::Untaken(_) | Came::Expired => {}
            Came::Broke(Break::Violation(violation)) => return Poll::Ready(Err(violation)),
            // They are behind the end.
            Came::Frames => return Poll::Ready(Err(Violation::Position)),
            Came::Broke(_) => return Poll::Ready(Ok(())),
        }
    }
}
