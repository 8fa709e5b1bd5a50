//! The program of the page on runtimes and TLS.

include!(concat!(env!("OUT_DIR"), "/mutual_tls.rs"));
