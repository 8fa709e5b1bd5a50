//! `buffstreams proxy`: passes bytes on, and cuts, delays or slows them.

use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use fastrand::Rng;
use futures::future::{join_all, select, try_join};
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, select_biased};
use smol::net::{TcpListener, TcpStream};
use smol::{Timer, channel};
use socket2::SockRef;

use super::tcp_address;
use crate::failure::{Code, Failure};
use crate::settings::Side;
use crate::stop::Stop;
use crate::terminal::say;
use crate::units::{Size, Time};

/// How much is passed on at once, in bytes.
const PIECE: usize = 16 * 1024;
/// How many pieces are on their way in one direction at the most: more than that, and `--delay` slows it down as well.
const PIECES: usize = 256;
/// In how many pieces a second `--throttle` lets through what it lets through.
const STEPS: usize = 20;
/// How long a connection that is cut cleanly takes what still comes: one that is dropped with unread input resets.
const LINGER: Duration = Duration::from_secs(1);
/// The longest delay.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// How long it waits when it cannot accept.
const RETRY: Duration = Duration::from_millis(100);

/// Pass bytes on over TCP, and cut, delay or slow them
///
/// It knows nothing of messages. The same seed cuts the same connections at the same bytes. The first Ctrl-C lets the
/// connections finish, the second ends at once.
#[derive(Args, Clone, Debug)]
pub(super) struct Proxy {
    /// Where to listen: HOST:PORT or :PORT; with port 0, the system chooses one
    listen: String,
    /// Where to pass it on to: HOST:PORT, or :PORT for this machine
    target: String,
    /// Cut the first connection after so many bytes, both directions together
    #[arg(long, value_name = "SIZE", conflicts_with = "cut_every")]
    cut_after: Option<Size>,
    /// Cut each connection, after as many bytes on the average: from 1 to twice as many, by the seed
    #[arg(long, value_name = "SIZE")]
    cut_every: Option<Size>,
    /// Cut by an end in both directions, instead of a reset
    #[arg(long)]
    cleanly: bool,
    /// How much later each byte comes, a day at the most
    #[arg(long, value_name = "TIME")]
    delay: Option<Time>,
    /// How many bytes a second go through, in each direction of each connection
    #[arg(long, value_name = "SIZE")]
    throttle: Option<Size>,
    /// What the cuts depend on, a number [default: another each time]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Say who comes and goes
    #[arg(short, long)]
    verbose: bool,
}

/// What all connections have come to.
#[derive(Default)]
struct Passed {
    up: AtomicU64,
    down: AtomicU64,
    cuts: AtomicU64,
}

/// Why a connection ends before its time.
enum End {
    Cut,
    Broken(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Proxy {
    pub(super) async fn run(self, mut stop: Stop) -> Result<(), Failure> {
        let zeros = [("--cut-after", self.cut_after), ("--cut-every", self.cut_every), ("--throttle", self.throttle)];
        if let Some((name, _)) = zeros.iter().find(|(_, size)| *size == Some(Size(0))) {
            return Err(Failure::new(Code::Usage, format!("{name} is a number of bytes, above 0")));
        }
        let address = tcp_address(&self.listen, Side::Listen);
        let failed = |error| Failure::new(Code::Connection, format!("cannot listen on {address}: {error}"));
        let listener = TcpListener::bind(&address).await.map_err(failed)?;
        say(format_args!("listening on {}", listener.local_addr().map_err(failed)?));
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..));
        if self.cut_every.is_some() && self.seed.is_none() {
            say(format_args!("it can be had again: --seed {seed}"));
        }

        let (passed, mut connections) = (Arc::new(Passed::default()), Vec::new());
        for number in 0.. {
            let client = select_biased! {
                _ = stop => break,
                accepted = listener.accept().fuse() => accepted,
            };
            let client = match client {
                Ok((client, _)) => client,
                Err(error) => {
                    say(format_args!("warning: cannot accept a connection: {error}"));
                    Timer::after(RETRY).await;
                    continue;
                }
            };
            let (proxy, passed, cut) = (self.clone(), passed.clone(), self.cut(seed, number));
            connections.retain(|connection: &smol::Task<()>| !connection.is_finished());
            connections.push(smol::spawn(async move { proxy.connect(client, number, cut, &passed).await }));
        }
        drop(listener);
        join_all(connections).await;
        let [up, down, cuts] = [&passed.up, &passed.down, &passed.cuts].map(|count| count.load(Ordering::Relaxed));
        say(format_args!("{up} bytes passed on to the target, {down} back; {cuts} connections cut"));
        Ok(())
    }

    /// After how many bytes a connection is cut, by its number.
    fn cut(&self, seed: u64, number: u64) -> Option<u64> {
        match (self.cut_after, self.cut_every) {
            (Some(Size(after)), _) => (number == 0).then_some(after as u64),
            (_, Some(Size(every))) => {
                // One generator for each connection, so that none depends on what the others did.
                let mut rng = Rng::with_seed(Rng::with_seed(seed).u64(..) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                Some(rng.u64(1..=2 * every as u64))
            }
            _ => None,
        }
    }

    async fn connect(&self, client: TcpStream, number: u64, cut: Option<u64>, passed: &Passed) {
        let number = number + 1;
        let address = tcp_address(&self.target, Side::Dial);
        let server = match TcpStream::connect(&address).await {
            Ok(server) => server,
            Err(error) => {
                say(format_args!("warning: connection {number}: cannot connect to {address}: {error}"));
                return reset([client]);
            }
        };
        if self.verbose {
            say(format_args!("connection {number} is there"));
        }
        // What comes in pieces goes in pieces.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let left = AtomicU64::new(cut.unwrap_or(u64::MAX));
        let up = self.pass_on(client.clone(), server.clone(), &left, &passed.up);
        let down = self.pass_on(server.clone(), client.clone(), &left, &passed.down);
        match try_join(up, down).await {
            Ok(_) if self.verbose => say(format_args!("connection {number} has ended")),
            Ok(_) => {}
            Err(End::Cut) => {
                passed.cuts.fetch_add(1, Ordering::Relaxed);
                say(format_args!("connection {number} is cut after {} bytes", cut.unwrap_or_default()));
                if self.cleanly {
                    end([client, server]).await;
                } else {
                    reset([client, server]);
                }
            }
            Err(End::Broken(error)) => {
                say(format_args!("warning: connection {number} is gone: {error}"));
                reset([client, server]);
            }
        }
    }

    /// Passes one direction on to its end, or until no more bytes are `left`.
    async fn pass_on(
        &self,
        mut from: TcpStream,
        mut to: TcpStream,
        left: &AtomicU64,
        passed: &AtomicU64,
    ) -> Result<(), End> {
        let delay = self.delay.map_or(Duration::ZERO, |Time(delay)| delay.min(LONG));
        let piece = self.throttle.map_or(PIECE, |Size(bytes)| (bytes / STEPS).clamp(1, PIECE));
        let (send, receive) = channel::bounded(PIECES);
        let read = async move {
            loop {
                let mut bytes = vec![0; piece];
                let read = from.read(&mut bytes).await?;
                bytes.truncate(read);
                if read == 0 || send.send((Instant::now() + delay, bytes)).await.is_err() {
                    return Ok(());
                }
            }
        };
        let write = async {
            let mut free = Instant::now();
            while let Ok((due, bytes)) = receive.recv().await {
                let at = due.max(free);
                if at > Instant::now() {
                    Timer::at(at).await;
                }
                let room = left.load(Ordering::Relaxed);
                let bytes = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
                left.store(room - bytes.len() as u64, Ordering::Relaxed);
                to.write_all(bytes).await?;
                passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if room == bytes.len() as u64 {
                    return Err(End::Cut);
                }
                if let Some(Size(rate)) = self.throttle {
                    free = Instant::now().max(at) + Duration::from_secs_f64(bytes.len() as f64 / rate as f64);
                }
            }
            let _ = to.shutdown(Shutdown::Write);
            Ok(())
        };
        try_join(read, write).await.map(drop)
    }
}

/// Closes sockets with a reset.
fn reset<const N: usize>(sockets: [TcpStream; N]) {
    for socket in sockets {
        let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    }
}

/// Ends both, and takes what still comes for a while.
async fn end(sockets: [TcpStream; 2]) {
    let rest = sockets.map(|socket| async move {
        let _ = socket.shutdown(Shutdown::Write);
        let _ = futures::io::copy(socket, &mut futures::io::sink()).await;
    });
    let _ = select(pin!(join_all(rest)), Timer::after(LINGER)).await;
}
