//! The rules of the house, held against the source text.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each file may import of this crate. The order is that of the floors: a file imports only from above it here,
/// so there is no circle.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("chain.rs", &[]),
    ("foreign.rs", &[]),
    ("sync.rs", &["foreign"]),
    ("peer.rs", &[]),
    ("inbox.rs", &["foreign", "sync"]),
    ("pool.rs", &[]),
    ("error.rs", &["foreign", "peer"]),
    ("wire/names.rs", &["error"]),
    ("wire/guess.rs", &["error"]),
    ("wire/decoder.rs", &["error"]),
    ("wire/encoder.rs", &["error", "foreign"]),
    ("wire/mod.rs", &["error"]),
    ("reporter.rs", &["foreign", "sync"]),
    ("events.rs", &["error", "foreign", "peer", "reporter"]),
    ("backoff.rs", &["foreign"]),
    ("config.rs", &["backoff", "error", "wire"]),
    ("net.rs", &["config", "error", "foreign", "peer", "sync"]),
    ("deadline.rs", &["error", "net"]),
    ("reader.rs", &["config", "error", "pool", "wire"]),
    ("writer.rs", &["config", "error", "wire"]),
    ("ledger.rs", &["error", "net"]),
    ("retries.rs", &["backoff", "error", "foreign"]),
    ("dead_letters.rs", &["error", "events", "foreign", "ledger", "net", "peer", "sync"]),
    ("line.rs", &["error", "ledger", "wire"]),
    ("backlog.rs", &["error", "foreign", "ledger", "line", "sync", "wire", "writer"]),
    ("outbox.rs", &["backlog", "error", "foreign", "ledger", "line", "sync", "wire"]),
    ("driver.rs", &["backlog", "error", "ledger", "outbox", "writer"]),
    ("socket.rs", &["config", "events", "foreign", "net", "peer", "wire"]),
    ("read_half.rs", &["deadline", "error", "events", "net", "reader", "socket", "wire"]),
    ("write_half.rs", &["deadline", "error", "events", "net", "peer", "retries", "socket", "sync", "wire", "writer"]),
    ("connection.rs", &["config", "error", "net", "peer", "read_half", "socket", "wire", "write_half"]),
    ("loan.rs", &["error", "net", "reader", "sync"]),
    ("member.rs", &["connection", "foreign", "loan", "net", "outbox", "peer", "wire", "writer"]),
    ("hub.rs", &["config", "error", "events", "foreign", "ledger", "member", "net", "outbox", "peer", "sync", "wire"]),
    ("running.rs", &["events", "foreign", "hub", "member", "net", "peer"]),
    (
        "serve.rs",
        &[
            "connection",
            "deadline",
            "error",
            "events",
            "foreign",
            "hub",
            "inbox",
            "loan",
            "member",
            "net",
            "pool",
            "reader",
            "running",
            "socket",
            "wire",
            "writer",
        ],
    ),
    ("accept.rs", &["events", "foreign", "hub", "inbox", "member", "net", "running", "serve"]),
    ("outgoing.rs", &["backlog", "deadline", "error", "events", "hub", "member", "peer", "writer"]),
    (
        "listener.rs",
        &[
            "accept",
            "config",
            "connection",
            "error",
            "events",
            "hub",
            "inbox",
            "loan",
            "member",
            "net",
            "outgoing",
            "peer",
            "pool",
            "reader",
            "running",
        ],
    ),
    ("callback.rs", &["error", "events", "foreign", "hub", "listener", "net", "peer", "running"]),
    ("link_socket.rs", &["config", "error", "net", "peer", "sync"]),
    (
        "link.rs",
        &[
            "config",
            "dead_letters",
            "deadline",
            "error",
            "events",
            "foreign",
            "ledger",
            "link_socket",
            "net",
            "outbox",
            "peer",
            "retries",
            "wire",
        ],
    ),
    ("directory.rs", &["error", "foreign", "link", "net", "peer", "sync", "wire"]),
    ("manager_sink.rs", &["backlog", "directory", "error", "ledger", "line", "link", "peer", "wire", "writer"]),
    (
        "manager.rs",
        &[
            "backlog",
            "config",
            "dead_letters",
            "directory",
            "error",
            "events",
            "foreign",
            "link",
            "listener",
            "manager_sink",
            "net",
            "peer",
            "sync",
        ],
    ),
    ("lib.rs", &[]),
];

#[test]
fn each_file_imports_only_what_the_table_allows() {
    let mut listed = BTreeSet::new();
    for (at, (file, allowed)) in MAY_IMPORT.iter().enumerate() {
        for import in *allowed {
            let above = MAY_IMPORT[..at].iter().any(|(other, _)| module(other) == *import);
            assert!(above, "{file} may import {import}, which does not stand above it: that would be a circle");
        }
        let imports = imports(&code(&source(file)));
        let extra: Vec<_> = imports.iter().filter(|import| !allowed.contains(&import.as_str())).collect();
        assert!(extra.is_empty(), "{file} imports {extra:?}: change the design, then this table");
        let unused: Vec<_> = allowed.iter().filter(|allowed| !imports.contains(**allowed)).collect();
        assert!(unused.is_empty(), "{file} no longer imports {unused:?}: change this table");
        listed.insert((*file).to_owned());
    }
    let found: BTreeSet<_> = sources().into_iter().collect();
    assert_eq!(found, listed, "the table lists every source file");
}

#[test]
fn one_file_names_the_runtime_and_one_the_channel() {
    for file in files() {
        let code = code(&source(&file));
        for runtime in ["async_std", "async_io"] {
            assert_eq!(code.contains(runtime), file == "net.rs", "{file}: only net.rs names {runtime}");
        }
        assert_eq!(code.contains("flume"), file == "inbox.rs", "{file}: only inbox.rs names flume");
    }
}

#[test]
fn the_simulation_is_for_unit_tests_alone() {
    let named: Vec<_> = sources().into_iter().filter(|file| source(file).contains("sim/")).collect();
    assert_eq!(named, ["lib.rs"]);
    assert_eq!(source("lib.rs").matches("sim/").count(), 1);
    assert!(source("lib.rs").contains("#[cfg_attr(test, path = \"sim/mod.rs\")]\nmod net;"));
}

#[test]
fn the_wire_is_pure() {
    for file in sources().into_iter().filter(|file| file.starts_with("wire/")) {
        let code = code(&source(&file));
        for impure in ["async", "std::io", "std::time", "std::net", "futures", "std::sync", "std::thread"] {
            assert!(!code.contains(impure), "{file} names {impure}");
        }
    }
}

#[test]
fn no_file_has_two_purposes() {
    for file in files() {
        let lines = without_tests(&source(&file)).lines().count();
        assert!(lines <= 480, "{file} has {lines} lines: it has two purposes");
        assert!(source(&file).starts_with("//! "), "{file} says in its first line what it is for");
    }
}

#[test]
fn nothing_waits_by_sleeping() {
    // Three places look again and again at what only the system can tell; four peers or consumers are slow.
    let allowed = [
        ("net.rs", 1),
        ("peers.rs", 2),
        ("hostile.rs", 1),
        ("pressure.rs", 1),
        ("connection.rs", 1),
        ("closing.rs", 1),
    ];
    let mut tests = Vec::new();
    collect(&root().join("tests/it"), &mut tests);
    for path in tests {
        let name = path.file_name().unwrap().to_str().unwrap();
        let calls = fs::read_to_string(&path).unwrap().matches(concat!("::sle", "ep(")).count();
        let allowed = allowed.iter().find(|(file, _)| *file == name).map_or(0, |(_, calls)| *calls);
        assert_eq!(calls, allowed, "{name}: a test waits for what it needs, and does not sleep");
    }
}

/// The module that a file is, as an import names it.
fn module(file: &str) -> &str {
    if file.starts_with("wire/") { "wire" } else { file.trim_end_matches(".rs") }
}

/// The modules of this crate that the code names. `crate::Name` is a public name in a doc link, not an import.
fn imports(code: &str) -> BTreeSet<String> {
    let named = code.split("crate::").skip(1);
    let modules =
        named.map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>());
    modules.filter(|module| !module.is_empty()).collect()
}

/// The source without the tests at its end.
fn without_tests(source: &str) -> &str {
    source.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default()
}

/// The source without its tests and comments.
fn code(source: &str) -> String {
    without_tests(source).lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn source(file: &str) -> String {
    fs::read_to_string(root().join("src").join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The files of the library. Those in `sim/` are not: they stand in for `net.rs` under its unit tests.
fn sources() -> Vec<String> {
    files().into_iter().filter(|file| !file.starts_with("sim/")).collect()
}

fn files() -> Vec<String> {
    let src = root().join("src");
    let mut paths = Vec::new();
    collect(&src, &mut paths);
    paths.iter().map(|path| path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned()).collect()
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
