//! What the features bring into the tree, and what they leave out.

use std::process::Command;

#[cfg(any(not(feature = "async-std"), all(feature = "smol", feature = "tokio")))]
use {
    async_std::task::block_on,
    buffstreams::{Connection, Listener},
};

/// What a program that uses the library with these features depends on.
fn tree(features: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--package", "buffstreams"])
        .args(["--no-default-features", "--features", features])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_program_has_the_runtime_that_it_chose_and_no_other() {
    let has = |features, name: &str| tree(features).lines().any(|line| line.split(' ').next() == Some(name));
    for (features, there, not_there) in [
        ("smol", &["async-executor", "async-io"][..], &["async-std", "tokio", "tracing", "metrics"][..]),
        ("tokio", &["tokio"], &["async-std", "async-io", "async-executor"]),
        ("async-std", &["async-std"], &["tokio"]),
        ("sim", &["futures"], &["async-std", "async-io", "tokio"]),
        ("smol,tls-ring", &["rustls", "ring"], &["aws-lc-rs", "async-std", "tokio"]),
        ("smol,prost", &["prost"], &["postcard", "serde", "serde_json"]),
        ("smol,postcard", &["postcard", "serde"], &["prost", "serde_json", "heapless", "embedded-io"]),
        ("smol,json", &["serde", "serde_json"], &["prost", "postcard"]),
        ("smol,tracing", &["tracing", "log"], &["tracing-attributes", "metrics"]),
        ("smol,metrics", &["metrics"], &["tracing"]),
        ("smol,tls-aws-lc-rs", &["rustls", "aws-lc-rs"], &["ring", "async-std", "tokio"]),
    ] {
        for name in there {
            assert!(has(features, name), "{features} needs {name}");
        }
        for name in not_there {
            assert!(!has(features, name), "{features} does not need {name}");
        }
    }
}

/// As in a workspace in which another crate has turned the other feature on.
#[cfg(all(feature = "async-std", feature = "smol", feature = "tokio"))]
#[test]
fn ends_on_different_runtimes_in_one_process_understand_each_other() {
    use futures::{SinkExt, StreamExt};
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let configs = || {
        [
            buffstreams::Config::new(),
            buffstreams::Config::new().runtime(buffstreams::Smol::new().unwrap()),
            buffstreams::Config::new().runtime(buffstreams::Tokio::from(tokio.handle().clone())),
        ]
    };
    for here in configs() {
        for there in configs() {
            block_on(async {
                let mut listener = Listener::bind("127.0.0.1:0", there.clone()).await.unwrap();
                let mut connection = Connection::dial(listener.local_addr(), here.clone()).await.unwrap();
                connection.send(b"over the border"[..].into()).await.unwrap();
                assert_eq!(listener.next().await.unwrap().1, "over the border");
            });
        }
    }
}

#[cfg(not(feature = "async-std"))]
#[test]
fn without_a_runtime_nothing_is_opened() {
    use buffstreams::{Config, ConfigError, Error, Manager};
    block_on(async {
        let missing = |result: Result<(), Error>| matches!(result, Err(Error::Config(ConfigError::NoRuntime)));
        assert!(missing(Listener::bind("127.0.0.1:0", Config::new()).await.map(drop)));
        assert!(missing(Connection::dial("127.0.0.1:1", Config::new()).await.map(drop)));
        assert!(missing(Manager::new(Config::new()).dial("127.0.0.1:1").await));
        assert!(missing(Manager::new(Config::new()).open("127.0.0.1:1")));
        assert!(missing(Manager::new(Config::new()).listen("127.0.0.1:0").await.map(drop)));
    });
}

/// With the feature `tls` alone, nothing does the cryptography.
#[cfg(all(feature = "tls", not(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))))]
#[test]
fn without_a_provider_tls_is_an_error() {
    use buffstreams::{Config, ConfigError, Error, Tls};
    async_std::task::block_on(async {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let tls = Tls::new().server(own.cert.pem(), own.signing_key.serialize_pem()).unwrap().client();
        let missing = |result: Result<(), Error>| matches!(result, Err(Error::Config(ConfigError::NoTlsProvider)));
        let config = Config::new().tls(tls);
        assert!(missing(buffstreams::Listener::bind("127.0.0.1:0", config.clone()).await.map(drop)));
        assert!(missing(buffstreams::Connection::dial("127.0.0.1:1", config).await.map(drop)));
    });
}
