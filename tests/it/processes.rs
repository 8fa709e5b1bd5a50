//! Processes that a test starts, and ends.

use std::io;
use std::process::Child;

use crate::net::{SOON, within};

/// A process that ends with the test, if that fails before.
pub(crate) struct Ends(pub(crate) Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What it has printed when it has ended.
pub(crate) async fn printed(mut child: Ends) -> String {
    let ended = async_std::task::spawn_blocking(move || {
        let printed = io::read_to_string(child.0.stdout.take().unwrap()).unwrap();
        (printed, child.0.wait().unwrap())
    });
    let (printed, status) = within(SOON, ended).await;
    assert!(status.success(), "{status}: {printed}");
    printed
}
