//! TLS: between this crate's ends, and against whatever else may be at the other end.

mod acked;
mod certificates;
mod cuts;
mod foreign;
mod hostile;
mod limits;
#[path = "../it/net.rs"]
#[allow(dead_code)] // Not all of it is needed here.
mod net;
mod pressure;
mod program;
mod providers;
mod raw;
mod sessions;
mod settings;
mod soak;
mod stuck;
