//! The buffers of all sockets of this process, whatever library has made them.

use std::fs;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, getsockname, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::Result;

/// Has the kernel keep so many bytes for each TCP socket of this process, each way. A library has the descriptor for itself,
/// so another one of the same socket is asked for.
pub(crate) fn set_buffers(bytes: usize) -> Result<()> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let is_socket = fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(number) = number.filter(|_| is_socket) else { continue };
        let socket = pidfd_getfd(&this, number, PidfdGetfdFlags::empty())?;
        if [AddressFamily::INET, AddressFamily::INET6].contains(&getsockname(&socket)?.address_family()) {
            set(socket, bytes)?;
        }
    }
    Ok(())
}

/// Past the limit of the system, if this process may do that; else it has to be below the limit, or it would be cut in silence.
fn set(socket: impl AsFd, bytes: usize) -> Result<()> {
    if sockopt::set_socket_send_buffer_size_force(&socket, bytes).is_err() {
        sockopt::set_socket_send_buffer_size(&socket, bytes)?;
    }
    if sockopt::set_socket_recv_buffer_size_force(&socket, bytes).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
    }
    // The kernel doubles what it is told, for its own bookkeeping.
    let (send, receive) = (sockopt::socket_send_buffer_size(&socket)?, sockopt::socket_recv_buffer_size(&socket)?);
    if send.min(receive) < bytes {
        return Err(format!("the limit is {} bytes: see net.core.wmem_max and rmem_max", send.min(receive)).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustix::net::sockopt;

    #[test]
    fn a_socket_has_the_buffers_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        super::set_buffers(100_000).unwrap();
        assert_eq!(sockopt::socket_send_buffer_size(&listener).unwrap(), 200_000);
        assert_eq!(sockopt::socket_recv_buffer_size(&listener).unwrap(), 200_000);
        let error = super::set(&listener, 1 << 33).unwrap_err();
        assert!(!error.to_string().is_empty());
    }
}
