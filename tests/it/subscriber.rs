//! A subscriber of `tracing` that keeps all that this library tells.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// A clone is the same.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Each as text; that of number 1 comes first.
    spans: Vec<String>,
    entered: HashMap<ThreadId, Vec<u64>>,
    events: Vec<Told>,
}

/// An event.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// Its level, what it says, and its fields, in their order.
    pub(crate) text: String,
    /// The span in which it was.
    pub(crate) span: Option<String>,
}

impl Collector {
    /// The events of which the text has this in it.
    pub(crate) fn of(&self, what: &str) -> Vec<Told> {
        self.0.lock().unwrap().events.iter().filter(|told| told.text.contains(what)).cloned().collect()
    }

    /// All spans, as text.
    pub(crate) fn spans(&self) -> Vec<String> {
        self.0.lock().unwrap().spans.clone()
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "buffstreams" || metadata.target() == "program"
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut text = Text(attributes.metadata().name().to_owned());
        attributes.record(&mut text);
        let spans = &mut self.0.lock().unwrap().spans;
        spans.push(text.0);
        Id::from_u64(spans.len() as u64)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(event.metadata().level().to_string());
        event.record(&mut text);
        let mut state = self.0.lock().unwrap();
        let current = state.entered.get(&thread::current().id()).and_then(|entered| entered.last());
        let span = current.map(|id| state.spans[*id as usize - 1].clone());
        state.events.push(Told { text: text.0, span });
    }

    fn enter(&self, span: &Id) {
        self.0.lock().unwrap().entered.entry(thread::current().id()).or_default().push(span.into_u64());
    }

    fn exit(&self, span: &Id) {
        let last = self.0.lock().unwrap().entered.entry(thread::current().id()).or_default().pop();
        assert_eq!(last, Some(span.into_u64()), "spans are left in the order in which they were entered");
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}
}

/// Fields as text.
struct Text(String);

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        write!(self.0, " {field}={value}").unwrap();
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => write!(self.0, " {value:?}").unwrap(),
            _ => write!(self.0, " {field}={value:?}").unwrap(),
        }
    }
}
