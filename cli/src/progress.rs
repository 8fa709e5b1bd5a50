//! Progress bars: on long work, on standard error, and only where that is a terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

/// After how many steps the bar is told: it is asked for with each message.
const STEP: u64 = 1024;

/// A bar, or where the end is not known, a count; or nothing.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    done: u64,
}

impl Progress {
    /// A bar over `total` bytes, or a count of bytes.
    pub(crate) fn bytes(total: Option<u64>) -> Self {
        Self::new(
            total,
            "{bar:32} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
            "{spinner} {bytes} {binary_bytes_per_sec} {elapsed}",
        )
    }

    /// A bar over `total` messages, or a count of messages.
    pub(crate) fn messages(total: Option<u64>) -> Self {
        Self::new(
            total,
            "{bar:32} {human_pos}/{human_len} messages {per_sec} {eta}",
            "{spinner} {human_pos} messages {per_sec} {elapsed}",
        )
    }

    fn new(total: Option<u64>, bar: &str, count: &str) -> Self {
        let is_shown = io::stderr().is_terminal();
        let bar = is_shown.then(|| {
            let (progress, template) = match total {
                Some(total) => (ProgressBar::new(total), bar),
                None => (ProgressBar::new_spinner(), count),
            };
            match ProgressStyle::with_template(template) {
                Ok(style) => progress.with_style(style),
                Err(_) => progress,
            }
        });
        Self { bar, done: 0 }
    }

    pub(crate) fn add(&mut self, count: u64) {
        let before = self.done;
        self.done += count;
        if let Some(bar) = &self.bar
            && before / STEP != self.done / STEP
        {
            bar.set_position(self.done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
