//! `buffstreams relay`: passes messages on, to one address or several, in another format, with TLS or without.

use std::path::PathBuf;
use std::pin::pin;

use clap::Args;
use futures::future::join_all;
use futures::{FutureExt, select_biased};

use super::Common;
use crate::failure::Failure;
use crate::format::Format;
use crate::inlet::Inlet;
use crate::outlet::Outlet;
use crate::settings::Settings;
use crate::stop::Stop;
use crate::terminal::say;
use crate::units::Size;

/// Pass messages on to one address or several, in another format, with TLS or without
///
/// Each message goes to every address, or with --failover to one of them. It goes one way: what comes back is read and thrown away.
/// The settings are those of both sides; --from-... and --to-... set one of them.
///
/// A message counts as written when the kernel has taken it. When a connection breaks, what had been written to it and not been
/// read is lost: this is said, and it is not written again, to any address, so nothing arrives twice.
///
/// With --to-session it counts when the other end has taken it. What a connection that breaks has not carried is sent again, as long as
/// the session lasts. What is in doubt then, or was refused, goes to no other address, and counts as not sent.
///
/// With --from-session, a message is acknowledged when it counts as sent to every address, and is in doubt for its sender otherwise.
#[derive(Args, Debug)]
pub(super) struct Relay {
    /// Where to listen: HOST:PORT, :PORT, or unix:PATH; with port 0, the system chooses one
    from: String,
    /// Where to send: HOST:PORT, :PORT for this machine, or unix:PATH
    #[arg(required = true)]
    to: Vec<String>,
    /// Another address to listen at
    #[arg(long, value_name = "ADDRESS")]
    from_also: Vec<String>,
    /// Send to the first address, and when that is down, to the next, in a circle; with --reconnect, again and again
    #[arg(long)]
    failover: bool,
    /// Go on when messages cannot be sent
    #[arg(long)]
    keep_going: bool,
    /// Say who comes and goes
    #[arg(short, long)]
    verbose: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    sides: Sides,
    #[command(flatten)]
    common: Common,
}

/// What is not the same on both sides.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Settings of one side")]
struct Sides {
    /// A file of settings for what is received
    #[arg(long, value_name = "FILE")]
    from_config: Option<PathBuf>,
    /// The format of what is received
    #[arg(long, value_name = "FORMAT")]
    from_format: Option<Format>,
    /// The longest message that is received
    #[arg(long, value_name = "SIZE")]
    from_max: Option<Size>,
    /// Whether those who connect have TLS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    from_tls: Option<bool>,
    /// Whether those who connect have acknowledged sessions
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    from_session: Option<bool>,
    /// A file of settings for what is sent
    #[arg(long, value_name = "FILE")]
    to_config: Option<PathBuf>,
    /// The format of what is sent
    #[arg(long, value_name = "FORMAT")]
    to_format: Option<Format>,
    /// The longest message that is sent
    #[arg(long, value_name = "SIZE")]
    to_max: Option<Size>,
    /// Whether those who are connected to have TLS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    to_tls: Option<bool>,
    /// Whether those who are connected to have acknowledged sessions
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    to_session: Option<bool>,
}

impl Sides {
    /// The settings of what is received, and of what is sent.
    fn settings(self, both: Settings) -> Result<(Settings, Settings), Failure> {
        let (format, max, tls, session) = (self.from_format, self.from_max, self.from_tls, self.from_session);
        let from = Settings { format, max, tls, session, ..Settings::default() };
        let (format, max, tls, session) = (self.to_format, self.to_max, self.to_tls, self.to_session);
        let to = Settings { format, max, tls, session, ..Settings::default() };
        let from = from.with_file(self.from_config.as_deref())?.or(both.clone());
        Ok((from, to.with_file(self.to_config.as_deref())?.or(both)))
    }
}

impl Relay {
    pub(super) async fn run(self, stop: Stop) -> Result<(), Failure> {
        let (from, to) = self.sides.clone().settings(self.common.clone().settings()?)?;
        let mut outlets = Vec::new();
        let one_each = if self.failover { self.to.len() } else { 1 };
        for addresses in self.to.chunks(one_each) {
            let mut outlet = Outlet::new(addresses, &to, self.verbose)?;
            match outlet.open().await {
                Err(failure) if self.keep_going => say(failure),
                opened => opened?,
            }
            outlets.push(outlet);
        }
        let sources = [vec![self.from.clone()], self.from_also.clone()].concat();
        let mut inlet = Inlet::bind(&sources, &from, self.verbose, stop).await?;

        let mut relayed = self.pass_on(&mut inlet, &mut outlets).await;
        // What was received is sent, whatever ended it.
        let flushed = self.flush(&mut inlet, &mut outlets).await;
        let received = inlet.received();
        if relayed.is_ok() {
            relayed = inlet.end().await;
        }
        let closed = join_all(outlets.into_iter().map(|outlet| outlet.close(self.quiet))).await;
        if !self.quiet {
            say(format_args!("{received} messages received"));
        }
        relayed.and(flushed).and(closed.into_iter().collect())
    }

    async fn pass_on(&self, inlet: &mut Inlet, outlets: &mut [Outlet]) -> Result<(), Failure> {
        loop {
            let at_once = inlet.at_once();
            let next = match at_once {
                Some(next) => Some(next),
                None => {
                    self.flush(inlet, outlets).await?;
                    let mut watch = join_all(outlets.iter_mut().map(|outlet| outlet.watch().boxed())).fuse();
                    let mut next = pin!(inlet.next().fuse());
                    select_biased! {
                        next = next => next,
                        _ = watch => None,
                    }
                }
            };
            let Some((_, message)) = next else { return Ok(()) };
            let mut is_full = false;
            for outlet in &mut *outlets {
                is_full |= outlet.add(message.clone());
            }
            if is_full {
                self.flush(inlet, outlets).await?;
            }
        }
    }

    /// Has each write what it has, all at once. What all of them have sent is acknowledged.
    async fn flush(&self, inlet: &mut Inlet, outlets: &mut [Outlet]) -> Result<(), Failure> {
        let flushed = join_all(outlets.iter_mut().map(Outlet::flush)).await;
        inlet.acknowledge_but(&outlets.iter_mut().flat_map(Outlet::take_lost).collect());
        for flushed in flushed {
            match flushed {
                Err(failure) if self.keep_going => say(failure),
                flushed => flushed?,
            }
        }
        Ok(())
    }
}
