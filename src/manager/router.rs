//! The task of a route: it gives messages to addresses, and what comes back to the next, or to the dead letters.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::addresses::Addresses;
use super::common::Common;
use super::lane::Lane;
use super::route::Route;
use super::route_queue::{Fed, RouteQueue};
use crate::error::Error;
use crate::foreign::{self, PanicSource};
use crate::peer::Address;
use crate::queue::{ITEM, Outcome, Returned, Verdict};
use crate::runtime::Alarm;
use crate::wire::Codec;

/// How often it goes on before it lets other tasks run.
const TURNS_IN_A_ROW: u32 = 16;

pub(super) struct Router {
    queue: Arc<RouteQueue>,
    addresses: Weak<Addresses>,
    common: Arc<Common>,
    route: Route,
    lanes: Vec<Lane>,
    /// How many bytes are collected for an address before they are handed over.
    mark: usize,
    /// Whose turn it is, where they take turns.
    turn: usize,
    /// What came back last, and waits for an address that has room.
    back: Option<Returned>,
    /// What was taken last from the queue, and waits in the same way.
    front: Option<Front>,
    /// While a message waits: when that becomes another matter by itself.
    retry: Option<(Instant, Alarm)>,
    letters: VecDeque<Letter>,
    letter_bytes: usize,
    burying: Option<BoxFuture<'static, ()>>,
}

struct Front {
    fed: Fed,
    /// Of a broadcast: to whom it is still to be given.
    to: Vec<usize>,
}

struct Letter {
    address: Address,
    message: Bytes,
    verdict: Verdict,
    tried: Arc<[Address]>,
}

/// Where a message may go.
enum Way {
    To(usize),
    /// There is no room for it.
    Wait,
    /// An address was closed in this moment: to look again.
    Closed,
    Nowhere,
}

impl Router {
    pub(super) fn new(
        addresses: &Arc<Addresses>,
        route: Route,
        codec: Codec,
        mark: usize,
        queue: Arc<RouteQueue>,
    ) -> Self {
        let ttl = addresses.common.config.message_ttl;
        let lane = |(at, address): (usize, &Address)| Lane::new(at, address.clone(), codec, ttl, queue.returns.clone());
        Self {
            addresses: Arc::downgrade(addresses),
            common: addresses.common.clone(),
            lanes: route.addresses().iter().enumerate().map(lane).collect(),
            route,
            mark,
            turn: 0,
            back: None,
            front: None,
            retry: None,
            letters: VecDeque::new(),
            letter_bytes: 0,
            burying: None,
            queue,
        }
    }

    /// Until the sink is gone, and all that came through it is over.
    pub(super) fn run(mut self) -> impl Future<Output = ()> + Send {
        poll_fn(move |cx| self.poll(cx))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (refuses, left) = self.queue.begin();
        for _ in 0..TURNS_IN_A_ROW {
            // Before it looks, so that nothing new is missed.
            self.queue.watch(cx);
            self.follow(cx);
            self.poll_letters(refuses, cx);
            let mut moved = self.place_returned(cx);
            moved |= self.back.is_none() && self.place_new(cx);
            let mut flushed = true;
            for lane in &mut self.lanes {
                let is_over = lane.poll_flush(left, cx);
                flushed &= is_over == Poll::Ready(true);
                // It was closed in this moment.
                moved |= is_over == Poll::Ready(false);
            }
            // In this order: a message has come back before it counts as over.
            if moved || !self.queue.returns.is_empty() && self.back.is_none() {
                continue;
            }
            let is_empty = self.back.is_none() && self.front.is_none();
            if !is_empty && self.poll_retry(cx).is_ready() {
                continue;
            }
            let handed_over = is_empty && self.lanes.iter().all(Lane::has_handed_over);
            let over = is_empty && flushed;
            self.poll_letters(refuses, cx);
            let burying = self.burying.is_some();
            self.queue.tell(over, handed_over, burying);
            if refuses && let Some(addresses) = self.addresses.upgrade() {
                // It may be the last that a shutdown waits for.
                addresses.look();
            }
            if over && left && !burying && self.queue.pending() == 0 {
                return Poll::Ready(());
            }
            return Poll::Pending;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Notices which addresses were closed, or opened.
    fn follow(&mut self, cx: &mut Context<'_>) {
        let Some(addresses) = self.addresses.upgrade() else { return };
        for lane in &mut self.lanes {
            let withdrawn = lane.follow(|address| addresses.open(address), cx);
            if withdrawn > 0 {
                addresses.never_handed_over(withdrawn);
            }
        }
    }

    /// Gives what came back to another address, if it was not sent, or to the dead letters. Whether there was any.
    fn place_returned(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Some(mut returned) = self.back.take().or_else(|| self.queue.returns.take(cx)) {
            let now = self.common.config.runtime.now();
            if let Some(last) = returned.trail.last() {
                self.lanes[*last].gave_back(now);
            }
            // Of what was sent, nobody knows whether it was taken; and what is too old is so everywhere.
            let was_unsent = matches!(returned.verdict.outcome, Outcome::NotSent | Outcome::GaveUp | Outcome::Closed);
            let expired = self.expired(&returned, now).filter(|_| was_unsent);
            if expired.is_some() || !was_unsent {
                returned.verdict = expired.unwrap_or(returned.verdict);
                self.bury(returned);
            } else if self.route.is_broadcast() {
                let serves = self.lanes.iter().any(|lane| lane.is_usable(now));
                self.bury_unsent(returned, !serves);
            } else {
                let key = match self.route.key_again(&returned.message) {
                    Ok(key) => key,
                    Err(panic) => {
                        let address = self.last(&returned.trail);
                        self.common.panicked(&address, PanicSource::Key, panic);
                        self.bury(returned);
                        continue;
                    }
                };
                match self.way(key, &returned.trail, cx) {
                    Way::To(lane) => self.give(lane, returned.message, &returned.trail, returned.since),
                    Way::Closed => {
                        self.back = Some(returned);
                        return true;
                    }
                    Way::Wait => {
                        self.back = Some(returned);
                        return moved;
                    }
                    Way::Nowhere => self.bury_unsent(returned, true),
                }
            }
            moved = true;
        }
        moved
    }

    /// Where a message is too old by now, what becomes of it if it was not sent.
    fn expired(&self, returned: &Returned, now: Instant) -> Option<Verdict> {
        let (ttl, since) = self.common.config.message_ttl.zip(returned.since)?;
        let is_old = now.saturating_duration_since(since) >= ttl;
        is_old.then(|| Verdict::expired(ttl, returned.verdict.attempts))
    }

    /// Gives new messages to addresses, as long as they have room. Whether there was any.
    fn place_new(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        // What waits to be taken as dead letters is bounded by that.
        while self.letter_bytes < self.common.config.queue_bytes {
            let Some(mut front) = self.front.take().or_else(|| self.next(cx)) else { break };
            let placed = match self.route.is_broadcast() {
                true => self.place_everywhere(&mut front, cx),
                false => match self.way(front.fed.key, &[], cx) {
                    Way::To(lane) => {
                        self.give(lane, std::mem::take(&mut front.fed.message), &[], front.fed.since);
                        true
                    }
                    Way::Wait => false,
                    Way::Closed => {
                        self.front = Some(front);
                        return true;
                    }
                    Way::Nowhere => {
                        self.bury_new(std::mem::take(&mut front.fed.message), 0, Verdict::closed(), true);
                        true
                    }
                },
            };
            if !placed {
                self.front = Some(front);
                break;
            }
            moved = true;
        }
        moved
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Option<Front> {
        let fed = self.queue.next(cx)?;
        let to = if self.route.is_broadcast() { (0..self.lanes.len()).collect() } else { Vec::new() };
        Some(Front { fed, to })
    }

    /// Whether all have it.
    fn place_everywhere(&mut self, front: &mut Front, cx: &mut Context<'_>) -> bool {
        let now = self.common.config.runtime.now();
        let open = self.lanes.iter().any(Lane::is_open);
        for at in std::mem::take(&mut front.to) {
            if let Some(error) = self.lanes[at].rests(now) {
                // The others do not wait for a dial that may hang.
                let serves = self.lanes.iter().any(|lane| lane.is_usable(now));
                let verdict = Verdict { outcome: Outcome::NotSent, attempts: 0, error };
                self.bury_new(front.fed.message.clone(), at, verdict, !serves);
                continue;
            }
            if self.lanes[at].is_tried() {
                front.to.push(at);
                continue;
            }
            match self.lanes[at].is_open().then(|| self.lanes[at].poll_room(&[], self.mark, cx)) {
                Some(Poll::Ready(true)) => self.give(at, front.fed.message.clone(), &[], front.fed.since),
                Some(Poll::Pending) => front.to.push(at),
                Some(Poll::Ready(false)) | None => {
                    self.bury_new(front.fed.message.clone(), at, Verdict::closed(), !open)
                }
            }
        }
        front.to.is_empty()
    }

    /// Where a message of this key goes that has this trail.
    fn way(&mut self, key: u64, trail: &[usize], cx: &mut Context<'_>) -> Way {
        let (now, lanes) = (self.common.config.runtime.now(), &self.lanes);
        let is_usable = |at: usize| !trail.contains(&at) && lanes[at].is_usable(now);
        // One that is down gives it back at once, and says why.
        let is_open = |at: usize| !trail.contains(&at) && lanes[at].is_open();
        let mut way = match self.route.pick(key, self.turn, is_usable) {
            Some(picked) if self.lanes[picked].is_tried() => Way::Wait,
            Some(picked) => self.way_to(picked, trail, cx),
            None => match self.route.pick(key, self.turn, is_open) {
                Some(picked) => self.way_to(picked, trail, cx),
                None => return Way::Nowhere,
            },
        };
        if self.route.passes_over() {
            for at in self.route.in_turn(self.turn) {
                if !matches!(way, Way::Wait) {
                    break;
                }
                if !trail.contains(&at) && self.lanes[at].is_usable(now) && !self.lanes[at].is_tried() {
                    way = self.way_to(at, trail, cx);
                }
            }
        }
        if let Way::To(at) = way {
            self.turn = at + 1;
        }
        way
    }

    /// Waits until an address may be tried again that was left alone, or was tried for long enough, if there is one. Nobody else tells
    /// of that.
    fn poll_retry(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let runtime = &self.common.config.runtime;
        let now = runtime.now();
        let Some(at) = self.lanes.iter().filter_map(|lane| lane.changes_at(now)).min() else { return Poll::Pending };
        if self.retry.as_ref().is_none_or(|(set, _)| *set != at) {
            self.retry = Some((at, runtime.timer(at)));
        }
        self.retry.as_mut().map_or(Poll::Pending, |(_, alarm)| alarm.poll_unpin(cx))
    }

    fn way_to(&mut self, at: usize, trail: &[usize], cx: &mut Context<'_>) -> Way {
        match self.lanes[at].poll_room(trail, self.mark, cx) {
            Poll::Ready(true) => Way::To(at),
            Poll::Ready(false) => Way::Closed,
            Poll::Pending => Way::Wait,
        }
    }

    fn give(&mut self, at: usize, mut message: Bytes, trail: &[usize], since: Option<Instant>) {
        self.lanes[at].accept(&mut message, trail, since, || self.common.config.runtime.now());
        // It may be memory of the program.
        if let Err(panic) = foreign::dispose(message) {
            self.common.panicked(&self.lanes[at].address, PanicSource::Drop, panic);
        }
    }

    // ---- dead letters

    /// A message that no address had, or of a broadcast, not this one.
    fn bury_new(&mut self, message: Bytes, at: usize, verdict: Verdict, fails: bool) {
        if let Some(addresses) = self.addresses.upgrade() {
            addresses.never_handed_over(1);
        }
        let address = self.lanes.get(at).map_or_else(|| Address::from(""), |lane| lane.address.clone());
        if fails {
            self.queue.fail(match verdict.outcome {
                Outcome::Closed => Error::NotOpen { address: address.clone(), message: None },
                _ => Error::NotSent { address: address.clone(), message: None, source: verdict.error.clone() },
            });
        }
        self.add(Letter { address, message, verdict, tried: Arc::default() });
    }

    /// One that was not sent, and that no other address is to have, or if it `fails` can have.
    fn bury_unsent(&mut self, returned: Returned, fails: bool) {
        if fails {
            let (address, source) = (self.last(&returned.trail), returned.verdict.error.clone());
            self.queue.fail(Error::NotSent { address, message: None, source });
        }
        self.bury(returned);
    }

    fn bury(&mut self, Returned { message, verdict, trail, .. }: Returned) {
        let tried = trail.iter().map(|at| self.lanes[*at].address.clone()).collect();
        self.add(Letter { address: self.last(&trail), message, verdict, tried });
    }

    /// The address that had it last.
    fn last(&self, trail: &[usize]) -> Address {
        trail.last().map_or_else(|| Address::from(""), |at| self.lanes[*at].address.clone())
    }

    fn add(&mut self, letter: Letter) {
        self.letter_bytes += letter.message.len() + ITEM;
        self.letters.push_back(letter);
    }

    /// Hands letters over, as fast as they are taken; where the manager is `ending`, what is not taken goes on in the background.
    fn poll_letters(&mut self, ending: bool, cx: &mut Context<'_>) {
        loop {
            if let Some(burying) = &mut self.burying {
                if !ending && burying.poll_unpin(cx).is_pending() {
                    return;
                }
                // Dropped before its end, it goes on in the background.
                self.burying = None;
            }
            let Some(Letter { address, message, verdict, tried }) = self.letters.pop_front() else { return };
            self.letter_bytes -= message.len() + ITEM;
            let letters = self.common.dead_letters.clone();
            if ending {
                let _ = letters.bury_tried(address, message, verdict, tried).now_or_never();
            } else {
                self.burying = Some(letters.bury_tried_in_turn(address, message, verdict, tried).boxed());
            }
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // Each may be memory of the program, and nobody is left to be told of a panic.
        let (back, front) =
            (self.back.take().map(|back| back.message), self.front.take().map(|front| front.fed.message));
        let letters = std::mem::take(&mut self.letters).into_iter().map(|letter| letter.message);
        for message in letters.chain(back).chain(front) {
            let _ = foreign::dispose(message);
        }
    }
}
