//! A line between a client and its server that loses everything until it is cut, and is whole from then on.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::{Error, Result, clock};

/// What each end of a session says first: see docs/session-protocol.md.
const HANDSHAKE: usize = 88;
const CHUNK: usize = 64 << 10;
/// For whatever ought to come at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// A line to this port of this machine. It is cut when so many bytes are lost. Returns the port to dial, and what says when
/// the handshake of the next connection was over.
pub(super) fn line(server: u16, lost: u64) -> Result<(u16, Receiver<Result<u64>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let (resumed, receiver) = channel();
    thread::spawn(move || {
        let whole = lose(&listener, server, lost).and_then(|()| resume(&listener, server));
        match whole {
            Ok((client, server, at)) => {
                let _ = resumed.send(Ok(at));
                // Until the server has closed, and the client has been told.
                let _ = copy(server, client);
            }
            Err(error) => drop(resumed.send(Err(error))),
        }
    });
    Ok((port, receiver))
}

/// The next client, with a connection of its own to the server, and the client's greeting passed on.
fn accept(listener: &TcpListener, server: u16) -> Result<(TcpStream, TcpStream)> {
    let (mut client, _) = listener.accept()?;
    let mut server = TcpStream::connect(("127.0.0.1", server))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    greet(&mut client, &mut server)?;
    Ok((client, server))
}

fn greet(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    let mut handshake = [0; HANDSHAKE];
    from.read_exact(&mut handshake)?;
    Ok(to.write_all(&handshake)?)
}

fn lose(listener: &TcpListener, server: u16, mut left: u64) -> Result<()> {
    let (mut client, mut server) = accept(listener, server)?;
    greet(&mut server, &mut client)?;
    let mut buffer = vec![0; CHUNK];
    while left > 0 {
        let count = client.read(&mut buffer)? as u64;
        if count == 0 {
            return Err("the client has closed before its connection was cut".into());
        }
        left = left.saturating_sub(count);
    }
    // Both are closed here.
    Ok(())
}

fn resume(listener: &TcpListener, server: u16) -> Result<(TcpStream, TcpStream, u64)> {
    let (mut client, mut server) = accept(listener, server)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || copy(from, to));
    greet(&mut server, &mut client)?;
    Ok((client, server, clock::now()))
}

/// Passes on what comes until the end, and the end as well.
fn copy(mut from: TcpStream, mut to: TcpStream) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            count => to.write_all(&buffer[..count])?,
        }
    }
    to.shutdown(Shutdown::Write).or_else(already_closed).map_err(Error::from)
}

/// The other end may have closed first.
fn already_closed(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}
