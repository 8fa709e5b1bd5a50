//! The handshake of a session, over a connection that stands.

use std::io;

use futures::AsyncReadExt;

use crate::config::Config;
use crate::endpoint::Endpoint;
use crate::error::{Error, HandshakeErrorKind};
use crate::peer::Address;
use crate::session::{Answer, ErrorCode, HANDSHAKE, Hello, Violation};
use crate::transport::{self, Stream};
use crate::wire::stranger;

/// What one who dials says first, and where.
#[derive(Clone)]
pub(crate) struct Greeting {
    pub(crate) address: Address,
    /// Where the session was made that goes on. A new one is made wherever the address leads to.
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) hello: Hello,
}

/// A connection on which both ends have spoken.
pub(crate) struct Greeted {
    pub(crate) stream: Stream,
    pub(crate) hello: Hello,
    pub(crate) answer: Answer,
}

/// Dials, and greets. Both together take `dial_timeout` at the most, and each of them.
pub(crate) async fn greet(greeting: Greeting, config: Config) -> Result<Greeted, Error> {
    let Greeting { address, endpoint, hello } = greeting;
    let began = config.runtime.now();
    let mut stream = transport::dial_at(&address, endpoint, &config).await?;
    let passed = config.runtime.now().saturating_duration_since(began);
    let left = config.dial_timeout.map(|limit| limit.saturating_sub(passed));
    let answer = config.runtime.within(left, answer(&mut stream, &hello)).await;
    match answer.unwrap_or(Err(HandshakeErrorKind::NoAnswer)) {
        Ok(answer) => Ok(Greeted { stream, hello, answer }),
        Err(kind) => {
            stream.shut_down();
            Err(Error::Handshake { address, kind })
        }
    }
}

async fn answer(stream: &mut Stream, hello: &Hello) -> Result<Answer, HandshakeErrorKind> {
    let broke = |error: io::Error| HandshakeErrorKind::Io(error.kind());
    stream.say(&hello.encode()).await.map_err(broke)?;
    let (mut bytes, mut got) = ([0; HANDSHAKE], 0);
    loop {
        match Answer::parse(&bytes[..got], hello) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(Violation::Magic { .. }) => {
                return Err(HandshakeErrorKind::NotASession { looks_like: stranger(&bytes[..got]) });
            }
            Err(violation) => {
                return Err(HandshakeErrorKind::Violation(violation.code().unwrap_or(ErrorCode::Malformed)));
            }
        }
        // No more than the answer: what follows is for the reader.
        match stream.read(&mut bytes[got..]).await {
            Ok(0) => return Err(HandshakeErrorKind::NoAnswer),
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broke(error)),
        }
    }
}
