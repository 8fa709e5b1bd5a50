//! The program, as people and scripts run it: against itself, and against other programs. Ports are chosen by the system.
#![allow(missing_docs)]

mod bench;
mod foreign;
mod inspect;
mod listen_and_send;
mod program;
mod proxy;
mod record;
mod relay;
mod usage;
