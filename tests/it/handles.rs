//! What can be shared between threads, and sent to another: all that is public.

use buffstreams::{
    Address, Backoff, Batch, Batches, BoxError, Closer, Config, ConfigError, Connection, Connections, DeadLetter,
    DeadLetters, Ending, Error, Event, Events, FixedFormat, FrameError, FrameErrorKind, HandshakeErrorKind, Incoming,
    LinkStats, Listener, ListenerStats, LooksLike, Loss, Manager, ManagerEvent, ManagerSink, ManagerStats, Messages,
    MessagesIter, Outcome, Outgoing, Peer, ReadHalf, Reader, Reason, Serving, Session, SessionErrorCode, Unsent,
    WireFormat, WriteHalf, Writer, typed, wire,
};

/// Checked when this is compiled. A future that is only `Send` makes what holds it no longer `Sync`, and a program that keeps
/// a handle in an `Arc`, or borrows it in a task of another thread, cannot be compiled any more.
const _: fn() = || {
    fn shared<T: Send + Sync + 'static>() {}
    fn over<T: Send + Sync + 'static>() {
        shared::<Reader<T>>();
        shared::<Writer<T>>();
    }

    shared::<(Listener, Incoming, Outgoing, Batches, Connections, Closer, Serving)>();
    shared::<(Batch, Messages, MessagesIter<'static>)>();
    shared::<(typed::Decoded<u8>, typed::Typed<Listener, (), u8>)>();
    shared::<(Connection, ReadHalf, WriteHalf)>();
    shared::<(Manager, ManagerSink, DeadLetters, DeadLetter)>();
    shared::<(Events<Event>, Events<ManagerEvent>, Event, ManagerEvent, Reason)>();
    shared::<(Config, Backoff, Session, WireFormat, FixedFormat)>();
    shared::<(Address, Peer, Outcome, Ending, LinkStats, ListenerStats, ManagerStats)>();
    shared::<(Error, ConfigError, FrameError, FrameErrorKind, LooksLike, Unsent, BoxError)>();
    shared::<(HandshakeErrorKind, Loss, SessionErrorCode)>();
    shared::<(wire::Decoder, wire::Encoder)>();
    over::<Vec<u8>>();
};
