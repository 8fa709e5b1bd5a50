//! Length-prefixed messages over TCP, TLS and Unix sockets, as [`futures::Stream`] and [`futures::Sink`].
//!
//! A header says how long each message is. A program sends and receives whole messages, Protocol Buffers or any other bytes, and
//! never sees a header, a partial read, a reconnect or a map of sockets. This crate is the successor of the Go library buffstreams
//! v2.0.0, and speaks its wire format by default.
//!
//! ```
//! use buffstreams::{Bytes, Config, Connection, Listener};
//! use futures::{SinkExt, StreamExt};
//!
//! # async_std::task::block_on(async {
//! let config = Config::new().max_message_size(1 << 20);
//! let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await?;
//!
//! let mut connection = Connection::dial(listener.local_addr(), config).await?;
//! connection.feed(Bytes::from_static(b"one")).await?;
//! connection.send(Bytes::from_static(b"two")).await?;
//!
//! let (peer, message) = listener.next().await.unwrap();
//! assert_eq!(message, "one");
//! println!("{peer} sent {} bytes", message.len());
//! # Ok::<(), buffstreams::Error>(()) }).unwrap();
//! ```
//!
//! # On the wire
//!
//! ```text
//! +-----------------+-----------------------------+-----------------+- -
//! | header          | message                     | header          |
//! | length in bytes | 0 to max_message_size bytes | length in bytes | …
//! +-----------------+-----------------------------+-----------------+- -
//!   dc 01 00          08 96 01 12 … (110 bytes)     buffstreams format, max_message_size 4096
//! ```
//!
//! [`WireFormat`] has the formats. Both ends must use the same.
//!
//! # Where to begin
//!
//! | to | use |
//! |---|---|
//! | receive from many peers, and reply | [`Listener`], [`Incoming`], [`Outgoing`] |
//! | receive with a callback | [`Listener::serve`], [`Listener::serve_async`], [`Serving`] |
//! | have a connection for each peer | [`Connections`] |
//! | send, and receive the replies | [`Connection`], [`ReadHalf`], [`WriteHalf`] |
//! | send to many addresses, from many tasks | [`Manager`], [`ManagerSink`], [`DeadLetters`] |
//! | send to whichever address is there, or to all of them | [`Route`], [`RouteSink`], [`Health`] |
//! | go on when a peer goes away and comes back | [`Config::reconnect`], [`Backoff`] |
//! | have each message acknowledged by the other program | [`Config::session`], [`Session`] |
//! | send and receive types instead of bytes | [`typed`], [`Listener::decode`] |
//! | avoid a copy or a reference count for each message | [`Listener::batches`], [`Connection::try_feed`] |
//! | use another transport | [`Reader`], [`Writer`]; [`wire`] for bytes alone |
//! | name an end of a connection, and know who is there | [`Address`], [`Endpoint`], [`Peer`], [`Identity`] |
//! | know what happens | [`Events`] of [`Event`] and [`ManagerEvent`]; `log` or `tracing`, target `buffstreams`; `metrics` |
//! | set a limit, choose a runtime, have TLS | [`Config`] |
//!
//! # Three promises
//!
//! 1. **Pressure.** Every queue of messages is bounded, in bytes. Only messages that came back to a [`Connection`] in a session
//!    are held until the program takes them, however many there are. A full inbox makes the readers wait, which closes the TCP
//!    windows, which makes the remote sinks pending. So a consumer that stops costs bounded memory, whatever the number of peers.
//!    Memory for a message follows the bytes received, never the length announced. Events are bounded in number.
//! 2. **Stop.** Dropping a listener, a connection or a manager ends its tasks and closes its sockets at once, and never
//!    blocks. Only the socket of a [`Connection`] may stay open in the background: for up to a second in a session, and for up to
//!    `close_timeout` after a close. Closing first delivers what was accepted, then ends the sending direction, and has a deadline
//!    ([`Config::close_timeout`]).
//! 3. **Errors.** One bad peer never ends the listener's stream and never affects another peer. An error in a background task
//!    goes to a stream of events, to counters and to the log. A message that was accepted is written, or comes
//!    back: held for the next connection, in an error, or as a dead letter. There are two exceptions, and both are the choice of the
//!    program: dropping what holds the message, and not asking for the dead letters.
//!
//! # What becomes of a message
//!
//! A message is accepted when `start_send` has returned `Ok`, or when `write` has put it into its queue. From then on:
//!
//! - Its end is one of three. It is *written*, handed whole to the kernel; or it *comes back*, as a [`DeadLetter`] with an
//!   [`Outcome`] or in the error of the `write` that waited for it; or it is *held*. The counters of a [`Manager`] say
//!   `accepted = written + dead_lettered + held` at every moment. In a session, a message is held until it is acknowledged, and
//!   `acked` takes the place of `written`. What a [`RouteSink`] holds is counted from when an address has it.
//! - When a connection breaks inside a frame, the receiver discards the part, with an [`Event`]. The sender sends that frame
//!   again on the next connection, whole and first, and the others after it, in order.
//! - A frame that was handed whole to the kernel is not sent again. TCP cannot tell whether the program of the peer got it: when
//!   a connection is reset, what the kernels of both ends still held is lost without a trace. If a peer closes, rather than
//!   resets, after it has read everything, nothing is lost. With [`Config::session`] it is known, and sent again.
//! - The end that dialed looks before each write, also of what is left of a batch, whether the peer has closed, so that it does
//!   not write to a dead socket. It cannot notice an end that has not arrived: that of a peer that closes in the same moment, or
//!   one behind more unread replies than the kernel has room for. On other systems than Linux and Android, any reply that a
//!   [`Connection`] has not read hides it. In a session it does not look: what went to a dead socket is sent again, or is in
//!   doubt if the receiver was started anew.
//! - Without [`Config::reconnect`], the first attempt to open the connection again decides. With it, messages are held, up
//!   to [`Config::queue_bytes`], until it succeeds or gives up; older ones than [`Config::message_ttl`] come back before.
//! - Dead letters that were not asked for are counted ([`ManagerStats::lost`]), with an event. A program that asks for them and
//!   is slow makes the address that they come from hold its next ones, within a bound. Other addresses are not affected.
//! - Closing delivers what was accepted within its deadline, and what it could not deliver comes back. Dropping does not.
//! - A process that ends with something unread resets its connections, and what the kernel had not delivered yet is lost. So
//!   before that, close, and read to the end: the peer closes when it has read everything. [`Manager::close`] and
//!   [`Manager::shutdown`] do that. After the `close` of a [`Connection`] the program has to read.
//!
//! # Transports
//!
//! A listener, a [`Connection`] and a [`Manager`] have the same interface, limits and errors on each:
//!
//! - **TCP**, for an address like `host:5031`. Keepalive and `TCP_USER_TIMEOUT` are set: see [`Config::keepalive`].
//! - **Unix sockets**, for an [`Address`] like `unix:/run/app.sock`. The kernel says whose process is at the other end:
//!   [`Identity::credentials`]. Not on Windows.
//! - **TLS** 1.3 inside either, by `Config::tls` with the feature `tls-ring` or `tls-aws-lc-rs`. Where it is set, there is never
//!   plaintext. [`Identity::certificates`] has the certificates of the other end. A handshake that fails is `Error::Tls` of a dial,
//!   and `Event::HandshakeFailed` of a listener.
//! - Anything else that reads and writes bytes, with [`Reader`] and [`Writer`].
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `async-std` (default), `smol`, `tokio` | a runtime each, for [`Config::runtime`]; `tokio` adds nothing on Windows |
//! | `tls-ring`, `tls-aws-lc-rs` | `Config::tls`, with the cryptography of ring or AWS-LC; ring where both are on |
//! | `tls` | the same without cryptography, for a library that leaves the choice to the program |
//! | `serde` | [`Config`], [`Session`], [`Backoff`], [`WireFormat`] and `TlsFiles` in files of settings: see [`Config`] |
//! | `sim` | a network and a clock in memory, for tests: `Sim` |
//! | `prost`, `postcard`, `json` | a codec each for [typed] messages: `Prost`, `Postcard`, `Json` |
//! | `tracing` | events and spans for the subscriber of `tracing` that the program has set, instead of lines for `log` |
//! | `metrics` | what is counted, for the recorder of the `metrics` facade that the program has installed: `metrics::publish` |
//!
//! # Runtime
//!
//! The sockets, tasks and timers of this crate run on the runtime of the configuration: see [`Config::runtime`]. By default that
//! is async-std, whose threads start without any call. The public types are plain streams, sinks and futures: any executor can
//! poll them.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

// Each from those above it only.
mod chain;
mod foreign;

mod sync;

#[cfg(feature = "serde")]
mod duration;

mod backoff;
mod endpoint;
mod error;
mod identity;
mod peer;

#[cfg(feature = "metrics")]
pub mod metrics;

pub mod wire;

mod session;

#[allow(unnameable_types)] // What a runtime consists of: the trait `Runtime` is sealed.
mod runtime;
#[cfg(feature = "tls")]
mod tls;

mod config;
mod observe;

mod deadline;
#[cfg(any(test, feature = "sim"))]
mod sim;
mod transport;

mod framed;

mod queue;

mod link;

mod connection;

mod listener;

mod manager;

pub mod typed;

pub use bytes::Bytes;

pub use backoff::Backoff;
pub use chain::chain;
pub use config::Config;
pub use connection::{Connection, ReadHalf, WriteHalf};
pub use endpoint::Endpoint;
#[cfg(feature = "tls")]
pub use error::TlsError;
pub use error::{
    BoxError, ConfigError, Error, FrameError, FrameErrorKind, HandshakeErrorKind, Limit, LooksLike, Loss,
    ParseWireFormatError, SessionErrorCode, Unsent,
};
pub use foreign::PanicSource;
pub use framed::{Messages, MessagesIter, Reader, Writer};
pub use identity::{Credentials, Identity};
pub use listener::{
    Batch, Batches, Closer, Connections, Deliveries, Delivery, DeliveryId, Incoming, Listener, ListenerStats, Outgoing,
    Serving,
};
pub use manager::{
    DeadLetter, DeadLetters, Ending, Health, LinkStats, Manager, ManagerSink, ManagerStats, Route, RouteSink,
};
pub use observe::{Event, Events, ManagerEvent, Reason};
pub use peer::{Address, ParseAddressError, Peer};
pub use queue::Outcome;
#[cfg(feature = "async-std")]
pub use runtime::AsyncStd;
pub use runtime::Runtime;
#[cfg(feature = "smol")]
pub use runtime::Smol;
#[cfg(all(feature = "tokio", unix))]
pub use runtime::Tokio;
pub use session::Session;
#[cfg(any(test, feature = "sim"))]
pub use sim::{Fault, Side, Sim, SimLink, Spawned};
#[cfg(feature = "tls")]
pub use tls::{Provider, Tls, TlsClientFiles, TlsFiles, TlsServerFiles};
pub use wire::{FixedFormat, WireFormat};

/// For the targets in `fuzz/` alone, which are another crate.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz {
    /// Any bytes as what the ends of a session say.
    pub fn session_wire(input: &[u8]) {
        super::session::fuzz::wire(input);
    }

    /// Two ends of a session, and what happens to them.
    pub fn session_ops(input: &[u8]) {
        super::session::fuzz::ops(input);
    }

    /// Any bytes behind the handshake of a session.
    pub fn session_peer(input: &[u8]) {
        super::queue::hostile::run(input);
    }

    /// What is sent, kept and sent again.
    pub fn output_replay(input: &[u8]) {
        super::wire::trial::run(input);
    }
}

/// The programs of the README and of the pages in `docs/` are tests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/delivery.md")]
    struct Delivery;
    #[doc = include_str!("../docs/guide.md")]
    struct Guide;
    #[cfg(feature = "metrics")]
    #[doc = include_str!("../docs/operating.md")]
    struct Operating;
    #[doc = include_str!("../docs/limits.md")]
    struct Limits;
    #[doc = include_str!("../docs/runtimes-and-tls.md")]
    struct RuntimesAndTls;
    #[doc = include_str!("../docs/simulator.md")]
    struct Simulator;
    #[doc = include_str!("../docs/wire-formats.md")]
    struct WireFormats;
}
