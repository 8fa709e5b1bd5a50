//! Against real servers of NATS, each with a store of its own in a temporary folder, on ports of the system's choice.
#![allow(missing_docs)]
#![allow(clippy::print_stdout, clippy::print_stderr)] // What was lost, and what was left out.

mod cluster;
mod egress;
mod ingress;
mod letters;
mod outage;
mod parts;
mod routes;
mod server;
mod sessions;
