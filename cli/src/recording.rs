//! The file of `record`: messages with their times. The README describes it byte by byte; all numbers are big-endian.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use buffstreams::Bytes;

use crate::failure::{Code, Failure};
use crate::format::Format;

/// No text begins with it, and what changes ends of lines breaks it.
const MAGIC: [u8; 8] = *b"\x89BUFREC\n";
const VERSION: u8 = 1;
/// How long what is in front of a message is: its time, its peer and its length, in bytes.
const HEAD: usize = 24;
/// How much is read or written at once, in bytes.
const BUFFER: usize = 64 * 1024;

/// What is known of a message besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// How long after the first message of the recording.
    pub(crate) at: Duration,
    /// The number of the connection it came by.
    pub(crate) peer: u64,
    pub(crate) len: u64,
}

/// Writes a recording.
pub(crate) struct Recorder {
    path: PathBuf,
    out: BufWriter<Box<dyn Write + Send>>,
}

impl Recorder {
    pub(crate) fn create(path: &Path, format: Format, max: usize) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| Failure::file("create", path, &error))?;
        Self::new(path, file, format, max)
    }

    /// A recording into what has this path.
    pub(crate) fn new(
        path: &Path,
        file: impl Write + Send + 'static,
        format: Format,
        max: usize,
    ) -> Result<Self, Failure> {
        let mut recorder = Self { path: path.to_owned(), out: BufWriter::with_capacity(BUFFER, Box::new(file)) };
        let name = format.to_string();
        let header = [&MAGIC[..], &[VERSION, name.len() as u8], name.as_bytes(), &(max as u64).to_be_bytes()].concat();
        recorder.write(&header)?;
        Ok(recorder)
    }

    pub(crate) fn add(&mut self, at: Duration, peer: u64, message: &[u8]) -> Result<(), Failure> {
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let mut head = [0; HEAD];
        for (field, number) in head.chunks_mut(8).zip([at, peer, message.len() as u64]) {
            field.copy_from_slice(&number.to_be_bytes());
        }
        self.write(&head)?;
        self.write(message)
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| Failure::file("write", &self.path, &error))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| Failure::file("write", &self.path, &error))
    }
}

/// Reads a recording.
pub(crate) struct Recording {
    path: PathBuf,
    input: BufReader<File>,
    /// How much has been read, in bytes.
    offset: u64,
    /// How many messages have been read.
    messages: u64,
    pub(crate) format: Format,
    pub(crate) max: u64,
}

impl Recording {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| Failure::file("open", path, &error))?;
        let input = BufReader::with_capacity(BUFFER, file);
        let path = path.to_owned();
        let mut recording = Self { path, input, offset: 0, messages: 0, format: Format::default(), max: 0 };
        recording.read_header()?;
        Ok(recording)
    }

    fn read_header(&mut self) -> Result<(), Failure> {
        let magic: [u8; 8] = self.array().map_err(|_| self.wrong(0, "no recording: it does not begin as one"))?;
        if magic != MAGIC {
            let hint = "`buffstreams record` makes them; `buffstreams inspect` shows other captures".to_owned();
            return Err(self.wrong(0, "no recording: it does not begin as one").with_hint(hint));
        }
        let [version, len] = self.array()?;
        if version != VERSION {
            return Err(self.wrong(8, &format!("a recording of version {version}, and this program knows {VERSION}")));
        }
        let mut name = vec![0; usize::from(len)];
        self.fill(&mut name)?;
        let name = String::from_utf8_lossy(&name);
        self.format = name.parse().map_err(|_| self.wrong(10, &format!("no format has the name {name:?}")))?;
        self.max = u64::from_be_bytes(self.array()?);
        Ok(())
    }

    /// What is in front of the next message; `None` at the end. The message itself is to be read, or skipped, then.
    pub(crate) fn head(&mut self) -> Result<Option<Head>, Failure> {
        let is_over = self.input.fill_buf().map_err(|error| Failure::file("read", &self.path, &error))?.is_empty();
        if is_over {
            return Ok(None);
        }
        let begin = self.offset;
        self.messages += 1;
        let mut numbers = [0; 3];
        for number in &mut numbers {
            *number = u64::from_be_bytes(self.array()?);
        }
        let [at, peer, len] = numbers;
        if len > self.max {
            let what = format!("message {} has {len} bytes, and the longest may have {}", self.messages, self.max);
            return Err(self.wrong(begin, &what));
        }
        Ok(Some(Head { at: Duration::from_nanos(at), peer, len }))
    }

    /// The message behind this head. No more memory is taken than there are bytes in the file.
    pub(crate) fn message(&mut self, head: Head) -> Result<Bytes, Failure> {
        let mut message = Vec::new();
        let read = self.input.by_ref().take(head.len).read_to_end(&mut message);
        self.took(read.map(|read| read as u64), head.len)?;
        Ok(message.into())
    }

    /// Goes past the message behind this head.
    pub(crate) fn skip(&mut self, head: Head) -> Result<(), Failure> {
        let read = io::copy(&mut self.input.by_ref().take(head.len), &mut io::sink());
        self.took(read, head.len)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Failure> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), Failure> {
        let want = into.len() as u64;
        let read = io::copy(&mut self.input.by_ref().take(want), &mut &mut *into);
        self.took(read, want)
    }

    fn took(&mut self, read: io::Result<u64>, want: u64) -> Result<(), Failure> {
        let read = read.map_err(|error| Failure::file("read", &self.path, &error))?;
        self.offset += read;
        if read == want {
            return Ok(());
        }
        Err(match self.messages {
            0 => self.wrong(self.offset, "the recording ends in its header"),
            1 => self.wrong(self.offset, "the recording ends inside its first message"),
            number => {
                let failure = self.wrong(self.offset, &format!("the recording ends inside message {number}"));
                failure.with_hint(format!("those before it are whole: --count {}", number - 1))
            }
        })
    }

    fn wrong(&self, at: u64, what: &str) -> Failure {
        Failure::new(Code::Format, format!("{}, byte {at}: {what}", self.path.display()))
    }
}
