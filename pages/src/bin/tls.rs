//! The program for TLS of the README.

include!(concat!(env!("OUT_DIR"), "/tls.rs"));
