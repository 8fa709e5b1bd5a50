//! Ends that are not ours: rustls over a plain socket, which can be made to break the rules.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use super::certificates::Pair;
use super::net::frame;

/// The protocol of the library, as ALPN calls it.
pub(crate) const PROTOCOL: &[u8] = b"buffstreams/1";

fn roots(pem: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    Arc::new(roots)
}

/// Nobody looks whether the two fit.
pub(crate) fn certified(Pair { cert, key }: &Pair) -> Arc<SingleCertAndKey> {
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let key = ring::default_provider().key_provider.load_private_key(key).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)))
}

/// The settings of a client that trusts this authority, and has this certificate.
pub(crate) fn client(authority: &str, own: Option<&Pair>, protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(&[&TLS13]).unwrap().with_root_certificates(roots(authority));
    let mut config = match own {
        None => config.with_no_client_auth(),
        Some(own) => config.with_client_cert_resolver(certified(own)),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The settings of a server with this certificate, which may ask for those of an authority.
pub(crate) fn server(own: &Pair, clients: Option<&str>, protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]).unwrap();
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(pem) => config.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots(pem), provider).build().unwrap(),
        ),
    };
    let mut config = config.with_cert_resolver(certified(own));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

pub(crate) fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// One end of a session, and its socket.
pub(crate) struct RawTls {
    pub(crate) tls: Connection,
    pub(crate) tcp: TcpStream,
}

impl RawTls {
    pub(crate) fn client(config: Arc<ClientConfig>, tcp: TcpStream) -> Self {
        Self { tls: ClientConnection::new(config, name()).unwrap().into(), tcp }
    }

    pub(crate) fn server(config: Arc<ServerConfig>, tcp: TcpStream) -> Self {
        Self { tls: ServerConnection::new(config).unwrap().into(), tcp }
    }

    /// Goes on until the handshake is over here.
    pub(crate) fn shake(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.tls.complete_io(&mut self.tcp)?;
        }
        Ok(())
    }

    /// The same, but for the last that this end has to say, which [`records`](Self::records) has then.
    pub(crate) fn shake_but_for_the_last(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            let hello = self.records();
            self.tcp.write_all(&hello)?;
            self.tls.read_tls(&mut self.tcp)?;
            self.tls.process_new_packets().map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The records of what is to be sent, which are not sent.
    pub(crate) fn records(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut wire).unwrap();
        }
        wire
    }

    /// The records of these bytes.
    pub(crate) fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(bytes).unwrap();
        self.records()
    }

    /// The records of a message, in the format of the tests.
    pub(crate) fn message(&mut self, message: &[u8]) -> Vec<u8> {
        self.seal(&frame(message))
    }

    pub(crate) fn close_notify(&mut self) -> Vec<u8> {
        self.tls.send_close_notify();
        self.records()
    }

    /// Writes to the socket. The other end may be gone already.
    pub(crate) fn put(&mut self, wire: &[u8]) {
        let _ = self.tcp.write_all(wire);
    }

    pub(crate) fn fin(&self) {
        let _ = self.tcp.shutdown(Shutdown::Write);
    }
}

/// Closes the socket with a reset.
pub(crate) fn reset(tcp: TcpStream) {
    socket2::SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(tcp);
}

/// A first message of a TLS session.
pub(crate) fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut tls = ClientConnection::new(config.clone(), name()).unwrap();
    let mut wire = Vec::new();
    tls.write_tls(&mut wire).unwrap();
    wire
}

/// One by hand, of these versions.
pub(crate) fn old_hello(record: [u8; 2], version: [u8; 2], extensions: &[u8]) -> Vec<u8> {
    let mut body = version.to_vec();
    body.extend([7; 32]);
    // No session; AES-128-GCM of TLS 1.2, with RSA and ECDSA, and of TLS 1.3; no compression.
    body.extend([0, 0, 6, 0xc0, 0x2f, 0xc0, 0x2b, 0x13, 0x01, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![1];
    handshake.extend(&(body.len() as u32).to_be_bytes()[1..]);
    handshake.extend(body);
    self::record(0x16, record, &handshake)
}

/// A record by hand.
pub(crate) fn record(kind: u8, version: [u8; 2], content: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, version[0], version[1]];
    record.extend((content.len() as u16).to_be_bytes());
    record.extend(content);
    record
}
