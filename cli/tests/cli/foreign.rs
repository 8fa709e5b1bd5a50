//! Other programs at the other end: those that know nothing of this library.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use crate::program::{Running, good, ok, text, with_input};

/// A program of the system, or `None`, with a line that says so. In CI it must be there.
pub(crate) fn find(name: &str) -> Option<Command> {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap().status.success();
    must_be(name, found).then(|| Command::new(name))
}

/// Python with its own library of Protocol Buffers, in the same way.
fn find_protobuf() -> Option<Command> {
    let mut python = find("python3")?;
    let found = python.args(["-c", "import google.protobuf"]).output().unwrap().status.success();
    must_be("the module protobuf of Python", found).then(|| Command::new("python3"))
}

fn must_be(what: &str, found: bool) -> bool {
    if !found {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{what} is not installed, and CI must have it");
        println!("left out: {what} is not installed");
    }
    found
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
    let mut child = receiver.stdout(Stdio::piped()).spawn().unwrap();
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

/// Protocol Buffers by the encoding's own guide, with the length that `writeDelimitedTo` writes.
#[test]
fn python_sends_protocol_buffers_by_hand() {
    let Some(mut python) = find("python3") else { return };
    // Field 1, a varint of 150; field 2, a text; field 3, packed.
    let script = r#"
import socket, sys
message = bytes([0x08, 0x96, 0x01]) + bytes([0x12, 3]) + b"hat" + bytes([0x1a, 2, 41, 42])
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as peer:
    peer.sendall(bytes([len(message)]) + message)
"#;
    let listening = Running::start(&[&["listen", "127.0.0.1:0", "--count", "1"], &PROTO[..]].concat());
    let port = listening.address.rsplit(':').next().unwrap();
    good(with_input(python.args(["-c", script, port]), b""), &[]);
    assert_eq!(text(&listening.end().stdout), "{\"id\":\"150\",\"item\":\"hat\",\"sizes\":[41,42]}\n");
}

const PROTO: [&str; 6] = ["--proto", "order.proto", "--type", "example.Order", "--format", "varint"];

/// Python's library of Protocol Buffers: reads a stream of them, and writes each to another address with its id doubled.
const PROTOBUF: &str = r#"
import socket, sys
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.decoder import _DecodeVarint32
from google.protobuf.internal.encoder import _VarintBytes
file = descriptor_pb2.FileDescriptorProto(name="order.proto", package="example", syntax="proto3")
order = file.message_type.add(name="Order")
for number, (name, kind, label) in enumerate([("id", 4, 1), ("item", 9, 1), ("sizes", 13, 3)], 1):
    order.field.add(name=name, number=number, type=kind, label=label)
pool = descriptor_pool.DescriptorPool()
pool.Add(file)
Order = message_factory.GetMessageClass(pool.FindMessageTypeByName("example.Order"))
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
peer, _ = server.accept()
other = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
held = b""
while True:
    data = peer.recv(65536)
    if not data: break
    held += data
    while held and (held[0] < 0x80 or len(held) > 1):
        length, begin = _DecodeVarint32(held, 0)
        if len(held) < begin + length: break
        order = Order.FromString(held[begin:begin + length])
        held = held[begin + length:]
        order.id *= 2
        reply = order.SerializeToString()
        other.sendall(_VarintBytes(len(reply)) + reply)
"#;

#[test]
fn protocol_buffers_of_python_are_the_same() {
    let Some(mut python) = find_protobuf() else { return };
    let line = |id: u64, order: u64| {
        let sizes: Vec<_> = (0..=order % 100).map(|size| size.to_string()).collect();
        format!("{{\"id\":\"{id}\",\"item\":\"{}\",\"sizes\":[{}]}}\n", "é".repeat(order as usize), sizes.join(","))
    };
    let orders = |by: u64| (1..=150).map(|order| line(by * order, order)).collect::<String>();
    let listening = Running::start(&[&["listen", "127.0.0.1:0", "--count", "150"], &PROTO[..]].concat());
    let port = listening.address.rsplit(':').next().unwrap();
    let (mut child, address) = serving(python.args(["-c", PROTOBUF, port]));
    let folder = crate::program::Folder::new();
    let file = folder.file("orders", orders(1));
    ok(&[&["send", &address, &file], &PROTO[..]].concat());
    let output = listening.end();
    assert!(child.wait().unwrap().success());
    assert_eq!(text(&output.stdout).lines().last(), orders(2).lines().last());
    assert!(text(&output.stdout) == orders(2));
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

/// Starts a program that prints the port at which it serves.
fn serving(server: &mut Command) -> (Child, String) {
    let mut child = server.stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
    (child, format!("127.0.0.1:{}", port.trim()))
}

fn echoes(peer: &mut Command) {
    let (mut child, address) = serving(peer);
    let folder = crate::program::Folder::new();
    let file = folder.file("lines", lines());
    let output = ok(&["send", &address, "--format", "u32_be", "--replies", "200", &file]);
    assert_eq!(text(&output.stdout), lines());
    assert!(child.wait().unwrap().success());
}
