//! `listen` and `send`, one against the other.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;

use crate::program::{Folder, Port, Running, checksum, good, interrupt, ok, piped, run, run_with, takes_none, text};

/// How many lines are sent in bulk.
const LINES: usize = 1_000_000;

#[test]
fn a_million_lines_arrive_as_they_were() {
    let folder = Folder::new();
    let lines: String = (0..LINES).map(|line| format!("line {line}, {}\n", "x".repeat(line * 7 % 100))).collect();
    let (sent, received) = (folder.file("sent", &lines), folder.path("received"));
    let listening = Running::start(&["listen", "127.0.0.1:0", "--out", &received, "--count", &LINES.to_string()]);
    let output = ok(&["send", &listening.address, &sent]);
    assert!(text(&output.stderr).starts_with(&format!("{LINES} messages written, 0 not, in ")));
    assert!(listening.end().status.success());
    assert_eq!(checksum(&fs::read(received).unwrap()), checksum(lines.as_bytes()));
}

#[test]
fn every_format_and_runtime_arrives() {
    let formats = ["buffstreams", "varint", "u8", "u16_be", "u16_le", "u24_be", "u32_be", "u32_le", "u64_be"];
    for (at, format) in formats.into_iter().chain(["fixed:3:le:offset=2:inclusive"]).enumerate() {
        let runtime = ["async-std", "smol", "tokio"][at % 3];
        let options = ["--format", format, "--runtime", runtime, "--count", "2"];
        let listening = Running::start(&[&["listen", "127.0.0.1:0"], &options[..]].concat());
        ok(&["send", &listening.address, "-m", "one", "-m", "", "--format", format, "--runtime", runtime]);
        let output = listening.end();
        assert_eq!((text(&output.stdout).as_str(), output.status.success()), ("one\n\n", true), "{format}");
    }
}

#[test]
fn messages_in_a_session_are_counted_when_they_are_taken() {
    let session = ["--session-window", "128KiB", "--session-ttl", "30s", "--session-heartbeat", "1s"];
    for options in [&session[..], &["--session"]] {
        let listening = Running::start(&[&["listen", "127.0.0.1:0", "--count", "3"], options].concat());
        let output = ok(&[&["send", &listening.address, "-m", "one", "-m", "", "-m", "three"], options].concat());
        let said = text(&output.stderr);
        assert!(said.starts_with("3 messages taken, 0 in doubt, 0 refused, 0 not sent, in "), "{said}");
        assert_eq!(text(&listening.end().stdout), "one\n\nthree\n");
    }
}

#[test]
fn who_has_no_session_is_told_so_at_either_end() {
    let plain = Running::start(&["listen", "127.0.0.1:0"]);
    let output = run(&["send", &plain.address, "-m", "x", "--session"]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("no session with"), "{said}");
    assert!(said.contains("the other end may have no sessions"), "{said}");
    let warned = text(&plain.stop().stderr);
    assert!(warned.contains("looks like a session: try --session"), "{warned}");

    let both = Running::start(&["listen", "127.0.0.1:0", "--session", "--session-or-plain", "--count", "2"]);
    ok(&["send", &both.address, "-m", "plain"]);
    ok(&["send", &both.address, "-m", "acked", "--session"]);
    assert_eq!(text(&both.end().stdout), "plain\nacked\n");
}

#[test]
fn messages_are_printed_as_hex_and_as_json() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--print", "hex", "--count", "1"]);
    good(run_with(&["send", &listening.address, "--input", "hex"], b"00 ff 0a\n"), &[]);
    assert_eq!(text(&listening.end().stdout), "00ff0a\n");

    let listening = Running::start(&["listen", "127.0.0.1:0", "--print", "json", "--count", "2"]);
    good(run_with(&["send", &listening.address, "--input", "hex"], b"00ff\n6869\n"), &[]);
    let output = text(&listening.end().stdout);
    let lines: Vec<serde_json::Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["hex"], &lines[0]["bytes"]), (&"00ff".into(), &2.into()));
    assert_eq!(lines[1]["text"], "hi");
    assert!(lines[1]["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(lines[1]["time"].as_f64().unwrap() > 1.5e9);
}

#[test]
fn json_becomes_protocol_buffers_and_comes_back() {
    let proto = ["--proto", "order.proto", "--type", "example.Order"];
    let listening = Running::start(&[&["listen", "127.0.0.1:0", "--count", "2"], &proto[..]].concat());
    let args = [&["send", &listening.address], &proto[..]].concat();
    let sent = "{\"id\":\"7\",\"item\":\"socks\",\"sizes\":[41,42]}\n{\"item\":\"hat\"}\n";
    good(run_with(&args, sent.as_bytes()), &args);
    assert_eq!(text(&listening.end().stdout), sent);

    let listening = Running::start(&["listen", "127.0.0.1:0", "--print", "hex", "--count", "1"]);
    good(run_with(&[&["send", &listening.address], &proto[..]].concat(), b"{\"id\":150}"), &[]);
    assert_eq!(text(&listening.end().stdout), "089601\n", "as the guide to the encoding has it");
}

#[test]
fn what_is_no_message_of_the_type_is_told_with_its_line() {
    let listening = Running::start(&["listen", "127.0.0.1:0"]);
    let args = ["send", &listening.address, "--proto", "order.proto", "--type", "example.Order"];
    let output = run_with(&args, b"{\"id\":1}\n{\"idd\":1}\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("error: -, line 2: no example.Order: "), "{}", text(&output.stderr));
    assert!(text(&output.stderr).starts_with("1 messages written, 0 not"));
    listening.stop();
}

#[test]
fn files_are_sent_whole_and_again_and_again() {
    let folder = Folder::new();
    let (one, two) = (folder.file("one", "a\nb\n"), folder.file("two", ""));
    let listening = Running::start(&["listen", "127.0.0.1:0", "--print", "hex", "--count", "6"]);
    ok(&["send", &listening.address, "--input", "whole", "--repeat", "2", "-m", "c", &one, &two]);
    assert_eq!(text(&listening.end().stdout), "63\n610a620a\n\n63\n610a620a\n\n");
}

#[test]
fn a_line_that_comes_in_pieces_is_one_message() {
    let mut listening = Running::start(&["listen", "127.0.0.1:0", "--count", "2"]);
    let mut child =
        crate::program::program(&["send", &listening.address]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo ").unwrap();
    // The first half has been read when the message before it has arrived, which it shares a read with.
    listening.printed(4);
    stdin.write_all(b"halves\n").unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(text(&listening.end().stdout), "two halves\n");
}

#[test]
fn a_rate_is_kept() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--print", "none", "--count", "30"]);
    let start = std::time::Instant::now();
    ok(&["send", &listening.address, "-m", "x", "--repeat", "30", "--rate", "100"]);
    assert!(start.elapsed().as_millis() >= 290, "the last is due after 290 ms");
    assert!(listening.end().status.success());
}

#[test]
fn a_command_runs_for_each_message_and_may_reply() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--exec", "tr a-z A-Z", "--reply", "--print", "none"]);
    let output = ok(&["send", &listening.address, "-m", "one", "-m", "two", "--replies", "2"]);
    assert_eq!(text(&output.stdout), "ONE\nTWO\n");
    assert!(listening.stop().status.success());

    let listening = Running::start(&["listen", "127.0.0.1:0", "--exec", "exit 3", "--count", "1"]);
    ok(&["send", &listening.address, "-m", "one"]);
    let output = listening.end();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("exit status: 3"), "{}", text(&output.stderr));
}

#[test]
fn a_reply_that_is_too_long_is_a_failure_of_its_command_and_the_other_peers_go_on() {
    let twice = ["--exec", "read -r message; echo $message$message", "--reply", "--print", "none"];
    let listening = Running::start(&[&["listen", "127.0.0.1:0", "--max", "10", "--count", "2"], &twice[..]].concat());
    ok(&["send", &listening.address, "--max", "10", "-m", "123456"]);
    let output = ok(&["send", &listening.address, "--max", "10", "-m", "1", "--replies", "1"]);
    assert_eq!(text(&output.stdout), "11\n\n");
    let output = listening.end();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(" cannot be sent: a message of 13 bytes: at most 10 are allowed\n"), "{said}");
    assert!(said.ends_with("error: the command failed for 1 of 2 messages\n"), "{said}");
}

#[test]
fn an_echo_sends_everything_back() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--echo", "--print", "none"]);
    let output = ok(&["send", &listening.address, "-m", "one", "-m", "two", "--replies", "2"]);
    assert_eq!(text(&output.stdout), "one\ntwo\n");
    let output = run(&["send", &listening.address, "-m", "one", "--replies", "1", "--format", "u16_be"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    listening.stop();
}

#[test]
fn a_unix_socket_is_an_address_as_well() {
    let folder = Folder::new();
    let address = format!("unix:{}", folder.path("socket"));
    let listening = Running::start(&["listen", &address, "--count", "1", "--unix-mode", "600"]);
    ok(&["send", &address, "-m", "one"]);
    assert_eq!(text(&listening.end().stdout), "one\n");
}

#[test]
fn ctrl_c_lets_the_peers_finish() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--verbose"]);
    let mut peer = TcpStream::connect(&listening.address).unwrap();
    peer.write_all(&[10, 0, 0, b'f', b'i', b'r', b's', b't']).unwrap();
    let mut listening = listening;
    assert!(listening.line().contains("has connected"));
    listening.signal("INT");
    // It still reads what a peer goes on to send: this is printed, though it comes behind the signal.
    peer.write_all(&[8, 0, 0, b'l', b'a', b's', b't']).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    let output = listening.end();
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("first\nlast\n", Some(0)));
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let mut listening =
        Running::start(&["listen", "127.0.0.1:0", "--verbose", "--close-timeout", "none", "--drain-timeout", "none"]);
    let _silent = TcpStream::connect(&listening.address).unwrap();
    assert!(listening.line().contains("has connected"));
    listening.signal("INT");
    listening.signal("TERM");
    let status = listening.end().status;
    assert!([Some(2), Some(15)].contains(&status.signal()), "{status}");
}

#[test]
fn an_interrupted_send_delivers_what_it_has_read() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--count", "1"]);
    let mut command = crate::program::program(&["send", &listening.address]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    assert_eq!(text(&listening.end().stdout), "one\n");
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).starts_with("1 messages written"));
    drop(stdin);
}

#[test]
fn a_message_that_is_too_long_is_counted_as_not_sent() {
    for (session, said) in [
        (&[][..], "1 messages written, 1 not, in "),
        (&["--session"], "1 messages taken, 0 in doubt, 0 refused, 1 not sent, in "),
    ] {
        let listening = Running::start(&[&["listen", "127.0.0.1:0", "--count", "1"], session].concat());
        let long = "0".repeat(5000);
        let output = run(&[&["send", &listening.address, "-m", "ok", "-m", &long, "--keep-going"], session].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
        assert!(stderr.contains("error: 1 messages were not "), "{stderr}");
        assert_eq!(text(&listening.end().stdout), "ok\n");
    }
}

#[test]
fn an_interrupted_send_does_not_claim_what_it_could_not_deliver() {
    // The other end dies of the message, and nobody else is to be found there.
    let port = Port::new();
    let listening = Running::dying(&["listen", &port.address, "--session", "--exec", "kill -s KILL $PPID"]);
    let options = ["--session-ttl", "5s", "--reconnect", "1ms..10ms", "--close-timeout", "100ms"];
    let mut child = piped(&[&["send", &listening.address], &options[..]].concat());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    assert_eq!(listening.end().status.signal(), Some(9));
    let output = interrupt(child);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.starts_with("0 messages taken, 1 in doubt, ") && !said.contains("delivered"), "{said}");
    drop(stdin);
}

#[test]
fn a_send_is_interrupted_while_nobody_takes_what_it_has() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let options = ["--write-timeout", "none", "--close-timeout", "100ms", "--max", "1MiB", "--repeat", "1000"];
    let child = piped(&[&["send", &address, "-m", &"x".repeat(100_000)], &options[..]].concat());
    let (mut peer, _) = server.accept().unwrap();
    // There is no room for all of them in the sockets.
    peer.read_exact(&mut [0; 1]).unwrap();
    let output = interrupt(child);
    drop(peer);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(!said.contains("delivered"), "{said}");
}

#[test]
fn an_interrupted_send_that_waits_for_the_time_of_a_message_sends_it_at_once() {
    let mut listening = Running::start(&["listen", "127.0.0.1:0", "--count", "2"]);
    let child = piped(&["send", &listening.address, "--rate", "0.001", "-m", "one", "-m", "two", "-m", "three"]);
    assert_eq!(text(&listening.printed(4)), "one\n");
    let output = interrupt(child);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(
        said.starts_with("2 messages written, 0 not") && said.contains("what had been read was delivered"),
        "{said}"
    );
    assert_eq!(text(&listening.end().stdout), "two\n");
}

#[test]
fn an_interrupted_send_that_waits_for_replies_says_how_many_came() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let child = piped(&["send", &address, "--replies", "2", "--rate", "0.001", "-m", "one", "-m", "two"]);
    let (mut peer, _) = server.accept().unwrap();
    peer.read_exact(&mut [0; 6]).unwrap();
    // It sends what it has read, and ends its direction behind that.
    let reading = std::thread::spawn(move || {
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).map(|_| rest)
    });
    let output = interrupt(child);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("interrupted after 0 of 2 replies; "), "{}", text(&output.stderr));
    assert_eq!(reading.join().unwrap().unwrap(), b"\x06\0\0two");
}

#[test]
fn what_its_command_fails_for_or_is_no_message_of_the_type_is_refused() {
    let proto = ["--proto", "order.proto", "--type", "example.Order"];
    for options in [&["--exec", "exit 3"][..], &proto] {
        let listening = Running::start(&[&["listen", "127.0.0.1:0", "--session", "--count", "1"], options].concat());
        let output = run(&["send", &listening.address, "--session", "-m", "one"]);
        let said = text(&output.stderr);
        assert!(said.starts_with("0 messages taken, 0 in doubt, 1 refused, 0 not sent, in "), "{said}");
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(text(&listening.end().stderr).starts_with("warning: "));
    }
}

#[test]
fn nothing_is_acknowledged_that_cannot_be_printed() {
    // Nobody else is to be found there when it has ended.
    let port = Port::new();
    let listening = Running::start(&["listen", &port.address, "--session", "--out", "/dev/full"]);
    takes_none(&listening.address, "1000");
    assert_eq!(listening.end().status.code(), Some(1));
}

#[test]
fn a_closed_pipe_ends_it_as_any_tool() {
    let mut listening = Running::start(&["listen", "127.0.0.1:0"]);
    listening.close_stdout();
    let _ = run(&["send", &listening.address, "-m", "one"]);
    let output = listening.end();
    assert_eq!(output.status.signal(), Some(13), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "it says nothing");
}

#[test]
fn a_sender_in_another_format_is_told_with_the_option() {
    let mut listening = Running::start(&["listen", "127.0.0.1:0", "--format", "u32_be"]);
    let mut command = crate::program::program(&["send", &listening.address, "--format", "u16_be", "--repeat", "100"]);
    command.args(["-m", "a message", "-m", "another message"]);
    let _ = command.output().unwrap();
    assert!(listening.line().starts_with("warning: 127.0.0.1:"));
    assert_eq!(listening.line(), " hint: looks like u16_be: try --format u16_be");
    listening.stop();
}

#[test]
fn what_nobody_takes_is_counted() {
    // It accepts one connection, reads a little, and closes it.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    let closing = std::thread::spawn(move || {
        let (mut peer, _) = server.accept().unwrap();
        peer.read_exact(&mut [0; 1000]).unwrap();
    });
    let output = run(&["send", &address, "-m", &"x".repeat(1000), "--repeat", "100000"]);
    closing.join().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(" messages were not sent: "), "{}", text(&output.stderr));
}
