//! `buffstreams record`: writes what is received to a file, with its times.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::Common;
use crate::failure::Failure;
use crate::inlet::Inlet;
use crate::recording::Recorder;
use crate::stop::Stop;
use crate::terminal::say;

/// Write the messages of all who connect to a file, with their times, for replay
///
/// Times count from the first message. The first Ctrl-C lets the peers finish, the second ends at once.
#[derive(Args, Debug)]
pub(super) struct Record {
    /// Where to listen: HOST:PORT, :PORT, or unix:PATH; with port 0, the system chooses one
    address: String,
    /// The file to write; one that is there is replaced
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// End after so many messages
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Say who comes and goes
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    common: Common,
}

impl Record {
    pub(super) async fn run(self, stop: Stop) -> Result<(), Failure> {
        let settings = self.common.settings()?;
        // First, so that a file that is there stays where nothing can be listened on.
        let mut inlet = Inlet::bind(&[self.address], &settings, self.verbose, stop).await?;
        let mut recorder = Recorder::create(&self.out, settings.format(), settings.max())?;
        let (mut start, mut last) = (None, Duration::ZERO);
        while self.count.is_none_or(|count| inlet.received() < count) {
            let at_once = inlet.at_once();
            let next = match at_once {
                Some(next) => Some(next),
                None => {
                    recorder.flush()?;
                    inlet.next().await
                }
            };
            let Some((peer, message)) = next else { break };
            let now = Instant::now();
            last = now - *start.get_or_insert(now);
            recorder.add(last, peer.id(), &message)?;
        }
        recorder.flush()?;
        let (received, file) = (inlet.received(), self.out.display());
        inlet.end().await?;
        say(format_args!("{received} messages in {file}, over {:.3} s", last.as_secs_f64()));
        Ok(())
    }
}
