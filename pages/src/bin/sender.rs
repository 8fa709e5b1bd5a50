//! The sender of the page on delivery.

include!(concat!(env!("OUT_DIR"), "/sender.rs"));
