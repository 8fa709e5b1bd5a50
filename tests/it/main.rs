//! Every integration test, in one binary: it links once.

mod alloc;
mod batches;
mod blocked;
mod blocked_callbacks;
mod callback;
mod cancel;
mod clean_close;
mod closing;
#[cfg(feature = "prost")]
mod collector;
mod connection;
mod counting;
mod decode;
mod deliveries;
mod docs;
mod drops;
mod events;
mod fault_lab;
mod fault_lab_acked;
mod go_faults;
mod go_faults_sending;
mod guess;
mod guess_rates;
mod handles;
mod hostile;
mod in_place;
mod interop;
mod joins;
mod keepalive;
mod limits;
mod lingers;
mod listener;
mod manager;
mod manager_breaks;
mod manager_limits;
mod manager_storm;
mod net;
#[cfg(feature = "tokio")]
mod on_tokio;
mod orphans;
mod panics;
mod peers;
mod pressure;
#[cfg(any(feature = "prost", feature = "tokio"))]
mod processes;
mod proxy;
mod reader;
mod reconnect;
mod reconnect_limits;
mod reopen;
mod samples;
mod script;
mod sessions;
mod sessions_floods;
mod sessions_hostile;
mod sessions_manager;
mod sessions_rejected;
mod settings;
mod shipper;
mod sigpipe;
mod sockets;
mod starts;
mod stress;
#[cfg(feature = "tracing")]
mod subscriber;
mod tidy;
#[cfg(feature = "tokio")]
mod tokio_client;
#[cfg(feature = "tracing")]
mod traces;
#[cfg(all(feature = "prost", feature = "postcard", feature = "json"))]
mod typed;
#[cfg(all(feature = "prost", feature = "postcard", feature = "json"))]
mod typed_codecs;
#[cfg(all(feature = "prost", feature = "postcard", feature = "json"))]
mod typed_hostile;
mod unix;
mod unix_files;
mod waits;
mod wire;
mod writer;
mod writer_breaks;
