//! What a script relies on: each system plays its parts, a selection that leaves nothing is an error, and no process is left
//! behind.

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
fn a_base_has_to_be_a_system() {
    let output = bench(&["--base", "nothing", "--list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no system is called nothing"));
}

#[test]
fn an_end_of_input_ends_a_child_and_a_neighbour() {
    for part in ["child", "neighbour"] {
        let mut child = bench(&[part]).stdin(Stdio::piped()).spawn().unwrap();
        drop(child.stdin.take());
        poll("the child's end", || child.try_wait().unwrap());
    }
}

/// One round of a few messages, in these scenarios. Whoever loses or changes one makes the command fail.
fn play(scenarios: &str, more: &[&str]) {
    let out = std::env::temp_dir().join(format!("buffstreams-bench-{}-{scenarios}", std::process::id()));
    let few = ["--rounds", "1", "--messages", "300", "--size", "110", "--connections", "3", "--base", "manual"];
    let output = bench(&few).args(more).args(["--only", scenarios, "--out"]).arg(&out).output().unwrap();
    let tables = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{tables}\n{}", String::from_utf8_lossy(&output.stderr));
    let rounds = fs::read_to_string(out.join("results.jsonl")).unwrap();
    fs::remove_dir_all(&out).unwrap();
    let rounds: Vec<serde_json::Value> = rounds.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for scenario in scenarios.split(',') {
        let played = rounds.iter().filter(|line| line["kind"] == "round" && line["trial"]["scenario"] == scenario);
        let figures: Vec<_> = played.map(|line| &line["figures"]).collect();
        assert!(!figures.is_empty(), "{scenario}");
        let has_messages = !["idle", "slow-consumer"].contains(&scenario);
        assert!(
            figures.iter().all(|figures| !has_messages || figures["processor"].as_f64().unwrap() > 0.0),
            "{tables}"
        );
    }
}

#[test]
fn every_system_sends_and_receives() {
    play("throughput,connections,go-bench,manager", &[]);
}

#[test]
fn every_system_replies() {
    play("ping-pong", &[]);
}

#[test]
fn every_system_keeps_a_rate() {
    play("open-loop", &[]);
}

#[test]
fn every_session_goes_on() {
    play("resume", &[]);
}

#[test]
fn every_system_waits() {
    play("idle", &["--quick"]);
    play("slow-consumer", &["--quick"]);
}

#[test]
fn the_sockets_have_the_buffers_asked_for() {
    let out = std::env::temp_dir().join(format!("buffstreams-bench-{}-buffers", std::process::id()));
    let of = |bytes: &str| {
        let some = ["--only", "throughput", "--system", "raw,manual,buffstreams", "--size", "110", "--messages", "300"];
        bench(&some).args(["--rounds", "1", "--socket-buffers", bytes, "--out"]).arg(&out).output().unwrap()
    };
    let output = of("100000");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    fs::remove_dir_all(&out).unwrap();
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
