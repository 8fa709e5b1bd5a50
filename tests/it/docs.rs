//! The documentation: it is short, what it names is there, and its programs are tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What is not in the package, so that its paths can be looked for in a clone alone.
const NOT_PACKAGED: [&str; 7] = [".ci", "benches", "cli", "fuzz", "nats", "pages", "scripts"];
/// Where a path begins that stands in the text as code.
const FOLDERS: [&str; 12] = [
    ".ci/",
    "benches/",
    "cli/",
    "docs/",
    "examples/",
    "fuzz/",
    "model/",
    "pages/",
    "scripts/",
    "src/",
    "tests/",
    "wireshark/",
];

#[test]
fn the_readme_is_read_in_five_minutes() {
    let lines = text(Path::new("README.md")).lines().count();
    assert!(lines <= 200, "README.md has {lines} lines: what is over 200 belongs into docs/");
}

#[test]
fn each_link_leads_to_a_file_and_a_heading() {
    let mut links = 0;
    for page in pages() {
        let prose = prose(&text(&page));
        for target in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { page.clone() } else { beside(&page, file) };
            if !is_packaged(&file) {
                continue;
            }
            links += 1;
            assert!(root().join(&file).exists(), "{}: {target} is not there", page.display());
            assert!(
                heading.is_empty() || anchors(&text(&file)).contains(heading),
                "{}: {} has no heading for #{heading}",
                page.display(),
                file.display()
            );
        }
    }
    assert!(links > 50, "{links} links were found");
}

#[test]
fn each_path_in_the_text_is_there() {
    let mut paths = 0;
    for page in pages() {
        for code in prose(&text(&page)).split('`').skip(1).step_by(2) {
            for word in code.split_whitespace().filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder))) {
                paths += 1;
                let there = !is_packaged(Path::new(word)) || root().join(word).exists();
                assert!(there, "{}: {word} is not there", page.display());
            }
        }
    }
    assert!(paths > 30, "{paths} paths were found");
}

#[test]
fn the_programs_of_each_page_are_tests() {
    let tested = text(Path::new("src/lib.rs"));
    for page in pages().into_iter().filter(|page| text(page).contains("```rust")) {
        let included = format!("include_str!(\"../{}\")", page.display());
        assert!(tested.contains(&included), "{} has programs: name it in `pages` of src/lib.rs", page.display());
    }
}

/// The package has none of `benches/`, so the README shows a copy.
#[test]
fn the_plot_is_that_of_the_benchmark() {
    let of_the_benchmark = root().join("benches/results/throughput.svg");
    if of_the_benchmark.exists() {
        assert!(fs::read(of_the_benchmark).unwrap() == fs::read(root().join("docs/throughput.svg")).unwrap());
    }
}

/// The pages that are checked, from the root.
fn pages() -> Vec<PathBuf> {
    let docs =
        fs::read_dir(root().join("docs")).unwrap().map(|entry| Path::new("docs").join(entry.unwrap().file_name()));
    let docs = docs.filter(|page| page.extension().is_some_and(|extension| extension == "md"));
    ["README.md", "CONTRIBUTING.md"].map(PathBuf::from).into_iter().chain(docs).collect()
}

/// Without the blocks of code.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// What a link of this page names, from the root.
fn beside(page: &Path, target: &str) -> PathBuf {
    let mut path = page.parent().unwrap().to_owned();
    for part in target.split('/') {
        match part {
            ".." => assert!(path.pop(), "{}: {target} leaves the repository", page.display()),
            _ => path.push(part),
        }
    }
    path
}

fn is_packaged(path: &Path) -> bool {
    root().join(".ci").exists() || !NOT_PACKAGED.iter().any(|folder| path.starts_with(folder))
}

/// The names of the headings of a page, as they stand in links.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page).lines().filter(|line| line.starts_with('#')).map(str::to_lowercase).collect::<Vec<_>>();
    let anchor = |heading: &String| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        heading.trim_start_matches('#').trim().chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    headings.iter().map(anchor).collect()
}

fn text(page: &Path) -> String {
    fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{}: {error}", page.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
