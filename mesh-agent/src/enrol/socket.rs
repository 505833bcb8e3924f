//! Sockets of enrolment: SOCK_SEQPACKET over a path, driven by tokio's readiness. Our own is listened on, that of Istio's node agent connected to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, UnixCredentials, accept4, bind, connect, getsockopt, listen,
    socket, sockopt,
};
use tokio::io::unix::AsyncFd;

use crate::keeper::packet::{self, Packet};

/// Connections that may wait; clients are one or a few.
const BACKLOG: i32 = 128;

/// The listening side.
#[derive(Debug)]
pub struct SeqListener {
    fd: AsyncFd<OwnedFd>,
}

/// One connection.
#[derive(Debug)]
pub struct SeqConnection {
    fd: AsyncFd<OwnedFd>,
    /// Who is at the other end.
    pub peer: UnixCredentials,
}

impl SeqListener {
    /// Listens at `path` in place of what a dead agent left there. The caller holds the instance lock, so nobody else listens.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        // Before listen: nobody can have connected with the wider mode. The folder is closed to others anyway.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        // SAFETY: an OwnedFd keeps its number open until it is dropped, and nothing takes it out of the AsyncFd.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(SeqListener { fd })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<SeqConnection> {
        loop {
            let mut ready = self.fd.readable().await?;
            let accepted = ready.try_io(|fd| {
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                Ok(accept4(fd.as_raw_fd(), flags)?)
            });
            let Ok(accepted) = accepted else { continue };
            // SAFETY: accept4 returned a descriptor that nothing else owns.
            let fd = unsafe { OwnedFd::from_raw_fd(accepted?) };
            let peer = getsockopt(&fd, sockopt::PeerCredentials)?;
            // SAFETY: an OwnedFd keeps its number open until it is dropped, and nothing takes it out of the AsyncFd.
            let fd = unsafe { AsyncFd::register(fd) }?;
            return Ok(SeqConnection { fd, peer });
        }
    }
}

impl SeqConnection {
    /// Connects to whoever listens at `path`; fails at once if nobody does, or too many wait there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        let peer = getsockopt(&fd, sockopt::PeerCredentials)?;
        // SAFETY: an OwnedFd keeps its number open until it is dropped, and nothing takes it out of the AsyncFd.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(SeqConnection { fd, peer })
    }

    /// The next packet; `None` when the client has closed. Cancel safe.
    pub async fn receive(&self) -> io::Result<Option<Packet>> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(received) = ready.try_io(|fd| packet::receive(fd.get_ref().as_fd())) {
                return match received {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
                    received => received,
                };
            }
        }
    }

    /// Sends one packet.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            let mut ready = self.fd.writable().await?;
            if let Ok(sent) = ready.try_io(|fd| packet::send(fd.get_ref().as_fd(), bytes, &[])) {
                return sent;
            }
        }
    }
}
