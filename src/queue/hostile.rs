//! Any bytes behind the handshake of a session, as what its other end says: none of them may do more than end it. For the tests
//! and for the fuzzer.

use std::time::Instant;

use super::session::{Obeyed, Session};
use crate::session::{ErrorCode, Frame, MAX_MESSAGE, Positions, Settled, Side, Terms, frame_len};
use crate::wire::{Codec, Output, WireFormat};

const MAX: u32 = 64;
const WINDOW: u32 = 512;
/// How many messages the end has for the other.
const HELD: usize = 12;

/// Behind a good handshake, and a few frames of this end.
pub(crate) fn run(input: &[u8]) {
    let (now, codec) = (Instant::now(), Codec::new(WireFormat::u32_be(), MAX as usize).expect("a format of sessions"));
    let (mut pending, mut output) = (Output::new(codec), Output::new(codec));
    for n in 0..HELD {
        pending.push(vec![7; 5 * n].into()).expect("short enough");
    }
    let mut session = Session::new(Side::Listener, WINDOW, codec, now);
    let terms = Terms { max_message: MAX, window: WINDOW, heartbeat: 0, ttl: 1000 };
    session.resume(&Positions::default(), &terms).expect("a new session");
    write(&mut session, &mut pending, &mut output, now);
    let (mut rest, mut untaken, mut received) = (input, 0, 0);
    while let Ok(Some((frame, len))) = Frame::parse(rest, MAX, Side::Dialer) {
        rest = &rest[len..];
        match frame {
            Frame::Data(len) => {
                let Some(behind) = rest.get(len as usize..) else { break };
                rest = behind;
                let bytes = frame_len(len as usize);
                let Ok(first) = session.frames(1, bytes) else { break };
                assert_eq!(first, received);
                received += 1;
                // Every third is left to the program, which bounds how many may come.
                let how = if len % 2 == 0 { Settled::Taken } else { Settled::Refused };
                if len % 3 > 0 {
                    session.settle_received(first, 1, bytes, how, false, || now);
                }
            }
            Frame::Control(control) => {
                let Ok((obeyed, settlement)) = session.obey(control) else { break };
                untaken += settlement.untaken.iter().map(|(_, messages, _)| messages.len()).sum::<usize>();
                if let Obeyed::Over(_) = obeyed {
                    break;
                }
            }
        }
        write(&mut session, &mut pending, &mut output, now);
        check(&session, &pending, untaken);
    }
    session.broke(&mut pending);
    check(&session, &pending, untaken);
    let acked = session.positions().acked as usize;
    let lost = session.lose().untaken.iter().map(|(_, messages, _)| messages.len()).sum::<usize>();
    assert_eq!(acked + lost + pending.held(), HELD, "each message has one end");
}

/// Writes what may be written now, as a socket that takes everything does.
fn write(session: &mut Session, pending: &mut Output, output: &mut Output, now: Instant) {
    session.begin_batch(pending, false, output, now);
    if !output.is_empty() {
        session.wrote(output.len());
        output.advance(output.len());
        session.batch_written();
    }
}

fn check(session: &Session, pending: &Output, untaken: usize) {
    let Positions { acked, sent, received, taken } = session.positions();
    assert!(acked <= sent && taken <= received, "{acked} {sent} {received} {taken}");
    let (held, bytes) = session.held();
    assert_eq!(acked as usize + held + pending.held(), HELD);
    assert!(untaken as u64 <= acked);
    assert!(bytes <= WINDOW as usize || held == 1);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::{Control, Why};

    fn control() -> impl Strategy<Value = Vec<u8>> {
        let small = 0..16_u64;
        prop_oneof![
            small.clone().prop_map(|taken| Control::Ack(taken).encode().to_vec()),
            (small.clone(), 0..4_u32)
                .prop_map(|(first, count)| { Control::Refuse { first, count, why: Why::Refused }.encode().to_vec() }),
            (small.clone(), small.clone())
                .prop_map(|(sent, acked)| Control::Heartbeat { sent, acked }.encode().to_vec()),
            small.prop_map(|end| Control::Close(end).encode().to_vec()),
            Just(Control::Error(ErrorCode::Gone).encode().to_vec()),
            (0..=MAX + 1).prop_map(|len| [&len.to_be_bytes()[..], &vec![1; len as usize]].concat()),
            Just(MAX_MESSAGE.to_be_bytes().to_vec()),
            proptest::collection::vec(any::<u8>(), 0..24),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_do_more_than_end_a_session(said in proptest::collection::vec(control(), 0..40)) {
            run(&said.concat());
        }
    }
}
