//! The settings as values: read back, and compared.

use std::time::Duration;

use buffstreams::{Backoff, Config, WireFormat};

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
        .dial_timeout(6 * SECOND)
        .write_timeout(7 * SECOND)
        .frame_timeout(8 * SECOND)
        .idle_timeout(9 * SECOND)
        .close_timeout(11 * SECOND)
        .drain_timeout(12 * SECOND)
        .keepalive(None)
        .user_timeout(Duration::from_millis(1500))
        .unix_mode(0o600)
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
    #[cfg(feature = "tls")]
    assert_eq!(config.get_tls(), None);
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
        everything_set().dial_timeout(None),
        everything_set().write_timeout(None),
        everything_set().frame_timeout(None),
        everything_set().idle_timeout(None),
        everything_set().close_timeout(None),
        everything_set().drain_timeout(None),
        everything_set().keepalive(SECOND),
        everything_set().user_timeout(None),
        everything_set().unix_mode(None),
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
