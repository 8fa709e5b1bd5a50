//! Ships lines from standard input to the first of some servers that is there: `shipper LETTERS ADDRESS [ADDRESS…]`. They may
//! come later than this, die and come back. On Ctrl-C, or at the end of the input, it delivers what it has read; what nobody has
//! taken then is in the file `LETTERS`, and so is a line over 64 KiB. Without arguments it plays all the parts.
#![allow(clippy::print_stdout)] // To print is what it is for.

use std::io::{BufRead, Write};
use std::time::Duration;

use async_signal::{Signal, Signals};
use buffstreams::{Backoff, BoxError, Bytes, Config, Listener, Manager, Route};
use futures::{SinkExt, Stream, StreamExt, channel::mpsc, select_biased, stream};

fn config() -> Config {
    let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(1));
    Config::new().max_message_size(64 << 10).reconnect(backoff.max_elapsed(Duration::from_secs(5)))
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let Some(letters) = arguments.next() else { return play().await };
    let (mut lines, read) = mpsc::channel(100);
    // Standard input blocks.
    std::thread::spawn(move || {
        let stdin = std::io::stdin().lock().split(b'\n').map_while(Result::ok); // Any bytes.
        stdin.for_each(|line| drop(futures::executor::block_on(lines.send(Bytes::from(line)))));
    });
    ship(read, &letters, arguments.collect()).await
}

async fn ship(lines: mpsc::Receiver<Bytes>, file: &str, addresses: Vec<String>) -> Result<(), BoxError> {
    let mut interrupted = Signals::new([Signal::Int, Signal::Term])?.fuse();
    let manager = Manager::new(config());
    let (mut refuse, refused) = mpsc::channel(1);
    let letters = stream::select(manager.dead_letters().map(|letter| letter.message), refused);
    let letters = async_std::task::spawn(keep(letters, std::fs::File::create(file)?));
    addresses.iter().try_for_each(|address| manager.open(address))?; // They need not be there yet.
    let (mut lines, mut sink) = (lines.fuse(), manager.sink_to(Route::failover(&addresses)));
    loop {
        select_biased! {
            _ = interrupted.next() => lines.get_mut().close(), // What was read is shipped.
            line = lines.next() => match line {
                // One that nobody takes becomes a letter, and one that is too long does so here.
                Some(line) => if let Err(error) = sink.feed(line).await {
                    refuse.send(error.into_unsent().unwrap_or_default()).await.ok();
                },
                None => break,
            }
        }
    }
    drop((sink, refuse)); // What it has goes on in the background, and the shutdown waits for that: to one after the other.
    let endings = manager.shutdown_in_order(&addresses, Duration::from_secs(10)).await;
    let kept = letters.await?;
    println!("{} lines delivered, {kept} kept", endings.values().map(|ending| ending.written).sum::<u64>());
    Ok(())
}

/// Writes them down until the manager has ended.
async fn keep(mut letters: impl Stream<Item = Bytes> + Unpin, mut file: std::fs::File) -> std::io::Result<u64> {
    let mut kept = 0;
    while let Some(letter) = letters.next().await {
        kept += 1;
        file.write_all(&[&letter[..], b"\n"].concat())?;
    }
    Ok(kept)
}

async fn play() -> Result<(), BoxError> {
    let server = Listener::bind("127.0.0.1:0", config()).await?;
    let (mut lines, read) = mpsc::channel(3);
    lines.send_all(&mut stream::iter(["one", "two", "three"]).map(|line| Ok(Bytes::from(line)))).await?;
    drop(lines);
    let (address, closer) = (server.local_addr().to_string(), server.closer());
    let receiving = async_std::task::spawn(server.map(|(_, line)| line).collect::<Vec<_>>());
    ship(read, "/dev/null", vec![address]).await?;
    closer.close().await?;
    println!("received {:?}", receiving.await);
    Ok(())
}
