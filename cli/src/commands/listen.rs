//! `buffstreams listen`: prints what is received.

use std::process::Stdio;

use buffstreams::{Bytes, Event, Listener, Outgoing, Peer, Reason};
use clap::Args;
use futures::{AsyncWriteExt, FutureExt, SinkExt, StreamExt, select_biased};
use smol::process::Command;

use super::Common;
use crate::failure::{Code, Failure};
use crate::hint;
use crate::print::PrintArgs;
use crate::proto::ProtoArgs;
use crate::settings::{Settings, Side};
use crate::stop::Stop;
use crate::terminal::say;

/// After how many messages it looks for a signal, and for events, though more messages are there.
const LOOK: u64 = 1024;

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
    pub(super) async fn run(self, mut stop: Stop) -> Result<(), Failure> {
        let settings = self.common.clone().settings()?;
        let mut printer = self.print.printer(self.proto.load()?)?;
        let listener = Listener::bind(&self.address, settings.config(Side::Listen)?).await;
        let listener = listener.map_err(|error| Failure::of(&error, &settings))?;
        say(format_args!("listening on {}", listener.local_addr()));

        let (closer, mut events) = (listener.closer(), listener.events());
        let (mut incoming, mut outgoing) = listener.split();
        let mut closing = None;
        let (mut received, mut looked, mut failed) = (0, 0, 0);
        while self.count.is_none_or(|count| received < count) {
            // Whatever is there is taken without a look at anything else, but for now and then.
            let at_once = if looked == received { None } else { incoming.next().now_or_never() };
            let next = match at_once {
                Some(next) => next,
                None => {
                    printer.flush()?;
                    answered(outgoing.flush().await, &settings)?;
                    select_biased! {
                        _ = stop => {
                            let closer = closer.clone();
                            closing = Some(smol::spawn(async move { closer.close().await }));
                            continue;
                        }
                        event = events.next().fuse() => {
                            if let Some(event) = event {
                                self.tell(&event, &settings);
                            }
                            continue;
                        }
                        next = incoming.next() => next,
                    }
                }
            };
            if received == looked {
                looked += LOOK;
            }
            let Some((peer, message)) = next else { break };
            received += 1;
            printer.print(&peer, &message)?;
            if !self.answer(peer, message, &mut outgoing, &settings).await? {
                failed += 1;
            }
        }
        printer.flush()?;
        answered(outgoing.flush().await, &settings)?;
        while let Some(Some(event)) = events.next().now_or_never() {
            self.tell(&event, &settings);
        }
        if let Some(closing) = closing {
            closing.await.map_err(|error| Failure::of(&error, &settings))?;
        }
        if failed > 0 {
            return Err(Failure::new(Code::Failed, format!("the command failed for {failed} of {received} messages")));
        }
        Ok(())
    }

    /// Echoes, or runs the command. `false` if that failed.
    async fn answer(
        &self,
        peer: Peer,
        message: Bytes,
        outgoing: &mut Outgoing,
        settings: &Settings,
    ) -> Result<bool, Failure> {
        let (ran, reply) = match &self.exec {
            None => (true, self.echo.then_some(message)),
            Some(command) => match self.execute(command, peer, &message).await {
                Ok(output) => (true, self.reply.then_some(output)),
                Err(problem) => {
                    say(format_args!("warning: {command:?}, for a message of {peer}: {problem}"));
                    (false, None)
                }
            },
        };
        if let Some(reply) = reply {
            answered(outgoing.feed((peer, reply)).await, settings)?;
        }
        Ok(ran)
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

    /// Says what has happened, where somebody should know or wants to.
    fn tell(&self, event: &Event, settings: &Settings) {
        let hint = match event {
            Event::Rejected { error, .. } => hint::of_header(&error.kind, error.looks_like, settings),
            Event::HandshakeFailed { error, .. } => hint::of_tls(error, settings),
            Event::Disconnected { reason: Reason::Truncated { looks_like: Some(looks_like), .. }, .. } => {
                hint::of_look(*looks_like, settings)
            }
            Event::Disconnected { reason: Reason::Timeout { what, .. }, .. } => hint::of_limit(*what),
            _ => None,
        };
        match describe(event) {
            Told::Always(text) => say(format_args!("warning: {text}")),
            Told::Verbosely(text) if self.verbose => say(text),
            Told::Verbosely(_) => return,
        }
        if let Some(hint) = hint {
            say(format_args!(" hint: {hint}"));
        }
    }
}

fn answered(outcome: Result<(), buffstreams::Error>, settings: &Settings) -> Result<(), Failure> {
    outcome.map_err(|error| Failure::of(&error, settings))
}

enum Told {
    Always(String),
    Verbosely(String),
}

fn describe(event: &Event) -> Told {
    Told::Always(match event {
        Event::Connected { peer, .. } => return Told::Verbosely(format!("{peer} has connected")),
        Event::Disconnected { peer, reason } => match reason {
            // Told by the event of its own.
            Reason::Closed | Reason::Stopped | Reason::Rejected => return Told::Verbosely(format!("{peer} is gone")),
            Reason::Truncated { got, want, .. } => {
                format!("{peer} ended inside a message: {got} of {want} bytes received")
            }
            Reason::Failed(error) => format!("{peer} is gone: {error}"),
            Reason::Timeout { what, after } => format!("{peer} is disconnected: {what} of {after:?} is over"),
            other => format!("{peer} is gone: {other:?}"),
        },
        Event::Rejected { peer, error } => format!("{peer} is disconnected: {error}"),
        Event::Refused { addr, max_connections } => {
            format!("{addr} is turned away: --max-connections is {max_connections}")
        }
        Event::HandshakeFailed { from, error } => format!("no TLS session with {from}: {error}"),
        Event::AcceptFailed { error, .. } => format!("cannot accept connections: {error}"),
        Event::Undelivered { peer, messages } => format!("{messages} replies were not delivered to {peer}"),
        other => format!("{other:?}"),
    })
}
