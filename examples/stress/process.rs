//! What the process has in use. With glibc, `MALLOC_ARENA_MAX=1` keeps the figures of memory steady: it has many heaps
//! otherwise, each of which keeps what it has had once.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

/// What is in use now. On systems that do not tell, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InUse {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    /// In KiB, without the program's own pages.
    pub(crate) memory: usize,
}

impl InUse {
    pub(crate) fn now() -> Self {
        let count = |folder| fs::read_dir(folder).map_or(0, Iterator::count);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let memory = memory.and_then(|kib| kib.trim().strip_suffix(" kB")?.parse().ok());
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            memory: memory.unwrap_or_default(),
        }
    }

    /// Waits, for a time, until no more descriptors and threads are in use than these; says what is in use then.
    pub(crate) fn at_most(self, limit: Duration) -> Result<Self, (Self, String)> {
        let start = Instant::now();
        loop {
            let now = Self::now();
            if now.descriptors <= self.descriptors && now.threads <= self.threads {
                return Ok(now);
            }
            if start.elapsed() > limit {
                return Err((now, open()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, threads, memory } = self;
        write!(f, "{descriptors} descriptors, {threads} threads, {memory} KiB")
    }
}

/// What the open descriptors are.
fn open() -> String {
    let links = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let names = links.filter_map(|link| fs::read_link(link.path()).ok());
    names.map(|name| name.display().to_string()).collect::<Vec<_>>().join(" ")
}
