//! Every integration test, in one binary: it links once.

mod alloc;
mod counting;
mod guess;
mod interop;
mod limits;
mod reader;
mod samples;
mod script;
mod tidy;
mod wire;
mod writer;
mod writer_breaks;
