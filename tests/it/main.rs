//! Every integration test, in one binary: it links once.

mod alloc;
mod callback;
mod counting;
mod guess;
mod interop;
mod limits;
mod listener;
mod net;
mod reader;
mod samples;
mod script;
mod tidy;
mod wire;
mod writer;
mod writer_breaks;
