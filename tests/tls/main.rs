//! TLS: between this crate's ends, and against whatever else may be at the other end.

mod certificates;
mod cuts;
mod hostile;
#[path = "../it/net.rs"]
#[allow(dead_code)] // Not all of it is needed here.
mod net;
mod raw;
mod sessions;
mod stuck;
