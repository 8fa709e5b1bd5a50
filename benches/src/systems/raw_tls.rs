//! A bare stream of futures-rustls on async-std, 64 KiB at a time, without frames: what TLS leaves of the machine.
//!
//! Bytes are counted, and nothing else can be checked.

use std::sync::Arc;

use async_std::net::{TcpListener, TcpStream};
use futures::{AsyncReadExt, AsyncWriteExt};
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::pki_types::pem::PemObject;
use futures_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use futures_rustls::rustls::version::TLS13;
use futures_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use futures_rustls::{TlsAcceptor, TlsConnector};

use super::{CERTIFICATE, KEY, System};
use crate::Result;
use crate::check::{Received, Tally};
use crate::child::{Parent, Sent, Waiting};
use crate::plan::Trial;

pub(super) struct RawTls;

/// What is written and read at once.
const CHUNK: usize = 64 << 10;

fn acceptor() -> Result<TlsAcceptor> {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(&[&TLS13])?.with_no_client_auth();
    let chain = vec![CertificateDer::from_pem_slice(CERTIFICATE)?];
    let mut config = config.with_single_cert(chain, PrivateKeyDer::from_pem_slice(KEY)?)?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config).into())
}

fn connector() -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(&[&TLS13])?.with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config).into())
}

impl System for RawTls {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let (listener, acceptor) = (TcpListener::bind("127.0.0.1:0").await?, acceptor()?);
            parent.ready(&[listener.local_addr()?.port()]);
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let mut stream = acceptor.accept(stream).await?;
            let (expected, waiting) = (trial.messages * trial.size as u64, Waiting::of(1));
            let counting = async_std::task::spawn(async move {
                let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
                loop {
                    let count = stream.read(&mut buffer).await? as u64;
                    if count == 0 {
                        return std::io::Result::Ok(bytes);
                    }
                    bytes += count;
                    if bytes >= expected && bytes - count < expected {
                        waiting.arrived();
                    }
                }
            });
            parent.received(Received { tally: Tally::of_bytes(counting.await?, trial.size), latency: None });
            Ok(())
        })
    }

    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        async_std::task::block_on(async {
            let stream = TcpStream::connect(("127.0.0.1", ports[0])).await?;
            stream.set_nodelay(true)?;
            let mut stream = connector()?.connect(ServerName::try_from("localhost")?, stream).await?;
            let mut left = trial.messages as usize * trial.size;
            let start = parent.go();
            let sending = async_std::task::spawn(async move {
                let chunk = vec![b'.'; CHUNK];
                while left > 0 {
                    let now = left.min(CHUNK);
                    stream.write_all(&chunk[..now]).await?;
                    left -= now;
                }
                stream.flush().await?;
                std::io::Result::Ok(stream)
            });
            let mut stream = sending.await?;
            parent.sent(Sent { start, ..Sent::default() });
            stream.close().await?;
            Ok(())
        })
    }
}
