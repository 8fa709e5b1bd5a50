//! Shows the messages of a framed stream, and where it goes wrong, what looks wrong.
//!
//! `inspect [--max N] [SOURCE [FORMAT]]`: SOURCE is a file, `-` for standard input, or `:PORT` to wait there for a
//! connection; FORMAT is the name of a preset. Without a source it shows a sample of its own.
#![allow(clippy::print_stdout)] // To print is what it is for.

use async_std::{fs::File, io, net::TcpListener};
use buffstreams::{BoxError, Bytes, Config, Error, Reader, WireFormat as W};
use futures::{AsyncRead, TryStreamExt};

/// Three messages in the default format; then comes something else.
const SAMPLE: &[u8] =
    b"\x0a\x00\x00hello\x00\x00\x00\x2a\x00\x00\x08\x96\x01\x12\x10this is protobufGET / HTTP/1.1\r\n";
const NAMES: [&str; 9] = ["u8", "u16_be", "u16_le", "u24_be", "u32_be", "u32_le", "u64_be", "varint", "buffstreams"];
const FIXED: [W; 7] = [W::u8(), W::u16_be(), W::u16_le(), W::u24_be(), W::u32_be(), W::u32_le(), W::u64_be()];

fn explain(error: Error) -> Option<Bytes> {
    println!("  wrong: {error}");
    None
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut config = Config::new();
    if let Some(at) = args.iter().position(|arg| arg == "--max") {
        let max = args.splice(at..args.len().min(at + 2), []).nth(1).ok_or("--max needs a number of bytes")?;
        config = config.max_message_size(max.parse()?);
    }
    let name = args.get(1).map_or("buffstreams", String::as_str);
    let mut formats = NAMES.into_iter().zip(FIXED.into_iter().chain([W::varint(), W::buffstreams()]));
    let (_, format) = formats.find(|format| format.0 == name).ok_or_else(|| format!("FORMAT is one of {NAMES:?}"))?;
    let source: Box<dyn AsyncRead + Unpin> = match args.first().map(String::as_str) {
        None => Box::new(SAMPLE),
        Some("-") => Box::new(io::stdin()),
        Some(port) if port.starts_with(':') => {
            Box::new(TcpListener::bind(format!("[::]{port}")).await?.accept().await?.0)
        }
        Some(path) => Box::new(File::open(path).await?),
    };
    let (mut messages, mut number) = (Reader::new(source, &config.wire_format(format))?, 0);
    println!("message   bytes");
    while let Some(message) = messages.try_next().await.unwrap_or_else(explain) {
        number += 1;
        println!("{number:7} {:7}", message.len());
        for (line, bytes) in message.chunks(16).take(16).enumerate() {
            // The first 256 bytes.
            let hex: String = bytes.iter().map(|byte| format!(" {byte:02x}")).collect();
            let text = bytes.iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '.' });
            println!("    {:04x} {hex:48}  {}", line * 16, text.collect::<String>());
        }
    }
    Ok(())
}
