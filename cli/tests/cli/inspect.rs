//! `inspect`: captures, shown and guessed.

use std::io::Write;
use std::net::TcpStream;

use crate::program::{Folder, Running, ok, run, run_with, text};

/// Messages behind big-endian lengths of so many bytes.
fn capture(width: usize) -> Vec<u8> {
    let messages = (0..60).map(|number| format!("message {number} {}", "-".repeat(number * 3)));
    let frame = |message: String| [&(message.len() as u64).to_be_bytes()[8 - width..], message.as_bytes()].concat();
    messages.flat_map(frame).collect()
}

#[test]
fn messages_are_shown_with_their_places() {
    let folder = Folder::new();
    let output = ok(&["inspect", &folder.file("capture", b"\x0a\0\0hello\0\0\0\x04\0\0\x08\x07")]);
    let shown = "message     offset      bytes\n\
        \x20     1          0          5\n    0000  68 65 6c 6c 6f                                   hello\n\
        \x20     2          8          0\n\
        \x20     3         11          2\n    0000  08 07                                            ..\n\
        3 messages, 7 bytes\n";
    assert_eq!(text(&output.stdout), shown);
    let proto = ["inspect", "-", "--proto", "order.proto", "--type", "example.Order", "--count", "1"];
    let output = run_with(&proto, b"\x04\0\0\x08\x07and what comes behind");
    assert!(text(&output.stdout).contains("\n    {\"id\":\"7\"}\n1 messages, 2 bytes\n"), "{}", text(&output.stdout));
}

#[test]
fn where_it_goes_wrong_the_option_is_named() {
    let folder = Folder::new();
    let output = run(&["inspect", &folder.file("capture", capture(2))]);
    assert_eq!(output.status.code(), Some(4));
    assert!(
        text(&output.stderr).ends_with("\n hint: looks like u16_be: try --format u16_be\n"),
        "{}",
        text(&output.stderr)
    );
    assert!(text(&output.stdout).contains("  wrong: "), "{}", text(&output.stdout));
    let whole = capture(4);
    let output = run_with(&["inspect", "-", "--format", "u32_be", "--dump", "0"], &whole[..whole.len() - 1]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).starts_with("error: it ends inside a message, "), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("\n59 messages, 5772 bytes\n"), "{}", text(&output.stdout));
}

#[test]
fn a_format_is_named_or_it_is_not_sure() {
    let output = run_with(&["inspect", "-", "--guess"], &capture(3));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("\nit is u24_be: --format u24_be\n"), "{}", text(&output.stdout));
    let output = run_with(&["inspect", "-", "--guess"], b"\0\x05hello");
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).starts_with("error: not sure, of 7 bytes\n hint: the likeliest: "));
}

#[test]
fn a_connection_is_inspected_as_well() {
    let running = Running::start(&["inspect", "127.0.0.1:0", "--guess"]);
    TcpStream::connect(&running.address).unwrap().write_all(&capture(8)).unwrap();
    assert!(text(&running.end().stdout).ends_with("\nit is u64_be: --format u64_be\n"));
}
