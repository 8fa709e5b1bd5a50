//! `proxy`: it passes on every byte, but for those behind a cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::program::{Folder, Port, Running, checksum, ok, text};

/// Sends this through a proxy to a target that reads to the end, and returns what that has read, and the error it met.
fn through(proxy: &Running, target: &TcpListener, bytes: &[u8]) -> (Vec<u8>, std::io::Result<usize>) {
    let mut client = TcpStream::connect(&proxy.address).unwrap();
    let mut server = target.accept().unwrap().0;
    let bytes = bytes.to_vec();
    let write = std::thread::spawn(move || {
        // Behind a cut it cannot.
        let _ = client.write_all(&bytes).and_then(|()| client.shutdown(Shutdown::Write));
        let _ = client.read(&mut [0]);
    });
    let mut read = Vec::new();
    let outcome = server.read_to_end(&mut read);
    drop(server);
    write.join().unwrap();
    (read, outcome)
}

fn target() -> (TcpListener, String) {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = target.local_addr().unwrap().to_string();
    (target, address)
}

#[test]
fn everything_goes_through_and_back() {
    let folder = Folder::new();
    let echo = Running::start(&["listen", "127.0.0.1:0", "--echo", "--print", "none"]);
    let proxy = Running::start(&["proxy", "127.0.0.1:0", &echo.address, "--delay", "2ms", "--verbose"]);
    let lines: String = (0..3000).map(|line| format!("line {line}\n")).collect();
    let output = ok(&["send", &proxy.address, "--replies", "3000", &folder.file("lines", &lines)]);
    assert_eq!(checksum(&output.stdout), checksum(lines.as_bytes()));
    let output = proxy.stop();
    assert!(output.status.success());
    let (said, bytes) = (text(&output.stderr), lines.len() + 3000 * 2);
    assert!(said.contains("connection 1 is there\nconnection 1 has ended\n"), "{said}");
    assert!(
        said.ends_with(&format!("{bytes} bytes passed on to the target, {bytes} back; 0 connections cut\n")),
        "{said}"
    );
    echo.stop();
}

#[test]
fn the_first_connection_is_cut_at_exactly_the_byte() {
    let (target, address) = target();
    let sent: Vec<u8> = (0..200_000_u32).map(|byte| byte as u8).collect();
    for (cleanly, more) in [(true, &["--cleanly"][..]), (false, &[])] {
        let args = [&["proxy", "127.0.0.1:0", &address, "--cut-after", "100001"], more].concat();
        let mut proxy = Running::start(&args);
        let (read, outcome) = through(&proxy, &target, &sent);
        assert_eq!(proxy.line(), "connection 1 is cut after 100001 bytes");
        // A reset may overtake what is in front of it.
        assert!(read == sent[..100_001] || !cleanly && sent[..100_001].starts_with(&read), "{}", read.len());
        assert_eq!(outcome.is_ok(), cleanly, "{outcome:?}");
        assert!(through(&proxy, &target, &sent).0 == sent, "the second is not cut");
        assert!(text(&proxy.stop().stderr).ends_with("; 1 connections cut\n"));
    }
}

#[test]
fn the_same_seed_cuts_at_the_same_bytes() {
    let (target, address) = target();
    let cuts = |seed: &str| {
        let mut proxy =
            Running::start(&["proxy", "127.0.0.1:0", &address, "--cut-every", "10KiB", "--seed", seed, "--cleanly"]);
        let cuts: Vec<_> = (0..5).map(|_| through(&proxy, &target, &[7; 30_000]).0.len()).collect();
        for (number, cut) in cuts.iter().enumerate() {
            assert_eq!(proxy.line(), format!("connection {} is cut after {cut} bytes", number + 1));
        }
        proxy.stop();
        cuts
    };
    let first = cuts("1");
    assert!(first.iter().all(|cut| (1..=20_480).contains(cut)), "{first:?}");
    assert_eq!(first, cuts("1"));
    assert_ne!(first, cuts("2"));
    // A seed that was not given is said.
    let mut proxy = Running::start(&["proxy", "127.0.0.1:0", &address, "--cut-every", "10KiB"]);
    let said = proxy.line();
    let seed = said.strip_prefix("it can be had again: --seed ").unwrap();
    assert!(seed.parse::<u64>().is_ok(), "{said}");
    proxy.stop();
}

#[test]
fn bytes_come_later_and_slower() {
    let (target, address) = target();
    let proxy = Running::start(&["proxy", "127.0.0.1:0", &address, "--delay", "300ms"]);
    let start = Instant::now();
    assert_eq!(through(&proxy, &target, b"hello").0, b"hello");
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    proxy.stop();
    let proxy = Running::start(&["proxy", "127.0.0.1:0", &address, "--throttle", "100KB"]);
    let start = Instant::now();
    assert_eq!(through(&proxy, &target, &[7; 50_000]).0.len(), 50_000);
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    proxy.stop();
}

#[test]
fn a_target_that_is_not_there_is_said() {
    let nobody = Port::new();
    let mut proxy = Running::start(&["proxy", "127.0.0.1:0", &nobody.address]);
    let mut client = TcpStream::connect(&proxy.address).unwrap();
    assert!(client.read(&mut [0]).is_err(), "a reset");
    assert!(proxy.line().starts_with(&format!("warning: connection 1: cannot connect to {}: ", nobody.address)));
    assert!(proxy.stop().status.success());
}
