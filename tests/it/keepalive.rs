//! What the kernel was asked to do for a silent connection, as its own table of sockets tells.

use std::net::SocketAddr;
use std::time::Duration;

use buffstreams::Connection;

use crate::peers::{Site, config, run};

/// The longest silence that Linux accepts.
const LONGEST: Duration = Duration::from_secs(32_767);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// After how much more silence the kernel will ask, of the dialed connection; `None` if it will not.
fn asks_in(connection: &Connection) -> Option<Duration> {
    let port = |addr: SocketAddr| format!(":{:04X}", addr.port());
    let ends = [connection.local_addr(), connection.peer_addr()].map(|addr| port(addr.unwrap()));
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    // Number, own address, the other's, state, queues, and the timer: 02 is keepalive, then when, in hundredths.
    let mut fields = table.lines().map(|line| line.split_whitespace().take(6).collect::<Vec<_>>());
    let is_it = |fields: &Vec<&str>| fields[1].ends_with(&ends[0]) && fields[2].ends_with(&ends[1]);
    let timer = fields.find(is_it).expect("it is open")[5];
    let hundredths = u64::from_str_radix(timer.strip_prefix("02:")?, 16).unwrap();
    Some(Duration::from_millis(10 * hundredths))
}

#[test]
fn a_silence_is_what_was_asked_for_and_at_most_the_longest_that_the_system_knows() {
    run(async {
        let site = Site::new();
        let asked = [(Duration::from_secs(60), Duration::from_secs(60)), (DAY, LONGEST)];
        for (keepalive, expected) in asked {
            let connection = Connection::dial(site.addr, config().keepalive(keepalive)).await.unwrap();
            let left = asks_in(&connection).expect("it has the timer");
            assert!(left <= expected && left > expected - Duration::from_secs(30), "{left:?} for {keepalive:?}");
        }
        let connection = Connection::dial(site.addr, config().keepalive(None)).await.unwrap();
        assert_eq!(asks_in(&connection), None);
    });
}
