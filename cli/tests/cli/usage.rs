//! Wrong invocations, and what the program says to them: a file each in `tests/snapshots`.
//!
//! `BUFFSTREAMS_SNAPSHOTS=write` writes the files anew.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::program::{Folder, ok, run, text};

/// Each with the name of its file.
const WRONG: &[(&str, &[&str])] = &[
    ("no-command", &[]),
    ("unknown-command", &["lisen"]),
    ("unknown-option", &["listen", ":0", "--fromat", "u8"]),
    ("listen-without-address", &["listen"]),
    ("format-unknown", &["listen", ":0", "--format", "u32"]),
    ("format-width", &["listen", ":0", "--format", "fixed:9"]),
    ("format-part", &["listen", ":0", "--format", "fixed:4:middle"]),
    ("format-offset", &["listen", ":0", "--format", "fixed:4:offset=9"]),
    ("max-not-a-size", &["listen", ":0", "--max", "1Mb"]),
    ("max-zero", &["listen", ":0", "--max", "0"]),
    ("max-over-the-format", &["listen", ":0", "--max", "72057594037927936"]),
    ("time-without-unit", &["listen", ":0", "--idle-timeout", "30"]),
    ("time-zero", &["listen", ":0", "--write-timeout", "0s"]),
    ("reconnect-one-time", &["send", ":1", "--reconnect", "5s"]),
    ("unix-mode", &["listen", ":0", "--unix-mode", "999"]),
    ("runtime-unknown", &["listen", ":0", "--runtime", "glommio"]),
    ("address-without-port", &["listen", "localhost"]),
    ("address-taken-by-nobody", &["send", "127.0.0.1:1", "-m", "x"]),
    ("tls-without-certificate", &["listen", ":0", "--tls"]),
    ("tls-without-key", &["listen", ":0", "--tls-cert", "order.proto"]),
    ("tls-no-pem", &["listen", ":0", "--tls-cert", "order.proto", "--tls-key", "order.proto"]),
    ("tls-ca-missing", &["send", ":1", "--tls-ca", "nowhere.pem"]),
    ("tls-name", &["send", ":1", "--tls-name", "not a name"]),
    ("session-window", &["listen", ":0", "--session-window", "1KiB"]),
    ("session-ttl-none", &["send", ":1", "--session-ttl", "none"]),
    ("proto-without-type", &["listen", ":0", "--proto", "order.proto"]),
    ("proto-other-type", &["listen", ":0", "--proto", "order.proto", "--type", "Order"]),
    ("proto-wrong", &["listen", ":0", "--proto", "broken.proto", "--type", "Order"]),
    ("config-unknown-key", &["listen", ":0", "--config", "unknown-key.toml"]),
    ("config-wrong-value", &["listen", ":0", "--config", "wrong-value.toml"]),
    ("config-missing", &["listen", ":0", "--config", "nowhere.toml"]),
    ("repeat-standard-input", &["send", ":1", "--repeat", "2"]),
    ("rate-zero", &["send", ":1", "-m", "x", "--rate", "0"]),
    ("echo-and-exec", &["listen", ":0", "--echo", "--exec", "cat"]),
    ("inspect-no-source", &["inspect", "nowhere.bin"]),
    ("inspect-address", &["inspect", "127.0.0.1:1", "--dial"]),
    ("bench-size", &["bench", ":1", "--size", "7"]),
    ("bench-rate", &["bench", ":1", "--rate", "0"]),
    ("completions-shell", &["completions", "sh"]),
    ("man-command", &["man", "lisen"]),
    ("man-no-folder", &["man", "--out", "nowhere"]),
    ("proxy-cut-zero", &["proxy", ":0", ":1", "--cut-every", "0"]),
    ("proxy-two-cuts", &["proxy", ":0", ":1", "--cut-every", "1KiB", "--cut-after", "1KiB"]),
    ("record-without-file", &["record", ":0"]),
    ("record-no-folder", &["record", "127.0.0.1:0", "--out", "nowhere/file"]),
    ("relay-without-target", &["relay", ":0"]),
    ("relay-nobody", &["relay", ":0", "127.0.0.1:1"]),
    ("relay-tls-without-certificate", &["relay", ":0", "127.0.0.1:1", "--from-tls", "--keep-going"]),
    ("replay-no-recording", &["replay", "order.proto", ":1"]),
    ("replay-speed", &["replay", "order.proto", ":1", "--speed", "fast"]),
    ("reply-without-exec", &["listen", ":0", "--reply"]),
];

#[test]
fn wrong_invocations_are_told_what_to_change() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let write = std::env::var_os("BUFFSTREAMS_SNAPSHOTS").is_some_and(|what| what == "write");
    let mut different = String::new();
    for (name, args) in WRONG {
        let output = run(args);
        let code = output.status.code().map_or("by a signal".to_owned(), |code| code.to_string());
        let stderr = without_ports(&text(&output.stderr));
        let said = format!("$ buffstreams {}\n{}exit code: {code}\n", args.join(" "), stderr);
        let path = folder.join(format!("{name}.txt"));
        if write {
            fs::write(&path, &said).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if said != expected {
            writeln!(different, "-- {name}: expected\n{expected}-- said\n{said}").unwrap();
        }
        assert!(output.stdout.is_empty() && !output.status.success(), "{name}: {}", text(&output.stdout));
    }
    assert!(different.is_empty(), "{different}");
    let files = fs::read_dir(folder).unwrap().count();
    assert_eq!(files, WRONG.len(), "each file has an invocation");
}

#[test]
fn shells_complete_and_man_shows() {
    let folder = Folder::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = ok(&["completions", shell]).stdout;
        assert!(text(&script).contains("max-connections"), "{shell}");
        // The shells that are here find no fault with it.
        if shell == "bash" {
            let file = folder.file(shell, &script);
            let output = Command::new("bash").args(["-n", &file]).output().unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
    }
    let page = text(&ok(&["man"]).stdout);
    assert!(page.contains(".TH buffstreams 1") && page.contains("buffstreams\\-listen(1)"), "{page}");
    let page = text(&ok(&["man", "relay"]).stdout);
    assert!(page.contains(".TH buffstreams-relay 1") && page.contains("\\-\\-failover"), "{page}");
    ok(&["man", "--out", &folder.path("")]);
    assert_eq!(fs::read(folder.path("buffstreams-relay.1")).unwrap(), page.as_bytes());
    assert!(fs::exists(folder.path("buffstreams.1")).unwrap());
}

/// Without the lines in which the system's choice of a port is.
fn without_ports(said: &str) -> String {
    said.lines().filter(|line| !line.starts_with("listening on ")).map(|line| format!("{line}\n")).collect()
}
