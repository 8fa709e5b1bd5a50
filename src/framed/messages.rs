//! Messages that were received together, to be taken where they lie.

use std::fmt;
use std::iter::FusedIterator;

use bytes::Bytes;

use crate::wire::{Frames, Slices};

/// Messages that were received together: what one read brought, in order. It is never empty.
///
/// They are looked at where they lie, without a copy and without a count of references for each, by
/// [`iter`](Self::iter), as often as needed. To keep a message, take it out with [`slice_ref`](Self::slice_ref), and
/// all of them with [`bytes`](Self::bytes): each of these shares the memory of the read, as the items of the stream do.
pub struct Messages(Frames);

impl Messages {
    pub(crate) fn new(frames: Frames) -> Self {
        Self(frames)
    }

    /// What is left of them, for a stream to take apart.
    #[inline]
    pub(crate) fn frames(&mut self) -> &mut Frames {
        &mut self.0
    }

    /// The messages where they lie, in order.
    #[inline]
    pub fn iter(&self) -> MessagesIter<'_> {
        MessagesIter(self.0.slices())
    }

    /// Each message as [`Bytes`], in order, to keep or to send on without a copy.
    pub fn bytes(&self) -> impl FusedIterator<Item = Bytes> + Send + use<> {
        self.0.clone().fuse()
    }

    /// A message of [`iter`](Self::iter), or a part of one, as [`Bytes`], to keep or to send on without a copy.
    ///
    /// # Panics
    ///
    /// Where `message` is not of these messages.
    pub fn slice_ref(&self, message: &[u8]) -> Bytes {
        self.0.slice_ref(message)
    }
}

impl<'a> IntoIterator for &'a Messages {
    type Item = &'a [u8];
    type IntoIter = MessagesIter<'a>;

    #[inline]
    fn into_iter(self) -> MessagesIter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Messages({})", self.iter().count())
    }
}

/// The messages of [`Messages::iter`].
#[derive(Clone)]
pub struct MessagesIter<'a>(Slices<'a>);

impl<'a> Iterator for MessagesIter<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        self.0.next()
    }
}

impl FusedIterator for MessagesIter<'_> {}

impl fmt::Debug for MessagesIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessagesIter({})", self.clone().count())
    }
}
