//! message-io's `FramedTcp`: an event loop in a thread of its own, which calls back; sending is from any thread.
//!
//! It leaves Nagle's algorithm on, and has no option for it.

use std::sync::{Arc, mpsc};
use std::thread;

use message_io::network::{Endpoint, NetEvent, SendStatus, Transport};
use message_io::node::{self, NodeHandler, NodeListener, NodeTask};

use super::{Pace, System, stamped};
use crate::Result;
use crate::check::{Inspector, Received};
use crate::child::{Parent, Sent, Waiting};
use crate::messages::Messages;
use crate::plan::Trial;

pub(super) struct MessageIo;

type Node = (NodeHandler<()>, NodeListener<()>);

fn listen(parent: &Parent) -> Result<Node> {
    let (handler, listener): Node = node::split();
    let (_, address) = handler.network().listen(Transport::FramedTcp, "127.0.0.1:0")?;
    parent.ready(&[address.port()]);
    Ok((handler, listener))
}

/// The connections of one client process, and the thread of its events.
struct Client {
    handler: NodeHandler<()>,
    endpoints: Vec<Endpoint>,
    _events: NodeTask,
}

fn connect(trial: &Trial, ports: &[u16]) -> Result<Client> {
    let (handler, listener): Node = node::split();
    let (connected, connections) = mpsc::channel();
    let _events = listener.for_each_async(move |event| {
        if let NetEvent::Connected(endpoint, is_open) = event.network() {
            let _ = connected.send((endpoint, is_open));
        }
    });
    let mut endpoints = Vec::new();
    for _ in 0..trial.connections / trial.processes {
        handler.network().connect(Transport::FramedTcp, ("127.0.0.1", ports[0]))?;
        match connections.recv()? {
            (endpoint, true) => endpoints.push(endpoint),
            _ => return Err("a connection failed".into()),
        }
    }
    Ok(Client { handler, endpoints, _events })
}

fn send(handler: &NodeHandler<()>, endpoint: Endpoint, message: &[u8]) -> Result<()> {
    match handler.network().send(endpoint, message) {
        SendStatus::Sent => Ok(()),
        status => Err(format!("a message was not sent: {status:?}").into()),
    }
}

impl System for MessageIo {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let (handler, listener) = listen(parent)?;
        let mut inspector = Inspector::new(trial, trial.messages, &Waiting::of(1));
        let mut open = trial.connections;
        listener.for_each(|event| match event.network() {
            NetEvent::Message(_, message) => inspector.take(message),
            NetEvent::Disconnected(_) => {
                open -= 1;
                if open == 0 {
                    handler.stop();
                }
            }
            _ => {}
        });
        parent.received(Inspector::report([inspector]));
        Ok(())
    }

    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let (messages, share) = (Messages::of(trial), trial.share());
        let Client { handler, endpoints, _events } = connect(trial, ports)?;
        let endpoints = Arc::new(endpoints);
        let start = parent.go();
        // Two threads are as many as can run, beside the server.
        let senders = endpoints.len().min(2);
        let send_all = |first: usize| {
            let (handler, endpoints) = (handler.clone(), endpoints.clone());
            thread::spawn(move || {
                for number in 0..share {
                    for endpoint in endpoints.iter().skip(first).step_by(senders) {
                        send(&handler, *endpoint, messages.slice(number))?;
                    }
                }
                Ok::<_, crate::Error>(())
            })
        };
        let threads: Vec<_> = (0..senders).map(send_all).collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        parent.sent(Sent { start, ..Sent::default() });
        handler.stop();
        Ok(())
    }

    fn pace(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let client = connect(trial, ports)?;
        let start = parent.go();
        let mut pace = Pace::new(trial, start);
        while let Some((due, burst)) = pace.next() {
            for number in burst {
                send(&client.handler, client.endpoints[0], &stamped(trial.size, number, due))?;
            }
        }
        parent.sent(Sent { start, ..Sent::default() });
        client.handler.stop();
        Ok(())
    }

    /// A callback that does not come to its end.
    fn stall(&self, _: &Trial, parent: &Parent) -> Result<()> {
        let (_handler, listener) = listen(parent)?;
        listener.for_each(|event| {
            if let NetEvent::Message(..) = event.network() {
                parent.received(Received::default());
            }
        });
        Ok(())
    }

    fn hold(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let (_handler, listener) = listen(parent)?;
        let mut missing = trial.connections;
        listener.for_each(|event| {
            if let NetEvent::Accepted(..) = event.network() {
                missing -= 1;
                if missing == 0 {
                    parent.received(Received::default());
                }
            }
        });
        Ok(())
    }

    fn dial(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let client = connect(trial, ports)?;
        let start = parent.go();
        parent.sent(Sent { start, ..Sent::default() });
        client.handler.stop();
        Ok(())
    }
}
