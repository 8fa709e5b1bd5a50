//! What a good program does by hand on tokio, without a library for frames: reads of 64 KiB into one buffer, frames taken
//! where they lie, and writes of 64 KiB. A header is the length, in four bytes, the most significant one first.

use bytes::{Buf, BufMut, BytesMut};
use futures::future::{join_all, try_join_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::pings::Pings;
use super::runtime::{Runtime, Tokio};
use super::{Pace, System, stamped};
use crate::check::{Inspector, Received};
use crate::child::{Parent, Sent, Waiting};
use crate::messages::Messages;
use crate::plan::Trial;
use crate::{Error, Result};

pub(super) struct Manual;

/// What is read and written at once.
const CHUNK: usize = 64 << 10;
const HEADER: usize = 4;

/// A connection, and what was read of it that is not a whole message yet.
struct Incoming {
    stream: TcpStream,
    buffer: BytesMut,
    longest: usize,
}

impl Incoming {
    fn new(stream: TcpStream, longest: usize) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(CHUNK), longest }
    }

    /// Reads once, and shows each message that is whole then. False at the end of the connection.
    async fn read(&mut self, mut take: impl FnMut(&[u8])) -> Result<bool> {
        // Of the part of a message that is left, the rest may be larger than a chunk.
        self.buffer.reserve(CHUNK);
        if self.stream.read_buf(&mut (&mut self.buffer).limit(CHUNK)).await? == 0 {
            return if self.buffer.is_empty() {
                Ok(false)
            } else {
                Err("the connection ended inside a message".into())
            };
        }
        let mut rest = &self.buffer[..];
        while let Some((header, payload)) = rest.split_first_chunk::<HEADER>() {
            let size = u32::from_be_bytes(*header) as usize;
            if size > self.longest {
                return Err("a message is too long".into());
            }
            let Some((message, behind)) = payload.split_at_checked(size) else { break };
            take(message);
            rest = behind;
        }
        let taken = self.buffer.len() - rest.len();
        self.buffer.advance(taken);
        Ok(true)
    }
}

fn put(out: &mut BytesMut, message: &[u8]) {
    out.put_u32(message.len() as u32);
    out.put_slice(message);
}

async fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect_all(trial: &Trial, ports: &[u16]) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for _ in 0..trial.connections / trial.processes {
        streams.push(connect(ports[0]).await?);
    }
    Ok(streams)
}

/// Listens, and plays all connections, each in a task of its own.
async fn accept_all<F>(
    trial: &Trial,
    parent: &Parent,
    play: impl Fn(TcpStream) -> F,
) -> Result<Vec<impl Future<Output = F::Output> + Send>>
where
    F: Future<Output: Send> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    parent.ready(&[listener.local_addr()?.port()]);
    let mut tasks = Vec::new();
    for _ in 0..trial.connections {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tasks.push(Tokio::spawn(play(stream)));
    }
    Ok(tasks)
}

impl System for Manual {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let (waiting, size) = (Waiting::of(trial.connections), trial.size);
        let take_all = |stream| {
            let mut inspector = Inspector::new(trial, trial.share(), &waiting);
            async move {
                let mut incoming = Incoming::new(stream, size);
                while incoming.read(|message| inspector.take(message)).await? {}
                Ok::<_, Error>(inspector)
            }
        };
        Tokio::block_on(async {
            let tasks = accept_all(trial, parent, take_all).await?;
            parent.received(Inspector::report(try_join_all(tasks).await?));
            Ok(())
        })
    }

    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        Tokio::block_on(async {
            let (messages, share) = (Messages::of(trial), trial.share());
            let streams = connect_all(trial, ports).await?;
            let start = parent.go();
            let send = |mut stream: TcpStream| {
                Tokio::spawn(async move {
                    let mut out = BytesMut::with_capacity(CHUNK);
                    for number in 0..share {
                        let message = messages.slice(number);
                        if out.len() + HEADER + message.len() > CHUNK {
                            stream.write_all(&out).await?;
                            out.clear();
                        }
                        put(&mut out, message);
                    }
                    stream.write_all(&out).await?;
                    Ok::<_, Error>(stream)
                })
            };
            let sending: Vec<_> = streams.into_iter().map(send).collect();
            let _open = try_join_all(sending).await?;
            parent.sent(Sent { start, ..Sent::default() });
            Ok(())
        })
    }

    fn echo(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let size = trial.size;
        let reply = |stream| async move {
            let (mut incoming, mut out) = (Incoming::new(stream, size), BytesMut::with_capacity(CHUNK));
            while incoming.read(|message| put(&mut out, message)).await? {
                incoming.stream.write_all(&out).await?;
                out.clear();
            }
            Ok::<_, Error>(())
        };
        Tokio::block_on(async {
            try_join_all(accept_all(trial, parent, reply).await?).await?;
            parent.closing().await;
            parent.received(Received::default());
            Ok(())
        })
    }

    fn ping(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        Tokio::block_on(async {
            let mut incoming = Incoming::new(connect(ports[0]).await?, trial.size);
            let mut pings = Pings::new(trial);
            let start = parent.go();
            let client = Tokio::spawn(async move {
                let mut out = BytesMut::with_capacity(CHUNK);
                while let Some(request) = pings.request() {
                    out.clear();
                    put(&mut out, request);
                    incoming.stream.write_all(&out).await?;
                    let mut is_answered = false;
                    while !is_answered {
                        let take = |reply: &[u8]| {
                            pings.reply(reply);
                            is_answered = true;
                        };
                        if !incoming.read(take).await? {
                            return Err("the connection ended early".into());
                        }
                    }
                }
                incoming.stream.shutdown().await?;
                while incoming.read(|reply| pings.reply(reply)).await? {}
                Ok::<_, Error>(pings)
            });
            parent.sent(client.await?.report(start));
            Ok(())
        })
    }

    fn pace(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        Tokio::block_on(async {
            let (mut stream, mut out) = (connect(ports[0]).await?, BytesMut::with_capacity(CHUNK));
            let start = parent.go();
            let mut pace = Pace::new(trial, start);
            while let Some((due, burst)) = pace.next() {
                out.clear();
                burst.for_each(|number| put(&mut out, &stamped(trial.size, number, due)));
                stream.write_all(&out).await?;
            }
            parent.sent(Sent { start, ..Sent::default() });
            Ok(())
        })
    }

    fn stall(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let size = trial.size;
        let take_one = |stream| async move {
            let (mut incoming, mut taken) = (Incoming::new(stream, size), 0);
            while taken == 0 && incoming.read(|_| taken += 1).await? {}
            Ok::<_, Error>(incoming)
        };
        Tokio::block_on(async {
            let _open = join_all(accept_all(trial, parent, take_one).await?).await;
            parent.received(Received::default());
            Ok(())
        })
    }

    fn hold(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let size = trial.size;
        let wait = |stream| async move {
            let mut incoming = Incoming::new(stream, size);
            while let Ok(true) = incoming.read(|_| ()).await {}
        };
        Tokio::block_on(async {
            let _waiting = accept_all(trial, parent, wait).await?;
            parent.received(Received::default());
            Ok(())
        })
    }

    fn dial(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        Tokio::block_on(async {
            let _open = connect_all(trial, ports).await?;
            let start = parent.go();
            parent.sent(Sent { start, ..Sent::default() });
            Ok(())
        })
    }
}
