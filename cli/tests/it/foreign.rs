//! Other programs at the other end: those that know nothing of this library.

use std::process::Command;

use crate::program::{Running, good, ok, text, with_input};

/// A program of the system, or `None`, with a line that says so. In CI it must be there.
fn find(name: &str) -> Option<Command> {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap().status.success();
    if !found {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{name} is not installed, and CI must have it");
        println!("left out: {name} is not installed");
    }
    found.then(|| Command::new(name))
}

/// Fixed lengths by `struct`, and varints by hand: sends messages, or receives and prints them.
const PYTHON: &str = r#"
import socket, struct, sys
kind, role, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
FIXED = {"u8": ">B", "u16_be": ">H", "u16_le": "<H", "u32_be": ">I", "u32_le": "<I", "u64_be": ">Q"}
def zigzag(n): return n << 1
def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7f | 0x80)
        n >>= 7
    return bytes(out + bytes([n]))
def head(n):
    if kind == "varint": return varint(n)
    if kind == "buffstreams": return varint(zigzag(n)).ljust(3, b"\0")
    if kind == "u24_be": return struct.pack(">I", n)[1:]
    return struct.pack(FIXED[kind], n)
def read_varint(data):
    value = shift = 0
    while True:
        byte = data.read(1)
        if not byte: return None
        value |= (byte[0] & 0x7f) << shift
        shift += 7
        if byte[0] < 0x80: return value
def read_head(data):
    if kind == "varint": return read_varint(data)
    width = 3 if kind in ("buffstreams", "u24_be") else struct.calcsize(FIXED[kind])
    header = data.read(width)
    if not header: return None
    if kind == "buffstreams":
        import io
        return read_varint(io.BytesIO(header)) >> 1
    if kind == "u24_be": return struct.unpack(">I", b"\0" + header)[0]
    return struct.unpack(FIXED[kind], header)[0]
if role == "send":
    with socket.create_connection(("127.0.0.1", port)) as peer:
        for line in sys.stdin.buffer:
            line = line.rstrip(b"\n")
            peer.sendall(head(len(line)) + line)
else:
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    peer, _ = server.accept()
    data = peer.makefile("rb")
    while (length := read_head(data)) is not None:
        sys.stdout.buffer.write(data.read(length) + b"\n")
"#;

const FORMATS: [&str; 9] = ["u8", "u16_be", "u16_le", "u24_be", "u32_be", "u32_le", "u64_be", "varint", "buffstreams"];

fn lines() -> String {
    (0..200).map(|line| format!("{line} {}\n", "y".repeat(line * 13 % 240))).collect()
}

#[test]
fn python_sends() {
    for format in FORMATS {
        let Some(mut python) = find("python3") else { return };
        let listening = Running::start(&["listen", "127.0.0.1:0", "--format", format, "--count", "200"]);
        let port = listening.address.rsplit(':').next().unwrap();
        good(with_input(python.args(["-c", PYTHON, format, "send", port]), lines().as_bytes()), &[format]);
        assert_eq!(text(&listening.end().stdout), lines(), "{format}");
    }
}

/// Starts a program that prints its port and then what it receives, and sends the lines to it.
fn send_to(mut receiver: Command, format: &str) {
    use std::io::{BufRead, BufReader, Read};
    let mut child = receiver.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut printed = BufReader::new(child.stdout.take().unwrap());
    let mut port = String::new();
    printed.read_line(&mut port).unwrap();
    let folder = crate::program::Folder::new();
    let file = folder.file("lines", lines());
    ok(&["send", &format!("127.0.0.1:{}", port.trim()), "--format", format, &file]);
    let mut received = String::new();
    printed.read_to_string(&mut received).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(received, lines(), "{format}");
}

#[test]
fn python_receives() {
    for format in FORMATS {
        let Some(mut python) = find("python3") else { return };
        python.args(["-c", PYTHON, format, "receive", "0"]);
        send_to(python, format);
    }
}

/// Protocol Buffers as Python's own library has them, sent with a length by hand.
#[test]
fn python_sends_protocol_buffers() {
    let Some(mut python) = find("python3") else { return };
    // Field 1, a varint of 150; field 2, a text; field 3, packed: by hand, as the guide to the encoding has them.
    let script = r#"
import socket, sys
message = bytes([0x08, 0x96, 0x01]) + bytes([0x12, 3]) + b"hat" + bytes([0x1a, 2, 41, 42])
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as peer:
    peer.sendall(bytes([len(message)]) + message)
"#;
    let proto = ["--proto", "order.proto", "--type", "example.Order", "--format", "varint", "--count", "1"];
    let listening = Running::start(&[&["listen", "127.0.0.1:0"], &proto[..]].concat());
    let port = listening.address.rsplit(':').next().unwrap();
    good(with_input(python.args(["-c", script, port]), b""), &[]);
    assert_eq!(text(&listening.end().stdout), "{\"id\":\"150\",\"item\":\"hat\",\"sizes\":[41,42]}\n");
}

/// Node reads and writes `u32_be`: an echo.
#[test]
fn node_echoes() {
    let Some(mut node) = find("node") else { return };
    let script = r#"
const server = require("net").createServer(peer => {
  let held = Buffer.alloc(0);
  peer.on("data", data => {
    held = Buffer.concat([held, data]);
    while (held.length >= 4 && held.length >= 4 + held.readUInt32BE(0)) {
      const end = 4 + held.readUInt32BE(0);
      peer.write(held.subarray(0, end));
      held = held.subarray(end);
    }
  });
  peer.on("end", () => { peer.end(); server.close(); });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"#;
    echoes(node.args(["-e", script]));
}

/// Erlang does so by itself, with `{packet, 4}`.
#[test]
fn erlang_echoes() {
    let Some(mut erlang) = find("erl") else { return };
    let script = r#"
{ok, L} = gen_tcp:listen(0, [binary, {packet, 4}, {active, false}, {ip, {127,0,0,1}}]),
{ok, Port} = inet:port(L), io:format("~p~n", [Port]),
{ok, S} = gen_tcp:accept(L),
Loop = fun Loop() -> case gen_tcp:recv(S, 0) of {ok, M} -> ok = gen_tcp:send(S, M), Loop(); {error, closed} -> ok end end,
Loop(), halt()."#;
    echoes(erlang.args(["-noshell", "-eval", script]));
}

fn echoes(peer: &mut Command) {
    use std::io::{BufRead, BufReader};
    let mut child = peer.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let folder = crate::program::Folder::new();
    let file = folder.file("lines", lines());
    let address = format!("127.0.0.1:{}", port.trim());
    let output = ok(&["send", &address, "--format", "u32_be", "--replies", "200", &file]);
    assert_eq!(text(&output.stdout), lines());
    assert!(child.wait().unwrap().success());
}
