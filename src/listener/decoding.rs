//! What turns messages into values for the program, in the tasks of the peers.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::BoxError;
use crate::foreign::{self, Panic, PanicHook, Told};
use crate::framed::CHUNK;
use crate::queue::ITEM;
use crate::session::Settled;
use crate::sync::Lock;
use crate::wire::Frames;

/// How many lists of values are kept to be used again.
const KEEP: usize = 16;

/// The program's decoder, and what becomes of a peer whose message does not decode.
#[derive(Clone)]
pub(crate) struct Decoding {
    decoder: Arc<Told<dyn Decode>>,
    /// Whether the peer ends.
    pub(crate) strict: bool,
}

/// The values of some messages: a [`Values`] of the type that they are decoded to, which only the program's end knows. The lock
/// is never waited for: with it a batch can be shared, whether or not the values can be.
pub(crate) struct AnyValues(Lock<Box<dyn Any + Send>>);
pub(crate) type Values<T> = VecDeque<T>;

/// What was decoded of a batch.
pub(crate) struct Piece {
    /// `None` where nothing was.
    pub(crate) values: Option<AnyValues>,
    /// What they take of the inbox, in bytes: what they were decoded from, or the memory of their list, if that is more.
    pub(crate) memory: usize,
    /// How many messages were looked at.
    pub(crate) messages: u64,
    /// Those of them that are no value, in order: how many come before it, and what becomes of it.
    pub(crate) except: Vec<(u64, Settled)>,
    /// Whether the peer may go on.
    pub(crate) end: Result<(), Undecoded>,
}

/// Why a peer ends behind the last value.
pub(crate) enum Undecoded {
    /// A message did not decode, and that is its end.
    Failed,
    Panicked(Panic),
}

/// A decoder of whatever type.
trait Decode: Send + Sync {
    fn most_memory(&self, bytes: usize) -> usize;
    fn decode(&self, frames: &mut Frames, failed: &mut dyn FnMut(BoxError) -> Result<(), Undecoded>) -> Piece;
}

struct Decoder<T, F> {
    decode: F,
    spare: Arc<Spare<T>>,
}

/// Lists without values.
pub(crate) struct Spare<T>(Lock<VecDeque<Box<Values<T>>>>);

impl Decoding {
    pub(crate) fn new<T, E, F>(decode: F, hook: PanicHook) -> (Self, Arc<Spare<T>>)
    where
        T: Send + 'static,
        E: Into<BoxError>,
        F: Fn(&[u8]) -> Result<T, E> + Send + Sync + 'static,
    {
        let spare = Arc::new(Spare(Lock::default()));
        let decoder: Box<dyn Decode> = Box::new(Decoder { decode, spare: spare.clone() });
        (Self { decoder: Arc::new(Told::new(decoder, hook)), strict: false }, spare)
    }

    /// What the values of a batch of so many bytes, or of the first piece of it, take of the inbox at the most.
    pub(crate) fn most_memory(&self, bytes: usize) -> usize {
        self.decoder.get().most_memory(bytes)
    }

    /// Decodes messages until there are no more, or their values take as much memory as a read. `failed` is told of each that
    /// does not decode.
    pub(crate) fn decode(&self, frames: &mut Frames, failed: impl Fn(BoxError)) -> Piece {
        self.decoder.get().decode(frames, &mut |error| {
            failed(error);
            if self.strict { Err(Undecoded::Failed) } else { Ok(()) }
        })
    }
}

impl<T, E, F> Decode for Decoder<T, F>
where
    T: Send + 'static,
    E: Into<BoxError>,
    F: Fn(&[u8]) -> Result<T, E> + Send + Sync,
{
    fn most_memory(&self, bytes: usize) -> usize {
        bytes.max(CHUNK).max(size_of::<T>()) + ITEM
    }

    fn decode(&self, frames: &mut Frames, failed: &mut dyn FnMut(BoxError) -> Result<(), Undecoded>) -> Piece {
        let before = frames.len();
        // A message of no bytes may be a value of many.
        let most = (CHUNK / size_of::<T>().max(1)).max(1);
        let mut values = self.spare.take(frames.slices().take(most).count(), most);
        let (mut messages, mut except) = (0, Vec::new());
        let decoded = foreign::call(|| {
            while values.len() < most
                && let Some(len) = frames.find()
            {
                messages += 1;
                match frames.show(len, &self.decode) {
                    Ok(value) => values.push_back(value),
                    Err(error) => {
                        except.push((messages - 1, Settled::Refused));
                        failed(error.into())?;
                    }
                }
            }
            Ok(())
        });
        if decoded.is_err() {
            except.push((messages - 1, Settled::Dropped));
        }
        let memory = (before - frames.len()).max(values.capacity().saturating_mul(size_of::<T>()));
        let values = if values.is_empty() {
            self.spare.keep(values);
            None
        } else {
            Some(AnyValues(Lock::new(values)))
        };
        Piece { values, memory, messages, except, end: decoded.unwrap_or_else(|panic| Err(Undecoded::Panicked(panic))) }
    }
}

impl AnyValues {
    /// The values, which are of this type.
    pub(crate) fn of<T: 'static>(self) -> Option<Box<Values<T>>> {
        self.0.into_inner().downcast().ok()
    }
}

impl<T> Spare<T> {
    /// A list for `len` values, which takes no more memory than one of `most`.
    fn take(&self, len: usize, most: usize) -> Box<Values<T>> {
        let len = len.next_power_of_two().min(most);
        let mut spare = self.0.lock();
        let fits = spare.iter().rposition(|values| (len..=most.min(2 * len)).contains(&values.capacity()));
        let kept = fits.and_then(|at| spare.swap_remove_back(at));
        drop(spare);
        kept.unwrap_or_else(|| Box::new(VecDeque::with_capacity(len)))
    }

    /// Keeps a list that has been emptied.
    pub(crate) fn keep(&self, values: Box<Values<T>>) {
        let mut spare = self.0.lock();
        spare.push_back(values);
        let oldest = if spare.len() > KEEP { spare.pop_front() } else { None };
        drop(spare);
        drop(oldest);
    }
}
