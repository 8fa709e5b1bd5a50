//! The clock that two processes on one machine share, and that of the processor time of this one.

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds. `Instant` is the same clock, but its value cannot be given to another process.
pub(crate) fn now() -> u64 {
    read(ClockId::Monotonic)
}

/// The processor time of this process until now, in nanoseconds: of all its threads, in the program and in the kernel.
pub(crate) fn processor() -> u64 {
    read(ClockId::ProcessCPUTime)
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
