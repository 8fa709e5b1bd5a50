//! The example `tokio_client`, as a process of its own: its server comes late, dies in the middle, and comes back.

use std::collections::BTreeSet;
use std::process::Stdio;

use buffstreams::{Bytes, Config, Listener, Peer, Session};
use futures::StreamExt;

use crate::net::{SOON, example, run, within};
use crate::processes::{Ends, printed};

const MESSAGES: usize = 1000;

fn config() -> Config {
    Config::new().session(Session::new())
}

/// An address at which nobody is.
async fn place() -> String {
    Listener::bind("127.0.0.1:0", config()).await.unwrap().local_addr().to_string()
}

fn start(arguments: &[&str]) -> Ends {
    Ends(example("tokio_client").args(arguments).stdout(Stdio::piped()).spawn().unwrap())
}

/// The numbers in the last line that it prints: acknowledged, sent again and given up.
async fn report(child: Ends) -> [usize; 3] {
    let printed = printed(child).await;
    let numbers = printed.lines().last().unwrap().split(' ').filter_map(|word| word.parse().ok());
    numbers.collect::<Vec<_>>().try_into().unwrap()
}

fn number((_, message): (Peer, Bytes)) -> u32 {
    str::from_utf8(&message).unwrap().strip_prefix("message ").unwrap().parse().unwrap()
}

#[test]
fn the_example_on_tokio_loses_nothing_to_a_server_that_comes_late_dies_and_comes_back() {
    run(async {
        let address = place().await;
        let child = start(&[&address, &MESSAGES.to_string()]);
        let mut received = Vec::new();
        for dies_after in [MESSAGES / 3, 1, MESSAGES / 10] {
            let server = Listener::bind(&*address, config()).await.unwrap();
            received.extend(within(SOON, server.take(dies_after).map(number).collect::<Vec<_>>()).await);
        }
        let server = Listener::bind(&*address, config()).await.unwrap();
        let mut rest = server.map(number).take_until(Box::pin(report(child)));
        received.extend(rest.by_ref().collect::<Vec<_>>().await);
        let [acknowledged, again, given_up] = rest.take_result().unwrap();
        assert_eq!((acknowledged, given_up), (MESSAGES, 0));
        // What was with a server that died came back as in doubt: at least the message behind which it has asked for no more.
        assert!(again >= 3, "{again}");
        let twice = received.len() - MESSAGES;
        assert!(twice <= again, "{twice} came twice, and {again} were sent again");
        assert!(received.into_iter().collect::<BTreeSet<_>>().into_iter().eq(0..MESSAGES as u32));
    });
}

#[test]
fn the_example_on_tokio_gives_up_where_nobody_comes() {
    run(async {
        let child = start(&[&place().await, "10", "1"]);
        assert_eq!(report(child).await, [0, 0, 10]);
    });
}
