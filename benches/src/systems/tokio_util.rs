//! tokio-util's `LengthDelimitedCodec` on tokio: tuned as its documentation suggests, and as it comes.

use std::marker::PhantomData;

use bytes::BytesMut;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Framed as Connection, LengthDelimitedCodec};

use super::framed::{Framed, plays_as_framed};
use super::runtime::Runtime;
use crate::Result;

/// On this flavour of tokio.
#[derive(Clone, Copy)]
pub(super) struct TokioUtil<R> {
    is_tuned: bool,
    runtime: PhantomData<R>,
}

const BUFFER: usize = 64 << 10;

impl<R> TokioUtil<R> {
    /// With the buffers that buffstreams has by default.
    pub(super) const TUNED: Self = Self { is_tuned: true, runtime: PhantomData };
    pub(super) const DEFAULT: Self = Self { is_tuned: false, runtime: PhantomData };

    fn frame(&self, stream: TcpStream) -> Result<Connection<TcpStream, LengthDelimitedCodec>> {
        stream.set_nodelay(true)?;
        if !self.is_tuned {
            return Ok(Connection::new(stream, LengthDelimitedCodec::new()));
        }
        let mut connection = Connection::with_capacity(stream, LengthDelimitedCodec::new(), BUFFER);
        connection.set_backpressure_boundary(BUFFER);
        Ok(connection)
    }
}

impl<R: Runtime> Framed for TokioUtil<R> {
    type Runtime = R;
    type Message = BytesMut;
    type Error = std::io::Error;
    type Connection = Connection<TcpStream, LengthDelimitedCodec>;
    type Acceptor = TcpListener;

    async fn connect(self, port: u16, _: usize) -> Result<Self::Connection> {
        self.frame(TcpStream::connect(("127.0.0.1", port)).await?)
    }

    async fn listen(self, _: usize) -> Result<(u16, TcpListener)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Ok((listener.local_addr()?.port(), listener))
    }

    async fn accept(self, listener: &mut TcpListener) -> Result<Self::Connection> {
        self.frame(listener.accept().await?.0)
    }
}

plays_as_framed!([R: Runtime] TokioUtil<R>);
