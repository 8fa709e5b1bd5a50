//! `buffstreams listen`: prints what is received.

use std::process::Stdio;

use buffstreams::{Bytes, Error, Outgoing, Peer};
use clap::Args;
use futures::{AsyncWriteExt, SinkExt};
use smol::process::Command;

use super::Common;
use crate::failure::{Code, Failure, chain};
use crate::inlet::Inlet;
use crate::print::PrintArgs;
use crate::proto::ProtoArgs;
use crate::settings::Settings;
use crate::stop::Stop;
use crate::terminal::say;

/// Print the messages of all who connect
///
/// It says on standard error where it listens, who comes and goes with --verbose, and what is wrong. The first Ctrl-C lets the
/// peers finish, the second ends at once.
#[derive(Args, Debug)]
pub(super) struct Listen {
    /// Where to listen: HOST:PORT, :PORT, or unix:PATH; with port 0, the system chooses one
    address: String,
    /// End after so many messages
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Send each message back to its sender
    #[arg(long, conflicts_with = "exec")]
    echo: bool,
    /// A command of the shell to run for each message, one after the other; it reads the message from standard input
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// Send what the command prints back to the sender, as one message
    #[arg(long, requires = "exec")]
    reply: bool,
    /// Say who comes and goes
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    print: PrintArgs,
    #[command(flatten)]
    proto: ProtoArgs,
    #[command(flatten)]
    common: Common,
}

impl Listen {
    pub(super) async fn run(self, stop: Stop) -> Result<(), Failure> {
        let settings = self.common.clone().settings()?;
        let mut printer = self.print.printer(self.proto.load()?)?;
        let bound = Inlet::bind_to_reply(&self.address, &settings, self.verbose, stop).await;
        let (mut inlet, mut outgoing) = bound?;
        let mut failed = 0;
        while self.count.is_none_or(|count| inlet.received() < count) {
            let at_once = inlet.at_once();
            let next = match at_once {
                Some(next) => Some(next),
                None => {
                    printer.flush()?;
                    inlet.acknowledge();
                    answered(outgoing.flush().await, &settings)?;
                    inlet.next().await
                }
            };
            let Some((peer, message)) = next else { break };
            // A command may make something of it all the same.
            if !printer.print(&peer, &message)? && self.exec.is_none() {
                inlet.refuse_last();
            }
            if !self.answer(peer, message, &mut inlet, &mut outgoing, &settings).await? {
                failed += 1;
            }
            if self.exec.is_some() {
                // Each may take its time, and what it did is not to be in doubt for as long as those behind it take.
                printer.flush()?;
                inlet.acknowledge();
            }
        }
        printer.flush()?;
        inlet.acknowledge();
        answered(outgoing.flush().await, &settings)?;
        let received = inlet.received();
        inlet.end().await?;
        if failed > 0 {
            return Err(Failure::new(Code::Failed, format!("the command failed for {failed} of {received} messages")));
        }
        Ok(())
    }

    /// Echoes, or runs the command. `false` if that failed, or its reply cannot be sent.
    async fn answer(
        &self,
        peer: Peer,
        message: Bytes,
        inlet: &mut Inlet,
        outgoing: &mut Outgoing,
        settings: &Settings,
    ) -> Result<bool, Failure> {
        let (ran, reply) = match &self.exec {
            None => (true, self.echo.then_some(message)),
            Some(command) => match self.execute(command, peer, &message).await {
                Ok(output) => (true, self.reply.then_some(output)),
                Err(problem) => {
                    say(format_args!("warning: {command:?}, for a message of {peer}: {problem}"));
                    inlet.refuse_last();
                    (false, None)
                }
            },
        };
        let Some(reply) = reply else { return Ok(ran) };
        match outgoing.feed((peer, reply)).await {
            // The sink works on, and the other peers have no part in it.
            Err(error @ Error::MessageTooLarge { .. }) => {
                say(format_args!("warning: the reply to a message of {peer} cannot be sent: {}", chain(&error)));
                Ok(false)
            }
            fed => answered(fed, settings).map(|()| ran),
        }
    }

    /// Runs the command for a message, and returns what it has printed, if that is asked for.
    async fn execute(&self, command: &str, peer: Peer, message: &Bytes) -> Result<Bytes, String> {
        let output = if self.reply { Stdio::piped() } else { Stdio::inherit() };
        let mut child = Command::new("sh")
            .args(["-c", command])
            .env("BUFFSTREAMS_PEER", peer.to_string())
            .stdin(Stdio::piped())
            .stdout(output)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot be run: {error}"))?;
        let stdin = child.stdin.take();
        let write = async {
            if let Some(mut stdin) = stdin {
                // Who does not read all of it has no need to.
                let _ = stdin.write_all(message).await;
            }
        };
        let ((), output) = futures::join!(write, child.output());
        match output {
            Ok(output) if output.status.success() => Ok(output.stdout.into()),
            Ok(output) => Err(output.status.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn answered(outcome: Result<(), Error>, settings: &Settings) -> Result<(), Failure> {
    outcome.map_err(|error| Failure::of(&error, settings))
}
