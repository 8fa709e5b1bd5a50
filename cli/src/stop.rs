//! Ctrl-C: the first asks a command to come to its end, the second ends it.

use std::io;
use std::thread;

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Ready when the command has been asked to end, by SIGINT or SIGTERM.
pub(crate) type Stop = Shared<oneshot::Receiver<()>>;

/// From now on, the first signal makes the future ready, and the next does what it does by default.
pub(crate) fn on_signals() -> io::Result<Stop> {
    let (ask, asked) = oneshot::channel();
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let mut ask = Some(ask);
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            match ask.take() {
                Some(ask) => drop(ask.send(())),
                None => drop(emulate_default_handler(signal)),
            }
        }
    })?;
    Ok(asked.shared())
}
