//! What is planted or done, counted by its kind; the logger and the panic hook.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::foreign::Payload;

macro_rules! kinds {
    ($($kind:ident = $name:literal,)*) => {
        /// What can happen, planted or done by an actor.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind { $($kind),* }

        /// Their names, in the same order.
        const NAMES: &[&str] = &[$($name),*];
    };
}

kinds! {
    CallbackPanics = "callback panics",
    PayloadPanics = "payload of a panic panics when dropped",
    ErrorOfCallback = "callback returns an error that panics when printed",
    ErrorPanics = "callback's error panics when dropped",
    FuturePanics = "callback's future panics",
    FutureDropPanics = "callback's future panics when dropped",
    LoggerPanics = "logger panics",
    DelaysPanic = "delays of a backoff panic",
    BackoffPanics = "closure of a backoff panics",
    DelaysDropPanics = "delays of a backoff panic when dropped",
    WakerPanics = "waker of an ended executor panics",
    WakerIsLast = "waker is the last owner of its task",
    WakerComesBack = "waker calls the library",
    MessageComesBack = "owner of a message calls the library when dropped",
    EndedInWrite = "executor ends while a task waits in write",
    EndedInFlush = "executor ends while a task waits in flush",
    EndedInEvents = "executor ends while a task waits for events",
    EndedInLetters = "executor ends while a task waits for dead letters",
    EndedInListener = "executor ends while a task waits in a listener",
    EndedInClose = "executor ends while a task waits in close",
    WriteGivenUp = "write is given up after a time",
    FutureDropped = "future is dropped after a poll",
    TooLarge = "message is too large",
    TakerGoes = "taker of dead letters goes",
    TakerReplaced = "taker of dead letters is replaced",
    LetterExpired = "dead letter: expired",
    LetterGaveUp = "dead letter: gave up",
    LetterOther = "dead letter: other",
    Returned = "write returns its message",
    ManagerShutDown = "manager is shut down",
    ManagerDropped = "manager is dropped",
    AddressClosed = "address is closed",
    AddressDropped = "close of an address is dropped",
    ListenerClosed = "listener is closed",
    ListenerDropped = "listener is dropped",
    ConnectionDropped = "connection is dropped in a flush",
    HalfClosed = "connection is half closed",
    TakenBack = "connection gives unsent messages back",
    Garbage = "peer sends garbage",
    Cut = "peer cuts a frame",
    Reset = "peer resets",
    Stalls = "peer stalls in a frame",
    StopsReading = "peer stops reading",
    Stays = "peer stays after the end",
    Proxied = "proxy breaks a connection",
}

static COUNTS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

pub(crate) fn happened(kind: Kind) {
    happened_often(kind, 1);
}

pub(crate) fn happened_often(kind: Kind, times: u64) {
    COUNTS[kind as usize].fetch_add(times, Ordering::Relaxed);
}

/// How often each has happened so far.
pub(crate) fn counts() -> Vec<(&'static str, u64)> {
    NAMES.iter().zip(&COUNTS).map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect()
}

static LEFT_OUT: [AtomicBool; NAMES.len()] = [const { AtomicBool::new(false) }; NAMES.len()];

/// Leaves those out of the planted kinds whose name has this in it. To find out which of them does the harm.
pub(crate) fn leave_out(what: &str) {
    for (_, left_out) in NAMES.iter().zip(&LEFT_OUT).filter(|(name, _)| name.contains(what)) {
        left_out.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn is_left_out(kind: Kind) -> bool {
    LEFT_OUT[kind as usize].load(Ordering::Relaxed)
}

/// What has not happened, and was not left out.
pub(crate) fn never() -> impl Iterator<Item = &'static str> {
    let all = counts().into_iter().zip(&LEFT_OUT);
    all.filter(|((_, count), out)| *count == 0 && !out.load(Ordering::Relaxed)).map(|((name, _), _)| name)
}

/// Whether this one is to be planted now, in one of `n` cases.
pub(crate) fn chance(kind: Kind, n: u64) -> bool {
    one_in(n) && !is_left_out(kind)
}

/// The payload of a planted panic.
pub(crate) struct Planted;

/// How the text of a planted panic begins, where it has one.
const MARKER: &str = "planted";

/// Panics, and counts it.
pub(crate) fn plant(kind: Kind) -> ! {
    happened(kind);
    if one_in(2) { std::panic::panic_any(Planted) } else { panic!("{MARKER}: {}", NAMES[kind as usize]) }
}

static CHOICES: AtomicU64 = AtomicU64::new(0);

/// Where all choices start that foreign code makes.
pub(crate) fn seed(seed: u64) {
    CHOICES.store(seed, Ordering::Relaxed);
}

/// A choice of foreign code, which may be called from any thread: `true` in one of `n` cases.
pub(crate) fn one_in(n: u64) -> bool {
    choice().is_multiple_of(n)
}

/// A choice of foreign code.
pub(crate) fn choice() -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = CHOICES.fetch_add(STEP, Ordering::Relaxed);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

static UNPLANTED: AtomicU64 = AtomicU64::new(0);

/// Keeps planted panics quiet; prints and counts the others.
pub(crate) fn hook() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
        if payload.is::<Planted>() || payload.is::<Payload>() || text.starts_with(MARKER) {
            return;
        }
        if UNPLANTED.fetch_add(1, Ordering::Relaxed) < 3 {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            eprintln!("not planted, a panic at {place}: {text}\n{}", std::backtrace::Backtrace::force_capture());
        }
    }));
}

/// How many panics there were that nobody planted.
pub(crate) fn unplanted() -> u64 {
    UNPLANTED.load(Ordering::Relaxed)
}

/// A logger that formats every line, and panics on some.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target() != "buffstreams" {
            return;
        }
        let _ = record.args().to_string();
        if chance(Kind::LoggerPanics, 6) {
            plant(Kind::LoggerPanics);
        }
    }

    fn flush(&self) {}
}

pub(crate) fn logger() {
    // Whoever has installed another wants to see the lines.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Debug);
}
