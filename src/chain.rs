//! Prints an error with what caused it.

use std::fmt;

/// Prints an error with all its sources, as `cannot connect to db:5031: Connection refused (os error 111)`. The errors
/// of this crate say what happened at one layer, and leave the rest to their sources, so that a program which prints
/// those too does not print it twice.
///
/// ```
/// use buffstreams::{Config, Connection, chain};
///
/// # async_std::task::block_on(async {
/// let error = Connection::dial(":no-port", Config::new()).await.unwrap_err();
/// assert_eq!(error.to_string(), "cannot connect to :no-port");
/// assert_eq!(chain(&error).to_string(), "cannot connect to :no-port: the port is no number");
/// # });
/// ```
pub fn chain<'a>(error: &'a (dyn std::error::Error + 'static)) -> impl fmt::Display + 'a {
    Chain(error)
}

struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            // An error that passes its source on has said the same.
            if text != last {
                write!(f, ": {text}")?;
            }
            (last, next) = (text, error.source());
        }
        Ok(())
    }
}
