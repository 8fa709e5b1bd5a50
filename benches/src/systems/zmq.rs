//! ZeroMQ, the C++ library: PUSH sockets connect to a PULL socket, or REQ to REP. Its threads do the input and output.

use std::thread;

use super::pings::Pings;
use super::{BACKLOG, Pace, System, stamped};
use crate::Result;
use crate::check::{Inspector, Received};
use crate::child::{Parent, Sent, Waiting};
use crate::messages::Messages;
use crate::plan::Trial;

pub(super) struct Zmq;

/// A socket, and the one that its monitor sends the events of one kind to.
fn monitored(
    context: &zmq::Context,
    kind: zmq::SocketType,
    event: zmq::SocketEvent,
) -> Result<(zmq::Socket, zmq::Socket)> {
    let (socket, events) = (context.socket(kind)?, context.socket(zmq::PAIR)?);
    socket.monitor("inproc://events", event.to_raw().into())?;
    // None of them is dropped, however many connections there are.
    events.set_rcvhwm(0)?;
    events.connect("inproc://events")?;
    Ok((socket, events))
}

/// Waits for so many events.
fn wait(events: &zmq::Socket, count: usize) -> Result<()> {
    for _ in 0..count {
        events.recv_multipart(0)?;
    }
    Ok(())
}

fn listen(socket: &zmq::Socket, parent: &Parent) -> Result<()> {
    socket.set_backlog(BACKLOG)?;
    socket.bind("tcp://127.0.0.1:*")?;
    let endpoint = socket.get_last_endpoint()?.map_err(|_| "the endpoint is not text")?;
    let port = endpoint.rsplit(':').next().ok_or("the endpoint has no port")?.parse()?;
    parent.ready(&[port]);
    Ok(())
}

/// One socket with all connections of this process, when all of them are there: it connects in the background.
fn connect(context: &zmq::Context, kind: zmq::SocketType, trial: &Trial, ports: &[u16]) -> Result<zmq::Socket> {
    let (socket, connected) = monitored(context, kind, zmq::SocketEvent::HANDSHAKE_SUCCEEDED)?;
    let connections = trial.connections / trial.processes;
    for _ in 0..connections {
        socket.connect(&format!("tcp://127.0.0.1:{}", ports[0]))?;
    }
    wait(&connected, connections)?;
    Ok(socket)
}

impl System for Zmq {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let context = zmq::Context::new();
        let (socket, disconnected) = monitored(&context, zmq::PULL, zmq::SocketEvent::DISCONNECTED)?;
        listen(&socket, parent)?;
        let mut inspector = Inspector::new(trial, trial.messages, &Waiting::of(1));
        let mut message = zmq::Message::new();
        while inspector.messages() < trial.messages {
            socket.recv(&mut message, 0)?;
            inspector.take(&message);
        }
        // The socket has no end: what the connections brought until theirs is in it now.
        wait(&disconnected, trial.connections)?;
        while socket.recv(&mut message, zmq::DONTWAIT).is_ok() {
            inspector.take(&message);
        }
        parent.received(Inspector::report([inspector]));
        Ok(())
    }

    /// It sends to the connections in turns.
    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let (messages, context) = (Messages::of(trial), zmq::Context::new());
        let socket = connect(&context, zmq::PUSH, trial, ports)?;
        let start = parent.go();
        for number in 0..trial.share() {
            for _ in 0..trial.connections / trial.processes {
                socket.send(messages.slice(number), 0)?;
            }
        }
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    }

    fn echo(&self, _: &Trial, parent: &Parent) -> Result<()> {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::REP)?;
        listen(&socket, parent)?;
        thread::spawn(move || -> Result<()> {
            loop {
                socket.send(socket.recv_msg(0)?, 0)?;
            }
        });
        futures::executor::block_on(parent.closing());
        parent.received(Received::default());
        Ok(())
    }

    fn ping(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let context = zmq::Context::new();
        let (socket, mut pings) = (connect(&context, zmq::REQ, trial, ports)?, Pings::new(trial));
        let mut reply = zmq::Message::new();
        let start = parent.go();
        while let Some(request) = pings.request() {
            socket.send(request, 0)?;
            socket.recv(&mut reply, 0)?;
            pings.reply(&reply);
        }
        parent.sent(pings.report(start));
        Ok(())
    }

    fn pace(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let context = zmq::Context::new();
        let socket = connect(&context, zmq::PUSH, trial, ports)?;
        let start = parent.go();
        let mut pace = Pace::new(trial, start);
        while let Some((due, burst)) = pace.next() {
            for number in burst {
                socket.send(stamped(trial.size, number, due), 0)?;
            }
        }
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    }

    fn stall(&self, _: &Trial, parent: &Parent) -> Result<()> {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::PULL)?;
        listen(&socket, parent)?;
        socket.recv(&mut zmq::Message::new(), 0)?;
        parent.received(Received::default());
        Ok(())
    }

    fn hold(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let context = zmq::Context::new();
        let (socket, connected) = monitored(&context, zmq::PULL, zmq::SocketEvent::HANDSHAKE_SUCCEEDED)?;
        listen(&socket, parent)?;
        wait(&connected, trial.connections)?;
        parent.received(Received::default());
        Ok(())
    }

    fn dial(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let context = zmq::Context::new();
        let _open = connect(&context, zmq::PUSH, trial, ports)?;
        let start = parent.go();
        parent.sent(Sent { start, ..Sent::default() });
        Ok(())
    }
}
