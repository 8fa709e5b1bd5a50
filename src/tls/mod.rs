//! The settings of TLS, and its sessions. Only this folder names rustls.

mod files;
mod provider;
mod session;

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::error::ConfigError;
use crate::sync::Lock;

pub use files::{TlsClientFiles, TlsFiles, TlsServerFiles};
pub use provider::Provider;
#[cfg(all(test, feature = "tls-ring"))]
pub(crate) use session::ends;
pub(crate) use session::{RECORD, Session};

/// What both ends speak inside TLS, as ALPN (RFC 7301) calls it.
const PROTOCOL: &[u8] = b"buffstreams/1";
/// How many unfinished handshakes a listener has at once, unless it is told otherwise.
const MAX_HANDSHAKES: usize = 1024;

/// TLS for the connections of a [`Config`](crate::Config), TLS 1.3 by rustls: for those that are accepted, for those that are
/// dialed, or for both, as a [`Manager`](crate::Manager) has both.
///
/// With it every connection uses TLS. There is never a plaintext connection. A listener without [`server`](Self::server), or a dial
/// without [`client`](Self::client), is an error. The first bytes of a connection do not decide which it is.
///
/// ```
/// # #[cfg(feature = "tls-ring")] async_std::task::block_on(async {
/// # let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
/// # let (cert_pem, key_pem) = (cert.pem(), signing_key.serialize_pem());
/// # use buffstreams::{Config, Listener, Tls};
/// let tls = Tls::new().server(cert_pem, key_pem)?;
/// let listener = Listener::bind("127.0.0.1:0", Config::new().tls(tls)).await?;
/// # Ok::<(), buffstreams::BoxError>(()) }).unwrap();
/// ```
///
/// The certificates and keys that are given are kept in memory. What the system trusts is read from its files once, when the first
/// connection is dialed that needs it, and again by [`replace`](Self::replace).
///
/// # The handshake
///
/// That of a connection that is dialed is a part of the dial: it has what is left of
/// [`dial_timeout`](crate::Config::dial_timeout), and fails with [`Error::Tls`](crate::Error::Tls). That of one that is
/// accepted is done in a task, does not hold up others, has `dial_timeout` as well, and counts towards
/// [`max_connections`](crate::Config::max_connections); only after it is there an
/// [`Event::Connected`](crate::Event::Connected), and if it fails an
/// [`Event::HandshakeFailed`](crate::Event::HandshakeFailed). While a listener closes, a handshake has
/// [`close_timeout`](crate::Config::close_timeout) at the most.
///
/// In TLS 1.3 the end that dials is done before the other end has seen its certificate. Where that is refused, the dial
/// has succeeded, the first read fails with [`Error::Read`](crate::Error::Read), which has a
/// [`TlsError::Refused`](crate::TlsError::Refused) inside, and what was written until then is lost with the connection.
/// A program that only writes sees a connection that breaks again and again.
///
/// Both ends name `buffstreams/1` as their application protocol (ALPN). An end that names none is accepted, one that names others is
/// not.
///
/// # The end
///
/// A record that was changed on the way, or anything else that breaks the rules, is [`Error::Read`](crate::Error::Read)
/// with a [`TlsError`](crate::TlsError) inside, behind the messages that had come whole. A session that ends without
/// `close_notify` may have been cut short by an attacker on the way. It is
/// [`Error::Truncated`](crate::Error::Truncated), never a clean end. A close sends one, and so does dropping a
/// connection, if it can be sent at once.
///
/// A message counts as written when the kernel has the whole of the records that it is in.
///
/// # Certificates that expire
///
/// [`replace`](Self::replace) gives other certificates to what runs already. Clones are the same settings; what is built further
/// from a clone is another.
#[derive(Clone)]
pub struct Tls(Arc<Lock<State>>);

struct State {
    settings: Settings,
    built: Built,
    /// How often they were replaced.
    version: u64,
}

#[derive(Clone)]
struct Settings {
    server: Option<Server>,
    client: Option<Client>,
    provider: Option<Provider>,
    max_handshakes: usize,
    /// Where they were read from, unless they were changed since.
    files: Option<TlsFiles>,
}

#[derive(Clone)]
enum Server {
    Of { own: KeyPair, clients: Option<Arc<RootCertStore>> },
    Given(Arc<ServerConfig>),
}

#[derive(Clone, Default)]
struct Client {
    /// `None` for what the system trusts.
    roots: Option<Arc<RootCertStore>>,
    own: Option<KeyPair>,
    /// Instead of the host that was dialed.
    name: Option<ServerName<'static>>,
    given: Option<Arc<ClientConfig>>,
}

/// A certificate with those that lead from it to an authority, and its private key.
#[derive(Clone)]
struct KeyPair {
    chain: Arc<[CertificateDer<'static>]>,
    key: Arc<PrivateKeyDer<'static>>,
}

/// What was made of the settings, when it was first asked for.
#[derive(Default)]
struct Built {
    server: Option<Arc<ServerConfig>>,
    client: Option<Arc<ClientConfig>>,
}

/// The same settings: those of a clone, also when they were [replaced](Self::replace); or read from the same files.
impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.files().is_some_and(|files| other.files() == Some(files))
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self::new()
    }
}

impl Tls {
    /// TLS, for neither side yet: `bind` and `dial` fail with [`ConfigError::NoTlsServer`] and [`ConfigError::NoTlsClient`].
    pub fn new() -> Self {
        Self::with(Settings { server: None, client: None, provider: None, max_handshakes: MAX_HANDSHAKES, files: None })
    }

    /// The settings of the program, where those of this crate are not enough; a side that is not given is missing. They
    /// are used as they are, and nothing of them is changed: neither the protocol for ALPN, which should be
    /// `buffstreams/1`, nor session tickets, which a server should not send (`send_tls13_tickets = 0`): a client that
    /// only writes never reads them, and a socket that is closed with something unread resets its connection.
    ///
    /// The types are those of rustls 0.23. This is the only place where they show.
    pub fn from_rustls(server: Option<Arc<ServerConfig>>, client: Option<Arc<ClientConfig>>) -> Self {
        Self::new().change(|settings| {
            settings.server = server.map(Server::Given);
            settings.client = client.map(|given| Client { given: Some(given), ..Client::default() });
        })
    }

    /// For what is accepted: the certificate of this end, and behind it those that lead to an authority that the other ends
    /// know, and its private key. Both are in PEM; the key is PKCS #8, PKCS #1 or SEC1.
    ///
    /// The error is [`ConfigError::Pem`]. That the key is not that of the certificate is an error of `bind`,
    /// [`ConfigError::TlsKey`]. What was given before is replaced; [`client_auth`](Self::client_auth) stays.
    pub fn server(self, cert_pem: impl AsRef<[u8]>, key_pem: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        let own = KeyPair::parse(cert_pem.as_ref(), key_pem.as_ref())?;
        Ok(self.change(|settings| {
            let clients = match settings.server.take() {
                Some(Server::Of { clients, .. }) => clients,
                Some(Server::Given(_)) | None => None,
            };
            settings.server = Some(Server::Of { own, clients });
        }))
    }

    /// For connections that are accepted: takes only clients whose certificate was signed by one of these authorities,
    /// in PEM. Default: takes every client, and asks for no certificate.
    ///
    /// A client without a valid certificate fails the handshake, with an
    /// [`Event::HandshakeFailed`](crate::Event::HandshakeFailed) here. It learns of that when it reads, since its part
    /// of the handshake is over by then: [`Error::Read`](crate::Error::Read).
    ///
    /// The error is [`ConfigError::Pem`], or [`ConfigError::NoTlsServer`] if this comes before [`server`](Self::server).
    pub fn client_auth(self, authorities_pem: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        let roots = authorities(authorities_pem.as_ref())?;
        let mut is_there = false;
        let changed = self.change(|settings| {
            if let Some(Server::Of { clients, .. }) = &mut settings.server {
                *clients = Some(roots);
                is_there = true;
            }
        });
        if is_there { Ok(changed) } else { Err(ConfigError::NoTlsServer) }
    }

    /// For connections that are dialed: the other end must have a certificate for the host that was dialed, signed by
    /// an authority that the system trusts, or one of the [`roots`](Self::roots). That the authorities of the system
    /// cannot be read is an error of the dial, [`ConfigError::Tls`].
    #[must_use]
    pub fn client(self) -> Self {
        self.change(|settings| {
            settings.client.get_or_insert_default();
        })
    }

    /// For what is dialed: these authorities, in PEM, are trusted, and not those of the system. The error is
    /// [`ConfigError::Pem`].
    pub fn roots(self, authorities_pem: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        let roots = authorities(authorities_pem.as_ref())?;
        Ok(self.change(|settings| settings.client.get_or_insert_default().roots = Some(roots)))
    }

    /// For what is dialed: the certificate of this end, where the other end asks for one, and its private key, both in PEM. The
    /// error is [`ConfigError::Pem`]. That the key is not that of the certificate is an error of the dial, [`ConfigError::TlsKey`].
    pub fn identity(self, cert_pem: impl AsRef<[u8]>, key_pem: impl AsRef<[u8]>) -> Result<Self, ConfigError> {
        let own = KeyPair::parse(cert_pem.as_ref(), key_pem.as_ref())?;
        Ok(self.change(|settings| settings.client.get_or_insert_default().own = Some(own)))
    }

    /// For what is dialed: the name that the certificate of the other end must be for. Default: the host in the address; of an
    /// address without a host, and of a Unix socket, `localhost`. The error is [`ConfigError::TlsServerName`].
    pub fn server_name(self, name: &str) -> Result<Self, ConfigError> {
        let name = server_name(name)?;
        Ok(self.change(|settings| settings.client.get_or_insert_default().name = Some(name)))
    }

    /// What does the cryptography. Default: ring, where the feature `tls-ring` is on, else AWS-LC. With neither `bind` and `dial` fail
    /// with [`ConfigError::NoTlsProvider`]. What the process has installed as the default of rustls does not count.
    #[must_use]
    pub fn provider(self, provider: Provider) -> Self {
        self.change(|settings| settings.provider = Some(provider))
    }

    /// How many unfinished handshakes a listener has at once. Default: 1,024.
    ///
    /// Bounds clients that connect and say nothing, or little; each of them costs some 20 KiB. When there are so many,
    /// the oldest gives way to a new one, with an [`Event::HandshakeFailed`](crate::Event::HandshakeFailed). 0 is an
    /// error of `bind`, [`ConfigError::Zero`]. It should be less than
    /// [`max_connections`](crate::Config::max_connections), among which they count: when all of those are taken, a new
    /// connection is refused, and none gives way.
    #[must_use]
    pub fn max_handshakes(self, handshakes: usize) -> Self {
        self.change(|settings| settings.max_handshakes = handshakes)
    }

    /// Replaces the settings of what already runs with them, for example by renewed certificates: from now on,
    /// handshakes use those of `other`. Open connections go on as they are. `max_handshakes` stays.
    ///
    /// The error is why `other` cannot be used, and then nothing has changed: a side that is missing in it though it is there
    /// now, a key that is not that of its certificate.
    pub fn replace(&self, other: &Self) -> Result<(), ConfigError> {
        let mut new = other.0.lock().settings.clone();
        let (has_server, has_client) = {
            let state = self.0.lock();
            new.max_handshakes = state.settings.max_handshakes;
            (state.settings.server.is_some(), state.settings.client.is_some())
        };
        // Made here, so that what cannot be used is found before it takes the place of what can.
        let built = Built {
            server: if has_server { Some(new.build_server()?) } else { None },
            client: if has_client { Some(new.build_client()?) } else { None },
        };
        let old = {
            let mut state = self.0.lock();
            let version = state.version + 1;
            std::mem::replace(&mut *state, State { settings: new, built, version })
        };
        // Without the lock: what the program gave to `from_rustls` may come back here when it is dropped.
        drop(old);
        Ok(())
    }

    fn with(settings: Settings) -> Self {
        Self(Arc::new(Lock::new(State { settings, built: Built::default(), version: 0 })))
    }

    /// Others may have these settings as well.
    fn change(&self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.0.lock().settings.clone();
        settings.files = None;
        change(&mut settings);
        Self::with(settings)
    }

    pub(crate) fn handshakes(&self) -> usize {
        self.0.lock().settings.max_handshakes
    }

    /// Whether it can listen.
    pub(crate) fn check_server(&self) -> Result<(), ConfigError> {
        if self.handshakes() == 0 {
            return Err(ConfigError::Zero { name: "max_handshakes" });
        }
        self.server_config().map(drop)
    }

    /// Whether it can dial.
    pub(crate) fn check_client(&self) -> Result<(), ConfigError> {
        self.client_config().map(drop)
    }

    /// A session with somebody who has connected.
    pub(crate) fn accept(&self) -> Result<Session, ConfigError> {
        let tls = ServerConnection::new(self.server_config()?).map_err(broken)?;
        Ok(Session::new(tls.into()))
    }

    /// A session with the end that was dialed under this name, if the settings have no other.
    pub(crate) fn dial(&self, host: &str) -> Result<Session, ConfigError> {
        let config = self.client_config()?;
        let name = self.0.lock().settings.client.as_ref().and_then(|client| client.name.clone());
        let name = name.map_or_else(|| server_name(host), Ok)?;
        let tls = ClientConnection::new(config, name).map_err(broken)?;
        Ok(Session::new(tls.into()))
    }

    fn server_config(&self) -> Result<Arc<ServerConfig>, ConfigError> {
        self.built(|built| &mut built.server, Settings::build_server)
    }

    fn client_config(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        self.built(|built| &mut built.client, Settings::build_client)
    }

    /// One side of what was made of the settings, which is made now if nobody has asked for it. That is done without the lock:
    /// what the system trusts is read from files, which may be logged, and the logger is the program's.
    fn built<C>(
        &self,
        side: impl Fn(&mut Built) -> &mut Option<Arc<C>>,
        build: impl FnOnce(&Settings) -> Result<Arc<C>, ConfigError>,
    ) -> Result<Arc<C>, ConfigError> {
        let (settings, version) = {
            let state = &mut *self.0.lock();
            if let Some(built) = side(&mut state.built) {
                return Ok(built.clone());
            }
            (state.settings.clone(), state.version)
        };
        let built = build(&settings)?;
        let state = &mut *self.0.lock();
        if state.version == version {
            *side(&mut state.built) = Some(built.clone());
        }
        Ok(built)
    }
}

impl Settings {
    fn provider(&self) -> Result<Arc<CryptoProvider>, ConfigError> {
        // What the process has installed for everybody is not asked: another crate may have.
        match self.provider {
            #[cfg(feature = "tls-ring")]
            None | Some(Provider::Ring) => Ok(Arc::new(rustls::crypto::ring::default_provider())),
            #[cfg(all(feature = "tls-aws-lc-rs", not(feature = "tls-ring")))]
            None => Ok(Arc::new(rustls::crypto::aws_lc_rs::default_provider())),
            #[cfg(feature = "tls-aws-lc-rs")]
            Some(Provider::AwsLcRs) => Ok(Arc::new(rustls::crypto::aws_lc_rs::default_provider())),
            #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs")))]
            _ => Err(ConfigError::NoTlsProvider),
        }
    }

    fn build_server(&self) -> Result<Arc<ServerConfig>, ConfigError> {
        let (own, clients) = match &self.server {
            None => return Err(ConfigError::NoTlsServer),
            Some(Server::Given(config)) => return Ok(config.clone()),
            Some(Server::Of { own, clients }) => (own, clients),
        };
        let provider = self.provider()?;
        let config = ServerConfig::builder_with_provider(provider.clone());
        let config = config.with_protocol_versions(&[&TLS13]).map_err(broken)?;
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider).build();
                config.with_client_cert_verifier(
                    verifier.map_err(|error| ConfigError::Tls { problem: error.to_string() })?,
                )
            }
        };
        let mut config = config.with_single_cert(own.chain.to_vec(), own.key.clone_key()).map_err(broken)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // One who only writes never reads a ticket, and a socket that is closed with something unread resets its connection.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    fn build_client(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        let client = self.client.as_ref().ok_or(ConfigError::NoTlsClient)?;
        if let Some(config) = &client.given {
            return Ok(config.clone());
        }
        let provider = self.provider()?;
        let verifier: Arc<dyn ServerCertVerifier> = match &client.roots {
            Some(roots) => {
                let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
                verifier.map_err(|error| ConfigError::Tls { problem: error.to_string() })?
            }
            None => Arc::new(rustls_platform_verifier::Verifier::new(provider.clone()).map_err(broken)?),
        };
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_protocol_versions(&[&TLS13]).map_err(broken)?;
        let config = config.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match &client.own {
            None => config.with_no_client_auth(),
            Some(own) => config.with_client_auth_cert(own.chain.to_vec(), own.key.clone_key()).map_err(broken)?,
        };
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

impl KeyPair {
    fn parse(cert_pem: &[u8], key_pem: &[u8]) -> Result<Self, ConfigError> {
        let chain = certificates(cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| unreadable("private key", &error))?;
        Ok(Self { chain: chain.into(), key: Arc::new(key) })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| unreadable("certificate", &error))?;
    if certificates.is_empty() {
        return Err(unreadable("certificate", &pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn authorities(pem: &[u8]) -> Result<Arc<RootCertStore>, ConfigError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|error| ConfigError::Pem { what: "authority", problem: error.to_string() })?;
    }
    Ok(Arc::new(roots))
}

fn unreadable(what: &'static str, error: &pem::Error) -> ConfigError {
    let problem = match error {
        pem::Error::NoItemsFound => "there is none".to_owned(),
        error => error.to_string(),
    };
    ConfigError::Pem { what, problem }
}

fn server_name(name: &str) -> Result<ServerName<'static>, ConfigError> {
    ServerName::try_from(name.to_owned()).map_err(|_| ConfigError::TlsServerName { name: name.to_owned() })
}

fn broken(error: rustls::Error) -> ConfigError {
    match error {
        rustls::Error::InconsistentKeys(_) => ConfigError::TlsKey,
        error => ConfigError::Tls { problem: error.to_string() },
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.0.lock().settings;
        f.debug_struct("Tls")
            .field("server", &settings.server.is_some())
            .field("client", &settings.client.is_some())
            .finish_non_exhaustive()
    }
}

/// The issuer and the subject of a certificate, in DER.
pub(crate) fn names(certificate: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let der = CertificateDer::from(certificate);
    let certificate = webpki::EndEntityCert::try_from(&der).ok()?;
    Some((certificate.issuer().to_vec(), certificate.subject().to_vec()))
}
