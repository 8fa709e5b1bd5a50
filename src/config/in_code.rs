//! What only code can set, and no file has: an error where a configuration is serialized.

use serde::ser::{Error, Serializer};

use crate::runtime::Handle;

pub(super) fn is_default(runtime: &Handle) -> bool {
    *runtime == Handle::default()
}

pub(super) fn runtime<S: Serializer>(runtime: &Handle, _: S) -> Result<S::Ok, S::Error> {
    Err(S::Error::custom(format_args!("a runtime cannot be serialized: {runtime:?} is for the program to set")))
}
