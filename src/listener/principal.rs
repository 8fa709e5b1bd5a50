//! Whose a session is.

use crate::identity::Identity;
#[cfg(feature = "tls")]
use crate::tls;

/// Whose a session is: nobody else comes back to it, whatever name of it they know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Principal {
    /// The transport knows nothing.
    Unknown,
    /// The user of a Unix socket.
    User(u32),
    /// The issuer and the subject of a verified certificate, in DER: a renewed one has the same.
    #[cfg(feature = "tls")]
    Names { issuer: Vec<u8>, subject: Vec<u8> },
}

impl Principal {
    /// Of a peer of this identity.
    pub(crate) fn of(identity: Option<&Identity>) -> Self {
        let Some(identity) = identity else { return Self::Unknown };
        #[cfg(feature = "tls")]
        if let Some((issuer, subject)) = identity.certificates().first().and_then(|first| tls::names(first)) {
            return Self::Names { issuer, subject };
        }
        identity.credentials().map_or(Self::Unknown, |credentials| Self::User(credentials.uid))
    }
}
