//! One address of a route, as its task has it: a producer like others, whose messages come back to it.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::Error;
use crate::link::{Health, Link};
use crate::peer::Address;
use crate::queue::{Ages, Batch, Fate, Offer, Place, Returned, Returns, Stage, Trail, Verdict};
use crate::wire::{Codec, Output};

/// For how long an address is left alone that gave messages back, and is dialed only for the next: or for as long as it took to fail,
/// where that is longer.
const ALONE: Duration = Duration::from_secs(1);
/// For how long others wait for the message that tries an address: one that refuses does so at once, and the order stays.
const TRIAL: Duration = Duration::from_millis(100);

pub(super) struct Lane {
    pub(super) address: Address,
    /// Which one it is.
    index: usize,
    /// How old a message may be.
    ttl: Option<Duration>,
    returns: Arc<Returns>,
    /// While the address is open, and until all is over that went through it.
    link: Option<Arc<Link>>,
    /// Accepted, and not handed over: all with the same trail.
    batch: Batch,
    /// What was handed over and is not over.
    place: Place,
    /// What was handed over before that, where it waits for room.
    before: Stage,
    /// Since when it is being tried, with one message, although it was down.
    tried: Option<Instant>,
    /// It gave messages back, and is left alone until then.
    alone_until: Option<Instant>,
}

impl Lane {
    pub(super) fn new(
        index: usize,
        address: Address,
        codec: Codec,
        ttl: Option<Duration>,
        returns: Arc<Returns>,
    ) -> Self {
        let batch = Batch::new(Output::new(codec), Fate::of(returns.clone(), Trail::default()));
        Self {
            address,
            index,
            ttl,
            returns,
            link: None,
            batch,
            place: Place::default(),
            before: Stage::Nothing,
            tried: None,
            alone_until: None,
        }
    }

    /// Notices that the address was closed, or opened. How many messages have come back that it had not accepted.
    pub(super) fn follow(&mut self, open: impl FnOnce(&Address) -> Option<Arc<Link>>, cx: &mut Context<'_>) -> usize {
        let mut withdrawn = 0;
        if self.tried.is_some() && self.dialed_for_messages().is_none() {
            self.tried = None;
        }
        if let Some(link) = self.link.clone()
            && link.outbox.is_closed()
        {
            withdrawn = self.withdraw(&link);
            // What it had accepted comes back when it is over, and before that it is not flushed.
            if link.outbox.poll_over(&mut self.place, cx).is_pending() {
                return withdrawn;
            }
            self.link = None;
            self.tried = None;
            self.place = Place::default();
        }
        if self.link.is_none() {
            self.link = open(&self.address).filter(|link| !link.outbox.is_closed());
        }
        withdrawn
    }

    /// The address was closed: what it has not accepted comes back.
    fn withdraw(&mut self, link: &Link) -> usize {
        let offered = link.outbox.withdraw(&mut self.place);
        let mut withdrawn = 0;
        let mut give_back = |batch: &mut Batch| {
            let trail = batch.fate.trail().cloned().unwrap_or_default();
            batch.messages = 0;
            let ages = batch.ages.take();
            for (message, number) in batch.output.take_messages().into_iter().zip(1..) {
                withdrawn += 1;
                let since = ages.as_ref().and_then(|ages| ages.accepted_at(number));
                // It is the task that asks: nobody is to be woken.
                let _ = self.returns.put(Returned { message, verdict: Verdict::closed(), trail: trail.clone(), since });
            }
        };
        if let Some(Offer::Batch(mut offered)) = offered {
            self.place.stage = self.before;
            give_back(&mut offered);
        }
        if self.batch.messages > 0 {
            give_back(&mut self.batch);
        }
        withdrawn
    }

    /// Whether the queue of the address has all that was accepted.
    pub(super) fn has_handed_over(&self) -> bool {
        self.batch.messages == 0 && !matches!(self.place.stage, Stage::InLine(_))
    }

    pub(super) fn is_open(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.outbox.is_closed())
    }

    /// Whether it may be given messages that another could have, too.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        let Some(link) = &self.link else { return false };
        if !link.pulse.is_down() {
            return !link.outbox.is_closed();
        }
        let is_left_alone = match link.pulse.get() {
            Health::Down { next_attempt: Some(_), .. } => true,
            // Its dial may hang: one message is enough to try it.
            Health::Down { next_attempt: None, .. } => {
                self.alone_until.is_some_and(|until| now < until)
                    || self.tried.is_some_and(|since| now >= since + TRIAL)
            }
            Health::Up | Health::Away { .. } => false,
        };
        !is_left_alone && !link.outbox.is_closed()
    }

    /// Whether a message tries it: it is down, and may be up in a moment.
    pub(super) fn is_tried(&self) -> bool {
        self.tried.is_some() && self.is_open() && self.dialed_for_messages().is_some()
    }

    /// Why it is down, where it is dialed only for messages, and not for one that comes now.
    pub(super) fn rests(&self, now: Instant) -> Option<Arc<Error>> {
        self.dialed_for_messages().filter(|_| self.is_open() && !self.is_usable(now))
    }

    /// Why it is down, where it is dialed only when there is a message for it.
    fn dialed_for_messages(&self) -> Option<Arc<Error>> {
        let pulse = self.link.as_ref().map(|link| &link.pulse).filter(|pulse| pulse.is_down())?;
        match pulse.get() {
            Health::Down { next_attempt: None, error, .. } => Some(error),
            Health::Down { next_attempt: Some(_), .. } | Health::Up | Health::Away { .. } => None,
        }
    }

    /// When it becomes one that may be given messages, or one for which nobody waits, of itself.
    pub(super) fn changes_at(&self, now: Instant) -> Option<Instant> {
        self.dialed_for_messages()?;
        let changes = [self.alone_until, self.tried.map(|since| since + TRIAL)];
        changes.into_iter().flatten().filter(|at| now < *at).min()
    }

    /// It gave a message back.
    pub(super) fn gave_back(&mut self, now: Instant) {
        let took = self.tried.take().map_or(Duration::ZERO, |since| now - since);
        self.alone_until = now.checked_add(took.max(ALONE));
    }

    /// Waits until a message may be accepted that others with this trail have had. `false` if the address was closed.
    pub(super) fn poll_room(&mut self, trail: &[usize], mark: usize, cx: &mut Context<'_>) -> Poll<bool> {
        if self.batch.messages > 0 && (!self.goes_on(trail) || self.batch.output.len() >= mark) {
            return self.poll_hand_over(cx);
        }
        Poll::Ready(self.is_open())
    }

    /// Whether the next message with this trail has the same one, behind this address, as those before it.
    fn goes_on(&self, trail: &[usize]) -> bool {
        let of_batch = self.batch.fate.trail().and_then(|trail| trail.split_last());
        of_batch.is_some_and(|(_, before)| before == trail)
    }

    /// Accepts a message for which there is room, that others with this trail have had. It is not over the limit: that was
    /// seen before. What it was copied from is left. Its age is counted from `since` on, or else from now on.
    pub(super) fn accept(
        &mut self,
        message: &mut Bytes,
        trail: &[usize],
        since: Option<Instant>,
        now: impl Fn() -> Instant,
    ) {
        if self.tried.is_none() && self.dialed_for_messages().is_some() {
            self.tried = Some(now());
        }
        if !self.goes_on(trail) {
            let trail = trail.iter().copied().chain([self.index]).collect();
            self.batch.fate = Fate::of(self.returns.clone(), trail);
        }
        let _ = self.batch.push_with(|output| output.push_from(message));
        if let Some(ttl) = self.ttl {
            let ages = self.batch.ages.get_or_insert_with(|| Ages::new(ttl));
            ages.mark(self.batch.messages as u64, 0, since.unwrap_or_else(now));
        }
    }

    /// Hands over what there is, and waits until it is accepted. `false` if the address was closed.
    fn poll_hand_over(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(link) = &self.link else { return Poll::Ready(false) };
        while ready!(link.outbox.poll_accepted(&mut self.place, cx)) {
            if self.batch.messages == 0 {
                return Poll::Ready(true);
            }
            self.before = self.place.stage;
            if !link.outbox.offer_batch(&mut self.batch, &mut self.place) {
                break;
            }
        }
        Poll::Ready(false)
    }

    /// Waits until all is written, or came back; to the `end`, until it is over. `false` if the address was closed meanwhile.
    pub(super) fn poll_flush(&mut self, end: bool, cx: &mut Context<'_>) -> Poll<bool> {
        if self.batch.messages > 0 || self.link.is_some() {
            let is_open = ready!(self.poll_hand_over(cx));
            if !is_open {
                return Poll::Ready(self.link.is_none() && self.batch.messages == 0);
            }
        }
        let Some(link) = &self.link else { return Poll::Ready(true) };
        match end {
            true => ready!(link.outbox.poll_over(&mut self.place, cx)).unwrap_or_default(),
            false => ready!(link.outbox.poll_written(&mut self.place, cx)),
        }
        Poll::Ready(true)
    }
}
