//! `buffstreams replay`: sends what was recorded again.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::pin::pin;
use std::str::FromStr;
use std::time::{Duration, Instant};

use buffstreams::{Bytes, Config, Connection, Error, WriteHalf};
use clap::Args;
use futures::future::join_all;
use futures::{FutureExt, SinkExt, StreamExt, select_biased};
use smol::future::yield_now;
use smol::{Task, Timer};

use super::Common;
use crate::failure::{Code, Failure};
use crate::progress::Progress;
use crate::recording::Recording;
use crate::settings::{Settings, Side};
use crate::stop::Stop;
use crate::terminal::say;
use crate::units::Size;

/// After how many messages that are due it looks for a signal.
const LOOK: u64 = 1024;

/// Send the messages of a recording again, with the pauses between them
///
/// Each connection of the recording is one here, which closes behind its last message. Replies are read and thrown away. The
/// format and the longest message are those of the recording, unless the settings say otherwise. Before anything is sent, the
/// whole file is checked.
#[derive(Args, Debug)]
pub(super) struct Replay {
    /// A file that `buffstreams record` has written
    file: PathBuf,
    /// Where to send: HOST:PORT, :PORT for this machine, or unix:PATH
    address: String,
    /// How many times as fast as it was recorded: 2, 0.5; or max, as fast as the other end takes it
    #[arg(long, value_name = "SPEED", default_value = "1")]
    speed: Speed,
    /// Send only the first so many messages
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    common: Common,
}

/// `max`, or how many times as fast.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Speed(Option<f64>);

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "max" => Ok(Self(None)),
            text => match text.parse::<f64>() {
                Ok(speed) if (0.001..=1e6).contains(&speed) => Ok(Self(Some(speed))),
                _ => Err(format!("{text:?} is no speed: write 1, 2 or 0.5, from 0.001 to 1000000, or max")),
            },
        }
    }
}

impl Speed {
    /// How long after the start what was recorded at this time is due, unless it is at once.
    fn due(self, at: Duration) -> Option<Duration> {
        self.0.map(|speed| Duration::try_from_secs_f64(at.as_secs_f64() / speed).unwrap_or(Duration::MAX))
    }
}

/// What a look through the whole recording tells.
struct Contents {
    messages: u64,
    /// The number of the last message of each peer.
    last: HashMap<u64, u64>,
}

impl Replay {
    pub(super) async fn run(self, mut stop: Stop) -> Result<(), Failure> {
        let mut recording = Recording::open(&self.file)?;
        let recorded = Settings {
            format: Some(recording.format),
            max: Some(Size(usize::try_from(recording.max).unwrap_or(usize::MAX))),
            ..Settings::default()
        };
        let settings = self.common.clone().settings()?.or(recorded);
        let contents = self.look_through(Recording::open(&self.file)?)?;
        let mut lines = Lines::new(&self.address, settings.config(Side::Dial)?);

        let start = Instant::now();
        let sent = {
            let mut send = pin!(self.send(&mut recording, &contents, &mut lines).fuse());
            select_biased! {
                _ = stop => Ok(false),
                sent = send => sent.map(|()| true),
            }
        };
        let (written, closed) = lines.close().await;
        if !self.quiet {
            let (all, time) = (contents.messages, start.elapsed().as_secs_f64());
            say(format_args!("{written} of {all} messages written, in {time:.3} s"));
        }
        let sent = sent.and_then(|is_all| closed.map(|()| is_all).map_err(Ended::Error));
        match sent {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::interrupted("interrupted before everything was sent")),
            Err(Ended::Failure(failure)) => Err(failure),
            Err(Ended::Error(error)) => {
                let failure = Failure::of(&error, &settings);
                if written == 0 {
                    return Err(failure);
                }
                let message = match contents.messages - written {
                    0 => "whether the other end read everything is not known".to_owned(),
                    unsent => format!("{unsent} messages were not sent"),
                };
                Err(failure.into_reason_of(Code::Undelivered, &message))
            }
        }
    }

    fn look_through(&self, mut recording: Recording) -> Result<Contents, Failure> {
        let mut contents = Contents { messages: 0, last: HashMap::new() };
        while self.count.is_none_or(|count| contents.messages < count)
            && let Some(head) = recording.head()?
        {
            recording.skip(head)?;
            contents.messages += 1;
            contents.last.insert(head.peer, contents.messages);
        }
        Ok(contents)
    }

    async fn send(&self, recording: &mut Recording, contents: &Contents, lines: &mut Lines) -> Result<(), Ended> {
        let start = Instant::now();
        let mut progress = Progress::messages(Some(contents.messages));
        for number in 1..=contents.messages {
            let Some(head) = recording.head()? else { break };
            let message = recording.message(head)?;
            let due = self.speed.due(head.at).and_then(|after| start.checked_add(after));
            if let Some(due) = due.filter(|due| *due > Instant::now()) {
                lines.flush().await?;
                Timer::at(due).await;
            } else if number.is_multiple_of(LOOK) {
                yield_now().await;
            }
            lines.feed(head.peer, message).await?;
            if contents.last.get(&head.peer) == Some(&number) {
                lines.end(head.peer);
            }
            progress.add(1);
        }
        Ok(())
    }
}

/// Why it has ended before its time.
enum Ended {
    Failure(Failure),
    Error(Error),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// A connection for each peer of the recording.
struct Lines {
    address: String,
    config: Config,
    open: HashMap<u64, Line>,
    /// Those behind their last message.
    ending: Vec<Task<(u64, Result<(), Error>)>>,
    /// Those with messages that were not flushed.
    fed: HashSet<u64>,
}

struct Line {
    write: WriteHalf,
    /// Reads what comes back, so that the other end can go on.
    _replies: Task<()>,
    messages: u64,
}

impl Lines {
    fn new(address: &str, config: Config) -> Self {
        let (open, ending, fed) = (HashMap::new(), Vec::new(), HashSet::new());
        Self { address: address.to_owned(), config, open, ending, fed }
    }

    async fn feed(&mut self, peer: u64, message: Bytes) -> Result<(), Error> {
        let line = match self.open.entry(peer) {
            Entry::Occupied(line) => line.into_mut(),
            Entry::Vacant(place) => {
                let connection = Connection::dial(&self.address, self.config.clone()).await?;
                let (mut read, write) = connection.split();
                let replies = smol::spawn(async move { while let Some(Ok(_)) = read.next().await {} });
                place.insert(Line { write, _replies: replies, messages: 0 })
            }
        };
        line.write.feed(message).await?;
        line.messages += 1;
        self.fed.insert(peer);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        for peer in self.fed.drain() {
            if let Some(line) = self.open.get_mut(&peer) {
                line.write.flush().await?;
            }
        }
        Ok(())
    }

    /// Closes a connection, in the background.
    fn end(&mut self, peer: u64) {
        if let Some(line) = self.open.remove(&peer) {
            self.ending.push(smol::spawn(line.end()));
        }
    }

    /// Closes all, and says how many messages they have written.
    async fn close(self) -> (u64, Result<(), Error>) {
        let open = self.open.into_values().map(|line| smol::spawn(line.end()));
        let ended = join_all(self.ending.into_iter().chain(open)).await;
        let written = ended.iter().map(|(written, _)| written).sum();
        (written, ended.into_iter().try_for_each(|(_, closed)| closed))
    }
}

impl Line {
    /// Closes it, and says how many messages it has written, and in a session are not in doubt.
    async fn end(mut self) -> (u64, Result<(), Error>) {
        let closed = self.write.close().await;
        let back = self.write.take_unsent().len() + self.write.take_in_doubt().len();
        (self.messages - back as u64, closed)
    }
}
