//! How much memory a process has.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::Result;

/// The anonymous memory of a process, in bytes: heap and stacks that have been touched, without files and sockets. Counted
/// page by page: `RssAnon` in `status` may be hundreds of KiB behind.
pub(crate) fn anonymous(process: u32) -> Result<u64> {
    parse(&fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?)
        .ok_or_else(|| "no Anonymous in the process's smaps_rollup: this needs Linux 4.14".into())
}

fn parse(figures: &str) -> Option<u64> {
    let figure = figures.lines().find_map(|line| line.strip_prefix("Anonymous:"))?;
    Some(figure.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The anonymous memory of a process when it has stopped to change, or after two seconds.
pub(crate) fn settled(process: u32) -> Result<u64> {
    let mut last = anonymous(process)?;
    let mut unchanged = 0;
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(100));
        let now = anonymous(process)?;
        unchanged = if now == last { unchanged + 1 } else { 0 };
        last = now;
        if unchanged == 3 {
            break;
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    #[test]
    fn finds_the_figure() {
        let rollup = "Rss:   9 kB\nAnonymous:    1234 kB\nAnonHugePages:   0 kB\n";
        assert_eq!(super::parse(rollup), Some(1234 * 1024));
        assert_eq!(super::parse("Rss:   9 kB\n"), None);
    }
}
