//! What was sent, received and given back: a message has one end, and comes whole, once and in order.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use buffstreams::{Bytes, DeadLetter, Outcome};
use fastrand::Rng;

use super::faults::{Kind, happened, one_in};
use super::foreign;

/// The longest message.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024;
/// How a message begins that is somebody's, and one that is nobody's and is not looked at.
const MARK: u8 = b'm';
const ANONYMOUS: u8 = b'-';
/// The bytes before a message's filling: its mark, checksum, manager, producer and number.
const HEAD: usize = 17;
/// How many places in how many connections a receiver remembers.
const REMEMBERED: usize = 10_000;
/// How many violations are kept; one is enough to fail.
const KEEP: usize = 20;

static VIOLATIONS: Mutex<(u64, Vec<String>)> = Mutex::new((0, Vec::new()));

/// Something that must not happen.
pub(crate) fn violation(what: String) {
    let mut violations = lock(&VIOLATIONS);
    violations.0 += 1;
    if violations.1.len() < KEEP {
        eprintln!("broken: {what}");
        violations.1.push(what);
    }
}

/// The first of them.
pub(crate) fn violations() -> Vec<String> {
    let violations = lock(&VIOLATIONS);
    let more = violations.0 - violations.1.len() as u64;
    let more = (more > 0).then(|| format!("{more} more"));
    violations.1.iter().cloned().chain(more).collect()
}

/// All who have sent, and what became of their messages.
#[derive(Default)]
pub(crate) struct Books {
    producers: Mutex<HashMap<u32, Arc<Producer>>>,
    last: AtomicU32,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

impl Books {
    /// Somebody who sends, of one manager; 0 is none.
    pub(crate) fn producer(&self, manager: u32) -> Arc<Producer> {
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let producer = Arc::new(Producer { manager, id, ends: Mutex::default() });
        lock(&self.producers).insert(id, producer.clone());
        producer
    }

    fn known(&self, id: u32) -> Option<Arc<Producer>> {
        lock(&self.producers).get(&id).cloned()
    }

    /// Forgets them: nothing of theirs is on its way any more.
    pub(crate) fn retire(&self) {
        drop(std::mem::take(&mut *lock(&self.producers)));
    }

    /// A dead letter came.
    pub(crate) fn take(&self, letter: &DeadLetter) {
        happened(match letter.outcome {
            Outcome::Expired => Kind::LetterExpired,
            Outcome::GaveUp => Kind::LetterGaveUp,
            _ => Kind::LetterOther,
        });
        match parse(&letter.message) {
            Some(Parsed::Of { producer, number }) => {
                if let Some(producer) = self.known(producer) {
                    producer.unsent(number, "a dead letter");
                }
            }
            Some(Parsed::Anonymous) => {}
            None => violation("a dead letter is damaged".into()),
        }
    }
}

/// One who sends messages, numbered from 0.
pub(crate) struct Producer {
    manager: u32,
    id: u32,
    ends: Mutex<Vec<End>>,
}

/// What is known of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Received,
    Unsent,
}

impl Producer {
    /// The next message. Some call the library when they are dropped.
    pub(crate) fn next(&self, books: &Books, rng: &mut Rng) -> (u32, Bytes) {
        let number = {
            let mut ends = lock(&self.ends);
            ends.push(End::Open);
            ends.len() as u32 - 1
        };
        books.sent.fetch_add(1, Ordering::Relaxed);
        let len = if rng.u32(0..16) == 0 { rng.usize(4096..MAX_MESSAGE) } else { rng.usize(HEAD..300) };
        let mut message = vec![rng.u8(..); len];
        message[0] = MARK;
        message[5..9].copy_from_slice(&self.manager.to_be_bytes());
        message[9..13].copy_from_slice(&self.id.to_be_bytes());
        message[13..17].copy_from_slice(&number.to_be_bytes());
        let sum = checksum(&message[5..]);
        message[1..5].copy_from_slice(&sum.to_be_bytes());
        let comes_back = len > 4096 && one_in(2);
        (number, if comes_back { foreign::comes_back(message) } else { message.into() })
    }

    /// The producer, or a taker of letters, was told that this one was not sent.
    pub(crate) fn unsent(&self, number: u32, how: &str) {
        self.enter(number, End::Unsent, how);
    }

    /// A message of this one was given back.
    pub(crate) fn came_back(&self, message: &[u8], how: &str) {
        match parse(message) {
            Some(Parsed::Of { producer, number }) if producer == self.id => self.unsent(number, how),
            _ => violation(format!("producer {}: not its message came back, in {how}", self.id)),
        }
    }

    fn enter(&self, number: u32, end: End, how: &str) {
        let before = lock(&self.ends).get_mut(number as usize).map(|known| std::mem::replace(known, end));
        let what = match (before, end) {
            (Some(End::Open), _) => return,
            (Some(End::Received), End::Received) => "came twice",
            (Some(End::Received), _) => "was received, and came back",
            (Some(End::Unsent), End::Received) => "had come back, and was received",
            (Some(End::Unsent), _) => "came back twice",
            (None, _) => "was never sent",
        };
        violation(format!("manager {}, producer {}: {number} {what}, in {how}", self.manager, self.id));
    }
}

/// One end that receives: the next number of each producer in each connection.
#[derive(Default)]
pub(crate) struct Receiver {
    next: BTreeMap<(u64, u32), u32>,
}

impl Receiver {
    /// `connection` is one of this receiver's.
    pub(crate) fn receive(&mut self, books: &Books, connection: u64, message: &[u8]) {
        if let Some((producer, number)) = self.look(books, connection, message)
            && let Some(producer) = books.known(producer)
        {
            producer.enter(number, End::Received, "a message");
        }
    }

    /// An answer, which was received before: it is looked at for damage and order alone.
    pub(crate) fn look(&mut self, books: &Books, connection: u64, message: &[u8]) -> Option<(u32, u32)> {
        books.received.fetch_add(1, Ordering::Relaxed);
        let (producer, number) = match parse(message) {
            Some(Parsed::Of { producer, number }) => (producer, number),
            Some(Parsed::Anonymous) => return None,
            None => {
                violation(format!("connection {connection} brought a damaged message of {} bytes", message.len()));
                return None;
            }
        };
        let next = self.next.entry((connection, producer)).or_default();
        if number < *next {
            violation(format!("connection {connection}, producer {producer}: {number} came when {next} was next"));
        }
        *next = number + 1;
        if self.next.len() > REMEMBERED {
            self.next.pop_first();
        }
        Some((producer, number))
    }
}

enum Parsed {
    Of { producer: u32, number: u32 },
    Anonymous,
}

/// A message that nobody looks at.
pub(crate) fn anonymous() -> Bytes {
    Bytes::from_static(&[ANONYMOUS; 1000])
}

fn parse(message: &[u8]) -> Option<Parsed> {
    let number = |at: usize| Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?));
    match *message.first()? {
        ANONYMOUS => Some(Parsed::Anonymous),
        MARK if number(1)? == checksum(message.get(5..)?) => {
            Some(Parsed::Of { producer: number(9)?, number: number(13)? })
        }
        _ => None,
    }
}

/// Sees every byte, its place and the length.
fn checksum(bytes: &[u8]) -> u32 {
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let (words, rest) = bytes.as_chunks();
    let sum = words.iter().fold(bytes.len() as u64, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    let sum = rest.iter().fold(sum, |sum, byte| mix(sum, u64::from(*byte)));
    (sum ^ (sum >> 32)) as u32
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
