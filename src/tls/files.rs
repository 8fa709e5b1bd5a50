//! TLS whose certificates and keys are in files.

use std::fs;
use std::path::{Path, PathBuf};

use super::{MAX_HANDSHAKES, Tls};
use crate::error::ConfigError;

/// Where the certificates and keys of a [`Tls`] are, in PEM: what a file of settings says of it, with the feature `serde`. A side
/// that is not named is missing.
///
/// ```toml
/// [tls.server]
/// cert = "server.pem"
/// key = "server.key"
/// client_auth = "clients.pem" # only clients whose certificate one of these authorities has signed
///
/// [tls.client]
/// roots = "ca.pem" # instead of what the system trusts
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct TlsFiles {
    /// For what is accepted.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub server: Option<TlsServerFiles>,
    /// For what is dialed.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub client: Option<TlsClientFiles>,
    /// See [`Tls::max_handshakes`].
    pub max_handshakes: usize,
}

/// The files of [`Tls::server`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct TlsServerFiles {
    /// The certificate of this end, and behind it those that lead to an authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of [`Tls::client_auth`].
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub client_auth: Option<PathBuf>,
}

/// The files of [`Tls::client`], and the name of the other end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct TlsClientFiles {
    /// The authorities of [`Tls::roots`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub roots: Option<PathBuf>,
    /// The certificate of [`Tls::identity`]. It comes with its key.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub cert: Option<PathBuf>,
    /// The private key of [`Tls::identity`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub key: Option<PathBuf>,
    /// See [`Tls::server_name`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub server_name: Option<String>,
}

impl Default for TlsFiles {
    fn default() -> Self {
        Self { server: None, client: None, max_handshakes: MAX_HANDSHAKES }
    }
}

impl Tls {
    /// TLS with the certificates and keys in these files, which are read now. To take renewed ones, read the files again and
    /// [`replace`](Self::replace) what runs.
    ///
    /// The errors are [`ConfigError::TlsFile`] for a file that cannot be read, [`ConfigError::TlsPair`] for a certificate without
    /// its key or the reverse, and those of the methods that take PEM.
    pub fn from_files(files: TlsFiles) -> Result<Self, ConfigError> {
        let mut tls = Self::new().max_handshakes(files.max_handshakes);
        if let Some(TlsServerFiles { cert, key, client_auth }) = &files.server {
            tls = tls.server(read(cert)?, read(key)?)?;
            if let Some(authorities) = client_auth {
                tls = tls.client_auth(read(authorities)?)?;
            }
        }
        if let Some(TlsClientFiles { roots, cert, key, server_name }) = &files.client {
            tls = tls.client();
            if let Some(authorities) = roots {
                tls = tls.roots(read(authorities)?)?;
            }
            match (cert, key) {
                (Some(cert), Some(key)) => tls = tls.identity(read(cert)?, read(key)?)?,
                (None, None) => {}
                (Some(_), None) => return Err(ConfigError::TlsPair { given: "cert", missing: "key" }),
                (None, Some(_)) => return Err(ConfigError::TlsPair { given: "key", missing: "cert" }),
            }
            if let Some(name) = server_name {
                tls = tls.server_name(name)?;
            }
        }
        Ok(tls.change(|settings| settings.files = Some(files)))
    }

    /// The files that it was [read from](Self::from_files); `None` if it was made in another way, or changed since.
    pub fn files(&self) -> Option<TlsFiles> {
        self.0.lock().settings.files.clone()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|error| ConfigError::TlsFile { path: path.display().to_string(), kind: error.kind() })
}

#[cfg(feature = "serde")]
impl serde::Serialize for Tls {
    /// As the files that it was read from. Certificates and keys that the program has given are an error.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let files = self.files().ok_or_else(|| {
            serde::ser::Error::custom("TLS is serialized as the files that it was read from: this was given in code")
        })?;
        files.serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Tls {
    /// Reads the files.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_files(TlsFiles::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
