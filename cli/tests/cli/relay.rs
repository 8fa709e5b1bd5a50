//! `relay`: to several addresses, in another format, with TLS or a session and without, and to the next address when one is down.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::ExitStatusExt;

use crate::program::{Folder, Port, Running, ok, run, text};

fn lines(count: usize) -> String {
    (0..count).map(|line| format!("line {line} {}\n", "z".repeat(line * 11 % 200))).collect()
}

#[test]
fn every_address_has_everything_in_another_format() {
    let folder = Folder::new();
    let listen = |count: &str| Running::start(&["listen", "127.0.0.1:0", "--format", "varint", "--count", count]);
    let (one, two) = (listen("3000"), listen("3000"));
    let to = ["--from-format", "u32_le", "--to-format", "varint", "--from-also", "127.0.0.1:0"];
    let mut relay = Running::start(&[&["relay", "127.0.0.1:0", &one.address, &two.address], &to[..]].concat());
    let also = relay.line().strip_prefix("listening on ").unwrap().to_owned();
    ok(&["send", &relay.address, "--format", "u32_le", &folder.file("lines", lines(2000))]);
    ok(&["send", &also, "--format", "u32_le", &folder.file("more", lines(1000))]);
    let (one, two) = (text(&one.end().stdout), text(&two.end().stdout));
    assert_eq!(one, two, "they have the same order");
    let sorted = |lines: &str| {
        let mut lines: Vec<_> = lines.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&one), sorted(&(lines(2000) + &lines(1000))));
    let output = relay.stop();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).ends_with("3000 messages received\n"), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr).matches("3000 messages written to ").count(), 2);
}

#[test]
fn tls_is_added_and_removed() {
    let folder = Folder::new();
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let cert = folder.file("cert.pem", own.cert.pem());
    let key = folder.file("key.pem", own.signing_key.serialize_pem());
    let settings = folder.file("tls.toml", format!("tls-cert = {cert:?}\ntls-key = {key:?}\n"));
    let listening = Running::start(&["listen", "127.0.0.1:0", "--count", "500"]);
    let removes = ["relay", "127.0.0.1:0", &listening.address, "--from-config", &settings];
    let removes = Running::start(&removes);
    let adds = ["relay", "127.0.0.1:0", &removes.address, "--to-tls", "--tls-ca", &cert, "--from-tls=false"];
    let adds = Running::start(&adds);
    ok(&["send", &adds.address, &folder.file("lines", lines(500))]);
    assert_eq!(text(&listening.end().stdout), lines(500));
    // What is between them is TLS, with a certificate that not everybody trusts.
    let output = run(&["send", &removes.address, "--tls", "-m", "x"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("--tls-ca FILE"), "{}", text(&output.stderr));
    assert!(adds.stop().status.success());
    removes.stop();
}

#[test]
fn a_session_is_added_and_removed() {
    let folder = Folder::new();
    let listening = Running::start(&["listen", "127.0.0.1:0", "--count", "501"]);
    let removes = Running::start(&["relay", "127.0.0.1:0", &listening.address, "--from-session"]);
    // An option of sessions is for both sides, unless one of them says otherwise.
    let adds = ["relay", "127.0.0.1:0", &removes.address, "--session-ttl", "30s", "--from-session=false"];
    let adds = Running::start(&adds);
    ok(&["send", &adds.address, &folder.file("lines", lines(500))]);
    // What is between them is a session, and what is at their ends is none.
    let said = text(&ok(&["send", &removes.address, "--session", "-m", "last"]).stderr);
    assert!(said.starts_with("1 messages taken, "), "{said}");
    let output = run(&["send", &adds.address, "--session", "-m", "x"]);
    assert!(!output.status.success() && text(&output.stderr).contains("no session with"), "{}", text(&output.stderr));
    let came = text(&listening.end().stdout);
    let mut came: Vec<_> = came.lines().collect();
    // Of two senders either may be first.
    let last = came.iter().position(|line| *line == "last").unwrap();
    came.remove(last);
    assert_eq!(came, lines(500).lines().collect::<Vec<_>>());
    assert!(adds.stop().status.success());
    removes.stop();
}

#[test]
fn one_side_with_a_session_is_told_by_an_option_of_that_side() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--session", "--count", "1"]);
    let relay = Running::start(&["relay", "127.0.0.1:0", &listening.address, "--to-session"]);
    ok(&["send", &relay.address, "-m", "one"]);
    assert_eq!(text(&listening.end().stdout), "one\n");
    relay.stop();
}

/// The frames of the default format, as far as they are whole.
fn frames(bytes: &[u8]) -> Vec<String> {
    let (mut frames, mut rest) = (Vec::new(), bytes);
    while let [low, high, _, behind @ ..] = rest {
        let length = (usize::from(low & 0x7f) | if low & 0x80 > 0 { usize::from(*high) << 7 } else { 0 }) >> 1;
        let Some(message) = behind.get(..length) else { break };
        frames.push(text(message));
        rest = &behind[length..];
    }
    frames
}

#[test]
fn the_next_address_has_what_the_first_was_not_given_and_nothing_twice() {
    let folder = Folder::new();
    let port = Port::new();
    let (first, address) = (port.listen(), &port.address);
    let file = folder.path("received");
    let next = Running::start(&["listen", "127.0.0.1:0", "--out", &file]);
    let second = next.address.clone();
    let relay = Running::start(&["relay", "127.0.0.1:0", address, &second, "--failover"]);
    // It reads a little, and is gone for good.
    let reading = std::thread::spawn(move || {
        let (mut peer, _) = first.accept().unwrap();
        drop(first);
        let mut read = vec![0; 10_000];
        peer.read_exact(&mut read).unwrap();
        frames(&read)
    });
    ok(&["send", &relay.address, &folder.file("lines", lines(30_000))]);
    let read = reading.join().unwrap();
    let output = relay.stop();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    next.stop();
    let came = std::fs::read_to_string(file).unwrap();

    let (all, came) = (lines(30_000), came.lines().collect::<Vec<_>>());
    let all: Vec<_> = all.lines().collect();
    assert_eq!(read, all[..read.len()]);
    assert!(!came.is_empty() && came == all[all.len() - came.len()..], "the rest, in order");
    assert!(read.len() + came.len() <= all.len(), "nothing is there twice");
    // What is neither there nor here was given to the first: so many are said.
    let given = all.len() - came.len();
    assert!(
        said.contains(&format!("\n{given} messages were given to {address}; those that it had not read are lost")),
        "{said}"
    );
    assert!(said.contains(&format!(" messages that {address} has not been given go to {}\n", second)), "{said}");
    assert!(said.contains(&format!("\n{} messages written to {}\n", came.len(), second)), "{said}");
}

#[test]
fn an_address_that_is_down_from_the_start_is_passed_over() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--count", "1"]);
    let Port { address: nobody, .. } = &Port::new();
    let mut relay = Running::warned(&["relay", "127.0.0.1:0", nobody, &listening.address, "--failover"]);
    assert!(relay.before[0].starts_with(&format!("warning: cannot connect to {nobody}")), "{:?}", relay.before);
    ok(&["send", &relay.address, "-m", "one"]);
    assert_eq!(text(&listening.end().stdout), "one\n");
    // Now both are down. It is said, and told by the code.
    let mut peer = TcpStream::connect(&relay.address).unwrap();
    while !relay.line().contains(" those that it had not read are lost") {}
    peer.write_all(b"\x06\0\0two").unwrap();
    let output = relay.end();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("error: 1 messages were not sent: "), "{}", text(&output.stderr));
}

#[test]
fn with_reconnect_it_goes_round_until_somebody_is_there() {
    let (one, two) = (Port::new(), Port::new());
    let (first, address, second) = (one.listen(), &one.address, &two.address);
    let options = ["--failover", "--reconnect", "1ms..10ms", "--reconnect-for", "1m"];
    let mut relay = Running::start(&[&["relay", "127.0.0.1:0", address, second], &options[..]].concat());
    drop(first);
    let mut peer = TcpStream::connect(&relay.address).unwrap();
    while !relay.line().contains(" those that it had not read are lost") {}
    peer.write_all(b"\x06\0\0one").unwrap();
    while !relay.line().contains(&format!("1 messages that {second} has not been given go to {address}")) {}
    let again = Running::start(&["listen", address, "--count", "1"]);
    assert_eq!(text(&again.end().stdout), "one\n");
    peer.shutdown(Shutdown::Write).unwrap();
    relay.stop();
}

#[test]
fn what_is_too_old_is_not_sent() {
    let port = Port::new();
    let first = port.listen();
    let options = ["--reconnect", "1ms..10ms", "--message-ttl", "50ms"];
    let mut relay = Running::start(&[&["relay", "127.0.0.1:0", &port.address], &options[..]].concat());
    drop(first);
    let mut peer = TcpStream::connect(&relay.address).unwrap();
    while !relay.line().contains(" those that it had not read are lost") {}
    peer.write_all(b"\x06\0\0one").unwrap();
    let output = relay.end();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("error: 1 messages were not sent: "), "{}", text(&output.stderr));
}

#[test]
fn what_cannot_be_sent_ends_it_or_is_counted() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--format", "u8"]);
    let folder = Folder::new();
    let file = folder.file("lines", format!("one\n{}\ntwo\n", "x".repeat(300)));
    let relay = Running::start(&["relay", "127.0.0.1:0", &listening.address, "--to-format", "u8"]);
    ok(&["send", &relay.address, &file]);
    let output = relay.end();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("error: 1 messages were not sent: "), "{}", text(&output.stderr));

    let other = Running::start(&["listen", "127.0.0.1:0", "--format", "u8", "--count", "2"]);
    let options = ["--to-format", "u8", "--keep-going"];
    let relay = Running::start(&[&["relay", "127.0.0.1:0", &other.address], &options[..]].concat());
    ok(&["send", &relay.address, &file]);
    assert_eq!(text(&other.end().stdout), "one\ntwo\n");
    let output = relay.stop();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).ends_with("error: 1 messages were not sent\n"), "{}", text(&output.stderr));
    assert_eq!(text(&listening.stop().stdout), "one\ntwo\n");
}

#[test]
fn with_keep_going_one_that_is_down_is_no_reason_to_stop() {
    let other = Running::start(&["listen", "127.0.0.1:0", "--count", "1"]);
    let Port { address: nobody, .. } = &Port::new();
    let relay = Running::warned(&["relay", "127.0.0.1:0", nobody, &other.address, "--keep-going"]);
    assert!(relay.before[0].starts_with(&format!("error: cannot connect to {nobody}")), "{:?}", relay.before);
    ok(&["send", &relay.address, "-m", "one"]);
    assert_eq!(text(&other.end().stdout), "one\n");
    let output = relay.stop();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("error: 1 messages were not sent: "), "{}", text(&output.stderr));
}

#[test]
fn what_was_not_sent_on_is_not_acknowledged() {
    let listening = Running::start(&["listen", "127.0.0.1:0", "--format", "u8", "--count", "2"]);
    let options = ["--from-session", "--to-format", "u8", "--keep-going"];
    let relay = Running::start(&[&["relay", "127.0.0.1:0", &listening.address], &options[..]].concat());
    let output = run(&["send", &relay.address, "--session", "-m", "one", "-m", &"x".repeat(300), "-m", "two"]);
    let said = text(&output.stderr);
    assert!(said.starts_with("2 messages taken, 1 in doubt, 0 refused, 0 not sent, in "), "{said}");
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert_eq!(text(&listening.end().stdout), "one\ntwo\n");
    assert_eq!(relay.stop().status.code(), Some(5));
}

#[test]
fn what_the_other_end_has_not_taken_is_not_acknowledged() {
    // Nobody else is to be found there when they have ended.
    let (one, two) = (Port::new(), Port::new());
    let listening = Running::dying(&["listen", &one.address, "--session", "--exec", "kill -s KILL $PPID"]);
    let relay = Running::start(&["relay", &two.address, &listening.address, "--session-ttl", "1s"]);
    let output = run(&["send", &relay.address, "--session-ttl", "2s", "-m", "one"]);
    let said = text(&output.stderr);
    assert!(said.starts_with("0 messages taken, 1 in doubt, 0 refused, 0 not sent, in "), "{said}");
    assert_eq!(output.status.code(), Some(5), "{said}");
    let output = relay.end();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("1 messages were not taken, as far as is known"), "{said}");
    assert!(!said.contains("are lost"), "{said}");
    assert_eq!(listening.end().status.signal(), Some(9));
}
