//! The example `collector`, as a process of its own: it comes later than its senders, is killed, comes back, and is told to end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_std::task::spawn;
use buffstreams::typed::Prost;
use buffstreams::{Address, Backoff, Config, Listener, Manager, ManagerEvent, Outcome, Session};
use futures::future::ready;
use futures::{SinkExt, StreamExt};
use prost::Message;

use crate::net::{SOON, example, run, signal, until, within};
use crate::processes::{Ends, printed};

const SENSORS: [&str; 3] = ["roof", "cellar", "yard"];
/// How many readings each of them has sent when the collector comes, is killed, has come back, and is told to end.
const STEPS: [u64; 4] = [100, 200, 300, 400];

#[derive(Clone, PartialEq, Message)]
struct Reading {
    #[prost(string, tag = "1")]
    sensor: String,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(double, tag = "3")]
    celsius: f64,
}

/// Which reading it is.
type Name = (String, u64);

fn config() -> Config {
    let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_millis(100));
    Config::new().session(Session::new()).reconnect(backoff)
}

fn start(address: &Address, file: &Path) -> Ends {
    Ends(example("collector").arg(address.as_str()).arg(file).stdout(Stdio::piped()).spawn().unwrap())
}

fn stored(file: &Path) -> Vec<Name> {
    let lines = fs::read_to_string(file).unwrap_or_default();
    // What is read while it is written may end inside a line.
    let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let fields = whole.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.map(|fields| (fields[0].to_owned(), fields[1].parse().unwrap())).collect()
}

/// Each sensor has a manager, and so a session.
struct Sensors {
    address: Address,
    managers: Vec<Manager>,
    sent: u64,
}

impl Sensors {
    /// They send so many readings in all, and do not wait for the collector.
    async fn send(&mut self, up_to: u64) {
        for (manager, sensor) in self.managers.iter().zip(SENSORS) {
            let mut sink = manager.sink().typed(Prost::<Reading>::new());
            for number in self.sent..up_to {
                let reading = Reading { sensor: sensor.to_owned(), number, celsius: 0.5 };
                sink.feed((self.address.clone(), reading)).await.unwrap();
            }
        }
        self.sent = up_to;
    }
}

#[test]
fn the_collector_has_what_was_acknowledged_though_it_comes_late_is_killed_and_is_told_to_end() {
    run(async {
        let place = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let address = Address::from(place.local_addr());
        drop(place);
        let file: PathBuf = std::env::temp_dir().join(format!("collector-{}.readings", std::process::id()));
        let managers: Vec<Manager> = SENSORS.iter().map(|_| Manager::new(config())).collect();
        // What came back, and whether it is in doubt.
        let letters = managers.iter().map(|manager| {
            let letters = manager.dead_letters().map(|letter| {
                let Reading { sensor, number, .. } = Reading::decode(letter.message).unwrap();
                ((sensor, number), letter.outcome == Outcome::InDoubt)
            });
            spawn(letters.collect::<BTreeMap<Name, bool>>())
        });
        let letters: Vec<_> = letters.collect();
        let mut events: Vec<_> = managers.iter().map(Manager::events).collect();
        for manager in &managers {
            manager.open(&address).unwrap();
        }
        let mut sensors = Sensors { address: address.clone(), managers, sent: 0 };
        sensors.send(STEPS[0]).await;

        let first = start(&address, &file);
        let early = SENSORS.len() * STEPS[0] as usize;
        until(SOON, || stored(&file).len() == early);
        sensors.send(STEPS[1]).await;
        until(SOON, || stored(&file).len() > early);
        drop(first); // By SIGKILL.
        // What is sent before its end is noticed would be in doubt as well.
        for events in &mut events {
            within(SOON, events.any(|event| ready(matches!(event, ManagerEvent::Broken { .. })))).await;
        }
        let before = stored(&file).len();
        sensors.send(STEPS[2]).await;

        let second = start(&address, &file);
        // The last of each has come, whatever was in doubt before.
        until(SOON, || {
            let stored: BTreeSet<Name> = stored(&file).into_iter().collect();
            SENSORS.iter().all(|sensor| stored.contains(&((*sensor).to_owned(), STEPS[2] - 1)))
        });
        // Told to end while there is more to come.
        sensors.send(STEPS[3]).await;
        signal(&second.0, "TERM");
        let printed = printed(second).await;

        let acknowledged = sensors.managers.iter().map(|manager| manager.stats().total.acked).sum::<u64>();
        for manager in &sensors.managers {
            within(SOON, manager.shutdown(Duration::from_millis(100))).await;
        }
        drop(sensors);
        let mut came_back = BTreeMap::new();
        for letters in letters {
            came_back.extend(within(SOON, letters).await);
        }
        let in_file = stored(&file);
        fs::remove_file(&file).unwrap();
        assert_eq!(printed, format!("{} readings stored\n", in_file.len() - before));

        // Each has one end.
        let once: BTreeSet<Name> = in_file.iter().cloned().collect();
        assert_eq!(once.len(), in_file.len(), "none is there twice");
        for sensor in SENSORS {
            for number in 0..STEPS[3] {
                let name = (sensor.to_owned(), number);
                match came_back.get(&name) {
                    None => assert!(once.contains(&name), "{name:?} was acknowledged, and is not there"),
                    // In doubt is what the one had that was killed, and nothing of the one that was told to end.
                    Some(true) => assert!(number < STEPS[1], "{name:?} is in doubt"),
                    Some(false) => assert!(!once.contains(&name), "{name:?} came back, and is there"),
                }
            }
        }
        assert_eq!(acknowledged as usize + came_back.len(), SENSORS.len() * STEPS[3] as usize);
    });
}
