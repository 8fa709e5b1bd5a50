//! The receiver of the page on delivery.

include!(concat!(env!("OUT_DIR"), "/receiver.rs"));
