//! `buffstreams send`: sends lines, files or JSON, and counts what became of them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use buffstreams::{Address, Connection, DeadLetters, Error, LinkStats, Manager, ManagerSink};
use clap::Args;
use futures::future::FusedFuture;
use futures::{FutureExt, SinkExt, StreamExt, select_biased};
use smol::{Task, Timer};

use super::Common;
use crate::failure::{Code, Failure};
use crate::input::{Input, InputArgs};
use crate::print::PrintArgs;
use crate::progress::Progress;
use crate::settings::{Settings, Side};
use crate::stop::Stop;
use crate::terminal::say;

/// After how many messages it looks for a signal, though more are there to be read.
const LOOK: u64 = 1024;

/// Send lines, files, hex, or JSON as Protocol Buffers
///
/// At the end it says on standard error how many messages were written, which is to say given to the kernel, and how many
/// were not. With --session it says how many the program at the other end has taken. The first message that cannot be sent
/// ends it, unless there is --keep-going.
#[derive(Args, Debug)]
pub(super) struct Send {
    /// Where to send: HOST:PORT, :PORT for this machine, or unix:PATH
    address: String,
    /// How many messages a second; without it, as many as the other end takes
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,
    /// Go on when messages cannot be sent
    #[arg(long)]
    keep_going: bool,
    /// Wait for so many replies, and print them
    #[arg(long, value_name = "NUMBER", conflicts_with = "keep_going")]
    replies: Option<u64>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    print: PrintArgs,
    #[command(flatten)]
    common: Common,
}

/// The pace of an open loop: when each message is due, whatever became of those before it.
pub(super) struct Pace {
    start: Instant,
    rate: Option<f64>,
    sent: u64,
}

impl Pace {
    pub(super) fn new(rate: Option<f64>) -> Result<Self, Failure> {
        if rate.is_some_and(|rate| !rate.is_normal() || rate < 0.0) {
            return Err(Failure::new(Code::Usage, "--rate is a number of messages a second, above 0"));
        }
        Ok(Self { start: Instant::now(), rate, sent: 0 })
    }

    /// When the next message is due, if that is later than now.
    pub(super) fn next(&mut self) -> Option<Instant> {
        let due = self.rate.and_then(|rate| {
            let after = Duration::try_from_secs_f64(self.sent as f64 / rate).ok()?;
            self.start.checked_add(after).filter(|due| *due > Instant::now())
        });
        self.sent += 1;
        due
    }
}

/// What has come back, and why the first of it did.
struct Dead {
    has_any: Arc<AtomicBool>,
    first: Task<Option<Arc<Error>>>,
    /// How many were too long to be accepted. They are no dead letters.
    too_long: u64,
}

/// How it ended that messages were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// There are no more, or some have come back, and there is no `--keep-going`.
    Over,
    /// Somebody has asked for it. What had been read was given to the sink.
    Interrupted,
}

impl Dead {
    fn watch(mut letters: DeadLetters) -> Self {
        let has_any = Arc::new(AtomicBool::new(false));
        let noted = has_any.clone();
        let first = smol::spawn(async move {
            let mut first = None;
            while let Some(letter) = letters.next().await {
                first.get_or_insert(letter.error);
                noted.store(true, Ordering::Relaxed);
            }
            first
        });
        Self { has_any, first, too_long: 0 }
    }

    fn has_any(&self) -> bool {
        self.has_any.load(Ordering::Relaxed)
    }
}

impl Send {
    pub(super) async fn run(self, stop: Stop) -> Result<(), Failure> {
        let settings = self.common.clone().settings()?;
        let (input, pace) = (self.input.clone().open()?, Pace::new(self.rate)?);
        match self.replies {
            Some(replies) => self.ask(replies, input, pace, &settings, stop).await,
            None => self.send(input, pace, &settings, stop).await,
        }
    }

    async fn send(&self, mut input: Input, mut pace: Pace, settings: &Settings, mut stop: Stop) -> Result<(), Failure> {
        let of = |error: Error| Failure::of(&error, settings);
        let address = Address::from(&self.address);
        let manager = Manager::new(settings.config(Side::Dial)?);
        let mut dead = Dead::watch(manager.dead_letters());
        manager.dial(address.clone()).await.map_err(of)?;

        let start = Instant::now();
        let mut sink = manager.sink();
        let fed = self.feed(&mut input, &mut pace, &address, &mut sink, &mut dead, settings, &mut stop).await;
        // Whatever ended it, what was accepted is delivered. That it was not is told by the dead letters. For somebody who wants an
        // end, it waits no longer than a close does.
        if !matches!(fed, Ok(End::Interrupted)) {
            select_biased! {
                _ = stop => {}
                _ = sink.close().fuse() => {}
            }
        }
        let deadline = settings.close_limit();
        let ending = manager.shutdown(deadline).await.remove(&address);
        let LinkStats { written, acked, dead_lettered, in_doubt, refused, .. } = manager.stats().total;
        drop((sink, manager));
        let undelivered = dead_lettered + dead.too_long;
        let first = dead.first.await;

        if !self.quiet {
            let time = start.elapsed().as_secs_f64();
            match settings.has_session() {
                false => say(format_args!("{written} messages written, {undelivered} not, in {time:.3} s")),
                true => {
                    let not = undelivered - in_doubt - refused;
                    say(format_args!(
                        "{acked} messages taken, {in_doubt} in doubt, {refused} refused, {not} not sent, in {time:.3} s"
                    ));
                }
            }
        }
        let end = fed?;
        if undelivered > 0 {
            let message = settings.not_sent(undelivered);
            return Err(match first {
                Some(error) => Failure::of(&error, settings).into_reason_of(Code::Undelivered, &message),
                None => Failure::new(Code::Undelivered, message),
            });
        }
        if ending.is_some_and(|ending| ending.cut) {
            let message = "the other end has not closed: whether it read everything is not known";
            return Err(
                Failure::new(Code::Undelivered, message).with_hint("wait longer: --close-timeout TIME".to_owned())
            );
        }
        match end {
            End::Over => Ok(()),
            End::Interrupted => {
                let message = "interrupted before everything was read; what had been read was delivered";
                Err(Failure::interrupted(message))
            }
        }
    }

    /// Gives all messages to the sink.
    #[allow(clippy::too_many_arguments)] // They are what it works on, once.
    async fn feed(
        &self,
        input: &mut Input,
        pace: &mut Pace,
        address: &Address,
        sink: &mut ManagerSink,
        dead: &mut Dead,
        settings: &Settings,
        mut stop: &mut Stop,
    ) -> Result<End, Failure> {
        let mut progress = Progress::bytes(input.total());
        for number in 0_u64.. {
            if number.is_multiple_of(LOOK) && (&mut *stop).now_or_never().is_some() {
                return Ok(End::Interrupted);
            }
            // What is there is collected before it is flushed.
            let at_once = input.next().now_or_never();
            let message = match at_once {
                Some(message) => message,
                None => {
                    let flushed = select_biased! {
                        _ = stop => return Ok(End::Interrupted),
                        flushed = sink.flush().fuse() => flushed,
                    };
                    if flushed.is_err() && !self.keep_going {
                        return Ok(End::Over);
                    }
                    select_biased! {
                        _ = stop => return Ok(End::Interrupted),
                        message = input.next().boxed().fuse() => message,
                    }
                }
            };
            let Some(message) = message.transpose()? else { return Ok(End::Over) };
            // From here on it has been read. Whatever it waits for, it is sent at once when there is to be an end.
            let mut end = End::Over;
            if let Some(due) = pace.next() {
                let until_due = async {
                    let _ = sink.flush().await;
                    Timer::at(due).await;
                };
                select_biased! {
                    _ = stop => end = End::Interrupted,
                    _ = pin!(until_due.fuse()) => {}
                }
            }
            if dead.has_any() && !self.keep_going {
                return Ok(end);
            }
            progress.add(message.len() as u64 + 1);
            if end == End::Over && sink.ready().now_or_never().is_none() {
                select_biased! {
                    _ = stop => end = End::Interrupted,
                    _ = sink.ready().fuse() => {}
                }
            }
            match sink.start_send_unpin((address.clone(), message)) {
                Ok(()) => {}
                Err(error) => {
                    let is_too_long = matches!(error, Error::MessageTooLarge { .. });
                    dead.too_long += u64::from(is_too_long);
                    let failure = Failure::of(&error, settings);
                    if !is_too_long || !self.keep_going {
                        return Err(failure);
                    }
                    say(failure);
                }
            }
            if end == End::Interrupted {
                return Ok(end);
            }
        }
        Ok(End::Over)
    }

    /// Sends all messages, and prints so many replies.
    async fn ask(
        &self,
        replies: u64,
        mut input: Input,
        mut pace: Pace,
        settings: &Settings,
        mut stop: Stop,
    ) -> Result<(), Failure> {
        let of = |error: Error| Failure::of(&error, settings);
        let mut printer = self.print.printer(None)?;
        let connection = Connection::dial(&self.address, settings.config(Side::Dial)?).await.map_err(of)?;
        let (mut read, mut write) = connection.split();
        let mut asked = stop.clone();
        let send = async {
            loop {
                let message = select_biased! {
                    _ = asked => return Ok(End::Interrupted),
                    message = input.next().boxed().fuse() => message,
                };
                let Some(message) = message.transpose()? else { return Ok(End::Over) };
                // From here on it has been read, and is sent.
                if let Some(due) = pace.next() {
                    select_biased! {
                        _ = asked => {}
                        _ = FutureExt::fuse(Timer::at(due)) => {}
                    }
                }
                write.feed(message).await.map_err(of)?;
                if asked.is_terminated() {
                    return Ok(End::Interrupted);
                }
                // What is not flushed then, the close flushes.
                select_biased! {
                    _ = asked => return Ok(End::Interrupted),
                    flushed = write.flush().fuse() => flushed.map_err(of)?,
                }
            }
        };
        let receive = async {
            for number in 0..replies {
                let reply = select_biased! {
                    _ = stop => return Ok(number),
                    reply = read.next().fuse() => reply,
                };
                let Some(reply) = reply else {
                    let message = format!("the other end has closed after {number} of {replies} replies");
                    return Err(Failure::new(Code::Undelivered, message));
                };
                printer.print(&self.address, &reply.map_err(of)?)?;
                printer.flush()?;
            }
            Ok(replies)
        };
        let (end, came) = futures::try_join!(send, receive)?;
        write.close().await.map_err(of)?;
        if end == End::Over && came == replies {
            return Ok(());
        }
        let message = format!("interrupted after {came} of {replies} replies; what had been read was sent");
        Err(Failure::interrupted(message))
    }
}
