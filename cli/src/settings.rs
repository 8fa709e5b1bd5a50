//! The settings of a stream, by the names of the library's `Config`: from the command line, and behind it from a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use buffstreams::{Backoff, Config, ConfigError, Session, Smol, Tls, Tokio};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::failure::{Code, Failure};
use crate::format::Format;
use crate::hint;
use crate::units::{Delays, Mode, Size, TimeLimit};

/// The formats, for the help.
const FORMAT_HELP: &str = "How the length of a message is written: buffstreams, varint, u8, u16_be, u16_le, u24_be, u32_be, \
    u32_le, u64_be, or fixed:WIDTH[:le][:offset=N][:inclusive] [default: buffstreams]";

/// What a stream is made of. Each may be in the file of settings as well, by its long name or by that of the library's method, with
/// `-` or `_`.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(next_help_heading = "Settings")]
pub(crate) struct Settings {
    #[arg(long, value_name = "FORMAT", help = FORMAT_HELP)]
    #[serde(alias = "wire-format", alias = "wire_format")]
    pub(crate) format: Option<Format>,
    /// The longest message; with the format buffstreams, both ends need the same [default: 4096]
    #[arg(long, alias = "max-message-size", value_name = "SIZE")]
    #[serde(alias = "max-message-size", alias = "max_message_size")]
    pub(crate) max: Option<Size>,
    /// What the sockets run on [default: async-std]
    #[arg(long, value_name = "RUNTIME")]
    pub(crate) runtime: Option<Runtime>,
    /// How much a listener holds of what was received [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(alias = "inbox_bytes")]
    pub(crate) inbox_bytes: Option<Size>,
    /// How much is held for a peer that takes nothing, or is away [default: 4MiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(alias = "queue_bytes")]
    pub(crate) queue_bytes: Option<Size>,
    /// How many connections a listener has at once [default: 16384]
    #[arg(long, value_name = "NUMBER")]
    #[serde(alias = "max_connections")]
    pub(crate) max_connections: Option<Size>,
    /// Open a broken connection again and again, first after FIRST, then after up to LONGEST
    #[arg(long, value_name = "FIRST..LONGEST")]
    pub(crate) reconnect: Option<Delays>,
    /// For how long a connection is opened again and again [default: none]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "reconnect_for")]
    pub(crate) reconnect_for: Option<TimeLimit>,
    /// How old a message may be when it is sent [default: none]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "message_ttl")]
    pub(crate) message_ttl: Option<TimeLimit>,
    /// How long a message that was fed waits for others before it is sent [default: 5ms]
    #[arg(long, value_name = "TIME")]
    pub(crate) linger: Option<TimeLimit>,
    /// How long a dial, or a TLS handshake, may take [default: 10s]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "dial_timeout")]
    pub(crate) dial_timeout: Option<TimeLimit>,
    /// How long a peer may take nothing of what is written to it [default: 30s]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "write_timeout")]
    pub(crate) write_timeout: Option<TimeLimit>,
    /// How long a message may take from its first byte to its last [default: 30s]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "frame_timeout")]
    pub(crate) frame_timeout: Option<TimeLimit>,
    /// How long a peer may be silent between two messages [default: none]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "idle_timeout")]
    pub(crate) idle_timeout: Option<TimeLimit>,
    /// How long a close waits for what was accepted, and for the other end [default: 5s]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "close_timeout")]
    pub(crate) close_timeout: Option<TimeLimit>,
    /// How long a listener that is asked to end goes on receiving [default: 60s]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "drain_timeout")]
    pub(crate) drain_timeout: Option<TimeLimit>,
    /// After how much silence the kernel asks whether the other host is there [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub(crate) keepalive: Option<TimeLimit>,
    /// How long written data may stay unacknowledged by the other host [default: 30s]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "user_timeout")]
    pub(crate) user_timeout: Option<TimeLimit>,
    /// The permissions of a Unix socket that is listened on, in octal
    #[arg(long, value_name = "MODE")]
    #[serde(alias = "unix_mode")]
    pub(crate) unix_mode: Option<Mode>,
    /// Acknowledged sessions, as the other end must have them too; the other --session options imply it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) session: Option<bool>,
    /// How many bytes the other end may have sent that are not taken here [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(alias = "session_window")]
    pub(crate) session_window: Option<Size>,
    /// How long a session lives without a connection [default: 2m]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "session_ttl")]
    pub(crate) session_ttl: Option<TimeLimit>,
    /// How often something is sent on a connection where there is nothing to send [default: 15s]
    #[arg(long, value_name = "TIME")]
    #[serde(alias = "session_heartbeat")]
    pub(crate) session_heartbeat: Option<TimeLimit>,
    /// How many sessions a listener has, or remembers, at once [default: 16384]
    #[arg(long, value_name = "NUMBER")]
    #[serde(alias = "session_max")]
    pub(crate) session_max: Option<Size>,
    /// Take those who connect without a session as well
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    #[serde(alias = "session_or_plain")]
    pub(crate) session_or_plain: Option<bool>,
    /// TLS; the other --tls options imply it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) tls: Option<bool>,
    /// The authorities that are trusted, in PEM: for who is dialed instead of the system's, or for who connects, who then
    /// must have a certificate
    #[arg(long, value_name = "FILE")]
    #[serde(alias = "tls_ca")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// The certificate of this end, in PEM
    #[arg(long, value_name = "FILE")]
    #[serde(alias = "tls_cert")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of this end, in PEM
    #[arg(long, value_name = "FILE")]
    #[serde(alias = "tls_key")]
    pub(crate) tls_key: Option<PathBuf>,
    /// The name that the certificate of who is dialed must be for [default: the host of the address]
    #[arg(long, value_name = "NAME")]
    #[serde(alias = "tls_name")]
    pub(crate) tls_name: Option<String>,
}

/// The default of `close_timeout`.
const CLOSE: Duration = Duration::from_secs(5);
/// What stands for no limit.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// The runtimes of the library.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Runtime {
    /// Threads of the process, as many as there are cores
    AsyncStd,
    /// An executor with one thread
    Smol,
    /// Threads of tokio, as many as there are cores
    Tokio,
}

/// A method of the library's settings.
type Set<T> = fn(Config, T) -> Config;

/// What is done with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Listen,
    Dial,
}

impl Settings {
    /// These, and where they say nothing, those of a file in TOML.
    pub(crate) fn with_file(self, file: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = file else { return Ok(self) };
        let text = fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))?;
        match toml::from_str(&text) {
            Ok(settings) => Ok(self.or(settings)),
            Err(error) => {
                let said = error.to_string();
                // All the names there are would be more than anybody reads.
                let (said, names) = said.trim_end().split_once(", expected one of").unwrap_or((said.trim_end(), ""));
                let hint = "the settings have the names of the options: see buffstreams listen --help".to_owned();
                let failure = Failure::new(Code::Usage, format!("{}: {said}", path.display()));
                Err(failure.with_hint(Some(hint).filter(|_| !names.is_empty())))
            }
        }
    }

    /// These, and where they say nothing, others.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            format: self.format.or(other.format),
            max: self.max.or(other.max),
            runtime: self.runtime.or(other.runtime),
            inbox_bytes: self.inbox_bytes.or(other.inbox_bytes),
            queue_bytes: self.queue_bytes.or(other.queue_bytes),
            max_connections: self.max_connections.or(other.max_connections),
            reconnect: self.reconnect.or(other.reconnect),
            reconnect_for: self.reconnect_for.or(other.reconnect_for),
            message_ttl: self.message_ttl.or(other.message_ttl),
            linger: self.linger.or(other.linger),
            dial_timeout: self.dial_timeout.or(other.dial_timeout),
            write_timeout: self.write_timeout.or(other.write_timeout),
            frame_timeout: self.frame_timeout.or(other.frame_timeout),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            close_timeout: self.close_timeout.or(other.close_timeout),
            drain_timeout: self.drain_timeout.or(other.drain_timeout),
            keepalive: self.keepalive.or(other.keepalive),
            user_timeout: self.user_timeout.or(other.user_timeout),
            unix_mode: self.unix_mode.or(other.unix_mode),
            session: self.session.or(other.session),
            session_window: self.session_window.or(other.session_window),
            session_ttl: self.session_ttl.or(other.session_ttl),
            session_heartbeat: self.session_heartbeat.or(other.session_heartbeat),
            session_max: self.session_max.or(other.session_max),
            session_or_plain: self.session_or_plain.or(other.session_or_plain),
            tls: self.tls.or(other.tls),
            tls_ca: self.tls_ca.or(other.tls_ca),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            tls_name: self.tls_name.or(other.tls_name),
        }
    }

    pub(crate) fn format(&self) -> Format {
        self.format.unwrap_or_default()
    }

    /// The longest message, as it was asked for.
    pub(crate) fn max(&self) -> usize {
        self.max.map_or(4096, |Size(max)| max)
    }

    /// For how long a connection is opened again and again.
    pub(crate) fn reconnect_limit(&self) -> Option<Duration> {
        match self.reconnect_for {
            Some(TimeLimit(limit)) => limit,
            None => self.reconnect.and_then(|delays| delays.limit),
        }
    }

    /// How long the end may take.
    pub(crate) fn close_limit(&self) -> Duration {
        self.close_timeout.map_or(CLOSE, |TimeLimit(limit)| limit.unwrap_or(LONG))
    }

    /// The library's settings, for one side of a connection.
    pub(crate) fn config(&self, side: Side) -> Result<Config, Failure> {
        let mut config = Config::new().wire_format(self.format()).max_message_size(self.max());
        let sizes: [(_, Set<usize>); 3] = [
            (self.inbox_bytes, Config::inbox_bytes),
            (self.queue_bytes, Config::queue_bytes),
            (self.max_connections, Config::max_connections),
        ];
        for (size, set) in sizes {
            if let Some(Size(size)) = size {
                config = set(config, size);
            }
        }
        let times: [(_, Set<Option<Duration>>); 10] = [
            (self.message_ttl, Config::message_ttl),
            (self.linger, Config::linger),
            (self.dial_timeout, Config::dial_timeout),
            (self.write_timeout, Config::write_timeout),
            (self.frame_timeout, Config::frame_timeout),
            (self.idle_timeout, Config::idle_timeout),
            (self.close_timeout, Config::close_timeout),
            (self.drain_timeout, Config::drain_timeout),
            (self.keepalive, Config::keepalive),
            (self.user_timeout, Config::user_timeout),
        ];
        for (limit, set) in times {
            if let Some(TimeLimit(limit)) = limit {
                config = set(config, limit);
            }
        }
        if let Some(Delays { first, longest, .. }) = self.reconnect {
            config = config.reconnect(Backoff::exponential(first, longest).max_elapsed(self.reconnect_limit()));
        }
        if let Some(Mode(mode)) = self.unix_mode {
            config = config.unix_mode(mode);
        }
        self.on_runtime(config.session(self.session()?).tls(self.tls(side)?))
    }

    fn on_runtime(&self, config: Config) -> Result<Config, Failure> {
        let cannot = |error| Failure::new(Code::Failed, format!("cannot start the runtime: {error}"));
        Ok(match self.runtime {
            None | Some(Runtime::AsyncStd) => config,
            Some(Runtime::Smol) => config.runtime(Smol::new().map_err(cannot)?),
            Some(Runtime::Tokio) => {
                // It lasts as long as the process, as those of the others do.
                static TOKIO: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
                if TOKIO.get().is_none() {
                    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(cannot)?;
                    let _ = TOKIO.set(runtime);
                }
                match TOKIO.get() {
                    Some(runtime) => config.runtime(Tokio::from(runtime.handle().clone())),
                    None => config,
                }
            }
        })
    }

    /// Whether a session was asked for.
    pub(crate) fn has_session(&self) -> bool {
        let sizes = [self.session_window, self.session_max].iter().any(Option::is_some);
        let times = [self.session_ttl, self.session_heartbeat].iter().any(Option::is_some);
        self.session.unwrap_or(sizes || times || self.session_or_plain == Some(true))
    }

    /// That so many messages did not get to the other end, as far as this end can tell.
    pub(crate) fn not_sent(&self, messages: u64) -> String {
        let what = if self.has_session() { "taken, as far as is known" } else { "sent" };
        format!("{messages} messages were not {what}")
    }

    fn session(&self) -> Result<Option<Session>, Failure> {
        if !self.has_session() {
            return Ok(None);
        }
        let mut session = Session::new();
        if let Some(Size(bytes)) = self.session_window {
            session = session.window_bytes(bytes);
        }
        if let Some(Size(sessions)) = self.session_max {
            session = session.max_sessions(sessions);
        }
        let always = |limit: Option<TimeLimit>, option: &str| match limit {
            Some(TimeLimit(None)) => {
                Err(usage(&format!("{option} has no \"none\""), &format!("name a time: {option} TIME")))
            }
            limit => Ok(limit.and_then(|TimeLimit(limit)| limit)),
        };
        if let Some(ttl) = always(self.session_ttl, "--session-ttl")? {
            session = session.ttl(ttl);
        }
        if let Some(every) = always(self.session_heartbeat, "--session-heartbeat")? {
            session = session.heartbeat(every);
        }
        if self.session_or_plain == Some(true) {
            session = session.or_plain();
        }
        Ok(Some(session))
    }

    /// Whether TLS was asked for.
    fn has_tls(&self) -> bool {
        let files = [&self.tls_ca, &self.tls_cert, &self.tls_key];
        self.tls.unwrap_or(self.tls_name.is_some() || files.into_iter().any(Option::is_some))
    }

    fn tls(&self, side: Side) -> Result<Option<Tls>, Failure> {
        if !self.has_tls() {
            return Ok(None);
        }
        let read = |path: &PathBuf| fs::read(path).map_err(|error| Failure::file("read", path, &error));
        let own = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            (None, None) => None,
            (Some(_), None) => return Err(usage("a certificate without its key", "name it: --tls-key FILE")),
            (None, Some(_)) => return Err(usage("a key without its certificate", "name it: --tls-cert FILE")),
        };
        let authorities = self.tls_ca.as_ref().map(read).transpose()?;
        let tls = match (side, own) {
            (Side::Listen, None) => {
                let hint = "name a certificate and its key: --tls-cert FILE --tls-key FILE";
                return Err(usage("TLS needs a certificate to listen with", hint));
            }
            (Side::Listen, Some((cert, key))) => {
                let tls = Tls::new().server(cert, key).map_err(|error| self.wrong(&error))?;
                authorities.map_or(Ok(tls.clone()), |authorities| tls.client_auth(authorities))
            }
            (Side::Dial, own) => {
                let mut tls = Ok(Tls::new().client());
                if let Some(authorities) = authorities {
                    tls = tls.and_then(|tls| tls.roots(authorities));
                }
                if let Some((cert, key)) = own {
                    tls = tls.and_then(|tls| tls.identity(cert, key));
                }
                if let Some(name) = &self.tls_name {
                    tls = tls.and_then(|tls| tls.server_name(name));
                }
                tls
            }
        };
        tls.map(Some).map_err(|error| self.wrong(&error))
    }

    fn wrong(&self, error: &ConfigError) -> Failure {
        Failure::new(Code::Usage, error.to_string()).with_hint(hint::of_config(error))
    }
}

fn usage(message: &str, hint: &str) -> Failure {
    Failure::new(Code::Usage, message).with_hint(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_names_of_the_options() {
        let file = "format = 'u32_be'\nmax = '1MiB'\nmax-connections = 5\nidle-timeout = 'none'\ntls = true\n\
            runtime = 'tokio'\nreconnect = '1s..5s'\nunix-mode = '600'\ntls-ca = 'ca.pem'\n";
        let settings: Settings = toml::from_str(file).unwrap();
        assert_eq!(settings.format, Some("u32_be".parse().unwrap()));
        assert_eq!((settings.max, settings.max_connections), (Some(Size(1 << 20)), Some(Size(5))));
        assert_eq!((settings.idle_timeout, settings.tls), (Some(TimeLimit(None)), Some(true)));
        assert_eq!((settings.runtime, settings.unix_mode), (Some(Runtime::Tokio), Some(Mode(0o600))));
        assert!(toml::from_str::<Settings>("formt = 'u8'").is_err());
    }

    #[test]
    fn a_file_may_have_the_names_of_the_library() {
        let file = "wire_format = 'fixed(3, le, offset=2, includes)'\nmax_message_size = 1048576\nidle_timeout = '1m 30s'\n\
            keepalive = 'none'\nreconnect = { first = '100ms', longest = '30s', max_elapsed = '5m' }\n\
            max_connections = 7\nunix_mode = 0o600\n";
        let settings: Settings = toml::from_str(file).unwrap();
        assert_eq!(settings.format().to_string(), "fixed:3:le:offset=2:inclusive");
        assert_eq!((settings.max(), settings.max_connections), (1 << 20, Some(Size(7))));
        assert_eq!(settings.idle_timeout, Some(TimeLimit(Some(Duration::from_secs(90)))));
        assert_eq!((settings.keepalive, settings.unix_mode), (Some(TimeLimit(None)), Some(Mode(0o600))));
        assert_eq!(settings.reconnect_limit(), Some(Duration::from_secs(300)));
        let longer = Settings { reconnect_for: Some(TimeLimit(None)), ..settings };
        assert_eq!(longer.reconnect_limit(), None);
        for wrong in [
            "reconnect = { first = '1s' }",
            "reconnect = { first = '1s', longest = '2s', last = 1 }",
            "unix_mode = 600",
        ] {
            assert!(toml::from_str::<Settings>(wrong).is_err(), "{wrong}");
        }
    }

    /// Each option has its name in the file, and no other.
    #[test]
    fn the_names_are_those_of_the_options() {
        let command = Settings::augment_args(clap::Command::new("settings"));
        let error = toml::from_str::<Settings>("unknown = 1").unwrap_err().to_string();
        let names: Vec<_> = error.split('`').skip(3).step_by(2).filter(|name| !name.contains('_')).collect();
        let options: Vec<_> = command.get_arguments().filter_map(|option| option.get_long()).collect();
        let others = ["wire-format", "max-message-size"];
        assert_eq!(names.into_iter().filter(|name| !others.contains(name)).collect::<Vec<_>>(), options);
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let file: Settings = toml::from_str("max = 1\nformat = 'u8'").unwrap();
        let given = Settings { max: Some(Size(2)), ..Settings::default() };
        let both = given.or(file);
        assert_eq!((both.max(), both.format().to_string().as_str()), (2, "u8"));
    }
}
