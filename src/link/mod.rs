//! What reopens a connection that broke.

mod attempts;

pub(crate) use attempts::Retries;
