//! The task of a connection whose messages are decoded in it.

use std::future::poll_fn;

use super::decoding::{Decoding, Undecoded};
use super::peer_task::{End, PeerTask, Readable, rest};
use super::read_on::PeerReader;
use super::received::{Arrival, Received};
use crate::foreign::{self, PanicSource};
use crate::queue::{ITEM, Sender};

impl PeerTask {
    /// What was decoded into the inbox, each piece with its share of the budget.
    pub(crate) async fn decode(
        &mut self,
        mut reader: PeerReader,
        inbox: &mut Sender<Arrival>,
        decoding: &Decoding,
    ) -> Result<(), End> {
        let mut in_a_row = 0;
        while let Readable::Frames(mut share) = poll_fn(|cx| self.poll_readable(&mut reader, Some(inbox), cx)).await? {
            let batch = reader.take();
            self.seat.count(batch.messages, batch.bytes);
            // In flight until the last piece is: its replies are still to come.
            let mut undecoded = Received::new(&self.member, batch.frames);
            while !undecoded.messages.frames().is_empty() {
                let most = decoding.most_memory(undecoded.messages.frames().len());
                let mut share = match share.take() {
                    Some(share) if most <= share.bytes() => share,
                    // Nothing is held while another share is waited for, or two could wait for each other.
                    too_small => {
                        drop(too_small);
                        poll_fn(|cx| self.poll_share(inbox, most, cx)).await?
                    }
                };
                let (peer, seat) = (self.member.peer, &self.seat);
                let piece = undecoded.decode(decoding, |error| seat.decode_failed(peer, error));
                if let Some(values) = piece.values {
                    share.shrink(piece.memory + ITEM);
                    let received = undecoded.of_values(values);
                    // Without a consumer they are dropped here, which is code of the program.
                    match foreign::call(|| inbox.send(Arrival::Batch(received), share)) {
                        Ok(sent) => sent.map_err(|_| End::Stopped)?,
                        Err(panic) => {
                            seat.panicked(Some(peer), PanicSource::Drop, panic);
                            return Err(End::Stopped);
                        }
                    }
                }
                piece.end.map_err(|undecoded| match undecoded {
                    Undecoded::Failed => End::Undecoded,
                    Undecoded::Panicked(panic) => End::Panicked(panic),
                })?;
                in_a_row = rest(in_a_row).await;
            }
        }
        Ok(())
    }
}
