//! Plain sockets of the standard library, blocking, 64 KiB at a time, without frames: the limit of the machine.
//!
//! Bytes are counted, and nothing else can be checked, except where messages have to be told apart for their times.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use rustix::event::epoll;

use super::{BACKLOG, Pace, System, WARM_UP};
use crate::check::{Check, Inspector, Latency, Received, Tally, histogram};
use crate::child::{Parent, Sent};
use crate::messages::{self, Messages};
use crate::plan::{Scenario, Trial};
use crate::{Error, Result, clock};

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

/// Reads to the end of one connection's share.
fn count(mut stream: TcpStream, share: u64) -> Result<(u64, TcpStream)> {
    let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
    while bytes < share {
        match stream.read(&mut buffer)? {
            0 => return Err("a connection ended early".into()),
            count => bytes += count as u64,
        }
    }
    Ok((bytes, stream))
}

/// The same for many connections in one thread.
fn count_polled(streams: &mut [TcpStream], expected: u64) -> Result<u64> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, stream) in streams.iter().enumerate() {
        epoll::add(&poll, stream, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
    }
    let (mut buffer, mut bytes, mut events) = (vec![0; CHUNK], 0, Vec::with_capacity(1024));
    while bytes < expected {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            match streams[event.data.u64() as usize].read(&mut buffer)? {
                0 => return Err("a connection ended early".into()),
                count => bytes += count as u64,
            }
        }
    }
    Ok(bytes)
}

/// Looks at messages of a fixed size, of one connection.
fn inspect(stream: &mut TcpStream, trial: &Trial) -> Result<Inspector> {
    let (mut buffer, mut filled, mut inspector) = (vec![0; CHUNK], 0, Inspector::new(trial));
    while inspector.messages() < trial.messages {
        match stream.read(&mut buffer[filled..])? {
            0 => return Err("the connection ended early".into()),
            count => filled += count,
        }
        let whole = filled - filled % trial.size;
        buffer[..whole].chunks_exact(trial.size).for_each(|message| inspector.take(message));
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
    Ok(inspector)
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
        let (bytes, _open) = if trial.connections <= THREADS {
            // Each begins as soon as it is accepted.
            let threads = streams
                .map(|stream| {
                    let stream = stream?;
                    Ok(thread::Builder::new().stack_size(CHUNK).spawn(move || count(stream, share))?)
                })
                .collect::<Result<_>>()?;
            let (bytes, streams): (Vec<u64>, Vec<_>) = join(threads)?.into_iter().unzip();
            (bytes.iter().sum(), streams)
        } else {
            let mut streams = streams.collect::<Result<Vec<_>>>()?;
            (count_polled(&mut streams, share * trial.connections as u64)?, streams)
        };
        let end = clock::now();
        parent.received(Received { end, tally: Tally::of_bytes(bytes, trial.size), latency: None });
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
        Ok(())
    }

    fn ping(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let (messages, check, mut stream) = (Messages::of(trial), Check::of(trial), connect(ports[0])?);
        let (mut sent, mut times, mut tally) = (0, histogram(), Tally::default());
        let mut reply = vec![0; trial.size];
        let start = parent.go();
        let mut before = start;
        while sent < WARM_UP || before < start + trial.millis * 1_000_000 {
            before = clock::now();
            stream.write_all(messages.slice(sent))?;
            stream.read_exact(&mut reply)?;
            if sent >= WARM_UP {
                times.saturating_record(clock::now() - before);
            }
            tally.take(&check, &reply);
            sent += 1;
        }
        parent.sent(Sent { start, replies: Some((tally, sent)), latency: Some(Latency::of(&times)) });
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
