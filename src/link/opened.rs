//! A connection that was made, and in a session what was said on it.

use futures::FutureExt;

use super::handshake::{Greeted, greet};
use super::session::{Dialed, Judged};
use crate::config::Config;
use crate::error::{ConfigError, Error};
use crate::peer::Address;
use crate::session::Positions;
use crate::transport;
use crate::wire::Codec;

/// A connection that was made.
pub(crate) enum Opened {
    Plain(transport::Stream),
    Greeted(Greeted),
}

impl Opened {
    pub(super) fn stream(&self) -> &transport::Stream {
        match self {
            Self::Plain(stream) => stream,
            Self::Greeted(greeted) => &greeted.stream,
        }
    }
}

/// A connection to an address, if it was made already, and in a session what was said there.
pub(crate) struct First {
    pub(crate) opened: Option<Opened>,
    pub(super) session: Option<Dialed>,
}

impl First {
    /// One that is still to be made. `window` is what this end accepts in a session, in bytes. An error is that no attempt could
    /// succeed.
    pub(crate) fn later(config: &Config, codec: Codec, window: u32) -> Result<Self, ConfigError> {
        transport::runtime_to_dial(config)?;
        let session = config.session.as_ref().map(|session| Dialed::new(session, config, codec, window));
        Ok(Self { opened: None, session })
    }

    /// Dials, as [`transport::dial`] does; in a session, greets as well. All that the other end can answer but a new session is
    /// an error.
    /// `window` is what this end accepts in a session, in bytes.
    pub(crate) async fn dial(address: &Address, config: &Config, codec: Codec, window: u32) -> Result<Self, Error> {
        let Some(session) = &config.session else {
            let opened = Opened::Plain(transport::dial(address, config).await?);
            return Ok(Self { opened: Some(opened), session: None });
        };
        let mut session = Dialed::new(session, config, codec, window);
        // On the heap: who has no session does not make room for it.
        let greeted = greet(session.greeting(address, Positions::default()), config.clone()).boxed().await?;
        match session.judge(&greeted) {
            Judged::Accepted => Ok(Self { opened: Some(Opened::Greeted(greeted)), session: Some(session) }),
            Judged::Failed(kind) | Judged::Refused(kind) => Err(Error::Handshake { address: address.clone(), kind }),
            Judged::Lost(why) => Err(Error::SessionLost { in_doubt: 0, why }),
        }
    }
}
