//! `buffstreams record`: writes what is received to a file, with its times.

use std::path::PathBuf;
use std::slice;
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
        let settings = self.common.clone().settings()?;
        // First, so that a file that is there stays where nothing can be listened on.
        let mut inlet = Inlet::bind(slice::from_ref(&self.address), &settings, self.verbose, stop).await?;
        let mut recorder = Recorder::create(&self.out, settings.format(), settings.max())?;
        let last = self.record(&mut inlet, &mut recorder).await?;
        let (received, file) = (inlet.received(), self.out.display());
        inlet.end().await?;
        say(format_args!("{received} messages in {file}, over {:.3} s", last.as_secs_f64()));
        Ok(())
    }

    /// Records until the end, and returns when the last message came. What is in the file is acknowledged.
    async fn record(&self, inlet: &mut Inlet, recorder: &mut Recorder) -> Result<Duration, Failure> {
        let (mut start, mut last) = (None, Duration::ZERO);
        while self.count.is_none_or(|count| inlet.received() < count) {
            let at_once = inlet.at_once();
            let next = match at_once {
                Some(next) => Some(next),
                None => {
                    recorder.flush()?;
                    inlet.acknowledge();
                    inlet.next().await
                }
            };
            let Some((peer, message)) = next else { break };
            let now = Instant::now();
            last = now - *start.get_or_insert(now);
            recorder.add(last, peer.id(), &message)?;
        }
        recorder.flush()?;
        inlet.acknowledge();
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use buffstreams::{Address, Manager};
    use clap::Parser;
    use futures::channel::oneshot;
    use futures::{FutureExt, SinkExt};
    use smol::future::yield_now;

    use super::*;
    use crate::commands::{Cli, Command};
    use crate::format::Format;
    use crate::settings::Side;

    /// A disk that has room for the header.
    struct Full {
        room: usize,
    }

    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.room = self.room.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Kept here because it looks before the listener is gone, when nobody hears anything any more.
    #[test]
    fn what_cannot_be_written_is_not_acknowledged() {
        let cli = Cli::parse_from(["buffstreams", "record", "127.0.0.1:0", "--out", "unused", "--session"]);
        let Command::Record(record) = cli.command else { panic!("not what was asked for") };
        smol::block_on(async {
            let (_ask, asked) = oneshot::channel();
            let settings = record.common.clone().settings().unwrap();
            let mut inlet =
                Inlet::bind(slice::from_ref(&record.address), &settings, false, asked.shared()).await.unwrap();
            let closer = inlet.closer();
            let address = Address::from(closer.local_addr());
            let manager = Manager::new(settings.config(Side::Dial).unwrap());
            manager.dial(address.clone()).await.unwrap();
            let mut sink = manager.sink();
            for text in ["one", "two", "three"] {
                sink.feed((address.clone(), text.into())).await.unwrap();
            }
            sink.flush().await.unwrap();
            while closer.stats().untaken < 3 {
                yield_now().await;
            }

            let mut recorder = Recorder::new(Path::new("full"), Full { room: 40 }, Format::default(), 4096).unwrap();
            assert!(record.record(&mut inlet, &mut recorder).await.is_err());
            assert!(inlet.received() > 0);
            assert_eq!(closer.stats().untaken, 3, "none was acknowledged");
        });
    }
}
