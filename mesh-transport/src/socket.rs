//! Options and errors of TCP sockets, what the kernel knows of them (`info`), and non-blocking reads and writes that tell the reactor as much as they learn.

mod info;

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use mesh_runtime::fds;
use nix::sys::socket::{getsockopt, sockopt};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub use self::info::TcpInfo;

/// First pause after an accept that failed for lack of something; it doubles up to [`ACCEPT_PAUSE_MAX`].
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_millis(100);

/// What an error of `accept` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptFailure {
    /// That one connection is gone; the next accept may work at once.
    Connection,
    /// Descriptors, memory or buffers are used up; trying again at once would spin.
    Exhausted,
    /// The listener itself is unusable.
    Listener,
}

/// Classifies an error of `accept` (accept(2) passes on pending network errors of the new connection).
pub fn accept_failure(error: &io::Error) -> AcceptFailure {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => AcceptFailure::Exhausted,
        Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT) => AcceptFailure::Listener,
        _ => AcceptFailure::Connection,
    }
}

/// Accepts for ever: errors of one connection are skipped, exhaustion backs off, so that the loop neither ends nor spins.
///
/// Accepted sockets are armed because the listener is: they inherit that in the kernel, before this process knows of them and without a call for each. Those
/// that came before the listener was armed have not inherited it, and cannot be told from others: then each one is armed here.
///
/// The last descriptors of the process are not for traffic: a connection that would take one is reset, so that the operator's sockets, the
/// control plane and the CA always find some. The kernel gives the lowest free number, so a high number means that few are left.
#[derive(Debug)]
pub struct AcceptLoop {
    listener: TcpListener,
    /// Whether everything in the queue has inherited it.
    armed: bool,
    pause: Duration,
    failures: u64,
    highest: u64,
}

impl AcceptLoop {
    /// Wraps a listener, and arms what it will accept.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        let highest = match fds::limit() {
            0 => u64::MAX,
            limit => limit.saturating_sub(fds::RESERVE),
        };
        Self::with_highest(listener, highest)
    }

    /// Wraps a listener whose connections may have descriptors below `highest` only.
    fn with_highest(listener: TcpListener, highest: u64) -> io::Result<Self> {
        let armed = SockRef::from(&listener).linger()? == Some(Duration::ZERO);
        arm(&listener)?;
        Ok(Self { listener, armed, pause: ACCEPT_PAUSE, failures: 0, highest })
    }

    /// How many accepts failed so far.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The listener.
    pub fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// The next connection; an error means that the listener is gone. Cancel safe.
    pub async fn accept(&mut self) -> io::Result<(Armed, SocketAddr)> {
        loop {
            let accepted = self.listener.accept().await;
            let accepted =
                accepted.map(|(stream, peer)| (if self.armed { Armed(stream) } else { Armed::new(stream) }, peer));
            let error = match accepted {
                // Armed as it is, dropping it resets it.
                Ok((stream, _)) if stream.as_raw_fd() as u64 >= self.highest => {
                    io::Error::from_raw_os_error(libc::EMFILE)
                }
                Ok((stream, peer)) => {
                    self.pause = ACCEPT_PAUSE;
                    return Ok((stream, peer));
                }
                Err(error) => error,
            };
            self.failures += 1;
            match accept_failure(&error) {
                AcceptFailure::Connection => {}
                AcceptFailure::Listener => return Err(error),
                AcceptFailure::Exhausted => {
                    if self.pause == ACCEPT_PAUSE_MAX || self.failures == 1 {
                        tracing::warn!(%error, failures = self.failures, "accept is out of resources, backing off");
                    }
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(ACCEPT_PAUSE_MAX);
                }
            }
        }
    }
}

/// A socket whose close is a TCP reset, whoever closes: this process for whatever reason (an error, a cut, a panic), or the kernel when the process was
/// killed. So the other end never takes a connection that was aborted for one that has ended; only [`Armed::disarm`] makes the close an orderly end.
#[derive(Debug)]
pub struct Armed(TcpStream);

impl Armed {
    /// Arms a socket.
    pub fn new(stream: TcpStream) -> Self {
        // Fails only on a socket that is already gone.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        Self(stream)
    }

    /// Connects a socket that is armed before the other end can hear of it.
    pub async fn connect(socket: TcpSocket, address: SocketAddr) -> io::Result<Self> {
        socket.set_zero_linger()?;
        socket.connect(address).await.map(Self)
    }

    /// Makes the coming close an orderly end.
    pub fn disarm(&self) {
        let _ = SockRef::from(&self.0).set_linger(None);
    }

    /// Registers the socket with the runtime of the caller, on whose thread it is to live.
    pub fn moved(self) -> io::Result<Self> {
        TcpStream::from_std(self.0.into_std()?).map(Self)
    }

    /// Gives the socket up to somebody who ends it in order.
    pub fn disarmed(self) -> TcpStream {
        self.disarm();
        self.0
    }
}

impl AsyncRead for Armed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Armed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

impl AsRef<Armed> for Armed {
    fn as_ref(&self) -> &Armed {
        self
    }
}

impl Deref for Armed {
    type Target = TcpStream;
    fn deref(&self) -> &TcpStream {
        &self.0
    }
}

/// Arms a listener: what it accepts inherits that. Before it listens, so that nothing comes earlier.
pub(crate) fn arm(listener: impl AsFd) -> io::Result<()> {
    SockRef::from(&listener).set_linger(Some(Duration::ZERO))
}

/// Closes with a TCP reset.
pub fn reset(stream: TcpStream) {
    drop(Armed::new(stream));
}

/// Sends FIN. A socket that the peer has reset cannot, which its next read tells.
pub(crate) fn finish(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
}

/// Bytes that the peer's kernel has not acknowledged, our FIN counted; 0 if the socket is past telling.
pub(crate) fn unacknowledged(stream: &TcpStream) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the call writes one int.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Ends both directions, so that whoever waits on the socket learns it.
pub(crate) fn close(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(Shutdown::Both);
}

/// Probes a silent peer after `interval`; after nine probes without an answer, one in each interval, it is dead. Sockets inherit it from their listener.
pub fn keep_alive(socket: impl AsFd, interval: Duration) -> io::Result<()> {
    let options = TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(9);
    SockRef::from(&socket).set_tcp_keepalive(&options)
}

/// Sends signs of life after that silence, so far apart, and gives up after so many without an answer; what is not said is the system's.
pub fn keep_alive_as(
    socket: impl AsFd,
    after: Option<Duration>,
    interval: Option<Duration>,
    probes: Option<u32>,
) -> io::Result<()> {
    let options = after.into_iter().fold(TcpKeepalive::new(), TcpKeepalive::with_time);
    let options = interval.into_iter().fold(options, TcpKeepalive::with_interval);
    let options = probes.into_iter().fold(options, TcpKeepalive::with_retries);
    SockRef::from(&socket).set_tcp_keepalive(&options)
}

/// The error that a broken socket reports; most often the other end reset it.
pub(crate) fn error(stream: &TcpStream) -> io::Error {
    SockRef::from(stream).take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

/// Where a connection was going before a packet filter sent it here; none if none did.
pub fn before_redirection(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let before = match local {
        SocketAddr::V4(_) => getsockopt(stream, sockopt::OriginalDst).ok().map(|to| {
            let (ip, port) = (u32::from_be(to.sin_addr.s_addr), u16::from_be(to.sin_port));
            SocketAddr::from((Ipv4Addr::from(ip), port))
        }),
        SocketAddr::V6(_) => getsockopt(stream, sockopt::Ip6tOriginalDst)
            .ok()
            .map(|to| SocketAddr::from((Ipv6Addr::from(to.sin6_addr.s6_addr), u16::from_be(to.sin6_port)))),
    };
    before.filter(|before| *before != local)
}

/// Whether an error says that the other end reset the connection.
pub(crate) fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted
    )
}

/// Reads what is there. A read that did not fill `buffer` emptied the socket, and the reactor is told so: the next readiness check waits instead of
/// costing a system call that fails. `WouldBlock` means nothing was read.
pub(crate) fn read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    transfer(stream, Interest::READABLE, buffer.len(), |mut socket| socket.read(buffer))
}

/// Reads what is there, although the reactor may not have heard of it: the last look at a socket that is broken.
pub(crate) fn read_unasked(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    (&*SockRef::from(stream)).read(buffer)
}

/// Whether the reactor has heard of more after a short read: most often the other end's FIN.
pub(crate) fn may_have_ended(stream: &TcpStream) -> bool {
    stream.ready(Interest::READABLE).now_or_never().is_some()
}

/// [`read`] into several buffers.
pub(crate) fn read_vectored(stream: &TcpStream, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let room = buffers.iter().map(|buffer| buffer.len()).sum();
    transfer(stream, Interest::READABLE, room, |mut socket| socket.read_vectored(buffers))
}

/// Writes what fits. Less than everything means that the send buffer is full, and the reactor is told so.
pub(crate) fn write_vectored(stream: &TcpStream, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
    let size = buffers.iter().map(|buffer| buffer.len()).sum();
    transfer(stream, Interest::WRITABLE, size, |mut socket| match buffers {
        [one] => socket.write(one),
        many => socket.write_vectored(many),
    })
}

fn transfer(
    stream: &TcpStream,
    interest: Interest,
    wanted: usize,
    call: impl FnOnce(&socket2::Socket) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut short = None;
    let result = stream.try_io(interest, || {
        let count = call(&SockRef::from(stream))?;
        if 0 < count && count < wanted {
            short = Some(count);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    });
    match short {
        Some(count) => Ok(count),
        None => result,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    #[expect(non_snake_case, reason = "tests carry the ids of their rows")]
    async fn hardening_F37_an_accepted_socket_ends_as_a_reset_unless_it_is_disarmed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut listener = AcceptLoop::new(listener).unwrap();
        for orderly in [false, true] {
            let mut client = TcpStream::connect(address).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            if orderly {
                accepted.disarm();
            }
            drop(accepted);
            let read = client.read(&mut [0; 1]).await.map_err(|error| error.kind());
            assert_eq!(read, if orderly { Ok(0) } else { Err(io::ErrorKind::ConnectionReset) });
        }
    }

    #[tokio::test]
    #[expect(non_snake_case, reason = "tests carry the ids of their rows")]
    async fn hardening_F37_what_came_before_the_listener_was_armed_ends_as_a_reset_too() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut listener = AcceptLoop::new(listener).unwrap();
        drop(listener.accept().await.unwrap());
        let end = client.read(&mut [0; 1]).await.map_err(|error| error.kind());
        assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    #[expect(non_snake_case, reason = "tests carry the ids of their rows")]
    async fn hardening_F30_the_last_descriptors_are_not_for_traffic() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut full = AcceptLoop::with_highest(listener, 0).unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();

        let mut byte = [0; 1];
        let reset = tokio::select! {
            accepted = full.accept() => panic!("accepted {accepted:?}"),
            read = client.read(&mut byte) => read.unwrap_err(),
        };

        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(full.failures(), 1);
    }
}
