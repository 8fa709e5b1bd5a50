//! Mutual TLS: two ends that each ask for the other's certificate, certificates that are renewed while the listener runs, and a
//! client without one, which is refused.
#![allow(clippy::print_stdout)] // To print is what it is for.

use async_std::task;
use buffstreams::{BoxError, Bytes, Config, Connection, Endpoint, Error, Event, Events, Listener, Tls, TlsError};
use futures::{SinkExt, StreamExt, TryStreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Signs the certificates of both ends. A real program reads PEM files, and has no key of an authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A certificate for this name, and its private key, both in PEM.
    fn issue(&self, name: &str) -> Result<(String, String), rcgen::Error> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([name.to_owned()])?.signed_by(&key, &self.0)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// What the listener is to have: a certificate of its own, and it takes only those that have one of this authority.
fn server_tls(authority: &Authority) -> Result<Tls, BoxError> {
    let (certificate, key) = authority.issue("localhost")?;
    Ok(Tls::new().server(certificate, key)?.client_auth(authority.0.pem())?)
}

/// Sends some words to the echo server, prints what comes back, and closes.
async fn talk(address: &Endpoint, tls: &Tls) -> Result<(), Error> {
    let mut connection = Connection::dial(address, Config::new().tls(tls.clone())).await?;
    for word in ["nobody", "else", "reads", "this"] {
        connection.feed(Bytes::from(word)).await?;
    }
    connection.close().await?; // Ends this direction only, and says so: nobody can cut it short unnoticed.
    while let Some(reply) = connection.try_next().await? {
        println!("client: {}", String::from_utf8_lossy(&reply));
    }
    Ok(())
}

/// Prints who comes, who goes, and who was refused, until the listener is gone.
async fn report(mut events: Events<Event>) {
    while let Some(event) = events.next().await {
        match event {
            // X.509 in DER, verified, the peer's own first. A crate like x509-parser reads names from it.
            Event::Connected { peer, identity: Some(identity), .. } => {
                let bytes = identity.certificates().first().map_or(0, Vec::len);
                println!("server: {peer} has shown a certificate of {bytes} bytes");
            }
            Event::Disconnected { peer, reason, .. } => println!("server: {peer} has gone: {reason:?}"),
            Event::HandshakeFailed { error, .. } => println!("server: refused: {error}"),
            other => println!("server: {other:?}"),
        }
    }
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let authority = Authority::new("the authority")?;
    let server = server_tls(&authority)?;
    let listener = Listener::bind("127.0.0.1:0", Config::new().tls(server.clone())).await?;
    let (address, closer) = (listener.local_addr(), listener.closer());
    let reporting = task::spawn(report(listener.events()));
    let (incoming, outgoing) = listener.split();
    let echo = task::spawn(incoming.map(Ok).forward(outgoing));

    // The address is a number, the certificate is for a name. Who dials `localhost:5031` needs no `server_name`.
    let anybody = Tls::new().roots(authority.0.pem())?.server_name("localhost")?;
    let (certificate, key) = authority.issue("client")?;
    let client = anybody.clone().identity(certificate, key)?;
    talk(&address, &client).await?;

    // New handshakes are made with the new certificate. Connections that there are go on.
    server.replace(&server_tls(&authority)?)?;
    println!("the certificate of the listener is another one now");
    talk(&address, &client).await?;

    // Without a certificate. A client of TLS 1.3 is through before the server has looked at it: it hears of that when it reads.
    let mut refused = Connection::dial(&address, Config::new().tls(anybody)).await?;
    let Some(Err(Error::Read(error))) = refused.next().await else { return Err("it was not refused".into()) };
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(TlsError::Refused { alert, .. }) => println!("client without a certificate: {alert}"),
        _ => return Err(error.into()),
    }

    // A client that knows another authority than that of the listener: its dial fails.
    let stranger = Tls::new().roots(Authority::new("another authority")?.0.pem())?.server_name("localhost")?;
    match talk(&address, &stranger).await {
        Err(Error::Tls { source: error @ TlsError::UnknownIssuer, .. }) => println!("client of others: {error}"),
        other => return Err(format!("{other:?}").into()),
    }

    closer.close().await?;
    echo.await?;
    reporting.await;
    Ok(())
}
