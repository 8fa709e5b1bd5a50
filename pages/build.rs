//! Takes the programs out of the pages: those that a doctest compiles and does not run.

use std::path::Path;
use std::{env, fs};

/// What stands in a page, and what a test has instead of it.
type Instead = &'static [(&'static str, &'static str)];

/// The name of each of these programs, its page, and the addresses that are replaced, since a test uses no fixed ports.
const PROGRAMS: [(&str, &str, Instead); 4] = [
    ("tls", "README.md", OF_TLS),
    ("mutual_tls", "docs/runtimes-and-tls.md", OF_TLS),
    ("receiver", "docs/delivery.md", &[("\":5031\"", "\"unix:receiver.sock\"")]),
    (
        "sender",
        "docs/delivery.md",
        &[
            ("\"10.0.0.1:5031\"", "\"unix:first/receiver.sock\""),
            ("\"10.0.0.2:5031\"", "\"unix:second/receiver.sock\""),
        ],
    ),
];
const OF_TLS: Instead = &[
    ("\":5031\"", "\":0\""),
    ("\"localhost:5031\"", "format!(\"localhost:{}\", listener.local_addr().ip().unwrap().port())"),
];

fn main() {
    let out = env::var("OUT_DIR").unwrap();
    for page in pages() {
        println!("cargo::rerun-if-changed=../{page}");
        let text = fs::read_to_string(Path::new("..").join(&page)).unwrap();
        let found = text.split("```rust,no_run\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        let named: Vec<_> = PROGRAMS.iter().filter(|(_, of, _)| *of == page).collect();
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), named.len(), "{page}: name each program with `no_run` in pages/build.rs, and run it");
        for ((name, _, instead), shown) in named.into_iter().zip(found) {
            // Hidden lines are for the doctest alone.
            let shown = shown.lines().filter(|line| !line.starts_with("# ")).collect::<Vec<_>>().join("\n");
            let program = instead.iter().fold(shown, |program, (here, there)| {
                assert!(program.contains(here), "{page}: {name} has no {here}");
                program.replace(here, there)
            });
            fs::write(Path::new(&out).join(format!("{name}.rs")), program).unwrap();
        }
    }
}

/// The README, and all that is in docs/.
fn pages() -> Vec<String> {
    println!("cargo::rerun-if-changed=../docs");
    let docs = fs::read_dir("../docs").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let docs = docs.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    ["README.md".to_owned()].into_iter().chain(docs).collect()
}
