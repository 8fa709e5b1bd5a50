//! The task of a connection whose messages go into the inbox.

use std::future::poll_fn;

use super::member::InFlight;
use super::peer_task::{End, PeerTask, Readable, rest};
use super::read_on::PeerReader;
use super::received::{Arrival, Received};
use crate::framed::CHUNK;
use crate::queue::{ITEM, Sender, Share};

/// What became of a batch.
enum Delivered {
    /// The reader, unless it was lent with it.
    Sent(Option<PeerReader>),
    Large(Large),
}

/// A batch that needs a larger share of the inbox, and waits for that in its reader: the future has no room for it.
struct Large {
    reader: PeerReader,
    /// How much it needs, in bytes.
    memory: usize,
    coming: InFlight,
}

impl PeerTask {
    /// Batches into the inbox, each with its share of the budget.
    pub(crate) async fn fill(&mut self, mut reader: PeerReader, inbox: &mut Sender<Arrival>) -> Result<(), End> {
        let mut in_a_row = 0;
        loop {
            let share = match poll_fn(|cx| self.poll_readable(&mut reader, Some(inbox), cx)).await? {
                Readable::Frames(share) => share,
                Readable::CleanEnd => return Ok(()),
            };
            let delivered = self.deliver(reader, inbox, share)?;
            let back = match delivered {
                Delivered::Sent(back) => back,
                Delivered::Large(Large { mut reader, memory, coming }) => {
                    let share = poll_fn(|cx| self.poll_share(inbox, memory, cx)).await?;
                    let received = Received::of(coming, reader.take_frames());
                    self.send(received, share, reader, false, inbox)?
                }
            };
            match back {
                Some(back) => {
                    reader = back;
                    in_a_row = rest(in_a_row).await;
                }
                None => {
                    reader = poll_fn(|cx| self.poll_taken_back(cx)).await?;
                    in_a_row = 0;
                }
            }
        }
    }

    /// What has come into the inbox, where the share that was reserved is large enough.
    fn deliver(&self, mut reader: PeerReader, inbox: &Sender<Arrival>, share: Option<Share>) -> Result<Delivered, End> {
        let batch = reader.take();
        self.seat.count(batch.messages, batch.bytes);
        let memory = batch.memory + ITEM;
        // In flight from here on: its replies are still to come.
        let coming = InFlight::new(&self.member);
        match share {
            Some(mut share) if memory <= share.bytes() => {
                share.shrink(memory);
                let received = Received::of(coming, batch.frames);
                self.send(received, share, reader, batch.memory == CHUNK, inbox).map(Delivered::Sent)
            }
            // Nothing is held while a larger share is waited for, or two could wait for each other.
            _ => {
                reader.keep(batch.frames);
                Ok(Delivered::Large(Large { reader, memory, coming }))
            }
        }
    }

    /// Into the inbox, with the reader where it is lent to the consumer: if not, it is returned.
    fn send(
        &self,
        mut received: Received,
        share: Share,
        reader: PeerReader,
        fills_a_chunk: bool,
        inbox: &Sender<Arrival>,
    ) -> Result<Option<PeerReader>, End> {
        // A consumer that is done with everything else reads on by itself, where there may be more at once, or where
        // nobody else sends: its next wait is as likely to be for this peer as for any other.
        let likely = self.seat.was_last(self.member.peer) || fills_a_chunk;
        let lends = likely && reader.fits_a_chunk() && share.is_all() && !self.seat.is_closing();
        let mut back = Some(reader);
        if lends {
            received.lent = back.take().map(|reader| self.member.loan.lend(reader, &self.seat.config.runtime));
        }
        inbox.send(Arrival::Batch(received), share).map_err(|_| End::Stopped)?;
        Ok(back)
    }
}
