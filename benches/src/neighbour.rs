//! A process that does nothing but use a processor, as a neighbour on a machine does, and gives way to all others.

use std::time::{Duration, Instant};
use std::{hint, process, thread};

use rustix::process::setpriority_process;

use crate::Result;

/// It ends by itself after this time, which is longer than a round has.
const LONGEST: Duration = Duration::from_secs(120);

/// Spins until the time is over, or standard input ends: with its parent, whatever that one ended by.
pub(crate) fn main() -> Result<()> {
    setpriority_process(None, 19)?;
    thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        process::exit(0);
    });
    let start = Instant::now();
    while start.elapsed() < LONGEST {
        (0..10_000).for_each(|_| hint::spin_loop());
    }
    Ok(())
}
