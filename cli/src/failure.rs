//! How a command fails: a code for scripts, and for people what went wrong and which option to change.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use buffstreams::Error;

use crate::hint;
use crate::settings::Settings;

/// The exit codes, as the README lists them. 2 is that of a command line that makes no sense, which clap gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// A file, or the input, cannot be read, or the output not be written; or anything that has no other code.
    Failed = 1,
    /// The settings cannot work together, or the file of settings is wrong.
    Usage = 2,
    /// Nobody can be reached, or nothing be listened on, or a connection broke.
    Connection = 3,
    /// The bytes are not in the format, or no format can be told.
    Format = 4,
    /// Not everything was delivered.
    Undelivered = 5,
    /// Ctrl-C came before the work was done. Nothing that had been accepted is known to be lost.
    Interrupted = 130,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Names the option to change.
    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Something about a file.
    pub(crate) fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(Code::Failed, format!("cannot {what} {}: {error}", path.display()))
    }

    /// What the library says, with what can be done about it.
    pub(crate) fn of(error: &Error, settings: &Settings) -> Self {
        let code = match error {
            Error::Config(_) => Code::Usage,
            Error::Frame(_) | Error::Truncated { .. } => Code::Format,
            Error::MessageTooLarge { .. } | Error::NotSent { .. } | Error::QueueFull { .. } => Code::Undelivered,
            _ => Code::Connection,
        };
        Self::new(code, chain(error)).with_hint(hint::of(error, settings))
    }

    /// The same, as the reason of something larger.
    #[must_use]
    pub(crate) fn into_reason_of(self, code: Code, what: &str) -> Self {
        Self { code, message: format!("{what}: {}", self.message), hint: self.hint }
    }

    /// Of a command that knows of nothing that is lost, and says more than that itself.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Code::Interrupted, message)
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
