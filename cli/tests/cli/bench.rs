//! `bench`: what it measures, and what it says where nobody answers.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use crate::foreign::find;
use crate::program::{Folder, Running, ok, run, text};

/// The time at a percentile, in milliseconds.
fn time(printed: &str, percentile: &str) -> f64 {
    let line = printed.lines().find(|line| line.trim_start().starts_with(&format!("{percentile}% "))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn an_echo_is_measured_and_drawn() {
    let folder = Folder::new();
    let svg = folder.path("times.svg");
    let echo = Running::start(&["listen", "127.0.0.1:0", "--echo", "--print", "none"]);
    let options = ["--rate", "2000", "--for", "500ms", "--connections", "3", "--size", "1KiB", "--svg", &svg];
    let output = ok(&[&["bench", &echo.address], &options[..]].concat());
    let printed = text(&output.stdout);
    assert!(printed.starts_with("1000 replies to 1000 messages of 1024 bytes, in 0."), "{printed}");
    assert!(time(&printed, "50") > 0.0 && time(&printed, "50") <= time(&printed, "100"), "{printed}");
    assert!(output.stderr.is_empty(), "progress is for terminals: {}", text(&output.stderr));
    let svg = fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("1000 replies") && svg.contains("99.9%"), "{svg}");
    echo.stop();
}

/// The bar is for people: it is drawn on a terminal, and as the tests above see, nowhere else.
#[test]
fn progress_is_drawn_on_a_terminal() {
    let Some(mut python) = find("python3") else { return };
    let echo = Running::start(&["listen", "127.0.0.1:0", "--echo", "--print", "none"]);
    let terminal = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let bench = [env!("CARGO_BIN_EXE_buffstreams"), "bench", &echo.address, "--rate", "10000", "--for", "1s"];
    let output = python.args(["-c", terminal]).args(bench).output().unwrap();
    let drawn = text(&output.stdout);
    assert!(output.status.success() && drawn.contains("/10,000 messages"), "{drawn:?}");
    echo.stop();
}

/// The echo pauses once, for 300 ms: the 300 messages that are due meanwhile have all waited, by up to that. A loop that waits
/// for each reply before it sends would have seen a single long one.
#[test]
fn a_pause_counts_for_every_message_that_it_holds_up() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let echo = std::thread::spawn(move || {
        let (mut peer, _) = server.accept().unwrap();
        let mut frame = [0; 3 + 8];
        for number in 0..600 {
            peer.read_exact(&mut frame).unwrap();
            if number == 200 {
                std::thread::sleep(Duration::from_millis(300));
            }
            peer.write_all(&frame).unwrap();
        }
        assert_eq!(peer.read(&mut frame).unwrap(), 0);
    });
    let output = ok(&["bench", &address, "--rate", "1000", "--for", "600ms", "--size", "8"]);
    echo.join().unwrap();
    let printed = text(&output.stdout);
    // A tenth of all, 60 messages, were due in the first 60 ms of the pause.
    assert!(time(&printed, "90") >= 200.0 && time(&printed, "100") >= 300.0, "{printed}");
}

#[test]
fn who_is_no_echo_is_said() {
    // It answers with something else.
    let listening =
        Running::start(&["listen", "127.0.0.1:0", "--exec", "echo something", "--reply", "--print", "none"]);
    let output = run(&["bench", &listening.address, "--rate", "100"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("`buffstreams listen --echo` is one"), "{}", text(&output.stderr));
    drop(listening);
    // It does not answer.
    let listening = Running::start(&["listen", "127.0.0.1:0", "--print", "none"]);
    let output = run(&["bench", &listening.address, "--rate", "100", "--for", "100ms", "--close-timeout", "100ms"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).ends_with("error: 10 messages were not answered\n"), "{}", text(&output.stderr));
    listening.stop();
    // It closes.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let closing = std::thread::spawn(move || server.accept().unwrap().0.read_exact(&mut [0; 103]).unwrap());
    let output = run(&["bench", &address, "--rate", "1"]);
    closing.join().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
}

#[test]
fn an_interrupted_one_says_what_it_has() {
    let echo = Running::start(&["listen", "127.0.0.1:0", "--echo"]);
    let mut command = crate::program::program(&["bench", &echo.address, "--for", "1h"]);
    let child = command.spawn().unwrap();
    let mut echo = echo;
    echo.printed(5);
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(" replies to "), "{}", text(&output.stdout));
    echo.close_stdout();
}
