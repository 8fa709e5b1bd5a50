//! Serves what the library counts to Prometheus, and shows one scrape: `cargo run --features metrics --example metrics`
#![allow(clippy::print_stdout)] // To print is what it is for.

use std::error::Error;
use std::io;

use async_std::net::{SocketAddr, TcpListener, TcpStream};
use async_std::task;
use buffstreams::{Config, Listener, Manager, metrics};
use futures::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, SinkExt, StreamExt, io::BufReader};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

#[async_std::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let scrapes = TcpListener::bind("127.0.0.1:0").await?;
    let at = scrapes.local_addr()?;
    task::spawn(serve(scrapes, install()?));

    let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    let (manager, address) = (Manager::new(Config::new()), listener.local_addr());
    manager.dial(&address).await?;
    let mut sink = manager.sink();
    for number in 0..1000 {
        sink.feed((address.clone().into(), format!("message {number}").into())).await?;
    }
    sink.close().await?;
    listener.take(1000).for_each(|_| async {}).await;

    let page = scrape(at).await?;
    page.lines().filter(|line| line.starts_with("messaging")).for_each(|line| println!("{line}"));
    Ok(())
}

/// Whatever goes through the `metrics` facade in this process goes there.
pub(crate) fn install() -> Result<PrometheusHandle, Box<dyn Error>> {
    // Or durations would be quantiles.
    let seconds = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
    Ok(PrometheusBuilder::new().set_buckets(&seconds)?.install_recorder()?)
}

/// Answers each request with all figures, whatever it asks for.
pub(crate) async fn serve(scrapes: TcpListener, prometheus: PrometheusHandle) -> io::Result<()> {
    loop {
        // A scrape that breaks is no reason to end.
        let _ = answer(scrapes.accept().await?.0, &prometheus).await;
    }
}

async fn answer(mut stream: TcpStream, prometheus: &PrometheusHandle) -> io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    while lines.next().await.transpose()?.is_some_and(|line| !line.is_empty()) {}
    metrics::publish();
    let page = prometheus.render();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n", page.len());
    stream.write_all((head + &page).as_bytes()).await?;
    stream.close().await
}

/// As Prometheus does.
pub(crate) async fn scrape(at: SocketAddr) -> io::Result<String> {
    let (mut stream, mut page) = (TcpStream::connect(at).await?, String::new());
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    stream.read_to_string(&mut page).await?;
    Ok(page)
}
