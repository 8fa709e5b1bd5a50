//! What a script relies on: a selection that leaves nothing is an error, and no process is left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_buffstreams-bench"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn nothing_to_measure_is_an_error() {
    let output = bench(&["--only", "go-bench", "--system", "raw"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("go-bench, raw: it has no messages"), "{stderr}");
}

#[test]
fn an_end_of_input_ends_a_child() {
    let mut child = bench(&["child"]).stdin(Stdio::piped()).spawn().unwrap();
    drop(child.stdin.take());
    poll("the child's end", || child.try_wait().unwrap());
}

#[test]
fn a_killed_parent_leaves_no_child() {
    let out = std::env::temp_dir().join(format!("buffstreams-bench-{}", std::process::id()));
    let out = out.to_str().unwrap();
    // Rounds that take long enough to be met: nobody reads, and memory has to settle.
    let arguments = ["--quick", "--only", "slow-consumer", "--system", "raw,buffstreams", "--connections", "1"];
    let mut parent = bench(&arguments).args(["--out", out]).spawn().unwrap();
    let list = format!("/proc/{0}/task/{0}/children", parent.id());
    let children = poll("both ends", || {
        let children: Vec<u32> =
            fs::read_to_string(&list).ok()?.split_whitespace().map(|id| id.parse().unwrap()).collect();
        (children.len() == 2).then_some(children)
    });
    parent.kill().unwrap();
    parent.wait().unwrap();
    for child in children {
        poll("a child's end", || is_gone(child).then_some(()));
    }
}

/// Gone, or dead and not yet waited for by whoever has inherited it.
fn is_gone(process: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat"));
    stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|state| state.starts_with('Z')))
}

/// Asks until there is an answer, for ten seconds.
fn poll<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if let Some(answer) = ask() {
            return answer;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("{what} did not come");
}
