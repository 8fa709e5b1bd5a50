//! The example `shipper`, as a process of its own: its server comes late, dies in the middle, and comes back.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;
use std::{env, fs};

use async_std::task::block_on;
use buffstreams::{Config, Listener};
use futures::StreamExt;

use crate::net::{example, signal};

const LINES: u32 = 300;

fn ship(input: &mut ChildStdin, lines: std::ops::Range<u32>) {
    for line in lines {
        writeln!(input, "{line}").unwrap();
    }
    input.flush().unwrap();
}

async fn receive(listener: &mut Listener, lines: u32) -> Vec<u32> {
    let lines = listener.take(lines as usize).map(|(_, line)| str::from_utf8(&line).unwrap().parse::<u32>().unwrap());
    lines.collect().await
}

fn start(letters: &PathBuf, addresses: &[String]) -> Child {
    let mut command = example("shipper");
    command.arg(letters).args(addresses).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Reads to the end what it prints: how many lines were delivered, and how many kept.
fn report(mut child: Child) -> (u32, u32) {
    let printed = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).last().unwrap();
    assert!(child.wait().unwrap().success());
    let mut numbers = printed.split(' ').filter_map(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn the_example_ships_through_a_server_that_comes_late_dies_and_comes_back() {
    let config = || Config::new().max_message_size(64 << 10);
    block_on(async {
        // Two ports that nobody has: only then does the server come at the first.
        let places = [Listener::bind("127.0.0.1:0", config()).await, Listener::bind("127.0.0.1:0", config()).await];
        let addresses = places.map(|place| place.unwrap().local_addr().to_string());
        let letters = env::temp_dir().join(format!("shipper-{}.letters", std::process::id()));
        let mut child = start(&letters, &addresses);
        let mut input = child.stdin.take().unwrap();
        ship(&mut input, 0..LINES / 3);

        let mut server = Listener::bind(&*addresses[0], config()).await.unwrap();
        let early = receive(&mut server, LINES / 3).await;
        assert!(early.into_iter().eq(0..LINES / 3), "what was read before it came");
        drop(server);
        ship(&mut input, LINES / 3..2 * LINES / 3);

        let mut server = Listener::bind(&*addresses[0], config()).await.unwrap();
        ship(&mut input, 2 * LINES / 3..LINES);
        let mut received = BTreeSet::new();
        // The last of them has come when all are delivered but those that died with the first server.
        while received.last() != Some(&(LINES - 1)) {
            received.extend(receive(&mut server, 1).await);
        }
        drop(server);

        // Nobody is there any more: these are in the file, when it ends.
        ship(&mut input, LINES..LINES + 10);
        signal(&child, "INT");
        let (delivered, kept) = async_std::task::spawn_blocking(move || report(child)).await;
        drop(input);
        let file = fs::read_to_string(&letters).unwrap();
        fs::remove_file(&letters).unwrap();
        let in_file: Vec<u32> = file.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(in_file.len() as u32, kept);
        assert!(in_file.iter().all(|line| !received.contains(line)), "none is both: {in_file:?}");
        assert!(delivered >= LINES / 3 + received.len() as u32, "{delivered} of {LINES}");
    });
}

#[test]
fn a_line_that_is_too_long_is_kept_and_one_that_is_not_utf_8_is_delivered() {
    let config = || Config::new().max_message_size(64 << 10);
    block_on(async {
        let server = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let letters = env::temp_dir().join(format!("shipper-{}-long.letters", std::process::id()));
        let mut child = start(&letters, &[server.local_addr().to_string()]);
        let (mut input, long) = (child.stdin.take().unwrap(), vec![b'l'; (64 << 10) + 1]);
        let lines: [&[u8]; 4] = [b"first", &long, b"\xff\xfe", b"last"];
        input.write_all(&lines.join(&b'\n')).unwrap();
        drop(input);

        let received = server.map(|(_, line)| line).take(3).collect::<Vec<_>>();
        let received = async_std::future::timeout(Duration::from_secs(60), received).await.unwrap();
        assert_eq!(received, [lines[0], lines[2], lines[3]]);
        assert_eq!(async_std::task::spawn_blocking(move || report(child)).await, (3, 1));
        let file = fs::read(&letters).unwrap();
        fs::remove_file(&letters).unwrap();
        assert!(file.strip_suffix(b"\n") == Some(&long), "{} bytes are kept", file.len());
    });
}
