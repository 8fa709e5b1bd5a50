//! What is sent, kept and sent again, told by a list of bytes what happens next, against a list of messages. For the tests and for
//! the fuzzer.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Codec, Output, Replay, WireFormat};

const MAX_MESSAGE: usize = 1 << 20;

struct Trial {
    codec: Codec,
    pending: Output,
    replay: Replay,
    /// What the connection was given, and has not written.
    output: Output,
    /// All that are not acknowledged, the oldest first.
    messages: VecDeque<Bytes>,
    /// How many of those any connection has written whole.
    sent: usize,
    /// How many of those this connection was offered, or need not be.
    cursor: usize,
    /// The message of that many is the first that this connection writes.
    first: usize,
    /// What this connection has written, from there on.
    written: Vec<u8>,
    /// What the connections may still be given again.
    repeat: usize,
}

/// Does what the bytes say. At the end all is sent.
pub(crate) fn run(ops: &[u8]) {
    let codec = Codec::new(WireFormat::u32_be(), MAX_MESSAGE).expect("a format of sessions");
    let mut trial = Trial {
        codec,
        pending: Output::new(codec),
        replay: Replay::new(codec),
        output: Output::new(codec),
        messages: VecDeque::new(),
        sent: 0,
        cursor: 0,
        first: 0,
        written: Vec::new(),
        repeat: 0,
    };
    for op in ops.chunks_exact(2) {
        trial.step(op[0], usize::from(op[1]));
        trial.check();
    }
    while !trial.messages.is_empty() {
        trial.offer(usize::MAX, true);
        trial.write(usize::MAX);
        trial.check();
        let received = trial.received();
        assert!(received > 0, "something goes on");
        trial.ack(received);
    }
    assert!(trial.pending.is_empty() && trial.replay.messages() == 0 && trial.replay.len() == 0);
}

impl Trial {
    fn step(&mut self, op: u8, n: usize) {
        match op % 7 {
            0 => self.push(n),
            1 => self.push(n * 32),
            2 => self.offer(n * 64, op & 8 == 0),
            3 => self.write(n * 16),
            4 => {
                let received = self.received();
                self.ack(n % (received + 1));
            }
            5 => {
                let received = self.received();
                self.refuse(n % (received + 1));
            }
            _ => self.breaks(n),
        }
    }

    fn push(&mut self, len: usize) {
        let message = Bytes::from(vec![self.messages.len() as u8; len]);
        self.pending.push(message.clone()).unwrap();
        self.messages.push_back(message);
    }

    /// Gives the connection the next batch, if it has none.
    fn offer(&mut self, room: usize, alone: bool) {
        if !self.output.is_empty() {
            return;
        }
        let (mut count, mut bytes) = (0, 0);
        if self.repeat > 0 {
            (count, bytes) = self.replay.repeat(self.cursor, room, alone, &mut self.output);
            self.repeat -= count;
        }
        if self.repeat == 0 {
            let left = room - bytes.min(room);
            let (anew, more) = self.replay.take_from(&mut self.pending, left, alone && count == 0, &mut self.output);
            (count, bytes) = (count + anew, bytes + more);
        }
        let frames = self.frames(self.cursor, count);
        assert_eq!((frames.len(), self.output.len()), (bytes, bytes));
        assert!(bytes <= room || (alone && count == 1), "{bytes} of {room}, {count} messages");
        let is_more = self.cursor + count < self.messages.len();
        assert!(count > 0 || !alone || !is_more, "the first goes alone");
        self.cursor += count;
    }

    fn write(&mut self, most: usize) {
        let bytes = self.output.chunks().flatten().copied().take(most).collect::<Vec<_>>();
        self.output.advance(bytes.len());
        self.written.extend(bytes);
    }

    /// How many of the messages the other end has whole.
    fn received(&mut self) -> usize {
        let (mut whole, mut end) = (self.first, 0);
        while whole < self.cursor {
            end += self.frames(whole, 1).len();
            if end > self.written.len() {
                break;
            }
            whole += 1;
        }
        self.sent = self.sent.max(whole);
        whole
    }

    fn ack(&mut self, count: usize) {
        let bytes = self.frames(0, count).len();
        assert_eq!(self.replay.bytes_of(count), bytes);
        assert_eq!(self.replay.forget(count, &mut Vec::new()), bytes);
        self.passed(count);
    }

    fn refuse(&mut self, count: usize) {
        let refused = self.replay.take(count);
        assert!(refused.iter().eq(self.messages.iter().take(count)));
        self.passed(count);
    }

    fn passed(&mut self, count: usize) {
        self.received();
        let behind = count.saturating_sub(self.first);
        let written = self.frames(self.first, behind).len().min(self.written.len());
        self.written.drain(..written);
        self.messages.drain(..count);
        self.first = self.first.saturating_sub(count);
        self.sent -= count;
        self.cursor -= count;
    }

    /// The connection is gone, and the next one goes on behind what the other end has received.
    fn breaks(&mut self, n: usize) {
        let received = self.received();
        assert_eq!(self.replay.whole_in(self.first, self.written.len()), received - self.first);
        let sent = self.sent;
        self.replay.give_back_behind(sent, &mut self.pending);
        self.output = Output::new(self.codec);
        self.written.clear();
        self.first = n % (sent + 1);
        self.cursor = self.first;
        self.repeat = sent - self.first;
    }

    fn frames(&self, first: usize, count: usize) -> Vec<u8> {
        let mut frames = Output::new(self.codec);
        for message in self.messages.iter().skip(first).take(count) {
            frames.push(message.clone()).unwrap();
        }
        frames.chunks().flatten().copied().collect()
    }

    fn check(&mut self) {
        let offered = self.frames(self.first, self.cursor - self.first);
        assert!(offered.starts_with(&self.written), "the connection writes the frames in order");
        assert_eq!(offered.len(), self.written.len() + self.output.len());
        assert_eq!(self.replay.messages() + self.pending.held(), self.messages.len());
        let kept = self.replay.messages();
        assert_eq!(self.replay.len(), self.frames(0, kept).len());
        assert_eq!(self.pending.len(), self.frames(kept, self.messages.len() - kept).len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_kept_is_what_was_sent_and_not_acknowledged(ops in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::run(&ops);
        }
    }
}
