//! Clients and ingress nodes, each a process of its own: this program once more.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use buffstreams::{
    Address, Backoff, Bytes, Closer, Config, DeadLetters, Error, Listener, Manager, ManagerSink, Outcome,
};
use buffstreams::{Session, Tokio};
use buffstreams_nats::Ingress;
use futures::future::Either;
use futures::{SinkExt, StreamExt};
use socket2::Socket;
use tokio::task::spawn_blocking;

use crate::server::{bind, connect_to, until};

/// How long a message is.
const LEN: usize = 110;
/// How often a client sends a part of its messages, unless the part before it is still on its way.
const TICK: Duration = Duration::from_millis(50);

/// A process.
pub(crate) struct Part {
    child: Child,
    /// It ends when this does: so it outlives no test.
    input: Option<ChildStdin>,
    output: Option<BufReader<ChildStdout>>,
}

/// What a process has counted.
pub(crate) type Figures = BTreeMap<String, u64>;

impl Part {
    pub(crate) fn start(part: &str, settings: &[(&str, &dyn Display)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "parts::part", "--ignored", "--nocapture"]).env("PART", part);
        for (name, value) in settings {
            command.env(name, value.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().map(BufReader::new));
        Self { child, input, output }
    }

    /// As `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What a node has counted by now.
    pub(crate) async fn ask(&mut self) -> Figures {
        self.input.as_mut().unwrap().write_all(b"figures\n").unwrap();
        self.figures().await
    }

    /// Waits for its end, which comes by itself.
    pub(crate) async fn end(mut self) -> Figures {
        let figures = self.figures().await;
        assert!(self.child.wait().unwrap().success());
        figures
    }

    /// Has it end, when all is done that it has.
    pub(crate) async fn close(mut self) -> Figures {
        drop(self.input.take());
        self.end().await
    }

    async fn figures(&mut self) -> Figures {
        let mut output = self.output.take().unwrap();
        let reading = spawn_blocking(move || {
            let mut line = String::new();
            while !line.contains("FIGURES ") {
                line.clear();
                assert!(output.read_line(&mut line).unwrap() > 0, "it has ended");
            }
            (line, output)
        });
        let (line, output) = tokio::time::timeout(Duration::from_secs(900), reading).await.expect("no end").unwrap();
        self.output = Some(output);
        let figure = |text: &str| text.split_once('=').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
        line.split_once("FIGURES ").unwrap().1.split_whitespace().filter_map(figure).collect()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It has ended, unless a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what the other processes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it is started by the tests of the cluster"]
async fn part() {
    match std::env::var("PART").as_deref() {
        Ok("node") => node().await,
        Ok("client") => client().await,
        _ => {}
    }
}

fn setting(name: &str) -> String {
    std::env::var(name).unwrap()
}

fn config() -> Config {
    let config = Config::new().runtime(Tokio::current());
    if has_sessions() { config.session(Session::new()) } else { config }
}

fn has_sessions() -> bool {
    setting("SESSIONS") == "true"
}

/// The subject of a message says which connection it came by, or which session.
async fn node() {
    let urls: Vec<_> = setting("SERVERS").split(',').map(str::to_owned).collect();
    let (address, name): (SocketAddr, _) = (setting("ADDRESS").parse().unwrap(), setting("NAME"));
    let socket = bind(address, Socket::set_reuse_port);
    socket.listen(128).unwrap();
    let listener = Listener::from_std(TcpListener::from(socket), config()).unwrap();
    let subject = move |peer: buffstreams::Peer, _: &[u8]| format!("orders.{name}.{}", peer.id());
    let ingress = Ingress::by(connect_to(&urls).await, subject).message_id(|_peer, message| {
        let id = message.split(|byte| *byte == b' ').next().unwrap_or(message);
        String::from_utf8_lossy(id).into_owned()
    });
    let ingress = if setting("ORDERED") == "true" { ingress.ordered() } else { ingress };
    let closing = close_when_told(listener.closer(), ingress.clone());
    if has_sessions() {
        futures::join!(ingress.run_acked(listener.deliveries()), closing);
    } else {
        futures::join!(ingress.run(listener), closing);
    }
    tell(&ingress);
}

async fn close_when_told(closer: Closer, ingress: Ingress) {
    let asked = spawn_blocking(move || io::stdin().lines().for_each(|_line| tell(&ingress)));
    asked.await.unwrap();
    closer.close().await.unwrap();
}

fn tell(ingress: &Ingress) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    let stats = ingress.stats();
    println!(
        "FIGURES received={} stored={} duplicates={} repeated={} peak={peak}",
        stats.received, stats.stored, stats.duplicates, stats.repeated
    );
}

/// What a client has given to its manager, and what of it was acknowledged: `+7` and `=7`. It is with the system before anything
/// else is done, so it is there when the client is killed.
struct Journal(File);

impl Journal {
    fn write(&mut self, sign: char, numbers: impl IntoIterator<Item = u64>) {
        let mut lines = String::new();
        numbers.into_iter().for_each(|number| writeln!(lines, "{sign}{number}").unwrap());
        self.0.write_all(lines.as_bytes()).unwrap();
    }
}

/// Sends its messages in equal parts, each when the one before it is settled: written, or with a session acknowledged or back.
/// What comes back in doubt is sent again with the next.
async fn client() {
    std::thread::spawn(|| {
        let _ = io::stdin().lines().count();
        std::process::exit(1);
    });
    let (address, name, count) =
        (Address::from(setting("ADDRESS")), setting("NAME"), setting("COUNT").parse().unwrap());
    let takes = Duration::from_millis(setting("MILLIS").parse().unwrap());
    let mut journal = Journal(OpenOptions::new().create(true).append(true).open(setting("JOURNAL")).unwrap());
    let backoff = Backoff::exponential(Duration::from_millis(20), Duration::from_millis(500));
    let manager = Manager::new(config().reconnect(backoff));
    let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
    until("connection", async || manager.dial(&address).await.ok()).await;

    let (mut interval, start) = (tokio::time::interval(TICK), Instant::now());
    let (mut fresh, mut sends, mut again, mut longest) = (0, 0, Vec::new(), Duration::ZERO);
    // When those in doubt were sent for the first time.
    let mut since = BTreeMap::<u64, Instant>::new();
    let mut resent = 0;
    while fresh < count || !again.is_empty() {
        interval.tick().await;
        let due = (count as f64 * start.elapsed().as_secs_f64() / takes.as_secs_f64()) as u64;
        let mut part = std::mem::take(&mut again);
        resent += part.len();
        longest = part.iter().map(|number| since[number].elapsed()).fold(longest, Duration::max);
        part.extend(fresh..due.min(count).max(fresh));
        fresh = fresh.max(due.min(count));
        journal.write('+', part.iter().copied());
        let message = |number: &u64| {
            sends += 1;
            Bytes::from(format!("{:LEN$}", format!("{name}.{number} {sends}")))
        };
        let (messages, sent_at): (Vec<_>, _) = (part.iter().map(message).collect(), Instant::now());
        again = settle(&manager, &mut sink, &mut letters, &address, messages).await;
        for number in &again {
            since.entry(*number).or_insert(sent_at);
        }
        if has_sessions() {
            journal.write('=', part.into_iter().filter(|number| !again.contains(number)));
        }
    }
    let ending = manager.shutdown(Duration::from_secs(60)).await[&address];
    let longest = longest.as_millis();
    println!("FIGURES written={} resent={resent} longest={longest} cut={}", ending.written, u8::from(ending.cut));
}

/// Sends these, and returns the numbers of those that came back in doubt. All others are acknowledged, with a session.
async fn settle(
    manager: &Manager,
    sink: &mut ManagerSink,
    letters: &mut DeadLetters,
    address: &Address,
    messages: Vec<Bytes>,
) -> Vec<u64> {
    let before = manager.stats().total.dead_lettered;
    let sending = async {
        for message in messages {
            sink.feed((address.clone(), message)).await.unwrap();
        }
        if !has_sessions() {
            return sink.flush().await;
        }
        // An error says that some came back. The others may still be on their way.
        let mut result = Ok(());
        while let Err(error) = sink.barrier().await {
            result = Err(error);
        }
        result
    };
    let (mut back, mut sending) = (Vec::new(), std::pin::pin!(sending));
    // What comes back is taken meanwhile, or it might be in the way of the rest.
    let result = loop {
        match futures::future::select(&mut sending, letters.next()).await {
            Either::Left((result, _)) => break result,
            Either::Right((letter, _)) => back.extend(letter),
        }
    };
    let count = manager.stats().total.dead_lettered - before;
    while (back.len() as u64) < count {
        back.extend(letters.next().await);
    }
    assert!(matches!((&result, count), (Ok(()), 0) | (Err(Error::NotSent { .. }), 1..)), "{count} back: {result:?}");
    let number = |letter: buffstreams::DeadLetter| {
        assert_eq!(letter.outcome, Outcome::InDoubt, "{}", letter.error);
        let text = String::from_utf8_lossy(&letter.message);
        let number = text.split(' ').next().unwrap().rsplit('.').next().unwrap();
        number.parse().unwrap()
    };
    back.into_iter().map(number).collect()
}
