//! Peers that keep no rule, on bare sockets: those who dial, and those who listen.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use buffstreams::WireFormat;
use buffstreams::wire::Encoder;
use fastrand::Rng;
use socket2::SockRef;

use super::actors::{Beat, Manners, World};
use super::books::{MAX_MESSAGE, anonymous, violation};
use super::faults::{Kind, happened};

/// How long a bare socket waits for anything.
const PATIENCE: Duration = Duration::from_millis(50);

/// Some bad peers of the listeners, for a while. None of their connections outlives it.
pub(crate) fn dial(world: &Arc<World>, beat: &Beat, rng: &mut Rng) {
    let mut held = Vec::new();
    for _ in 0..rng.u32(1..30) {
        beat.at("is bad to a listener");
        let Some((address, _)) = world.anybody(rng) else {
            beat.rest(Duration::from_millis(5));
            continue;
        };
        let Ok(address) = address.as_str().parse::<SocketAddr>() else { continue };
        let Ok(stream) = TcpStream::connect_timeout(&address, PATIENCE) else { continue };
        let _ = (stream.set_read_timeout(Some(PATIENCE)), stream.set_write_timeout(Some(PATIENCE)));
        // The listener may end at any moment, so no error tells anything.
        let _ = misbehave(stream, rng, &mut held);
        if held.len() > 16 {
            held.swap_remove(rng.usize(0..held.len()));
        }
    }
    beat.rest(Duration::from_millis(rng.u64(0..200)));
}

fn misbehave(mut stream: TcpStream, rng: &mut Rng, held: &mut Vec<TcpStream>) -> std::io::Result<()> {
    let frames = frames(rng.usize(1..40))?;
    match rng.u32(0..7) {
        0 => {
            happened(Kind::Garbage);
            let mut garbage: Vec<u8> = match rng.u32(0..4) {
                0 => b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec(),
                1 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
                _ => (0..rng.usize(1..5000)).map(|_| rng.u8(..)).collect(),
            };
            // An odd first byte is a length below zero: by chance, no frame is among it.
            garbage[0] = if garbage[0] == 0x16 { 0x16 } else { garbage[0] & 0x7f | 1 };
            stream.write_all(&garbage)?;
            let _ = stream.read(&mut [0; 100]);
        }
        1 => {
            happened(Kind::Cut);
            stream.write_all(&frames[..frames.len() - rng.usize(1..40)])?;
        }
        2 => {
            happened(Kind::Reset);
            stream.write_all(&frames)?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        3 => {
            happened(Kind::Stalls);
            stream.write_all(&frames[..frames.len() - 1])?;
            held.push(stream);
        }
        4 => {
            // It takes no answers.
            happened(Kind::StopsReading);
            SockRef::from(&stream).set_recv_buffer_size(4096)?;
            let start = Instant::now();
            while start.elapsed() < 2 * PATIENCE && stream.write(&frames).is_ok() {}
            held.push(stream);
        }
        5 => {
            happened(Kind::Stays);
            stream.shutdown(Shutdown::Write)?;
            held.push(stream);
        }
        _ => stream.write_all(&frames)?,
    }
    Ok(())
}

/// Whole frames that nobody looks at.
fn frames(count: usize) -> std::io::Result<Vec<u8>> {
    let mut frames = Vec::new();
    let encoder = Encoder::new(WireFormat::buffstreams(), MAX_MESSAGE).map_err(std::io::Error::other)?;
    for _ in 0..count {
        encoder.encode(&anonymous(), &mut frames).map_err(std::io::Error::other)?;
    }
    Ok(frames)
}

/// A bad server for a while.
pub(crate) fn listen(world: &Arc<World>, beat: &Beat, rng: &mut Rng) {
    beat.at("listens badly");
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    });
    let Ok((listener, addr)) = bound else { return violation("a bare socket cannot listen".into()) };
    let sign = world.publish(addr, Manners::Bad);
    let (end, mut held) = (Instant::now() + Duration::from_millis(rng.u64(50..800)), Vec::new());
    while Instant::now() < end {
        match listener.accept() {
            Ok((stream, _)) => {
                let _ = mistreat(stream, rng, &mut held);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => {}
        }
    }
    if rng.bool() {
        // For those who dial again, nobody is there.
        drop(listener);
        beat.rest(Duration::from_millis(rng.u64(0..100)));
    }
    drop(sign);
}

fn mistreat(mut stream: TcpStream, rng: &mut Rng, held: &mut Vec<TcpStream>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    let patience = Some(Duration::from_millis(5));
    let (_, _) = (stream.set_read_timeout(patience)?, stream.set_write_timeout(patience)?);
    let mut read = vec![0; rng.usize(1..20_000)];
    match rng.u32(0..6) {
        0 => {
            happened(Kind::Reset);
            let _ = stream.read(&mut read);
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        // It dies of the first message.
        1 => drop(stream.read(&mut read[..1])),
        2 => {
            happened(Kind::StopsReading);
            SockRef::from(&stream).set_recv_buffer_size(4096)?;
            held.push(stream);
        }
        3 => {
            happened(Kind::Garbage);
            stream.write_all(b"220 mail ready\r\n")?;
            held.push(stream);
        }
        4 => {
            stream.shutdown(Shutdown::Write)?;
            held.push(stream);
        }
        _ => while stream.read(&mut read).is_ok_and(|n| n > 0) {},
    }
    Ok(())
}
