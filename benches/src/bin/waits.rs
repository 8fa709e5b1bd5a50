//! What it costs to wait at a manager: for those who write while many others do, for those who give up, and for each of
//! several that always have something.
//!
//! ```text
//! cargo run --release -p buffstreams-bench --bin waits                  all tables
//! cargo run --release -p buffstreams-bench --bin waits -- crowd         one of them: crowd, away, given-up or shares
//! cargo run --release -p buffstreams-bench --bin waits -- crowd 1000    with so many who wait
//! ```

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs};

use async_std::task;
use buffstreams::{Backoff, Bytes, Config, Manager, WireFormat};
use futures::SinkExt;
use futures::future::join_all;
use rustix::time::{ClockId, clock_gettime};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const CROWDS: [u64; 4] = [1_000, 4_000, 32_000, 100_000];
/// The message of the Go library's own benchmark.
const MESSAGE: Bytes = Bytes::from_static(&[7; 110]);
const SINKS: usize = 8;
const TIME: Duration = Duration::from_secs(4);

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let asked = |table: &str| args.first().is_none_or(|only| only == table);
    let crowds = match args.get(1) {
        Some(crowd) => vec![crowd.parse()?],
        None => CROWDS.to_vec(),
    };
    for (table, is_away) in [("crowd", false), ("away", true)] {
        if asked(table) {
            let where_to = if is_away { "that is away, and comes back" } else { "that stalls, and goes on" };
            println!("\nwrites to a peer {where_to}");
            println!("{:>10} | {:>9} | {:>12} | {:>12}", "at once", "writes", "us a write", "CPU us");
            for crowd in &crowds {
                write_at_once(*crowd, is_away)?;
            }
        }
    }
    if asked("given-up") {
        give_up()?;
    }
    if asked("shares") {
        share()?;
    }
    Ok(())
}

fn config() -> Config {
    Config::new().wire_format(WireFormat::u32_be())
}

/// A peer that reads and forgets, from the moment that it is told to.
struct Peer {
    addr: SocketAddr,
    start: Sender<()>,
    reading: JoinHandle<()>,
}

impl Peer {
    fn at(addr: &str) -> Result<Self> {
        let listener = TcpListener::bind(addr)?;
        let addr = listener.local_addr()?;
        let (start, started) = channel();
        let reading = thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut buffer = vec![0; 1 << 18];
            if started.recv().is_ok() {
                while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
            }
        });
        Ok(Self { addr, start, reading })
    }

    fn go(&self) {
        // It may have ended, and that is seen elsewhere.
        let _ = self.start.send(());
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A manager whose one peer has gone.
async fn away(queue: usize) -> Result<(Manager, SocketAddr)> {
    let every = Backoff::exponential(Duration::from_millis(10), Duration::from_millis(10));
    let manager = Manager::new(config().reconnect(every).queue_bytes(queue));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    manager.dial(addr).await?;
    drop(listener.accept()?);
    drop(listener);
    Ok((manager, addr))
}

/// So many write at once, again and again, and all but a few of them wait.
fn write_at_once(crowd: u64, is_away: bool) -> Result<()> {
    let writes = (2 * crowd).max(200_000);
    task::block_on(async {
        let (manager, peer, addr) = if is_away {
            let (manager, addr) = away(1 << 16).await?;
            (manager, None, addr)
        } else {
            let peer = Peer::at("127.0.0.1:0")?;
            let manager = Manager::new(config());
            manager.dial(peer.addr).await?;
            let addr = peer.addr;
            (manager, Some(peer), addr)
        };
        let begun = Arc::new(AtomicU64::new(0));
        let producing: Vec<_> = (0..crowd)
            .map(|_| {
                let (manager, begun) = (manager.clone(), begun.clone());
                task::spawn(async move {
                    while begun.fetch_add(1, Relaxed) < writes {
                        manager.write(addr, MESSAGE).await?;
                    }
                    Ok::<_, buffstreams::Error>(())
                })
            })
            .collect();
        // All are waiting but those whose messages are with the kernel.
        while begun.load(Relaxed) < crowd {
            task::sleep(Duration::from_millis(10)).await;
        }
        task::sleep(Duration::from_millis(500)).await;
        let before = begun.load(Relaxed);
        let peer = match peer {
            Some(peer) => peer,
            None => Peer::at(&addr.to_string())?,
        };
        let (start, used) = (Instant::now(), cpu());
        peer.go();
        for done in join_all(producing).await {
            done?;
        }
        let (took, used) = (start.elapsed(), cpu() - used);
        let each = |time: Duration| time.as_secs_f64() * 1e6 / (writes + crowd - before) as f64;
        println!("{crowd:>10} | {writes:>9} | {:>12.2} | {:>12.2}", each(took), each(used));
        drop(manager);
        peer.reading.join().map_err(|_| "the peer panicked")?;
        Ok(())
    })
}

fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096
}

/// Requests that give up, each in a task of its own, while the peer is away and the queue is full.
fn give_up() -> Result<()> {
    println!("\nwrites that are given up after 20 ms, 1,000 at a time, while the peer is away and the queue is full");
    println!("{:>10} | {:>10} | {:>12} | {:>12}", "given up", "RSS, KiB", "bytes a write", "CPU us");
    task::block_on(async {
        let (manager, addr) = away(1 << 16).await?;
        let (mut first, mut given_up) = (0, 0_u64);
        for round in 0..=10 {
            let used = cpu();
            for _ in 0..10 {
                let requests = (0..1_000).map(|_| {
                    let manager = manager.clone();
                    task::spawn(async move {
                        async_std::future::timeout(Duration::from_millis(20), manager.write(addr, MESSAGE))
                            .await
                            .is_err()
                    })
                });
                let requests: Vec<_> = requests.collect();
                given_up += join_all(requests).await.into_iter().filter(|given_up| *given_up).count() as u64;
            }
            let (rss, used) = (resident(), cpu() - used);
            if round == 0 {
                // The tasks, the timers and the queue itself.
                first = rss;
            }
            let each = rss.saturating_sub(first) / (10_000 * round).max(1);
            println!("{given_up:>10} | {:>10} | {each:>12} | {:>12.2}", rss >> 10, used.as_secs_f64() * 1e6 / 1e4);
        }
        Ok(())
    })
}

/// Sinks that always have something, and one `write` after the other beside them.
fn share() -> Result<()> {
    println!("\n{SINKS} sinks that always have something, and one who writes beside them, for {} s", TIME.as_secs());
    task::block_on(async {
        let peer = Peer::at("127.0.0.1:0")?;
        let manager = Manager::new(config());
        manager.dial(peer.addr).await?;
        peer.go();
        let (addr, over) = (peer.addr, Arc::new(AtomicBool::new(false)));
        let feeding: Vec<_> = (0..SINKS)
            .map(|_| {
                let (mut sink, over) = (manager.sink(), over.clone());
                task::spawn(async move {
                    let mut fed = 0_u64;
                    while !over.load(Relaxed) {
                        sink.feed((addr.into(), MESSAGE)).await?;
                        fed += 1;
                    }
                    sink.flush().await?;
                    Ok::<_, buffstreams::Error>(fed)
                })
            })
            .collect();
        let start = Instant::now();
        let mut waits = Vec::new();
        while start.elapsed() < TIME {
            let begun = Instant::now();
            manager.write(addr, MESSAGE).await?;
            waits.push(begun.elapsed());
        }
        over.store(true, Relaxed);
        let mut fed = Vec::new();
        for sink in join_all(feeding).await {
            fed.push(sink?);
        }
        waits.sort();
        fed.sort();
        let (least, most) = (fed[0], fed[SINKS - 1]);
        println!(
            "messages a sink: {least} to {most}, {:.2} times; all: {}",
            most as f64 / least as f64,
            fed.iter().sum::<u64>()
        );
        println!(
            "{} writes waited {:?} (median) and {:?} (longest)",
            waits.len(),
            waits[waits.len() / 2],
            waits[waits.len() - 1]
        );
        drop(manager);
        peer.reading.join().map_err(|_| "the peer panicked")?;
        Ok(())
    })
}
