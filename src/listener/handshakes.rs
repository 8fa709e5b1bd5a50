//! Those who have connected and are in the middle of their TLS handshake: no peers yet.

use std::collections::BTreeMap;

use crate::runtime::Task;
use crate::sync::Lock;
use crate::transport::Stream;

/// The unfinished handshakes of a listener.
#[derive(Default)]
pub(crate) struct Handshakes(Lock<State>);

#[derive(Default)]
struct State {
    last: u64,
    /// By when they came.
    unfinished: BTreeMap<u64, Handshake>,
    /// The listener is gone: nobody comes any more.
    ended: bool,
}

pub(crate) struct Handshake {
    stream: Stream,
    /// `None` until it has been started.
    task: Option<Task>,
}

impl Handshake {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, task: None }
    }

    /// It is over: the socket goes on, if somebody else has it.
    pub(crate) fn let_go(self) {
        if let Some(task) = self.task {
            task.detach();
        }
    }

    /// Ends it for a newer one: its task finds the end, and tells.
    pub(crate) fn give_way(self) {
        self.stream.shut_down();
        self.let_go();
    }

    /// Ends it at once: the task may hold the socket until a thread has time for it.
    pub(crate) fn cut(self) {
        drop(self.task);
        self.stream.shut_down();
    }
}

impl Handshakes {
    /// Cuts all of them, for good.
    pub(crate) fn end(&self) {
        let unfinished = {
            let mut state = self.0.lock();
            state.ended = true;
            std::mem::take(&mut state.unfinished)
        };
        unfinished.into_values().for_each(Handshake::cut);
    }

    /// Takes it in, under a number; and out the oldest, where there are as many as there may be.
    pub(crate) fn begin(&self, handshake: Handshake, most: usize) -> Option<(u64, Option<Handshake>)> {
        let mut state = self.0.lock();
        if state.ended {
            return None;
        }
        let oldest = (state.unfinished.len() >= most).then(|| state.unfinished.pop_first()).flatten();
        state.last += 1;
        let number = state.last;
        state.unfinished.insert(number, handshake);
        Some((number, oldest.map(|(_, handshake)| handshake)))
    }

    /// Whether all of them were cut, for good.
    pub(crate) fn have_ended(&self) -> bool {
        self.0.lock().ended
    }

    /// `None` if it had to give way, or was cut.
    pub(crate) fn finish(&self, number: u64) -> Option<Handshake> {
        self.0.lock().unfinished.remove(&number)
    }

    pub(crate) fn started(&self, number: u64, task: Task) {
        let unused = match self.0.lock().unfinished.get_mut(&number) {
            Some(handshake) => handshake.task.replace(task),
            // It has ended already, or had to give way, or is cut.
            None => Some(task),
        };
        drop(unused);
    }
}
