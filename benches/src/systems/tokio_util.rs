//! tokio-util's `LengthDelimitedCodec` on tokio: tuned as its documentation suggests, and as it comes.

use bytes::BytesMut;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Framed as Connection, LengthDelimitedCodec};

use super::framed::{Framed, plays_as_framed};
use super::runtime::Tokio;
use crate::Result;

/// With the buffers that buffstreams has by default.
#[derive(Clone, Copy)]
pub(super) struct Tuned;

#[derive(Clone, Copy)]
pub(super) struct Default;

const BUFFER: usize = 64 << 10;

/// What both have in common.
trait Flavour: Copy + Send + Sync + 'static {
    fn frame(stream: TcpStream) -> Connection<TcpStream, LengthDelimitedCodec>;
}

impl Flavour for Tuned {
    fn frame(stream: TcpStream) -> Connection<TcpStream, LengthDelimitedCodec> {
        let mut connection = Connection::with_capacity(stream, LengthDelimitedCodec::new(), BUFFER);
        connection.set_backpressure_boundary(BUFFER);
        connection
    }
}

impl Flavour for Default {
    fn frame(stream: TcpStream) -> Connection<TcpStream, LengthDelimitedCodec> {
        Connection::new(stream, LengthDelimitedCodec::new())
    }
}

impl<F: Flavour> Framed for F {
    type Runtime = Tokio;
    type Message = BytesMut;
    type Error = std::io::Error;
    type Connection = Connection<TcpStream, LengthDelimitedCodec>;
    type Acceptor = TcpListener;

    async fn connect(self, port: u16, _: usize) -> Result<Self::Connection> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(F::frame(stream))
    }

    async fn listen(self, _: usize) -> Result<(u16, TcpListener)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok((listener.local_addr()?.port(), listener))
    }

    async fn accept(self, listener: &mut TcpListener) -> Result<Self::Connection> {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(F::frame(stream))
    }
}

plays_as_framed!(Tuned);
plays_as_framed!(Default);
