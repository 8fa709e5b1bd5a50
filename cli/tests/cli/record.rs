//! `record` and `replay`: what comes back is what was there, and a file that is none is told where.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::program::{Folder, Port, Running, checksum, interrupt, ok, piped, run, takes_none, text};

/// What is in front of the first message: the magic, the version, the name of the format, and the longest message.
const HEADER: &[u8] = b"\x89BUFREC\n\x01\x06u32_be\0\0\0\0\0\x10\0\0";

fn message(at: u64, peer: u64, text: &str) -> Vec<u8> {
    let head = [at, peer, text.len() as u64].map(u64::to_be_bytes).concat();
    [head, text.as_bytes().to_vec()].concat()
}

/// A recording with a message of each of two peers, and then another of the first.
fn recording() -> Vec<u8> {
    let messages = [message(0, 1, "one"), message(300_000_000, 2, ""), message(300_000_001, 1, "three")].concat();
    [HEADER.to_vec(), messages].concat()
}

/// Lines of several peers, which come in any order.
fn sorted(printed: &[u8]) -> Vec<String> {
    let mut lines: Vec<_> = text(printed).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn what_is_recorded_and_replayed_is_what_was_sent() {
    let folder = Folder::new();
    let file = folder.path("recording");
    let recording = Running::start(&["record", "127.0.0.1:0", "--out", &file, "--count", "20000"]);
    let lines: String = (0..20_000).map(|line| format!("line {line}, {}\n", "x".repeat(line * 7 % 100))).collect();
    ok(&["send", &recording.address, &folder.file("lines", &lines)]);
    let output = recording.end();
    assert!(text(&output.stderr).starts_with("20000 messages in "), "{}", text(&output.stderr));

    // And again: what is replayed is recorded, and is the same but for the times.
    let copy = folder.path("copy");
    let recording = Running::start(&["record", "127.0.0.1:0", "--out", &copy, "--count", "20000"]);
    let output = ok(&["replay", &file, &recording.address, "--speed", "max"]);
    assert!(text(&output.stderr).starts_with("20000 of 20000 messages written, in "), "{}", text(&output.stderr));
    recording.end();
    let listening = Running::start(&["listen", "127.0.0.1:0", "--count", "20000"]);
    ok(&["replay", &copy, &listening.address, "--speed", "1000", "--quiet"]);
    assert_eq!(checksum(&listening.end().stdout), checksum(lines.as_bytes()));
    assert_eq!(fs::metadata(copy).unwrap().len(), fs::metadata(file).unwrap().len());
}

#[test]
fn the_file_is_as_it_is_documented() {
    let folder = Folder::new();
    let file = folder.path("recording");
    let options = ["--out", &file, "--format", "u32_be", "--max", "1MiB", "--count", "1", "--verbose"];
    let recording = Running::start(&[&["record", "127.0.0.1:0"], &options[..]].concat());
    ok(&["send", &recording.address, "--format", "u32_be", "-m", "one"]);
    assert!(text(&recording.end().stderr).contains(" has connected\n"));
    assert_eq!(fs::read(file).unwrap(), [HEADER, &message(0, 1, "one")].concat());
}

#[test]
fn each_peer_has_a_connection_of_its_own_which_closes_behind_its_last_message() {
    let folder = Folder::new();
    let mut listening = Running::start(&["listen", "127.0.0.1:0", "--format", "u32_be", "--verbose", "--count", "3"]);
    let start = Instant::now();
    ok(&["replay", &folder.file("recording", recording()), &listening.address, "--speed", "0.5"]);
    assert!(start.elapsed() >= Duration::from_millis(600), "it keeps to the times, at half the speed");
    assert!(listening.line().ends_with("#1 has connected"));
    assert!(listening.line().ends_with("#2 has connected"));
    assert_eq!(sorted(&listening.end().stdout), ["", "one", "three"]);
}

#[test]
fn a_connection_does_not_stay_for_the_others() {
    let folder = Folder::new();
    let mut listening = Running::start(&["listen", "127.0.0.1:0", "--format", "u32_be", "--verbose"]);
    let messages = [message(0, 1, "one"), message(0, 2, "two"), message(3_600_000_000_000, 1, "in an hour")].concat();
    let file = folder.file("recording", [HEADER.to_vec(), messages].concat());
    let replay = crate::program::program(&["replay", &file, &listening.address]).spawn().unwrap();
    while !listening.line().ends_with(" is gone") {}
    let id = replay.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    assert_eq!(replay.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(sorted(&listening.stop().stdout), ["one", "two"]);
}

#[test]
fn what_is_no_recording_is_told_with_the_place() {
    let folder = Folder::new();
    let whole = recording();
    let wrong = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let cases = [
        (b"\0\x05hello".to_vec(), "byte 0: no recording: it does not begin as one"),
        (b"a text that is long enough".to_vec(), "byte 0: no recording: it does not begin as one"),
        (wrong(8, &[2]), "byte 8: a recording of version 2, and this program knows 1"),
        (wrong(10, b"u99_be"), "byte 10: no format has the name \"u99_be\""),
        (whole[..20].to_vec(), "byte 20: the recording ends in its header"),
        (whole[..30].to_vec(), "byte 30: the recording ends inside its first message"),
        (
            whole[..whole.len() - 1].to_vec(),
            "the recording ends inside message 3\n hint: those before it are whole: --count 2",
        ),
        (wrong(40, &[1]), "byte 24: message 1 has 72057594037927939 bytes, and the longest may have 1048576"),
    ];
    let listening = Running::start(&["listen", "127.0.0.1:0", "--verbose", "--format", "u32_be"]);
    for (bytes, expected) in cases {
        let file = folder.file("wrong", bytes);
        let output = run(&["replay", &file, &listening.address]);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(4) && said.starts_with("error: ") && said.contains(expected), "{said}");
    }
    // Of one that was cut, what is whole can be sent.
    let file = folder.file("cut", &whole[..whole.len() - 1]);
    ok(&["replay", &file, &listening.address, "--count", "2", "--speed", "max"]);
    let output = listening.stop();
    assert_eq!(sorted(&output.stdout), ["", "one"]);
    assert_eq!(text(&output.stderr).matches(" has connected").count(), 2, "nothing is sent of a file that is wrong");
}

#[test]
fn a_replay_that_is_interrupted_or_cut_says_how_far_it_came() {
    let folder = Folder::new();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let slow = [HEADER.to_vec(), message(0, 1, "one"), message(3_600_000_000_000, 1, "two")].concat();
    let child = crate::program::program(&["replay", &folder.file("slow", slow), &address]).spawn().unwrap();
    let (mut peer, _) = server.accept().unwrap();
    peer.read_exact(&mut [0; 7]).unwrap();
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    drop(peer);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).starts_with("1 of 2 messages written, in "), "{}", text(&output.stderr));

    let closing = std::thread::spawn(move || {
        let (mut peer, _) = server.accept().unwrap();
        peer.read_exact(&mut [0; 1000]).unwrap();
    });
    let many = [HEADER.to_vec(), message(0, 1, &"x".repeat(10_000)).repeat(2_000)].concat();
    let output = run(&["replay", &folder.file("many", many), &address, "--speed", "max"]);
    closing.join().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(" messages were not sent: "), "{}", text(&output.stderr));
}

#[test]
fn a_recording_ends_with_ctrl_c_and_is_whole() {
    let folder = Folder::new();
    let file = folder.path("recording");
    let mut recording = Running::start(&["record", "127.0.0.1:0", "--out", &file, "--verbose"]);
    let mut peer = TcpStream::connect(&recording.address).unwrap();
    assert!(recording.line().contains("has connected"));
    peer.write_all(&[6, 0, 0, b'o', b'n', b'e']).unwrap();
    recording.signal("INT");
    drop(peer);
    assert!(recording.end().status.success());
    assert!(fs::read(file).unwrap().ends_with(b"\0\0\0\x03one"));
}

#[test]
fn nothing_is_acknowledged_that_cannot_be_recorded() {
    let folder = Folder::new();
    // Nobody else is to be found there when it has ended.
    let port = Port::new();
    // The file may have 512 bytes, or 1024: there is room for the header.
    let limited = "trap '' XFSZ; ulimit -f 1; exec \"$0\" record \"$1\" --session --out \"$2\"";
    let recording = Running::command(std::process::Command::new("sh").args([
        "-c",
        limited,
        env!("CARGO_BIN_EXE_buffstreams"),
        &port.address,
        &folder.path("file"),
    ]));
    takes_none(&recording.address, "700");
    assert_eq!(recording.end().status.code(), Some(1));
}

#[test]
fn a_replay_that_is_interrupted_and_cannot_deliver_does_not_hide_it() {
    let folder = Folder::new();
    // The other end dies of the first message, and nobody else is to be found there.
    let port = Port::new();
    let dies = ["--session", "--format", "u32_be", "--exec", "kill -s KILL $PPID"];
    let listening = Running::dying(&[&["listen", &port.address], &dies[..]].concat());
    let slow = [HEADER.to_vec(), message(0, 1, "one"), message(3_600_000_000_000, 1, "two")].concat();
    let options = ["--session-ttl", "5s", "--max", "4KiB", "--close-timeout", "100ms"];
    let file = folder.file("slow", slow);
    let child = piped(&[&["replay", &file, &listening.address], &options[..]].concat());
    assert_eq!(listening.end().status.signal(), Some(9));
    let output = interrupt(child);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("error: 1 messages were not sent: "), "{said}");
}
