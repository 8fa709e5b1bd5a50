//! What a listener, its handles and its tasks share: what becomes of the messages, what is counted, and how it closes.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};

use bytes::Bytes;
use futures::future::BoxFuture;

use super::decoding::Decoding;
use super::handshakes::Handshakes;
use super::member::{Member, Members, Owner};
use super::place::Places;
use super::sessions::SessionTable;
use crate::config::Config;
use crate::endpoint::Endpoint;
use crate::error::{BoxError, Error, Limit, Loss};
use crate::foreign::{self, Panic, PanicHook, PanicSource, Told};
use crate::identity::Identity;
use crate::observe::{Event, Reporter};
use crate::peer::Peer;
#[cfg(feature = "metrics")]
use crate::queue::Usage;
use crate::queue::{Rules, Verdict};
use crate::sync::{Given, Lock, Signal};
use crate::transport::{self, Shutter};
use crate::wire::Codec;

/// What the peers' tasks do with what they receive. Chosen once, by what the program does with its listener.
#[derive(Clone)]
pub(crate) enum Handling {
    /// Batches into the inbox.
    Inbox,
    /// A callback on each message where it lies, in the peer's own task.
    Callback(Arc<Told<Callback>>),
    /// A future for each message, awaited in the peer's own task.
    AsyncCallback(Arc<Told<AsyncCallback>>),
    /// What the program's decoder makes of each batch, in the peer's own task, into the inbox.
    Decoded(Decoding),
    /// The connection itself, unread, into the inbox.
    Connections,
}

pub(crate) type Callback = dyn Fn(Peer, &[u8]) -> Result<(), BoxError> + Send + Sync;
pub(crate) type AsyncCallback = dyn Fn(Peer, Bytes) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync;

/// How many there have been.
static LISTENERS: AtomicU32 = AtomicU32::new(0);

/// What a listener, its handles and its tasks share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// Of peers in a session, if there are sessions.
    pub(crate) codec: Codec,
    pub(crate) plain_codec: Codec,
    pub(crate) sessions: Option<Arc<SessionTable>>,
    pub(crate) local_addr: Endpoint,
    /// Its own among all listeners of the process.
    pub(crate) number: u32,
    pub(crate) reporter: Arc<Reporter<Event>>,
    /// Tells of panics of what may outlive the listener.
    pub(crate) panic_hook: PanicHook,
    /// Those of the peers' queues.
    pub(crate) rules: Arc<Rules<transport::Stream>>,
    /// The same, in a session.
    pub(crate) session_rules: Arc<Rules<transport::Stream>>,
    pub(crate) counters: Counters,
    /// Whether there is a sink of replies.
    pub(crate) replies: AtomicBool,
    /// Whose batch came last.
    last: AtomicU64,
    pub(crate) members: Lock<Members>,
    pub(crate) handshakes: Handshakes,
    /// How many sockets there are: more than members for a moment, while some of them end.
    pub(crate) places: Places,
    /// How many have a part in what runs: see `Running`.
    pub(crate) running: AtomicUsize,
    chosen: Signal<Choice>,
    pub(crate) closing: Signal<()>,
    /// Nobody is accepted any more.
    pub(crate) closed: Signal<()>,
    /// Dropped, it stops accepting.
    shutter: Lock<Option<Shutter>>,
    /// The limit that the first peer met that was not done when this end closed.
    cut: OnceLock<Limit>,
    /// How much of the inbox is in use.
    #[cfg(feature = "metrics")]
    pub(crate) inbox: OnceLock<Usage>,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) callback_errors: AtomicU64,
}

/// `None` when the listener is gone.
pub(crate) type Choice = Arc<Lock<Option<Handling>>>;

impl Shared {
    /// A shared without members.
    pub(crate) fn new(local_addr: Endpoint, config: Config, codec: Codec, shutter: Shutter) -> Arc<Self> {
        let reporter = Arc::new(Reporter::new(config.runtime.clone()));
        let sessions = config.session.as_ref().map(|session| SessionTable::new(session, &config, codec.max()));
        let session_rules = Rules {
            room_while_down: Some(config.queue_bytes),
            linger: config.linger.with_task(),
            clock: Some(config.runtime.clone()),
            panicked: Some(reporter.panic_hook()),
            ..Rules::default()
        };
        let places = Places::new(config.max_connections);
        Arc::new(Self {
            panic_hook: reporter.panic_hook(),
            plain_codec: config.plain_codec().unwrap_or(codec),
            sessions: sessions.map(Arc::new),
            session_rules: Arc::new(session_rules),
            config,
            codec,
            local_addr,
            number: LISTENERS.fetch_add(1, Ordering::Relaxed),
            rules: Arc::new(Rules { panicked: Some(reporter.panic_hook()), ..Rules::default() }),
            reporter,
            counters: Counters::default(),
            replies: AtomicBool::new(false),
            last: AtomicU64::new(0),
            members: Lock::default(),
            handshakes: Handshakes::default(),
            places,
            running: AtomicUsize::new(0),
            chosen: Signal::default(),
            closing: Signal::default(),
            closed: Signal::default(),
            shutter: Lock::new(Some(shutter)),
            cut: OnceLock::new(),
            #[cfg(feature = "metrics")]
            inbox: OnceLock::new(),
        })
    }

    // ---- what becomes of the messages

    /// Chooses what becomes of the messages. The first choice stays.
    pub(crate) fn choose(&self, handling: Handling) {
        // As mostly, it was made long ago.
        if self.chosen.get().is_none() {
            self.chosen.give(Arc::new(Lock::new(Some(handling))));
        }
    }

    /// Chooses that messages are decoded, also where they were to be yielded as they are: a listener that was split has chosen
    /// that. It concerns the peers that come from now on.
    pub(crate) fn choose_decoding(&self, decoding: &Decoding) {
        let Some(choice) = self.chosen.get() else { return self.choose(Handling::Decoded(decoding.clone())) };
        let mut choice = choice.lock();
        if let Some(Handling::Inbox) = *choice {
            *choice = Some(Handling::Decoded(decoding.clone()));
        }
    }

    /// Waits for the choice; `None` if the listener is gone.
    pub(crate) async fn chosen(&self) -> Option<Handling> {
        let choice = self.choice().await;
        choice.lock().clone()
    }

    /// Waits for the choice.
    pub(crate) fn choice(&self) -> Given<Choice> {
        self.chosen.wait()
    }

    /// Lets go of the callback.
    pub(crate) fn forget_choice(&self) {
        let handling = self.chosen.get().and_then(|choice| choice.lock().take());
        // The lock is free again: the program's closure may come back here when it is dropped.
        drop(handling);
    }

    // ---- who is connected

    /// The peer, unless it is gone, or of another listener: that may have the same number there.
    pub(crate) fn member(&self, peer: Peer) -> Option<Arc<Member>> {
        let members = self.members.lock();
        let member = &members.connected.get(&peer.id())?.member;
        (member.peer == peer).then(|| member.clone())
    }

    /// Who the peer is, unless it is gone.
    pub(crate) fn identity(&self, peer: Peer) -> Option<Arc<Identity>> {
        let stream = {
            let members = self.members.lock();
            let entry = members.connected.get(&peer.id())?;
            (entry.member.peer == peer).then(|| entry.stream.clone())??
        };
        let identity = stream.identity();
        // It may be the last clone, and drop the waker that the socket has kept.
        let _ = foreign::dispose(stream);
        identity
    }

    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        self.members.lock().connected.values().map(|entry| entry.member.clone()).collect()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.members.lock().stopped
    }

    pub(crate) fn connections(&self) -> usize {
        let members = self.members.lock();
        if !members.stopped {
            return members.connected.len();
        }
        // A peer that was just coming has no socket any more.
        members.connected.values().filter(|entry| matches!(entry.owner, Owner::Program)).count()
    }

    /// Messages that came in sessions, and that are not settled.
    pub(crate) fn untaken(&self) -> u64 {
        if self.sessions.is_none() {
            return 0;
        }
        self.members().iter().filter_map(|member| member.outbox.made()).map(|outbox| outbox.untaken().0).sum()
    }

    /// The peers, and their sockets, except those that the program has been given.
    fn sockets(&self) -> Vec<(Arc<Member>, transport::Stream)> {
        let members = self.members.lock();
        let ours = members.connected.values().filter(|entry| matches!(entry.owner, Owner::Task(_)));
        ours.filter_map(|entry| Some((entry.member.clone(), entry.stream.clone()?))).collect()
    }

    /// Ends the sending direction to every peer. Where that takes a while, its task goes on.
    pub(crate) fn half_close_all(&self) {
        for (member, stream) in self.sockets() {
            member.outbox.close();
            if member.session.is_some() {
                // Its task tells the other end, which ends the connection.
                member.outbox.call_driver();
                continue;
            }
            // The end comes behind what is written. A peer that is gone has no use for it.
            let is_writing = member.outbox.made().is_some_and(|outbox| outbox.books().held > 0);
            if is_writing || stream.poll_half_close(&mut Context::from_waker(Waker::noop())).is_pending() {
                member.half_closes.store(true, Ordering::Release);
                member.outbox.call_driver();
            }
        }
    }

    /// A session is over without its task. The replies that were sent to it are counted as those that it will not get.
    pub(crate) async fn lose_session(&self, member: &Member) {
        member.outbox.close();
        member.outbox.lose().await;
        member.outbox.end_session();
        let (_, untaken) = member.outbox.lose_session(Loss::Ended);
        let letters = untaken.letters().into_iter().flat_map(|(messages, _)| messages);
        self.undelivered(member, letters.collect());
    }

    /// Accepts no more replies to a peer. Those that it will not get are counted, and nobody waits for them.
    pub(crate) async fn end_replies(&self, member: &Member) {
        if let Some(outbox) = member.outbox.close() {
            outbox.lose().await;
            self.undelivered(member, outbox.give_back(&Verdict::closed()));
        }
    }

    /// Replies that come back, and that nobody takes back.
    pub(crate) fn undelivered(&self, member: &Member, replies: Vec<Bytes>) {
        let messages = replies.len();
        for message in replies {
            if let Err(panic) = foreign::dispose(message) {
                self.panicked(Some(member.peer), PanicSource::Drop, panic);
            }
        }
        if messages > 0 {
            self.reporter.report(Event::Undelivered { peer: member.peer, messages });
        }
    }

    // ---- what is counted and told

    /// Counts what was received.
    pub(crate) fn count(&self, messages: usize, bytes: usize) {
        self.counters.messages.fetch_add(messages as u64, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether something is to be said before anybody is a peer.
    pub(crate) fn greets(&self) -> bool {
        #[cfg(feature = "tls")]
        if self.config.tls.is_some() {
            return true;
        }
        self.sessions.is_some()
    }

    /// Whether the batch before this one came from this peer as well.
    pub(crate) fn was_last(&self, peer: Peer) -> bool {
        self.last.swap(peer.id(), Ordering::Relaxed) == peer.id()
    }

    /// A callback returned an error.
    pub(crate) fn call_failed(&self, peer: Peer, error: BoxError) {
        self.counters.callback_errors.fetch_add(1, Ordering::Relaxed);
        self.reporter.report(Event::CallbackFailed { peer, error: Arc::new(error) });
    }

    /// A message did not decode.
    pub(crate) fn decode_failed(&self, peer: Peer, error: BoxError) {
        self.reporter.report(Event::DecodeFailed { peer, error: Arc::new(error) });
    }

    /// A callback panicked.
    pub(crate) fn call_panicked(&self, peer: Peer, Panic { message }: Panic) {
        self.counters.callback_errors.fetch_add(1, Ordering::Relaxed);
        self.reporter.report(Event::CallbackPanicked { peer, message });
    }

    /// Something else did.
    pub(crate) fn panicked(&self, peer: Option<Peer>, source: PanicSource, Panic { message }: Panic) {
        self.reporter.report(Event::Panicked { peer, source, message });
    }

    // ---- how it closes

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get().is_some()
    }

    /// Stops accepting, after what the system holds already, and waits until every peer's task has written its replies
    /// and ended that direction. What the peers send until they close is still received.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        // Peers that nobody has asked for are received as well, for a program that reads the listener to its end.
        self.choose(Handling::Inbox);
        self.closing.give(());
        if let Some(sessions) = &self.sessions {
            sessions.close();
        }
        let all_closed = async {
            self.closed.wait().await;
            for member in self.members() {
                member.outbox.closed().await;
            }
        };
        if self.config.runtime.within(self.config.close_timeout, all_closed).await.is_none() {
            // No thread may have had time to accept what there was.
            self.stop_accepting();
            return Err(self.config.ran_out(Limit::CloseTimeout));
        }
        Ok(())
    }

    /// Stops accepting at once: the task that would accept may have no thread to run on.
    pub(crate) fn stop_accepting(&self) {
        let shutter = self.shutter.lock().take();
        drop(shutter);
    }

    /// The close has taken `drain_timeout`: no more comes from peers that have not closed. What has arrived is received all the
    /// same.
    pub(crate) fn give_up(&self) {
        self.handshakes.end();
        for (member, stream) in self.sockets() {
            if !stream.is_closed_by_peer() {
                self.cut(Limit::DrainTimeout);
                member.is_cut.store(true, Ordering::Release);
                stream.shut_down();
            }
        }
    }

    /// Lets each peer's task look around.
    pub(crate) fn call_all(&self) {
        for member in self.members() {
            member.outbox.call_driver();
        }
    }

    /// What a peer was sending when this limit was over is lost.
    pub(crate) fn cut(&self, limit: Limit) {
        // The first stays.
        let _ = self.cut.set(limit);
    }

    /// What the close came to, when all has ended: an error if something was lost.
    pub(crate) fn result(&self) -> Result<(), Error> {
        self.cut.get().map_or(Ok(()), |limit| Err(self.config.ran_out(*limit)))
    }
}
