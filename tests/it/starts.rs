//! A runtime may log that it starts a task, and the logger is the program's: it may ask for figures, and it may panic. Each in a
//! process of its own.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

use async_std::task::block_on;
use buffstreams::{Error, Manager, ManagerEvent, PanicSource};
use futures::executor;
use futures::{FutureExt, SinkExt, StreamExt};

use crate::net::{SOON, alone, config, runs_on, until};

/// The line of async-std.
const SPAWN: &str = "spawn";

/// What is done at each such line.
struct Logger(Mutex<Option<Then>>);

#[derive(Clone, Copy)]
enum Then {
    Ask,
    /// Closes this port of this machine, and does not wait for that.
    Close(u16),
    Panic,
}

static LOGGER: Logger = Logger(Mutex::new(None));
static MANAGER: OnceLock<Manager> = OnceLock::new();

impl Logger {
    fn set(then: Option<Then>) {
        *LOGGER.0.lock().unwrap() = then;
    }
}

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string() != SPAWN {
            return;
        }
        let then = *self.0.lock().unwrap();
        match then {
            Some(Then::Ask) => drop(MANAGER.get().map(Manager::stats)),
            Some(Then::Close(port)) => drop(MANAGER.get().map(|manager| manager.close(name(port)).now_or_never())),
            Some(Then::Panic) => panic!("planted"),
            None => {}
        }
    }

    fn flush(&self) {}
}

fn name(port: u16) -> String {
    format!("localhost:{port}")
}

/// Runs the test in a process of its own, where the runtime has such a line.
#[track_caller]
fn alone_with_a_line(name: &str, test: impl FnOnce()) {
    if runs_on("async-std") {
        alone(&format!("starts::{name}"), "", test);
    }
}

/// A manager, and somebody to dial. Dead letters have no room for two.
fn prepared() -> (Manager, TcpListener, SocketAddr) {
    log::set_logger(&LOGGER).expect("the only logger of this process");
    log::set_max_level(log::LevelFilter::Trace);
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = far.local_addr().unwrap();
    (Manager::new(config().queue_bytes(1).close_timeout(Duration::ZERO)), far, addr)
}

fn is_told(event: Option<ManagerEvent>) -> bool {
    matches!(event, Some(ManagerEvent::Panicked { source: PanicSource::Logger, address: Some(_), .. }))
}

#[test]
fn a_logger_may_ask_the_manager_that_dials() {
    alone_with_a_line("a_logger_may_ask_the_manager_that_dials", || {
        let (manager, _far, addr) = prepared();
        MANAGER.set(manager.clone()).ok();
        let (done, is_done) = mpsc::channel();
        Logger::set(Some(Then::Ask));
        std::thread::spawn(move || done.send(executor::block_on(manager.dial(addr)).is_ok()));
        assert_eq!(is_done.recv_timeout(SOON), Ok(true));
    });
}

#[test]
fn a_logger_that_panics_when_an_address_is_opened_is_an_error_of_the_dial() {
    alone_with_a_line("a_logger_that_panics_when_an_address_is_opened_is_an_error_of_the_dial", || {
        let (manager, _far, addr) = prepared();
        let mut events = manager.events();
        Logger::set(Some(Then::Panic));
        let dialed = executor::block_on(manager.dial(addr));
        Logger::set(None);
        assert!(matches!(dialed, Err(Error::Panicked { what: PanicSource::Logger, .. })), "{dialed:?}");
        assert!(is_told(block_on(events.next())));
        block_on(manager.dial(addr)).expect("it is free");
    });
}

#[test]
fn a_logger_that_panics_when_a_close_is_given_up_keeps_no_address() {
    alone_with_a_line("a_logger_that_panics_when_a_close_is_given_up_keeps_no_address", || {
        let (manager, _far, addr) = prepared();
        block_on(manager.dial(addr)).unwrap();
        let mut events = manager.events();
        let mut closing = Box::pin(manager.shutdown(SOON));
        assert!(closing.as_mut().now_or_never().is_none());
        Logger::set(Some(Then::Panic));
        drop(closing);
        Logger::set(None);
        assert!(is_told(block_on(events.next())));
        until(SOON, || manager.addresses().is_empty());
    });
}

#[test]
fn a_logger_that_panics_when_letters_are_to_wait_costs_none_without_a_count() {
    alone_with_a_line("a_logger_that_panics_when_letters_are_to_wait_costs_none_without_a_count", || {
        let (manager, _far, addr) = prepared();
        let letters = manager.dead_letters();
        block_on(manager.dial(addr)).unwrap();
        // More than the system has room for: where a sink is dropped, there is none for what it has not handed over.
        let mut writes: Vec<_> = (0..20).map(|_| Box::pin(manager.write(addr, vec![0; 1 << 20].into()))).collect();
        assert!(writes.iter_mut().filter_map(|write| write.now_or_never()).count() < 19);
        let mut sink = manager.sink();
        for message in ["one", "two", "three"] {
            sink.feed((addr.into(), message.into())).now_or_never().expect("there is room").unwrap();
        }
        let mut events = manager.events();
        Logger::set(Some(Then::Panic));
        drop(sink);
        Logger::set(None);
        let told = [block_on(events.next()), block_on(events.next())];
        assert!(told.into_iter().any(is_told));
        let stats = manager.stats();
        assert_eq!((stats.total.dead_lettered, stats.lost), (3, 2), "{letters:?}");
    });
}

#[test]
fn a_logger_may_close_an_address_whose_name_is_resolved() {
    alone_with_a_line("a_logger_may_close_an_address_whose_name_is_resolved", || {
        let (manager, far, addr) = prepared();
        MANAGER.set(manager.clone()).ok();
        let name = name(addr.port());
        executor::block_on(manager.dial(&*name)).unwrap();
        let mut events = manager.events();
        drop(far.accept().unwrap());
        assert!(matches!(executor::block_on(events.next()), Some(ManagerEvent::Broken { .. })));
        // The next message dials again, and this resolves the name again.
        Logger::set(Some(Then::Close(addr.port())));
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            let written = executor::block_on(manager.write(&*name, "one".into()));
            done.send(matches!(written, Err(Error::NotSent { .. })))
        });
        assert_eq!(is_done.recv_timeout(SOON), Ok(true));
        until(SOON, || MANAGER.get().unwrap().addresses().is_empty());
    });
}
