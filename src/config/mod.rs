//! Every limit: its default, what it is for, and the attack or the cost that it bounds.

mod check;
mod get;
#[cfg(feature = "serde")]
mod in_code;
mod linger;

use std::time::Duration;

use crate::backoff::Backoff;
use crate::runtime::{Handle, Runtime};
use crate::session::Session;
#[cfg(feature = "tls")]
use crate::tls::Tls;
use crate::wire::WireFormat;
use linger::Linger;

/// The settings of a listener, a connection or a manager: the wire format, and every limit with its default.
///
/// A builder by value; it is checked when it is used, by `bind`, `dial`, `Manager::open` and `Manager::listen`. A limit that is a time
/// takes a `Duration`, or `None` for no limit. Zero is an error ([`ConfigError::Time`](crate::ConfigError::Time)), except for
/// `close_timeout` and `drain_timeout`, where it means that a close waits for nothing, `message_ttl` and `linger`.
///
/// ```
/// use std::time::Duration;
/// use buffstreams::{Config, WireFormat};
///
/// let config = Config::new()
///     .max_message_size(1 << 20)
///     .wire_format(WireFormat::u32_be())
///     .idle_timeout(Duration::from_secs(300))
///     .keepalive(None);
/// assert_eq!(config.get_max_message_size(), 1 << 20);
/// assert_eq!(config, config.clone());
/// ```
///
/// Two configurations are equal if all settings are. A runtime, or a closure of a [`Backoff`], equals only its clones. Two `Tls`
/// are equal if one is a clone of the other, or if both were read from the same files.
///
/// # In a file
///
/// With the feature `serde` it can be read from a file of settings, and written to one. Each setting has the name of its method; one
/// that is left out has its default, one that is not known is an error with its name. A time is a text like `"5s"`, `"250ms"` or
/// `"1m 30s"`, or `"none"` for no limit; a size is a number, in bytes; a [`WireFormat`] is its text, and a [`Backoff`] its figures.
///
/// ```toml
/// wire_format = "u32_be"
/// max_message_size = 1048576
/// idle_timeout = "5m"
/// keepalive = "none"
/// reconnect = { first = "100ms", longest = "30s" }
/// ```
///
/// With TLS, `tls` names the files of certificates and keys: see `TlsFiles`. What a file cannot say is set in the program: the
/// runtime, certificates that are given in code, and a backoff made of a closure. A configuration that has one of these is an error
/// to serialize. The example `config_file` reads one.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Config {
    pub(crate) wire_format: WireFormat,
    pub(crate) max_message_size: usize,
    pub(crate) inbox_bytes: usize,
    pub(crate) queue_bytes: usize,
    pub(crate) max_connections: usize,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub(crate) reconnect: Option<Backoff>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::limit"))]
    pub(crate) message_ttl: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Linger::is_unset"))]
    pub(crate) linger: Linger,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::limit"))]
    pub(crate) dial_timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::limit"))]
    pub(crate) write_timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::limit"))]
    pub(crate) frame_timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::limit"))]
    pub(crate) idle_timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::limit"))]
    pub(crate) close_timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::limit"))]
    pub(crate) drain_timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::limit"))]
    pub(crate) keepalive: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration::limit"))]
    pub(crate) user_timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub(crate) unix_mode: Option<u32>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub(crate) session: Option<Session>,
    #[cfg_attr(
        feature = "serde",
        serde(skip_deserializing, serialize_with = "in_code::runtime", skip_serializing_if = "in_code::is_default")
    )]
    pub(crate) runtime: Handle,
    #[cfg(feature = "tls")]
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub(crate) tls: Option<Tls>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            wire_format: WireFormat::buffstreams(),
            max_message_size: 4096,
            inbox_bytes: 1 << 20,
            queue_bytes: 4 << 20,
            max_connections: 16_384,
            reconnect: None,
            message_ttl: None,
            linger: Linger::Unset,
            dial_timeout: Some(Duration::from_secs(10)),
            write_timeout: Some(Duration::from_secs(30)),
            frame_timeout: Some(Duration::from_secs(30)),
            idle_timeout: None,
            close_timeout: Some(Duration::from_secs(5)),
            drain_timeout: Some(Duration::from_secs(60)),
            keepalive: Some(Duration::from_secs(60)),
            user_timeout: Some(Duration::from_secs(30)),
            unix_mode: None,
            session: None,
            runtime: Handle::default(),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl Config {
    /// The defaults; on the wire, those of the Go library buffstreams v2.0.0.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the tasks, timers and sockets run on. Default: async-std, if the feature `async-std` is on. It is on by default. Without
    /// it, and without a runtime given here, `bind`, `dial`, `Manager::open` and `Manager::listen` fail with
    /// [`ConfigError::NoRuntime`](crate::ConfigError::NoRuntime).
    ///
    /// The streams, sinks and futures of this crate can be polled on any executor, whatever this is.
    #[must_use]
    pub fn runtime(mut self, runtime: impl Runtime) -> Self {
        self.runtime = Handle::new(runtime);
        self
    }

    /// TLS inside every connection. Default: none, plaintext. See [`Tls`].
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: impl Into<Option<Tls>>) -> Self {
        self.tls = tls.into();
        self
    }

    /// Acknowledged sessions instead of plain connections. Default: none. Both ends need one.
    ///
    /// A session outlives its connections. Each message has a place in it and is acknowledged when the *program* at the
    /// other end has taken it, not when a kernel has. When a connection breaks, the end that dialed opens another, the
    /// two ends compare how far they have come, and what had not arrived is sent again: within a session each message
    /// is taken once and in order, over any number of connections, in both directions. It holds as long as both
    /// processes live. Where a session is lost, because the other process has died or the [`ttl`](Session::ttl) is
    /// over, what was sent and not acknowledged comes back as *in doubt*: it may or may not have been taken, and it is
    /// not sent again. What was never sent goes on in the next session. Nothing is kept on a disk.
    ///
    /// A message is taken when the consumer asks a stream for the next one behind its batch, or when a callback has returned
    /// `Ok`. One for which a callback returns an error is refused, and its sender gets it back.
    ///
    /// It costs 88 bytes each way for each connection, small acknowledgements, and memory: what was sent is held until
    /// it is acknowledged, within [`queue_bytes`](Self::queue_bytes) and the other end's
    /// [`window_bytes`](Session::window_bytes). A stalled consumer stalls its senders, visibly, and is not disconnected
    /// for that.
    ///
    /// With a session:
    ///
    /// - [`wire_format`](Self::wire_format) is not used, but by [`or_plain`](Session::or_plain): each message has a header of 4
    ///   bytes, and [`max_message_size`](Self::max_message_size) is 2^31 - 1 at the most.
    /// - [`write_timeout`](Self::write_timeout), [`user_timeout`](Self::user_timeout), [`keepalive`](Self::keepalive) and
    ///   [`idle_timeout`](Self::idle_timeout) are off at its sockets: the [`heartbeat`](Session::heartbeat) tells a host that has
    ///   vanished from a consumer that is slow. `write_timeout`, or 30 s without one, is how long a listener whose replies to a
    ///   peer have filled `queue_bytes` waits for an acknowledgement before it ends that session.
    /// - [`frame_timeout`](Self::frame_timeout) ends a connection, and not the session.
    /// - [`reconnect`](Self::reconnect) is `Backoff::exponential(50 ms, 5 s)` up to the `ttl` where none is given.
    /// - [`message_ttl`](Self::message_ttl) ends when a message is first sent: it cannot be withdrawn then.
    ///
    /// A peer without sessions at the other end is told by the handshake, with an error that says so. On plain TCP,
    /// anyone who can read or change the traffic can take a session over. A session protects from breaks, not from an
    /// attacker: that is what `Config::tls` is for.
    ///
    /// ```
    /// use buffstreams::{Config, Session};
    ///
    /// let config = Config::new().session(Session::new());
    /// ```
    #[must_use]
    pub fn session(mut self, session: impl Into<Option<Session>>) -> Self {
        self.session = session.into();
        self
    }

    /// How the length of a message is written. Default: [`WireFormat::buffstreams`]. Both ends need the same.
    #[must_use]
    pub fn wire_format(mut self, format: impl Into<WireFormat>) -> Self {
        self.wire_format = format.into();
        self
    }

    /// The longest message, in bytes, that is sent or received. Default: 4096, as in the Go library.
    ///
    /// Bounds what a peer can make us hold for one unfinished message. A longer announcement is refused from the header
    /// alone. Whatever it is, memory follows the bytes received, not the length announced; with many peers the bound is
    /// `max_connections` times this.
    ///
    /// In the [`buffstreams`](WireFormat::buffstreams) format, the default, it sets the width of the header as well,
    /// and both ends need the same width: with up to 255 bytes it is 2, up to 65,535 it is 3, up to 16,777,215 it is 4,
    /// and so on, a byte more for each 8 bits of the limit. The same value at both ends is the simplest way. In the
    /// other formats the two ends may have different values: each is the longest message that its end sends and takes.
    #[must_use]
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// How many bytes of received messages a listener holds for its consumer, all peers together. Default: 1 MiB.
    ///
    /// Bounds what one stalled consumer costs. When it is full the readers wait, the TCP windows close, and the remote
    /// sinks are pending. It counts the memory that is held, not just the messages; one batch may exceed it when
    /// nothing else is held, so that a message larger than the limit still passes.
    #[must_use]
    pub fn inbox_bytes(mut self, bytes: usize) -> Self {
        self.inbox_bytes = bytes;
        self
    }

    /// How many bytes of replies a listener holds for one peer that does not take them. Default: 4 MiB.
    ///
    /// From 60 KiB on nothing more is read from that peer; at this limit the sink of replies waits, for all peers, and at
    /// the end of `write_timeout` the peer is disconnected. What was read before may all be that peer's: where replies are
    /// no larger than what they answer, nobody waits if this is above `inbox_bytes` plus 128 KiB plus two messages.
    ///
    /// With [`reconnect`](Self::reconnect), it is also how many bytes a connection, or an address of a manager, holds while
    /// it is down, and at most one hand-over of 60 KiB, or of this if it is less, and one message on top; when it is full the
    /// sink waits. What a [`ManagerSink`](crate::ManagerSink) leaves behind when it is dropped is held up to this in any case.
    /// A manager holds as many bytes of dead letters.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes;
        self
    }

    /// How many connections a listener has at once. Default: 16,384.
    ///
    /// Bounds a flood of connections: one more is accepted and closed at once, with an
    /// [`Event::Refused`](crate::Event::Refused). Each costs a descriptor; mind the limit of the process, too.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Whether and how a connection that broke is opened again and again. Default: `None`, one attempt.
    ///
    /// With a [`Backoff`], what was accepted is held while the peer is away, [`queue_bytes`](Self::queue_bytes) of it,
    /// and no error is returned until the backoff gives up; then a manager's messages become dead letters with
    /// [`Outcome::GaveUp`](crate::Outcome::GaveUp), and a [`Connection`](crate::Connection) returns the last error. A
    /// peer that accepts and closes again and again is one outage, whatever it takes in between. Without a backoff, the
    /// first attempt that fails says so.
    ///
    /// Either way, a connection is opened again only when there is something to write. There are two exceptions: in a
    /// [session](Self::session) it is opened again at once, and with a backoff an address of a manager that was given up is
    /// [dialed in the background](crate::Health::Down). A first dial is not repeated, except that of
    /// [`Manager::open`](crate::Manager::open).
    #[must_use]
    pub fn reconnect(mut self, backoff: impl Into<Option<Backoff>>) -> Self {
        self.reconnect = backoff.into();
        self
    }

    /// How old a message may be when it is given to the kernel, from when it was accepted: by a `feed`, or a `write` in its turn.
    /// Default: no limit.
    ///
    /// A manager looks at it before each write of a batch, and while a connection is down: older messages become dead
    /// letters with [`Outcome::Expired`](crate::Outcome::Expired), a sixty-fourth of this later at the most, and not before
    /// those in front of them, which came through other sinks and may be younger. While earlier dead letters are not taken,
    /// the next ones are held. A batch that a peer has begun to take is not looked at again until its connection breaks. It
    /// bounds how stale news may be after an outage.
    ///
    /// It also holds for a [`Connection`](crate::Connection) that was dialed in a [session](Self::session). There the older
    /// messages come back through [`take_unsent`](crate::Connection::take_unsent), and the next flush returns
    /// [`Error::NotSent`](crate::Error::NotSent) with an [`Error::Timeout`](crate::Error::Timeout) of
    /// [`Limit::MessageTtl`](crate::Limit::MessageTtl) as its source. What another `Connection` holds is for its program to judge.
    #[must_use]
    pub fn message_ttl(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.message_ttl = limit.into();
        self
    }

    /// How long what was fed may wait for a flush: at the latest then it is handed over to be written. Default: 5 ms for the sinks of
    /// a manager and for connections in a [session](Self::session), which have a task; another [`Connection`](crate::Connection)
    /// lingers only where this is set. `None` is off for all.
    ///
    /// It concerns `feed`, `try_feed` and `start_send` without a flush behind them: what is fed within this time goes out
    /// together, as small messages should, and a message that nobody flushes goes out all the same. A flush does not wait for
    /// it. The time begins with the first message that a sink has for an address, and all that has come by its end go with
    /// that; where the queue of the address is full then, they wait for room in turn, as a flush does. With
    /// [`message_ttl`](Self::message_ttl) it is half of that at the most. Off, what was
    /// fed goes with a flush, with a full batch, when the sink is dropped, or when the address is closed.
    ///
    /// It costs a manager a timer for each address, which is set while something is fed, once in this time at the most. A
    /// plain `Connection` has a task of its own where it lingers, and a lock, which its two users hold for a write at the most. After
    /// a failure that the program was told of, this task opens nothing before the next feed.
    /// Zero wakes that task at once, for each message that finds nothing fed before it: that is for messages that are far between.
    ///
    /// The replies of an [`Outgoing`](crate::Outgoing) do not linger, and a [`RouteSink`](crate::RouteSink) does not need it: its
    /// task hands on what is fed as soon as an address has room.
    #[must_use]
    pub fn linger(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.linger = Linger::Set(limit.into());
        self
    }

    /// How long a dial may take, resolving the name and trying each of its addresses included. Default: 10 s.
    ///
    /// Bounds a black hole, which answers nothing. Each address gets an equal share of what is left. The handshakes of TLS and of a
    /// [session](Self::session) are parts of it; at a listener, it is how long these may take together.
    #[must_use]
    pub fn dial_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.dial_timeout = limit.into();
        self
    }

    /// How long a peer may take nothing of what is written to it. Default: 30 s.
    ///
    /// Bounds a peer that stops reading: its connection is closed. It starts over with every byte that is taken; over TLS with
    /// every record, of 16 KiB at the most.
    #[must_use]
    pub fn write_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.write_timeout = limit.into();
        self
    }

    /// How long a frame may take from its first byte to its last. Default: 30 s.
    ///
    /// Bounds a peer that sends a byte now and then. Time in which a listener does not read, because the inbox is full,
    /// does not count, nor does time in which a [`Connection`](crate::Connection) is not polled. Raise it for large
    /// messages over slow lines.
    #[must_use]
    pub fn frame_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.frame_timeout = limit.into();
        self
    }

    /// How long a listener keeps a peer that sends nothing between two frames. Default: no limit.
    ///
    /// Bounds peers that connect and stay silent; off, because many programs are right to be silent for hours. A host
    /// that vanished is found by `keepalive`. A message that has come when the time is over is taken, and the time starts
    /// again. One that is still on its way may be lost with the connection, as with any that is closed while the other end
    /// sends.
    #[must_use]
    pub fn idle_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.idle_timeout = limit.into();
        self
    }

    /// How long a close waits for what was accepted to be delivered, and for the other end to close. Default: 5 s.
    ///
    /// A listener that is being closed receives what its peers still send: then this is how long one of them may be silent. It
    /// starts over with every byte that is received, and [`drain_timeout`](Self::drain_timeout) limits the whole.
    #[must_use]
    pub fn close_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.close_timeout = limit.into();
        self
    }

    /// How long a listener that is being closed goes on receiving. Default: 60 s.
    ///
    /// Bounds peers that never come to an end, by sending a byte now and then, or always another message. A peer that
    /// has not closed by then is disconnected; what has arrived by then is received all the same. It is also how long
    /// [`Serving::close`](crate::Serving::close) waits for a callback. A peer that was cut off is an error there and of
    /// [`Listener::serve`](crate::Listener::serve), and its [`Event::Disconnected`](crate::Event::Disconnected) tells
    /// of it.
    #[must_use]
    pub fn drain_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.drain_timeout = limit.into();
        self
    }

    /// After how much silence the kernel asks whether the other host is still there. Default: 60 s.
    ///
    /// Finds hosts that vanished without a word: three questions, a sixth of this time apart, unanswered, end the
    /// connection. It is counted in seconds: less than one is taken as one. With [`user_timeout`](Self::user_timeout), Linux does not count them: the first that is unanswered when
    /// the silence has lasted that long ends it, with the defaults after 70 s. The longest silence is 32,767 s.
    ///
    /// A Unix socket needs neither of the two: the kernel knows both of its ends.
    #[must_use]
    pub fn keepalive(mut self, after: impl Into<Option<Duration>>) -> Self {
        self.keepalive = after.into();
        self
    }

    /// How long written data may stay unacknowledged before the kernel gives the connection up: `TCP_USER_TIMEOUT`
    /// (RFC 5482). Default: 30 s.
    ///
    /// Without it, a write to a host that vanished goes on for about 15 minutes. On Linux it ends connections whose
    /// peer keeps its window closed for this long as well, so it should not be shorter than `write_timeout`. On systems
    /// that do not have the option it does nothing. It is counted in milliseconds, from 1 to 2^31 - 1 (24 days); anything
    /// else is an error.
    #[must_use]
    pub fn user_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.user_timeout = limit.into();
        self
    }

    /// Who may dial a Unix socket that is listened on: the permissions of its file, as `chmod` takes them. Default: what the
    /// umask of the process leaves of `0o777`.
    ///
    /// They are in force before the first connection can be made. On Linux, a program that dials needs the permission
    /// to write, and in each folder on the way the one to search; some other systems look at the folders alone. `0o600`
    /// is for the same user, `0o660` for the group as well. More than `0o777` is an error, and so is any for a name
    /// without a file, which has none.
    #[must_use]
    pub fn unix_mode(mut self, mode: impl Into<Option<u32>>) -> Self {
        self.unix_mode = mode.into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::check::REDIAL;
    use super::*;
    use crate::error::ConfigError;
    use crate::wire::Codec;

    fn refused(config: Config) -> ConfigError {
        config.codec().unwrap_err()
    }

    fn with(session: Session) -> Config {
        Config::new().session(session)
    }

    const KIB: usize = 1024;

    #[test]
    fn a_window_has_room_for_what_a_read_brings_and_for_a_frame() {
        let given = |window: usize, max: usize| with(Session::new().window_bytes(window)).max_message_size(max);
        let least = 64 * KIB + 4 + 4096;
        assert!(given(least, 4096).codec().is_ok());
        let error = refused(given(least - 1, 4096));
        let most = u32::MAX as usize;
        assert_eq!(error, ConfigError::Window { given: least - 1, least, most, max_message_size: 4096 });
        assert_eq!(
            error.to_string(),
            "window_bytes is 69635: it is from 69636, which is 64 KiB and a frame of max_message_size, 4096, to 4294967295"
        );
        assert!(given(most, 4096).codec().is_ok());
        assert!(matches!(refused(given(usize::MAX, 4096)), ConfigError::Window { given: usize::MAX, .. }));
        // However much is asked for, a session has no longer message than this.
        let longest = (1 << 31) - 1;
        assert_eq!(given(most, usize::MAX).codec().unwrap().max(), longest);
        assert!(given(64 * KIB + 4 + longest, usize::MAX).codec().is_ok());
        assert!(matches!(refused(given(64 * KIB + 3 + longest, longest)), ConfigError::Window { .. }));
    }

    #[test]
    fn times_of_a_session_are_milliseconds_of_32_bits() {
        let (ms, longest) = (Duration::from_millis(1), Duration::from_millis(u32::MAX.into()));
        type Set = fn(Session, Duration) -> Session;
        let cases: [(&str, Set, Duration); 2] =
            [("ttl", Session::ttl, ms), ("heartbeat", Session::heartbeat, 100 * ms)];
        for (name, set, least) in cases {
            let given = |time| with(set(Session::new(), time));
            for time in [least, longest] {
                assert!(given(time).codec().is_ok(), "{name} {time:?}");
            }
            let nano = Duration::from_nanos(1);
            for time in [Duration::ZERO, least - nano, longest + nano, Duration::MAX] {
                let error =
                    ConfigError::SessionTime { name, given: time, bound: if time < least { least } else { longest } };
                assert_eq!(refused(given(time)), error, "{name} {time:?}");
            }
        }
        let error = refused(with(Session::new().heartbeat(99 * ms)));
        assert_eq!(error.to_string(), "heartbeat of a session is 99ms: it is at least 100ms");
    }

    #[test]
    fn a_listener_has_room_for_a_session() {
        assert_eq!(refused(with(Session::new().max_sessions(0))), ConfigError::Zero { name: "max_sessions" });
        assert!(with(Session::new().max_sessions(1).detached_bytes(0)).codec().is_ok());
    }

    #[test]
    fn plain_peers_are_taken_where_they_can_be_told_from_sessions() {
        let given = |format| with(Session::new().or_plain()).wire_format(format);
        for format in [WireFormat::buffstreams(), WireFormat::u16_be(), WireFormat::u32_be(), WireFormat::u64_be()] {
            assert!(given(format).codec().is_ok(), "{format}");
        }
        let error = refused(given(WireFormat::u8()));
        let wire_format = WireFormat::u8().to_string();
        assert_eq!(error, ConfigError::Ambiguous { wire_format, max_message_size: 255, byte: 0xf5 });
        assert_eq!(
            error.to_string(),
            "or_plain: in this format (u8), a frame of up to 255 bytes may begin with 0xf5, as a session does"
        );
        for format in [WireFormat::varint(), WireFormat::u32_le(), WireFormat::fixed(4).offset(1).into()] {
            assert!(matches!(refused(given(format)), ConfigError::Ambiguous { .. }), "{format}");
            assert!(given(format).max_message_size(100).codec().is_ok() != format.to_string().contains("offset"));
            assert!(
                with(Session::new()).wire_format(format).codec().is_ok(),
                "{format}: without or_plain it is not used"
            );
        }
        assert_eq!(refused(given(WireFormat::fixed(9).into())), ConfigError::LengthWidth { width: 9 });
    }

    #[test]
    fn a_session_has_one_format_and_what_is_plain_keeps_its_own() {
        let format = WireFormat::fixed(2).little_endian();
        let config = with(Session::new()).wire_format(format);
        assert_eq!(config.codec().unwrap(), Codec::new(WireFormat::u32_be(), 4096).unwrap());
        assert_eq!(config.plain_codec().unwrap(), Codec::new(format.into(), 4096).unwrap());
        let config = config.session(None);
        assert_eq!(config.codec().unwrap(), config.plain_codec().unwrap());
        for zero in [Config::max_message_size, Config::inbox_bytes] {
            assert!(matches!(refused(zero(with(Session::new()), 0)), ConfigError::Zero { .. }));
        }
    }

    #[test]
    fn a_session_is_dialed_again_until_its_ttl_is_over() {
        assert!(Config::new().backoff().is_none() && Config::new().room_while_down().is_none());
        let ttl = Duration::from_secs(7);
        let config = with(Session::new().ttl(ttl)).queue_bytes(9);
        assert_eq!((config.backoff().unwrap().max_elapsed, config.room_while_down()), (Some(ttl), Some(9)));
        let delays: Vec<_> = config.backoff().unwrap().delays(1).take(20).collect();
        assert!(delays[0] <= REDIAL.0 && delays[0] >= REDIAL.0 / 2, "{delays:?}");
        assert!(delays[19] <= REDIAL.1 && delays[19] >= REDIAL.1 / 2, "{delays:?}");
        let given = config.reconnect(Backoff::from_fn(|| [Duration::ZERO; 2]));
        assert_eq!(given.backoff().unwrap().delays(1).count(), 2);
    }

    #[test]
    fn the_other_end_is_told_the_settings() {
        let session = Session::new().window_bytes(1 << 18).heartbeat(Duration::from_micros(100_500));
        let terms = session.terms(4096);
        assert_eq!((terms.max_message, terms.window, terms.heartbeat, terms.ttl), (4096, 1 << 18, 100, 120_000));
    }
}
