//! message-io's `FramedTcp`: an event loop in a thread of its own, which calls back; sending is from any thread.
//!
//! It leaves Nagle's algorithm on, and has no option for it.

use std::sync::{Arc, mpsc};
use std::thread;

use message_io::network::{NetEvent, SendStatus, Transport};
use message_io::node::{self, NodeHandler, NodeListener};

use super::System;
use crate::Result;
use crate::check::Inspector;
use crate::child::{Parent, Sent};
use crate::messages::Messages;
use crate::plan::Trial;

pub(super) struct MessageIo;

impl System for MessageIo {
    fn receive(&self, trial: &Trial, parent: &Parent) -> Result<()> {
        let (handler, listener): (NodeHandler<()>, NodeListener<()>) = node::split();
        let (_, address) = handler.network().listen(Transport::FramedTcp, "127.0.0.1:0")?;
        parent.ready(&[address.port()]);
        let (mut inspector, messages) = (Some(Inspector::new(trial)), trial.messages);
        listener.for_each(move |event| {
            if let NetEvent::Message(_, message) = event.network()
                && let Some(open) = &mut inspector
            {
                open.take(message);
                if open.messages() == messages {
                    parent.received(Inspector::report(inspector.take()));
                    handler.stop();
                }
            }
        });
        Ok(())
    }

    fn send(&self, trial: &Trial, ports: &[u16], parent: &Parent) -> Result<()> {
        let (messages, share) = (Messages::of(trial), trial.share());
        let (handler, listener): (NodeHandler<()>, NodeListener<()>) = node::split();
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
        let endpoints = Arc::new(endpoints);
        let start = parent.go();
        // Two threads are as many as can run, beside the server.
        let senders = endpoints.len().min(2);
        let send = |first: usize| {
            let (handler, endpoints) = (handler.clone(), endpoints.clone());
            thread::spawn(move || {
                for number in 0..share {
                    for endpoint in endpoints.iter().skip(first).step_by(senders) {
                        if handler.network().send(*endpoint, messages.slice(number)) != SendStatus::Sent {
                            return false;
                        }
                    }
                }
                true
            })
        };
        let threads: Vec<_> = (0..senders).map(send).collect();
        if !threads.into_iter().all(|thread| thread.join().unwrap_or(false)) {
            return Err("a message was not sent".into());
        }
        parent.sent(Sent { start, ..Sent::default() });
        handler.stop();
        Ok(())
    }
}
