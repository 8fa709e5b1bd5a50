//! ZeroMQ, the C++ library: PUSH sockets connect to a PULL socket. Its threads do the input and output.

use std::thread;
use std::time::Duration;

use super::{BACKLOG, System};
use crate::Result;
use crate::check::{Inspector, Received};
use crate::child::{Parent, Sent};
use crate::messages::Messages;
use crate::plan::Trial;

pub(super) struct Zmq;

fn listen(context: &zmq::Context, parent: &Parent) -> Result<zmq::Socket> {
    let socket = context.socket(zmq::PULL)?;
    socket.set_backlog(BACKLOG)?;
    socket.bind("tcp://127.0.0.1:*")?;
    let endpoint = socket.get_last_endpoint()?.map_err(|_| "the endpoint is not text")?;
    let port = endpoint.rsplit(':').next().ok_or("the endpoint has no port")?.parse()?;
    parent.ready(&[port]);
    Ok(socket)
}

impl System for Zmq {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let context = zmq::Context::new();
        let socket = listen(&context, parent)?;
        let (mut inspector, mut message) = (Inspector::new(trial), zmq::Message::new());
        while inspector.messages() < trial.messages {
            socket.recv(&mut message, 0)?;
            inspector.take(&message);
        }
        parent.received(Inspector::report([inspector]));
        Ok(())
    }

    /// One socket with all connections: it sends to them in turns.
    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let (messages, context) = (Messages::of(trial), zmq::Context::new());
        let (socket, connections) = (context.socket(zmq::PUSH)?, (trial.connections / trial.processes) as u64);
        // What nobody received is not waited for at the end.
        socket.set_linger(0)?;
        for _ in 0..connections {
            socket.connect(&format!("tcp://127.0.0.1:{}", ports[0]))?;
        }
        // It connects in the background and does not tell when it has: this is long enough.
        thread::sleep(Duration::from_millis(200 + connections / 5));
        let start = parent.go();
        for number in 0..trial.share() {
            for _ in 0..connections {
                socket.send(messages.slice(number), 0)?;
            }
        }
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    }

    fn stall(&self, _: &Trial, parent: &Parent) -> Result<()> {
        let context = zmq::Context::new();
        let socket = listen(&context, parent)?;
        socket.recv(&mut zmq::Message::new(), 0)?;
        parent.received(Received::default());
        Ok(())
    }
}
