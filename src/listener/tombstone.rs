//! A session that is over, whose peer comes back all the same: it has missed the end. It may miss it again, so it is remembered as
//! long as before.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::peers::{Guest, Running};
use super::principal::Principal;
use super::sessions::SessionTable;
use crate::link::{Attached, Came};
use crate::queue::Outbox;
use crate::session::{Hello, Key, Positions, Side, Status};
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
        let resumed = outbox.resume_session(&hello.positions, &hello.terms);
        let Ok((positions, _)) = resumed else { return };
        let welcome = table.welcome(hello, Status::Resumed, positions).encode();
        if stream.say(&welcome).await.is_err() {
            return;
        }
        let mut attached =
            Attached::new(stream.clone(), Side::Dialer, running.codec, config, &table.terms, &hello.terms);
        outbox.resume(stream.clone());
        poll_fn(|cx| poll_end(&mut attached, &outbox, cx)).await;
    });
    let _ = told.await;
    stream.shut_down();
    outbox.lose().await;
    table.detach(key, hello.epoch, positions.received, 0);
    drop((stream, place));
}

/// Waits until the connection ends.
fn poll_end(attached: &mut Attached, outbox: &Outbox<Stream>, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        match std::task::ready!(attached.poll(outbox, true, cx)) {
            Came::Control | Came::Untaken(_) | Came::Expired => {}
            // There is nothing to say any more.
            Came::Frames | Came::Broke(_) => return Poll::Ready(()),
        }
    }
}
