//! Plain sockets of the standard library, blocking, 64 KiB at a time, without frames: the limit of the machine.
//!
//! Bytes are counted, and nothing else can be checked, except where messages have to be told apart for their times.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use futures::executor::block_on;
use rustix::event::epoll;

use super::pings::Pings;
use super::{BACKLOG, Pace, System};
use crate::check::{Inspector, Received, Tally};
use crate::child::{Parent, Sent, Waiting};
use crate::messages;
use crate::plan::{Scenario, Trial};
use crate::{Error, Result};

pub(super) struct Raw;

/// What is written and read at once.
const CHUNK: usize = 64 << 10;
/// Up to as many connections a thread each; more of them share one, which asks epoll.
const THREADS: usize = 100;

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn listen(parent: &Parent) -> Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    rustix::net::listen(&listener, BACKLOG)?;
    parent.ready(&[listener.local_addr()?.port()]);
    Ok(listener)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Counts the bytes of one connection, to its end.
fn count(mut stream: TcpStream, share: u64, waiting: &Waiting) -> Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
    loop {
        let count = stream.read(&mut buffer)? as u64;
        if count == 0 {
            return Ok(bytes);
        }
        if bytes < share && bytes + count >= share {
            waiting.arrived();
        }
        bytes += count;
    }
}

/// The same for many connections in one thread.
fn count_polled(streams: &mut [TcpStream], expected: u64, waiting: &Waiting) -> Result<u64> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, stream) in streams.iter().enumerate() {
        epoll::add(&poll, stream, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
    }
    let (mut buffer, mut bytes, mut events) = (vec![0; CHUNK], 0, Vec::with_capacity(1024));
    let mut open = streams.len();
    while open > 0 {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let stream = &mut streams[event.data.u64() as usize];
            let count = stream.read(&mut buffer)? as u64;
            if count == 0 {
                epoll::delete(&poll, stream)?;
                open -= 1;
            } else if bytes < expected && bytes + count >= expected {
                waiting.arrived();
            }
            bytes += count;
        }
    }
    Ok(bytes)
}

/// Looks at messages of a fixed size, of one connection.
fn inspect(stream: &mut TcpStream, trial: &Trial) -> Result<Inspector> {
    let (mut buffer, mut filled) = (vec![0; CHUNK], 0);
    let mut inspector = Inspector::new(trial, trial.messages, &Waiting::of(1));
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        if count == 0 {
            return if filled == 0 { Ok(inspector) } else { Err("the connection ended inside a message".into()) };
        }
        filled += count;
        let whole = filled - filled % trial.size;
        buffer[..whole].chunks_exact(trial.size).for_each(|message| inspector.take(message));
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

/// Writes `share` bytes to each, a chunk at a time in turns.
fn write(mut streams: Vec<TcpStream>, share: usize) -> Result<Vec<TcpStream>> {
    let (chunk, mut left) = (vec![b'.'; CHUNK], share);
    while left > 0 {
        let now = left.min(CHUNK);
        for stream in &mut streams {
            stream.write_all(&chunk[..now])?;
        }
        left -= now;
    }
    Ok(streams)
}

/// Every thread's result, or the first error.
fn join<T>(threads: Vec<thread::JoinHandle<Result<T>>>) -> Result<Vec<T>> {
    threads.into_iter().map(|thread| thread.join().map_err(|_| Error::from("a thread panicked"))?).collect()
}

impl System for Raw {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let listener = listen(parent)?;
        if trial.scenario == Scenario::OpenLoop {
            let mut stream = accept(&listener)?;
            let inspector = inspect(&mut stream, trial)?;
            parent.received(Inspector::report([inspector]));
            return Ok(());
        }
        let streams = (0..trial.connections).map(|_| accept(&listener));
        let share = trial.share() * trial.size as u64;
        let bytes = if trial.connections <= THREADS {
            let waiting = Waiting::of(trial.connections);
            // Each begins as soon as it is accepted.
            let threads = streams
                .map(|stream| {
                    let (stream, waiting) = (stream?, waiting.clone());
                    Ok(thread::Builder::new().stack_size(CHUNK).spawn(move || count(stream, share, &waiting))?)
                })
                .collect::<Result<_>>()?;
            join(threads)?.iter().sum()
        } else {
            let mut streams = streams.collect::<Result<Vec<_>>>()?;
            count_polled(&mut streams, share * trial.connections as u64, &Waiting::of(1))?
        };
        parent.received(Received { tally: Tally::of_bytes(bytes, trial.size), latency: None });
        Ok(())
    }

    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let connections = (0..trial.connections / trial.processes).map(|_| connect(ports[0]));
        let mut connections = connections.collect::<Result<Vec<_>>>()?;
        let share = trial.share() as usize * trial.size;
        let start = parent.go();
        let each = if connections.len() <= THREADS { 1 } else { connections.len().div_ceil(2) };
        let mut threads = Vec::new();
        while !connections.is_empty() {
            let part = connections.split_off(connections.len().saturating_sub(each));
            threads.push(thread::spawn(move || write(part, share)));
        }
        let _open = join(threads)?;
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    }

    fn echo(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let mut stream = accept(&listen(parent)?)?;
        let mut message = vec![0; trial.size];
        while stream.read_exact(&mut message).and_then(|()| stream.write_all(&message)).is_ok() {}
        drop(stream);
        block_on(parent.closing());
        parent.received(Received::default());
        Ok(())
    }

    fn ping(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let (mut stream, mut pings) = (connect(ports[0])?, Pings::new(trial));
        let mut reply = vec![0; trial.size];
        let start = parent.go();
        while let Some(request) = pings.request() {
            stream.write_all(request)?;
            stream.read_exact(&mut reply)?;
            pings.reply(&reply);
        }
        stream.shutdown(Shutdown::Write)?;
        reply.clear();
        if stream.read_to_end(&mut reply)? > 0 {
            pings.reply(&reply);
        }
        parent.sent(pings.report(start));
        Ok(())
    }

    fn pace(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let (mut stream, mut out) = (connect(ports[0])?, Vec::new());
        let start = parent.go();
        let mut pace = Pace::new(trial, start);
        while let Some((due, burst)) = pace.next() {
            out.clear();
            out.resize((burst.end - burst.start) as usize * trial.size, b'.');
            for (number, message) in burst.zip(out.chunks_exact_mut(trial.size)) {
                messages::stamp(message, number, due);
            }
            stream.write_all(&out)?;
        }
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    }
}
