//! Reads its settings from a file in TOML: the one that is named, or else the one that is written here.
#![allow(clippy::print_stdout)] // To print is what it is for.

use buffstreams::{Address, BoxError, Bytes, Config, Connection, Listener};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;

const DEFAULT: &str = r#"
listen = "127.0.0.1:0"

# Each key has the name of a method of `Config`, and what is left out has its default.
[connection]
wire_format = "u32_be"
max_message_size = 1_048_576
idle_timeout = "5m"
keepalive = "none"
unix_mode = 0o600
reconnect = { first = "100ms", longest = "30s", max_elapsed = "5m" }
"#;

/// The settings of this program, those of the library among them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    listen: String,
    #[serde(default)]
    connection: Config,
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let file = std::env::args().nth(1).map(std::fs::read_to_string).transpose()?;
    let Settings { listen, connection: config } = toml::from_str(file.as_deref().unwrap_or(DEFAULT))?;
    // What cannot be an address is an error here, and not when it is used.
    let listen: Address = listen.parse()?;
    println!("wire format: {}, at most {} bytes", config.get_wire_format(), config.get_max_message_size());
    println!("all of it:\n{}", toml::to_string(&config)?);

    let mut listener = Listener::bind(listen, config.clone()).await?;
    let mut connection = Connection::dial(listener.local_addr(), config).await?;
    connection.send(Bytes::from_static(b"as configured")).await?;
    if let Some((peer, message)) = listener.next().await {
        println!("{peer} sent {message:?}");
    }
    Ok(())
}
