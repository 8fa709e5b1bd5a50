//! The settings as values: read back, and compared.

use std::time::Duration;

use buffstreams::{Backoff, Config, Session, WireFormat};

const SECOND: Duration = Duration::from_secs(1);

/// A configuration in which nothing is as in the default, apart from its runtime and TLS.
fn everything_set() -> Config {
    Config::new()
        .wire_format(WireFormat::fixed(3).little_endian().offset(2))
        .max_message_size(1)
        .inbox_bytes(2)
        .queue_bytes(3)
        .max_connections(4)
        .reconnect(Backoff::exponential(SECOND, 2 * SECOND).max_elapsed(3 * SECOND).stable_after(4 * SECOND))
        .message_ttl(5 * SECOND)
        .linger(Duration::from_millis(16))
        .dial_timeout(6 * SECOND)
        .write_timeout(7 * SECOND)
        .frame_timeout(8 * SECOND)
        .idle_timeout(9 * SECOND)
        .close_timeout(11 * SECOND)
        .drain_timeout(12 * SECOND)
        .keepalive(None)
        .user_timeout(Duration::from_millis(1500))
        .unix_mode(0o600)
        .session(Session::new().window_bytes(1 << 17).ttl(13 * SECOND).heartbeat(14 * SECOND).max_sessions(15))
}

#[test]
fn each_setting_is_read_back() {
    let config = everything_set();
    assert_eq!(config.get_wire_format(), WireFormat::fixed(3).little_endian().offset(2).into());
    let counts = [
        config.get_max_message_size(),
        config.get_inbox_bytes(),
        config.get_queue_bytes(),
        config.get_max_connections(),
    ];
    assert_eq!(counts, [1, 2, 3, 4]);
    let backoff = config.get_reconnect().unwrap();
    assert_eq!((backoff.get_max_elapsed(), backoff.get_stable_after()), (Some(3 * SECOND), 4 * SECOND));
    let times = [
        config.get_message_ttl(),
        config.get_dial_timeout(),
        config.get_write_timeout(),
        config.get_frame_timeout(),
        config.get_idle_timeout(),
    ];
    assert_eq!(times, [5, 6, 7, 8, 9].map(|seconds| Some(seconds * SECOND)));
    assert_eq!((config.get_close_timeout(), config.get_drain_timeout()), (Some(11 * SECOND), Some(12 * SECOND)));
    assert_eq!((config.get_keepalive(), config.get_user_timeout()), (None, Some(Duration::from_millis(1500))));
    assert_eq!(config.get_unix_mode(), Some(0o600));
    assert_eq!(config.get_linger(), Some(Duration::from_millis(16)));
    #[cfg(feature = "tls")]
    assert_eq!(config.get_tls(), None);
    assert!(config.get_runtime().is_none());
    #[cfg(feature = "sim")]
    assert!(format!("{:?}", config.runtime(buffstreams::Sim::new()).get_runtime().unwrap()).starts_with("Sim"));
}

/// That it was set is more than its value: a connection lingers then.
#[test]
fn a_linger_is_set_or_off_or_left_to_the_default() {
    let default = Duration::from_millis(5);
    assert_eq!(Config::new().get_linger(), Some(default));
    assert_eq!(Config::new().linger(default).get_linger(), Some(default));
    assert_ne!(Config::new().linger(default), Config::new());
    assert_eq!(Config::new().linger(None).get_linger(), None);
    assert_eq!(Config::new().linger(Duration::ZERO).get_linger(), Some(Duration::ZERO));
}

#[test]
fn two_configurations_are_equal_if_each_setting_is() {
    assert_eq!(everything_set(), everything_set());
    assert_eq!(Config::new(), Config::default());
    for other in [
        everything_set().wire_format(WireFormat::u8()),
        everything_set().max_message_size(9),
        everything_set().inbox_bytes(9),
        everything_set().queue_bytes(9),
        everything_set().max_connections(9),
        everything_set().reconnect(None),
        everything_set().reconnect(Backoff::exponential(SECOND, 2 * SECOND)),
        everything_set().message_ttl(None),
        everything_set().linger(None),
        everything_set().linger(Duration::ZERO),
        everything_set().dial_timeout(None),
        everything_set().write_timeout(None),
        everything_set().frame_timeout(None),
        everything_set().idle_timeout(None),
        everything_set().close_timeout(None),
        everything_set().drain_timeout(None),
        everything_set().keepalive(SECOND),
        everything_set().user_timeout(None),
        everything_set().unix_mode(None),
        everything_set().session(None),
        everything_set().session(Session::new()),
    ] {
        assert_ne!(everything_set(), other);
        assert_eq!(other, other.clone());
    }
}

#[test]
fn a_closure_and_a_runtime_equal_their_clones_alone() {
    let made = || Backoff::from_fn(|| [SECOND]);
    let one = made();
    assert_eq!(one, one.clone());
    assert_ne!(one, made());
    assert_ne!(one, Backoff::exponential(SECOND, SECOND));
    #[cfg(feature = "async-std")]
    {
        let one = Config::new().runtime(buffstreams::AsyncStd::new());
        assert_eq!(one, one.clone());
        assert_ne!(one, Config::new().runtime(buffstreams::AsyncStd::new()));
        assert_ne!(one, Config::new());
    }
    #[cfg(feature = "tls")]
    {
        let one = Config::new().tls(buffstreams::Tls::new());
        assert_eq!(one, one.clone());
        assert_ne!(one, Config::new().tls(buffstreams::Tls::new()));
    }
}

#[cfg(feature = "serde")]
mod in_a_file {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::samples::formats;

    /// What is read of this text, or what the error says.
    fn read(text: &str) -> Result<Config, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_is_read_from_what_was_written() {
        let off = everything_set().reconnect(None).message_ttl(None).linger(None);
        for config in [Config::new(), everything_set(), off, Config::new().linger(Duration::from_millis(5))] {
            let text = toml::to_string(&config).unwrap();
            assert_eq!(read(&text), Ok(config), "{text}");
        }
        let text = toml::to_string(&everything_set()).unwrap();
        for line in [
            "wire_format = \"fixed(3,le,offset=2)\"",
            "max_connections = 4",
            "message_ttl = \"5s\"",
            "linger = \"16ms\"",
            "keepalive = \"none\"",
            "user_timeout = \"1s 500ms\"",
            "first = \"1s\"",
            "ttl = \"13s\"",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        assert_eq!(read(""), Ok(Config::new()));
        assert!(!toml::to_string(&Config::new()).unwrap().contains("linger"), "it is not set");
        assert_eq!(read("linger = 'none'"), Ok(Config::new().linger(None)));
        assert_eq!(read("linger = '0s'"), Ok(Config::new().linger(Duration::ZERO)));
        let config =
            read("idle_timeout = '1h 30m'\nunix_mode = 0o660\nreconnect = { first = '100ms', longest = '1m' }");
        let backoff = Backoff::exponential(SECOND / 10, 60 * SECOND);
        assert_eq!(config, Ok(Config::new().idle_timeout(90 * 60 * SECOND).unix_mode(0o660).reconnect(backoff)));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, named) in [
            (
                "max_mesage_size = 1",
                "unknown field `max_mesage_size`, expected one of `wire_format`, `max_message_size`",
            ),
            ("runtime = 'tokio'", "unknown field `runtime`"),
            ("reconnect = { first = '1s', longest = '1s', last = '1s' }", "unknown field `last`"),
            ("reconnect = { first = '1s' }", "missing field `longest`"),
            ("reconnect = { first = 'none', longest = '1s' }", "\"none\" is no duration"),
            ("idle_timeout = '5'", "\"5\" is no duration: time unit needed"),
            ("idle_timeout = 'never'", "\"never\" is no duration"),
            ("idle_timeout = 5", "expected a duration like \"5s\", \"250ms\" or \"1m 30s\", or \"none\" for no limit"),
            ("reconnect = { first = 1 }", "expected a duration like \"5s\", \"250ms\" or \"1m 30s\""),
            ("wire_format = 'u32'", "\"u32\" is no wire format"),
            ("wire_format = 4", "expected a wire format like \"u32_be\""),
            ("inbox_bytes = -1", "expected usize"),
            ("session = { window = 1 }", "unknown field `window`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
            let line = text.split(',').next().unwrap_or_default();
            assert!(error.contains(line), "{error} shows where it is");
        }
    }

    #[test]
    fn what_only_a_program_can_set_is_not_written() {
        let refused = |config: Config| toml::to_string(&config).unwrap_err().to_string();
        let error = refused(Config::new().reconnect(Backoff::from_fn(|| [SECOND])));
        assert!(error.contains("a backoff made of a closure cannot be serialized"), "{error}");
        #[cfg(feature = "async-std")]
        {
            let error = refused(Config::new().runtime(buffstreams::AsyncStd::new()));
            assert!(error.contains("a runtime cannot be serialized: AsyncStd"), "{error}");
        }
        #[cfg(feature = "tls")]
        {
            let error = refused(Config::new().tls(buffstreams::Tls::new()));
            assert!(error.contains("TLS is serialized as the files that it was read from"), "{error}");
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Parts {
        format: WireFormat,
        backoff: Backoff,
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_duration_and_format_comes_back(
            nanos in prop::array::uniform5(any::<u64>()),
            format in prop::sample::select(formats()),
            limited in any::<bool>(),
        ) {
            let [first, longest, max, stable, idle] = nanos.map(Duration::from_nanos);
            let backoff = Backoff::exponential(first, longest).max_elapsed(limited.then_some(max)).stable_after(stable);
            let parts = Parts { format, backoff };
            prop_assert_eq!(toml::from_str(&toml::to_string(&parts).unwrap()), Ok(parts));
            let config = Config::new().idle_timeout(idle);
            prop_assert_eq!(read(&toml::to_string(&config).unwrap()), Ok(config));
        }
    }
}
