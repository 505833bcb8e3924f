//! What tests do with sockets: each call with a deadline, each result as the test wants to compare it.

use std::{io, mem::MaybeUninit, net::SocketAddr, os::fd::AsRawFd};

use socket2::{SockAddr, Socket};

use super::WAIT;

/// Accepts with a deadline.
pub fn accept(listener: &Socket) -> (Socket, SocketAddr) {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let ready = unsafe { libc::poll(&raw mut poll, 1, WAIT.as_millis() as i32) };
    assert_eq!(ready, 1, "nobody connected within {WAIT:?}");
    let (socket, peer) = listener.accept().unwrap();
    (socket, peer.as_socket().unwrap())
}

/// True if somebody waits to be accepted or read, without waiting for it.
pub fn is_ready(socket: &Socket) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

pub fn local(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

pub fn peer(socket: &Socket) -> SocketAddr {
    socket.peer_addr().unwrap().as_socket().unwrap()
}

pub fn connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    socket.connect_timeout(&SockAddr::from(to), WAIT)
}

pub fn errno(result: io::Result<()>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

/// Forgets the peer, as connect with AF_UNSPEC does.
pub fn disconnect(socket: &Socket) {
    let nobody: libc::sockaddr = unsafe { MaybeUninit::zeroed().assume_init() };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    assert_eq!(unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) }, 0);
}

/// Sends a byte each way.
pub fn ping(a: &Socket, b: &Socket) {
    for (from, to) in [(a, b), (b, a)] {
        from.send(b"x").unwrap();
        let mut byte = [MaybeUninit::uninit(); 1];
        assert_eq!(to.recv(&mut byte).unwrap(), 1);
    }
}
