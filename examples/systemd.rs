//! Answers on the sockets that the program was started with, as by systemd's socket activation: those of `LISTEN_FDS`.
//!
//! To try it: `systemd-socket-activate -l 127.0.0.1:5031 -l /tmp/app.sock target/debug/examples/systemd`.
#![allow(clippy::print_stdout)] // To print is what it is for.

use buffstreams::BoxError;

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    activated::main().await
}

#[cfg(unix)]
pub(crate) mod activated {
    use std::env;
    use std::os::fd::{FromRawFd, OwnedFd};

    use buffstreams::{BoxError, Config, Error, Listener};
    use futures::StreamExt;
    use futures::future::try_join_all;

    /// The first descriptor behind standard input, output and error.
    const FIRST: i32 = 3;

    pub(crate) async fn main() -> Result<(), BoxError> {
        let sockets = take()?;
        if sockets.is_empty() {
            println!("no sockets were handed over: LISTEN_PID and LISTEN_FDS are not of this process");
            return Ok(());
        }
        try_join_all(sockets.into_iter().map(answer)).await?;
        Ok(())
    }

    /// Sends each message back.
    async fn answer(socket: OwnedFd) -> Result<(), Error> {
        let listener = Listener::from_std(socket, Config::new())?;
        println!("listening on {}", listener.local_addr());
        let (incoming, outgoing) = listener.split();
        incoming.map(Ok).forward(outgoing).await
    }

    /// The sockets that this process was started with. To be called once, and before anything else is opened.
    fn take() -> Result<Vec<OwnedFd>, BoxError> {
        let number = |name| env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
        // What is meant for a parent of this process is not for it.
        if number("LISTEN_PID") != Some(std::process::id()) {
            return Ok(Vec::new());
        }
        let count = number("LISTEN_FDS").unwrap_or(0) as i32;
        let take = |descriptor| {
            // A number is all that the protocol gives, and to make a descriptor of a number is unsafe.
            #[allow(unsafe_code)]
            // SAFETY: the supervisor that started this process opened it for it, and nothing else here has it.
            let given = unsafe { OwnedFd::from_raw_fd(descriptor) };
            // A copy is not handed down to the processes that this one starts.
            Ok(given.try_clone()?)
        };
        (FIRST..FIRST + count).map(take).collect()
    }
}

#[cfg(not(unix))]
mod activated {
    pub(crate) async fn main() -> Result<(), buffstreams::BoxError> {
        println!("there is no systemd on this system");
        Ok(())
    }
}
