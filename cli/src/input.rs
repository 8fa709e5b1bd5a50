//! Messages to send: lines of standard input or of files, whole files, hex, or JSON that becomes Protocol Buffers.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::mem;
use std::path::PathBuf;

use buffstreams::Bytes;
use clap::{Args, ValueEnum};
use futures::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use smol::Unblock;

use crate::failure::{Code, Failure};
use crate::proto::{Proto, ProtoArgs};

/// How much is read of a file at once, in bytes.
const READ: usize = 256 * 1024;

/// Where messages come from.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Input")]
pub(crate) struct InputArgs {
    /// Files with messages; `-` is standard input, and is what is read if there are none
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A message, in front of those of the files
    #[arg(short, long, value_name = "TEXT")]
    message: Vec<String>,
    /// What a message is
    #[arg(long, value_name = "KIND", default_value = "lines")]
    input: Kind,
    /// Send everything so many times
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    repeat: u64,
    #[command(flatten)]
    proto: ProtoArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Each line, without its newline; with --proto, JSON
    Lines,
    /// Each line, which has hexadecimal digits
    Hex,
    /// Each file as it is
    Whole,
}

/// The messages.
pub(crate) struct Input {
    args: InputArgs,
    proto: Option<Proto>,
    left: VecDeque<Source>,
    current: Option<Lines>,
    rounds: u64,
}

#[derive(Clone)]
enum Source {
    Text(String),
    File(PathBuf),
}

/// A file that is being read.
struct Lines {
    path: PathBuf,
    reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    line: u64,
    partial: Vec<u8>,
}

impl InputArgs {
    pub(crate) fn open(mut self) -> Result<Input, Failure> {
        if self.files.is_empty() && self.message.is_empty() {
            self.files.push("-".into());
        }
        if self.repeat > 1 && self.files.iter().any(|file| file.as_os_str() == "-") {
            let failure = Failure::new(Code::Usage, "standard input can be read only once");
            return Err(failure.with_hint("name files, or use --message, with --repeat".to_owned()));
        }
        let proto = self.proto.load()?;
        let rounds = self.repeat;
        Ok(Input { args: self, proto, left: VecDeque::new(), current: None, rounds })
    }
}

impl Input {
    /// How many bytes there are to read, if that can be told.
    pub(crate) fn total(&self) -> Option<u64> {
        let sizes = self.args.files.iter().map(|file| fs::metadata(file).ok().filter(|file| file.is_file()));
        let files: Option<u64> = sizes.map(|file| file.map(|file| file.len())).sum();
        let texts: u64 = self.args.message.iter().map(|text| text.len() as u64).sum();
        files.map(|files| (files + texts) * self.args.repeat)
    }

    /// The next message; `None` at the end. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        loop {
            if let Some(lines) = &mut self.current {
                let (kind, proto) = (self.args.input, self.proto.as_ref());
                match lines.next(kind, proto).await {
                    None => self.current = None,
                    message => return message,
                }
            }
            match self.left.pop_front() {
                Some(Source::Text(text)) => {
                    return Some(convert(text.into_bytes(), self.args.input, self.proto.as_ref(), "--message"));
                }
                Some(Source::File(path)) => match Lines::open(path) {
                    Ok(lines) => self.current = Some(lines),
                    Err(failure) => return Some(Err(failure)),
                },
                None if self.rounds == 0 => return None,
                None => {
                    self.rounds -= 1;
                    let texts = self.args.message.iter().cloned().map(Source::Text);
                    self.left.extend(texts.chain(self.args.files.iter().cloned().map(Source::File)));
                }
            }
        }
    }
}

impl Lines {
    fn open(path: PathBuf) -> Result<Self, Failure> {
        let reader: Box<dyn AsyncRead + Send + Unpin> = match path.to_str() {
            Some("-") => Box::new(Unblock::with_capacity(READ, io::stdin())),
            _ => {
                let file = File::open(&path).map_err(|error| Failure::file("open", &path, &error))?;
                Box::new(Unblock::with_capacity(READ, file))
            }
        };
        Ok(Self { path, reader: BufReader::with_capacity(READ, reader), line: 0, partial: Vec::new() })
    }

    /// Dropping the future loses nothing: what has been read of a message is kept for the next.
    async fn next(&mut self, kind: Kind, proto: Option<&Proto>) -> Option<Result<Bytes, Failure>> {
        let read = match kind {
            // A file that is empty is an empty message.
            Kind::Whole if self.line > 0 => return None,
            Kind::Whole => self.reader.read_to_end(&mut self.partial).await.map(|_| true),
            // What was read before is a line, though nothing comes behind it.
            Kind::Lines | Kind::Hex => {
                let read = self.reader.read_until(b'\n', &mut self.partial).await;
                read.map(|read| read > 0 || !self.partial.is_empty())
            }
        };
        match read {
            Err(error) => return Some(Err(Failure::file("read", &self.path, &error))),
            Ok(false) => return None,
            Ok(true) => self.line += 1,
        }
        let mut message = mem::take(&mut self.partial);
        if kind != Kind::Whole && message.last() == Some(&b'\n') {
            message.pop();
        }
        if kind == Kind::Lines && proto.is_none() {
            return Some(Ok(message.into()));
        }
        let place = format!("{}, line {}", self.path.display(), self.line);
        Some(convert(message, kind, proto, &place))
    }
}

fn convert(message: Vec<u8>, kind: Kind, proto: Option<&Proto>, place: &str) -> Result<Bytes, Failure> {
    let converted = match (kind, proto) {
        (Kind::Hex, _) => unhex(&message).ok_or_else(|| "no hexadecimal digits, two for each byte".to_owned()),
        (Kind::Lines | Kind::Whole, Some(proto)) => proto.encode(&message),
        (Kind::Lines | Kind::Whole, None) => Ok(message),
    };
    converted.map(Bytes::from).map_err(|problem| Failure::new(Code::Failed, format!("{place}: {problem}")))
}

/// Bytes from hexadecimal digits; spaces between them do not count.
fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.iter().filter(|byte| !byte.is_ascii_whitespace()).copied().collect();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}
