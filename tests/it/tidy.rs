//! The rules of the house, held against the source text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each folder, and each file beside them, may import of this crate. The order is that of the layers: each imports only
/// from above it here, so there is no circle.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("chain", &[]),
    ("foreign", &[]),
    ("sync", &["foreign"]),
    ("duration", &[]),
    ("endpoint", &[]),
    ("identity", &[]),
    ("peer", &["endpoint"]),
    ("error", &["foreign", "peer"]),
    ("metrics", &["foreign", "peer", "sync"]),
    ("backoff", &["duration", "foreign"]),
    ("wire", &["error", "foreign"]),
    ("session", &["duration", "error"]),
    ("runtime", &["endpoint", "foreign", "identity", "sync"]),
    ("tls", &["error", "sync"]),
    ("config", &["backoff", "duration", "error", "runtime", "session", "tls", "wire"]),
    ("observe", &["chain", "endpoint", "error", "foreign", "identity", "peer", "runtime", "sync"]),
    ("deadline", &["config", "error", "runtime"]),
    (
        "transport",
        &["config", "endpoint", "error", "foreign", "identity", "metrics", "peer", "runtime", "sync", "tls", "wire"],
    ),
    ("framed", &["config", "error", "session", "sync", "wire"]),
    ("sim", &["endpoint", "foreign", "framed", "runtime", "sync"]),
    ("queue", &["error", "foreign", "framed", "runtime", "session", "sync", "wire"]),
    (
        "link",
        &[
            "backoff",
            "config",
            "deadline",
            "endpoint",
            "error",
            "foreign",
            "framed",
            "identity",
            "metrics",
            "peer",
            "queue",
            "runtime",
            "session",
            "sync",
            "transport",
            "wire",
        ],
    ),
    (
        "connection",
        &[
            "config",
            "deadline",
            "endpoint",
            "error",
            "foreign",
            "framed",
            "identity",
            "link",
            "observe",
            "peer",
            "queue",
            "runtime",
            "session",
            "sync",
            "transport",
            "wire",
        ],
    ),
    (
        "listener",
        &[
            "config",
            "connection",
            "deadline",
            "endpoint",
            "error",
            "foreign",
            "framed",
            "identity",
            "link",
            "metrics",
            "observe",
            "peer",
            "queue",
            "runtime",
            "session",
            "sync",
            "tls",
            "transport",
            "wire",
        ],
    ),
    (
        "manager",
        &[
            "config", "error", "foreign", "framed", "identity", "link", "listener", "metrics", "observe", "peer",
            "queue", "runtime", "sync", "wire",
        ],
    ),
    ("typed", &["connection", "endpoint", "error", "framed", "listener", "manager", "observe", "peer", "wire"]),
    ("lib", &[]),
];

#[test]
fn each_folder_imports_only_what_the_table_allows() {
    let mut imported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources() {
        let (folder, imports) = (folder(&file).to_owned(), imports(&code(&source(&file))));
        assert!(!imports.contains(&folder), "{file} imports its own folder by the long way: `super` is shorter");
        imported.entry(folder).or_default().extend(imports);
    }
    for (at, (folder, allowed)) in MAY_IMPORT.iter().enumerate() {
        for import in *allowed {
            let above = MAY_IMPORT[..at].iter().any(|(other, _)| other == import);
            assert!(above, "{folder} may import {import}, which does not stand above it: that would be a circle");
        }
        let allowed: BTreeSet<_> = allowed.iter().map(|name| (*name).to_owned()).collect();
        let imports = imported.remove(*folder).unwrap_or_default();
        let extra: Vec<_> = imports.difference(&allowed).collect();
        assert!(extra.is_empty(), "{folder} imports {extra:?}: change the design, then this table");
        let unused: Vec<_> = allowed.difference(&imports).collect();
        assert!(unused.is_empty(), "{folder} no longer imports {unused:?}: change this table");
    }
    assert!(imported.is_empty(), "the table does not have {:?}", imported.keys());
}

/// The files of a folder may import each other, in one direction. What they take of the folder as a whole does not count: it
/// is what the others see of it.
#[test]
fn the_files_of_a_folder_form_no_circle() {
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources() {
        let Some((folder, name)) = file.split_once('/') else { continue };
        let code = code(&source(&file));
        let siblings = code.split("super::").skip(1).map(first_word).filter(|word| !word.is_empty());
        let siblings = siblings.map(|sibling| format!("{folder}/{sibling}.rs")).collect();
        imports.insert(format!("{folder}/{name}"), siblings);
    }
    // Whoever imports nothing that is left falls out, until nothing is left.
    while !imports.is_empty() {
        let files: BTreeSet<_> = imports.keys().cloned().collect();
        imports.retain(|_, siblings| siblings.iter().any(|sibling| files.contains(sibling)));
        assert!(imports.len() < files.len(), "there is a circle in {:?}", imports.keys());
    }
}

/// What a folder is for others is in its `mod.rs`: they name no file in it.
#[test]
fn nobody_names_a_file_in_the_folder_of_another() {
    for file in sources() {
        for path in code(&source(&file)).split("crate::").skip(1) {
            let folder = first_word(path);
            let Some(rest) = path.strip_prefix(&format!("{folder}::")) else { continue };
            let inner = first_word(rest);
            let is_file = !inner.is_empty() && root().join(format!("src/{folder}/{inner}.rs")).exists();
            assert!(!is_file || !rest.starts_with(&format!("{inner}::")), "{file} names {folder}::{inner}");
        }
    }
}

/// Each runtime has a file of its own. The two that share a reactor share what knows it.
#[test]
fn only_its_own_file_names_a_runtime_and_one_file_the_channel() {
    let names = [
        ("async_std::", &["runtime/async_std.rs"][..]),
        ("async_io::", &["runtime/async_io.rs", "runtime/smol.rs"]),
        ("async_executor::", &["runtime/smol.rs"]),
        ("blocking::", &["runtime/smol.rs"]),
        ("tokio::", &["runtime/tokio.rs"]),
        ("flume::", &["queue/inbox.rs"]),
        ("shuttle::", &["sim/scheduled.rs", "sync.rs"]),
        ("tracing::", &["observe/facts.rs", "observe/lines.rs", "observe/span.rs"]),
        ("::metrics::", &["metrics.rs"]),
    ];
    for file in sources() {
        let code = code(&source(&file))
            .replace("super::async_io::", "")
            .replace("self::async_std::", "")
            .replace("self::tokio::", "")
            .replace("crate::metrics", "");
        for (name, files) in names {
            assert_eq!(code.contains(name), files.contains(&file.as_str()), "{file}: {name}");
        }
    }
}

/// Nothing in the library knows that it may be simulated.
#[test]
fn nobody_names_the_simulator() {
    for file in sources().into_iter().filter(|file| !file.starts_with("sim/") && file != "lib.rs") {
        assert!(!code(&source(&file)).contains("sim::"), "{file}");
    }
}

#[test]
fn the_wire_and_the_sessions_are_pure() {
    let pure = |file: &String| file.starts_with("wire/") || file.starts_with("session/");
    for file in sources().into_iter().filter(pure) {
        // A length of time is a number. What tells the time is not pure.
        let code = code(&source(&file)).replace("std::time::Duration", "");
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

/// So a field that is added breaks no program. Variants that programs compare with a value of their own are not among these.
#[test]
fn errors_events_and_reasons_may_get_more_fields() {
    for (file, name) in [
        ("error/mod.rs", "Error"),
        ("observe/events.rs", "Event"),
        ("observe/events.rs", "ManagerEvent"),
        ("observe/events.rs", "Reason"),
    ] {
        let source = source(file);
        let (_, variants) = source.split_once(&format!("\npub enum {name} {{\n")).unwrap();
        let (variants, _) = variants.split_once("\n}\n").unwrap();
        let mut attribute = "";
        let mut with_fields = 0;
        for line in variants.lines() {
            let indented = line.strip_prefix("    ").unwrap_or_default();
            if indented.starts_with(char::is_uppercase) && indented.ends_with('{') {
                assert_eq!(attribute, "#[non_exhaustive]", "{name}::{indented}");
                with_fields += 1;
            }
            attribute = indented;
        }
        assert!(with_fields >= 2, "{name} has {with_fields}");
    }
}

#[test]
fn nothing_waits_by_sleeping() {
    // Three places look again and again at what only the system can tell; four peers or consumers are slow; and a
    // program has a timer.
    let allowed = [
        ("net.rs", 1),
        ("peers.rs", 2),
        ("hostile.rs", 2),
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

/// The folder that a file is in, or its own name if it is in none.
fn folder(file: &str) -> &str {
    file.split_once('/').map_or(file.trim_end_matches(".rs"), |(folder, _)| folder)
}

/// The modules of this crate that the code names. `crate::Name` is a public name in a doc link, not an import.
fn imports(code: &str) -> BTreeSet<String> {
    code.split("crate::").skip(1).map(first_word).filter(|module| !module.is_empty()).collect()
}

/// The name of a module that this begins with; nothing where it begins with that of a type.
fn first_word(path: &str) -> String {
    path.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()
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

/// The files of the library, without those that are for its tests alone.
fn sources() -> Vec<String> {
    files().into_iter().filter(|file| !file.starts_with("sim/test") && !file.starts_with("session/test")).collect()
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
