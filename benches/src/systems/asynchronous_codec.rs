//! asynchronous-codec's `LengthCodec` on async-std: the runtime of buffstreams, with the usual framing on it.

use std::net::Shutdown;

use async_std::net::{TcpListener, TcpStream};
use asynchronous_codec::{Framed as Connection, LengthCodec};
use bytes::Bytes;

use super::BACKLOG;
use super::framed::{Framed, plays_as_framed};
use super::runtime::AsyncStd;
use crate::Result;

#[derive(Clone, Copy)]
pub(super) struct AsynchronousCodec;

impl Framed for AsynchronousCodec {
    type Runtime = AsyncStd;
    type Message = Bytes;
    type Error = std::io::Error;
    type Connection = Connection<TcpStream, LengthCodec>;
    type Acceptor = TcpListener;

    async fn connect(self, port: u16, _: usize) -> Result<Self::Connection> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection::new(stream, LengthCodec))
    }

    async fn listen(self, _: usize) -> Result<(u16, TcpListener)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        rustix::net::listen(&listener, BACKLOG)?;
        Ok((listener.local_addr()?.port(), listener))
    }

    /// To close the sink only flushes: async-std does nothing when a socket is closed.
    async fn half_close(connection: &mut Self::Connection) -> Result<()> {
        Ok(connection.shutdown(Shutdown::Write)?)
    }

    async fn accept(self, listener: &mut TcpListener) -> Result<Self::Connection> {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(Connection::new(stream, LengthCodec))
    }
}

plays_as_framed!([] AsynchronousCodec);
