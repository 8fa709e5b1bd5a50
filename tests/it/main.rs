//! Every integration test, in one binary: it links once.

mod alloc;
mod callback;
mod closing;
mod counting;
mod drops;
mod go_faults;
mod guess;
mod hostile;
mod interop;
mod limits;
mod listener;
mod net;
mod pressure;
mod reader;
mod samples;
mod script;
mod tidy;
mod wire;
mod writer;
mod writer_breaks;
