//! Small processes that sit in the right cgroup and namespace, make sockets there and pass them over.

use std::{
    fs, io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    thread,
    time::Instant,
};

use socket2::Socket;

use super::{Cgroup, WAIT};

/// A process in a cgroup and a namespace that makes sockets on demand.
pub struct Factory {
    control: OwnedFd,
    pid: libc::pid_t,
}

impl Factory {
    pub fn new(cgroup: &Cgroup, netns: BorrowedFd<'_>) -> Self {
        let procs = fs::OpenOptions::new().write(true).open(cgroup.0.join("cgroup.procs")).unwrap();
        let mut pair = [0; 2];
        assert_eq!(
            unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) },
            0
        );
        let netns = netns.as_raw_fd();
        let parent = unsafe { libc::getpid() };
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // Between fork and _exit nothing but system calls.
            unsafe {
                if libc::setns(netns, libc::CLONE_NEWNET) != 0
                    || libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1
                {
                    libc::_exit(1);
                }
                // Keep nothing of the test's descriptors: a lock or a listener would live on in here.
                if libc::dup2(pair[1], 3) != 3 || libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0) != 0 {
                    libc::_exit(1);
                }
                say_closed(3);
                make_sockets(3, parent);
            }
        }
        unsafe { libc::close(pair[1]) };
        let factory = Self { control: unsafe { OwnedFd::from_raw_fd(pair[0]) }, pid };
        factory.await_closed();
        factory
    }

    pub fn socket(&self, family: i32, kind: i32, protocol: i32) -> Socket {
        let request = [family, kind, protocol];
        let sent = unsafe { libc::send(self.control.as_raw_fd(), request.as_ptr().cast(), 12, 0) };
        assert_eq!(sent, 12, "the factory is gone: {}", io::Error::last_os_error());
        let socket = receive_fd(self.control.as_raw_fd());
        self.await_closed();
        Socket::from(socket.unwrap())
    }

    /// Until the process has nothing of the test's open: what it had would live on after the test has dropped it.
    fn await_closed(&self) {
        let mut word = [0u8; 1];
        let heard = unsafe { libc::recv(self.control.as_raw_fd(), word.as_mut_ptr().cast(), 1, 0) };
        assert_eq!(heard, 1, "the factory is gone");
    }

    pub fn tcp(&self, to: IpAddr) -> Socket {
        let socket = self.socket(family(to), libc::SOCK_STREAM, 0);
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.set_write_timeout(Some(WAIT)).unwrap();
        socket
    }

    pub fn udp(&self, to: IpAddr) -> Socket {
        let socket = self.socket(family(to), libc::SOCK_DGRAM, 0);
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket
    }

    pub fn listen(&self, address: SocketAddr) -> Socket {
        let socket = self.tcp(address.ip());
        socket.set_reuse_address(true).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        bind_when_free(&socket, address);
        socket.listen(1024).unwrap();
        socket
    }

    /// A bound socket for datagrams.
    pub fn udp_at(&self, address: SocketAddr) -> Socket {
        let socket = self.udp(address.ip());
        bind_when_free(&socket, address);
        socket
    }
}

impl Drop for Factory {
    fn drop(&mut self) {
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// A socket that a test has dropped lives on in what another test forks at that moment, until the new process has closed it.
fn bind_when_free(socket: &Socket, address: SocketAddr) {
    let deadline = Instant::now() + WAIT;
    while let Err(error) = socket.bind(&address.into()) {
        assert!(error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline, "bind {address}: {error}");
        thread::yield_now();
    }
}

pub fn family(ip: IpAddr) -> i32 {
    if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

unsafe fn make_sockets(control: i32, parent: libc::pid_t) -> ! {
    unsafe {
        loop {
            let mut poll = libc::pollfd { fd: control, events: libc::POLLIN, revents: 0 };
            if libc::poll(&raw mut poll, 1, 500) == 0 {
                if libc::getppid() != parent {
                    libc::_exit(0);
                }
                continue;
            }
            let mut request = [0i32; 3];
            if libc::recv(control, request.as_mut_ptr().cast(), 12, 0) != 12 {
                libc::_exit(0);
            }
            let fd = libc::socket(request[0], request[1] | libc::SOCK_CLOEXEC, request[2]);
            let error = if fd < 0 { *libc::__errno_location() } else { 0 };
            send_fd(control, fd, error);
            if fd >= 0 {
                libc::close(fd);
            }
            say_closed(control);
        }
    }
}

unsafe fn say_closed(control: i32) {
    unsafe { libc::send(control, c"0".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) };
}

unsafe fn send_fd(control: i32, fd: i32, error: i32) {
    unsafe {
        let mut payload = error;
        let mut part = libc::iovec { iov_base: (&raw mut payload).cast(), iov_len: 4 };
        let mut space = [0u64; 4];
        let mut message: libc::msghdr = MaybeUninit::zeroed().assume_init();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if fd >= 0 {
            message.msg_control = space.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        }
        libc::sendmsg(control, &raw const message, 0);
    }
}

fn receive_fd(control: i32) -> io::Result<OwnedFd> {
    unsafe {
        let mut payload = 0i32;
        let mut part = libc::iovec { iov_base: (&raw mut payload).cast(), iov_len: 4 };
        let mut space = [0u64; 4];
        let mut message: libc::msghdr = MaybeUninit::zeroed().assume_init();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&space) as _;
        if libc::recvmsg(control, &raw mut message, libc::MSG_CMSG_CLOEXEC) != 4 {
            return Err(io::Error::other("the factory process is gone"));
        }
        if payload != 0 {
            return Err(io::Error::from_raw_os_error(payload));
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        Ok(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()))
    }
}
