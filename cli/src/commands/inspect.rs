//! `buffstreams inspect`: the messages of a capture or of a connection, and what looks wrong; or which format it is.

use std::io::{self, Write};
use std::path::Path;

use buffstreams::FrameError;
use buffstreams::wire::Decoder;
use clap::Args;
use futures::{AsyncRead, AsyncReadExt, FutureExt, select_biased};
use smol::Unblock;
use smol::net::{TcpListener, TcpStream};

use super::{Common, tcp_address};
use crate::failure::{Code, Failure};
use crate::guess::{self, Ranking};
use crate::hint;
use crate::proto::{Proto, ProtoArgs};
use crate::settings::{Settings, Side};
use crate::stop::Stop;
use crate::terminal::{say, written};

/// How much is read at once, in bytes.
const READ: usize = 64 * 1024;
/// How much of the start is kept to guess from, in bytes.
const START: usize = 1 << 20;

/// Show the messages of a stream, and where it goes wrong what looks wrong
///
/// The bytes come from a file, from standard input, or from the first who connects to an address, where it is plaintext. A line
/// for each message, and its first bytes in hex; or with --guess, how well each format fits.
#[derive(Args, Debug)]
pub(super) struct Inspect {
    /// A file, `-` for standard input, or an address to wait at for a connection
    source: String,
    /// Connect to the address instead
    #[arg(long)]
    dial: bool,
    /// Rank all formats by how well they fit, and name one if there is little doubt
    #[arg(long)]
    guess: bool,
    /// End after so many messages
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// How many bytes of each message are shown
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    dump: usize,
    #[command(flatten)]
    proto: ProtoArgs,
    #[command(flatten)]
    common: Common,
}

type Source = Box<dyn AsyncRead + Unpin>;

impl Inspect {
    pub(super) async fn run(self, stop: Stop) -> Result<(), Failure> {
        let settings = self.common.clone().settings()?;
        let proto = self.proto.load()?;
        let decoder = Decoder::new(settings.format(), settings.max());
        let decoder = decoder.map_err(|error| Failure::of(&error.into(), &settings))?;
        let source = self.open().await?;
        if self.guess { guess(source, stop).await } else { self.show(source, decoder, proto, &settings, stop).await }
    }

    async fn open(&self) -> Result<Source, Failure> {
        if self.source == "-" {
            return Ok(Box::new(Unblock::with_capacity(READ, io::stdin())));
        }
        let path = Path::new(&self.source);
        let is_address = self.source.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if path.exists() || !is_address {
            let file = std::fs::File::open(path).map_err(|error| {
                let hint = "a source is a file, `-`, or an address as HOST:PORT or :PORT".to_owned();
                Failure::file("open", path, &error).with_hint(hint)
            })?;
            return Ok(Box::new(Unblock::with_capacity(READ, file)));
        }
        let address = tcp_address(&self.source, if self.dial { Side::Dial } else { Side::Listen });
        let what = if self.dial { "connect to" } else { "listen on" };
        let failed = |error| Failure::new(Code::Connection, format!("cannot {what} {address}: {error}"));
        if self.dial {
            return Ok(Box::new(TcpStream::connect(&address).await.map_err(failed)?));
        }
        let listener = TcpListener::bind(&address).await.map_err(failed)?;
        say(format_args!("listening on {}", listener.local_addr().map_err(failed)?));
        let (peer, from) = listener.accept().await.map_err(failed)?;
        say(format_args!("{from} has connected"));
        Ok(Box::new(peer))
    }

    async fn show(
        &self,
        mut source: Source,
        decoder: Decoder,
        proto: Option<Proto>,
        settings: &Settings,
        mut stop: Stop,
    ) -> Result<(), Failure> {
        let mut out = io::BufWriter::new(io::stdout());
        let (mut held, mut start, mut offset) = (Vec::new(), Vec::new(), 0_u64);
        let (mut messages, mut bytes) = (0, 0);
        written(writeln!(out, "message     offset      bytes"))?;
        let ended = 'read: loop {
            let mut taken = 0;
            loop {
                let ahead = &held[taken..];
                let header = match decoder.header(ahead) {
                    Ok(Some(header)) if header.frame() <= ahead.len() => header,
                    Ok(_) => break,
                    Err(error) => {
                        written(
                            writeln!(out, "{:>18}  wrong: {error}", offset + taken as u64).and_then(|()| out.flush()),
                        )?;
                        return Err(wrong(&error, &start, settings));
                    }
                };
                let message = &ahead[header.width..header.frame()];
                messages += 1;
                bytes += message.len() as u64;
                written(writeln!(out, "{messages:7} {:10} {:10}", offset + taken as u64, message.len()))?;
                written(self.dump(&mut out, message, proto.as_ref()))?;
                taken += header.frame();
                if self.count == Some(messages) {
                    held.clear();
                    break 'read false;
                }
            }
            held.drain(..taken);
            offset += taken as u64;
            written(out.flush())?;
            let Some(more) = read(&mut source, &mut stop).await? else { break false };
            if more.is_empty() {
                break true;
            }
            start.extend_from_slice(&more[..more.len().min(START - start.len())]);
            held.extend_from_slice(&more);
        };
        written(writeln!(out, "{messages} messages, {bytes} bytes").and_then(|()| out.flush()))?;
        if ended && !held.is_empty() {
            let message = format!("it ends inside a message, {} bytes behind byte {offset}", held.len());
            return Err(Failure::new(Code::Format, message).with_hint(other_format(&start, true, settings)));
        }
        Ok(())
    }

    fn dump(&self, out: &mut impl Write, message: &[u8], proto: Option<&Proto>) -> io::Result<()> {
        match proto.map(|proto| proto.decode(message)) {
            Some(Ok(json)) => return writeln!(out, "    {json}"),
            Some(Err(problem)) => writeln!(out, "    wrong: {problem}")?,
            None => {}
        }
        for (line, bytes) in message[..message.len().min(self.dump)].chunks(16).enumerate() {
            let hex: String = bytes.iter().map(|byte| format!(" {byte:02x}")).collect();
            let text = bytes.iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '.' });
            writeln!(out, "    {:04x} {hex:48}  {}", line * 16, text.collect::<String>())?;
        }
        Ok(())
    }
}

/// The next bytes; none at the end, and `None` if somebody asks to stop.
async fn read(source: &mut Source, mut stop: &mut Stop) -> Result<Option<Vec<u8>>, Failure> {
    let mut bytes = vec![0; READ];
    let read = select_biased! {
        _ = stop => return Ok(None),
        read = source.read(&mut bytes).fuse() => read,
    };
    let read = read.map_err(|error| Failure::new(Code::Failed, format!("cannot read: {error}")))?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// A header that makes no sense, with the format that does, if there is one.
fn wrong(error: &FrameError, start: &[u8], settings: &Settings) -> Failure {
    let hint = other_format(start, false, settings);
    let hint = hint.or_else(|| hint::of_header(&error.kind, error.looks_like, settings));
    Failure::new(Code::Format, error.to_string()).with_hint(hint)
}

fn other_format(start: &[u8], ended: bool, settings: &Settings) -> Option<String> {
    let ranking = guess::rank(start, ended && start.len() < START);
    let other = ranking.sure().filter(|sure| sure.format != settings.format() || sure.max.is_some())?;
    Some(format!("looks like {}: try {}", other.format, other.options()))
}

async fn guess(mut source: Source, mut stop: Stop) -> Result<(), Failure> {
    let (mut bytes, mut ended) = (Vec::new(), false);
    while bytes.len() < START && !ended {
        let Some(more) = read(&mut source, &mut stop).await? else { break };
        ended = more.is_empty();
        bytes.extend_from_slice(&more);
    }
    let ranking = guess::rank(&bytes, ended);
    let mut out = io::stdout().lock();
    written(table(&mut out, &ranking))?;
    match ranking.sure() {
        Some(sure) => written(writeln!(out, "it is {}: {}", sure.format, sure.options())),
        None => {
            let mut failure = Failure::new(Code::Format, format!("not sure, of {} bytes", bytes.len()));
            let best = ranking.readings.iter().filter(|reading| reading.lost.is_none() && reading.bits > 0.0);
            let best: Vec<_> = best.map(|reading| reading.options()).take(3).collect();
            if !best.is_empty() {
                failure = failure.with_hint(format!("the likeliest: {}", best.join("; or ")));
            }
            Err(failure)
        }
    }
}

fn table(out: &mut impl Write, ranking: &Ranking) -> io::Result<()> {
    writeln!(out, "{:<36} {:>9} {:>9}", "format", "messages", "bits")?;
    for reading in &ranking.readings {
        let wrong = match reading.lost {
            Some(at) => format!("  loses its place at byte {at}"),
            None if reading.rest > 0 => format!("  ends {} bytes into a message", reading.rest),
            None => String::new(),
        };
        let options = reading.options();
        let format = options.trim_start_matches("--format ");
        writeln!(out, "{format:<36} {:>9} {:>9.0}{wrong}", reading.messages, reading.bits)?;
    }
    Ok(())
}
