//! What a connection costs a listener of sessions that it lets not in: next to no memory, whatever the other end says.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use buffstreams::{Listener, Session};
use futures::AsyncReadExt;

use crate::counting;
use crate::net::{SOON, alone, defaults, raw, run, start};
use crate::sessions_hostile::{config, greet, hello};

/// How many connections are made before the count, so that pools and tables have what they keep, and how many are counted.
const CONNECTIONS: [usize; 2] = [200, 500];

/// How many bytes the process asks for, for each connection that is made so, freed since or not. The client's end asks for none.
fn cost(addr: SocketAddr, mut connect: impl FnMut(TcpStream)) -> usize {
    let mut count = |connections| {
        let before = counting::all().allocated;
        (0..connections).for_each(|_| connect(TcpStream::connect(addr).unwrap()));
        (counting::all().allocated - before) / connections
    };
    CONNECTIONS.map(&mut count)[1]
}

/// Says this, and hears the other end out.
fn say(mut stream: TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    hear(stream);
}

fn hear(mut stream: TcpStream) {
    while matches!(stream.read(&mut [0; 256]), Ok(1..)) {}
}

fn end(stream: TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
    hear(stream);
}

/// An accept loop on the runtime of the tests, with a task for each connection that reads once, if that takes not too long, and
/// closes.
async fn accepting() -> SocketAddr {
    let listener = async_std::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    async_std::task::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            async_std::task::spawn(async move {
                let mut bytes = [0; 88];
                let _ = async_std::future::timeout(SOON, stream.read(&mut bytes)).await;
            });
        }
    });
    addr
}

/// What is held against each: a task that reads once and closes, with 2 KiB beside it, and a plain peer that comes and goes. The
/// socket and the task are the runtime's, and in both.
#[test]
fn who_is_not_let_in_costs_less_than_a_plain_peer() {
    alone("sessions_rejected::who_is_not_let_in_costs_less_than_a_plain_peer", "", || {
        run(async {
            let task = cost(accepting().await, |stream| say(stream, b"anything"));
            let mut plain = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
            start(&mut plain);
            let plain = cost(plain.local_addr().ip().unwrap(), end);
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            start(&mut listener);
            let addr = listener.local_addr().ip().unwrap();
            let mut full =
                Listener::bind("127.0.0.1:0", config().session(Session::new().max_sessions(1))).await.unwrap();
            start(&mut full);
            let busy = full.local_addr().ip().unwrap();
            let (mut one, mut other) = (raw(addr), raw(busy));
            assert_eq!((greet(&mut one, &hello(1, &[])), greet(&mut other, &hello(1, &[]))), (0, 0));
            let hellos = [
                ("a stranger", addr, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
                ("a stranger at the last byte", addr, [&hello(2, &[])[..11], b"x"].concat()),
                ("another version", addr, hello(2, &[(12, &[9])])),
                ("a reserved byte", addr, hello(2, &[(15, &[1])])),
                ("a limit that cannot be", addr, hello(2, &[(36, &[0; 4])])),
                ("a limit that does not fit", addr, hello(2, &[(36, &[0, 0, 0, 9])])),
                ("a position", addr, hello(2, &[(63, &[1])])),
                ("a byte too many", addr, [&hello(2, &[])[..], b"x"].concat()),
                ("no such session", addr, hello(2, &[(13, &[1])])),
                ("an epoch that was there", addr, hello(1, &[(13, &[1])])),
                ("a session that is there", addr, hello(1, &[(35, &[2])])),
                ("no room", busy, hello(2, &[])),
            ];
            let mut costs: Vec<_> = hellos
                .into_iter()
                .map(|(what, addr, bytes)| (what, cost(addr, |stream| say(stream, &bytes))))
                .collect();
            costs.push(("nothing", cost(addr, end)));
            for (what, cost) in costs {
                assert!(cost <= task + 2048 && cost <= plain, "{what}: {cost}, a task {task}, a plain peer {plain}");
            }
            // Two that are let in: one ends its session, and one announces the longest message that there is.
            let (mut hello, mut number) = (hello(3, &[]), 0u64);
            let mut ended_by = |frame: &[u8]| {
                cost(addr, |mut stream| {
                    number += 1;
                    hello[16..24].copy_from_slice(&number.to_be_bytes());
                    assert_eq!(greet(&mut stream, &hello), 0);
                    say(stream, frame);
                })
            };
            let (in_order, too_large) = (ended_by(&[0x80, 0, 0, 3, 6, 0, 1]), ended_by(&[0x7f, 0xff, 0xff, 0xff]));
            assert!(too_large <= in_order + 1024, "{too_large}, and in order {in_order}");
        });
    });
}
