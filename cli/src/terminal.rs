//! Standard error, for people, and standard output, for the next program.

use std::fmt;
use std::io::{self, Write};

use signal_hook::consts::SIGPIPE;
use signal_hook::low_level::emulate_default_handler;

use crate::failure::{Code, Failure};

/// Tells people something. That nobody can be told is no reason to fail.
pub(crate) fn say(what: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}

/// The outcome of a write to standard output. Where the reader has gone, the program ends as any Unix tool does: by SIGPIPE. The
/// signal itself stays ignored, since a broken connection is no broken pipe.
pub(crate) fn written<T>(outcome: io::Result<T>) -> Result<T, Failure> {
    outcome.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            let _ = emulate_default_handler(SIGPIPE);
        }
        Failure::new(Code::Failed, format!("cannot write the output: {error}"))
    })
}
