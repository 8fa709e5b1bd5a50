//! Messages on standard output, or in a file: as text, hex or JSON.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::failure::Failure;
use crate::proto::Proto;
use crate::terminal;

/// How and where messages are printed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub(crate) struct PrintArgs {
    /// How a message is printed
    #[arg(long, value_name = "STYLE", default_value = "text")]
    print: Style,
    /// A file to print to, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Style {
    /// Its bytes and a newline; with --proto, JSON
    Text,
    /// A line of hexadecimal digits
    Hex,
    /// A line of JSON with its time, sender and length
    Json,
    /// Not at all
    None,
}

/// Prints messages.
pub(crate) struct Printer {
    style: Style,
    proto: Option<Proto>,
    out: BufWriter<Box<dyn Write + Send>>,
}

impl PrintArgs {
    /// A printer of messages of this type, if they have one.
    pub(crate) fn printer(&self, proto: Option<Proto>) -> Result<Printer, Failure> {
        let out: Box<dyn Write + Send> = match &self.out {
            Some(path) => Box::new(create(path)?),
            // Its own lines are buffered here, and flushed when nothing more is there.
            None => Box::new(io::stdout()),
        };
        Ok(Printer { style: self.print, proto, out: BufWriter::with_capacity(64 * 1024, out) })
    }
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| Failure::file("create", path, &error))
}

impl Printer {
    /// Prints a message of the peer `from`. `false` if it is not of the type that is printed, which is said instead.
    pub(crate) fn print(&mut self, from: &dyn std::fmt::Display, message: &[u8]) -> Result<bool, Failure> {
        let out = &mut self.out;
        let printed = match (self.style, &self.proto) {
            (Style::None, _) => Ok(()),
            (Style::Hex, _) => {
                message.iter().try_for_each(|byte| write!(out, "{byte:02x}")).and_then(|()| out.write_all(b"\n"))
            }
            (Style::Text, None) => out.write_all(message).and_then(|()| out.write_all(b"\n")),
            (Style::Text, Some(proto)) => match proto.decode(message) {
                Ok(json) => writeln!(out, "{json}"),
                Err(problem) => {
                    terminal::say(format_args!("warning: a message of {from} is {problem}"));
                    return Ok(false);
                }
            },
            (Style::Json, proto) => writeln!(out, "{}", envelope(from, message, proto.as_ref())),
        };
        terminal::written(printed).map(|()| true)
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        terminal::written(self.out.flush())
    }
}

/// A message as JSON with what is known of it. What is no UTF-8 is in hexadecimal digits.
fn envelope(from: &dyn std::fmt::Display, message: &[u8], proto: Option<&Proto>) -> serde_json::Value {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut line = json!({ "time": time, "from": from.to_string(), "bytes": message.len() });
    let (key, value) = match (proto.map(|proto| proto.decode(message)), str::from_utf8(message)) {
        (Some(Ok(json)), _) => ("message", json),
        (Some(Err(problem)), _) => ("error", problem.into()),
        (None, Ok(text)) => ("text", text.into()),
        (None, Err(_)) => ("hex", hex(message).into()),
    };
    line[key] = value;
    line
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
