//! The behavioural self-test at start: a made-up pod in a scratch namespace and cgroup connects and accepts once, through the programs
//! as they are loaded. It finds what no version number tells: a kernel, or another user of the hooks, that does something else.
//!
//! ```text
//!  child (pod's cgroup)  connect 198.18.255.1:7 -> slot -> agent's listener      hooks: connect4, tcp_states, pod_lookup
//!                        getpeername = 198.18.255.1:7                            getpeername4
//!  agent                 connect to the child, as client 198.18.255.2:4242       tcp_states on the agent's cgroup
//!  child                 accept4 = 198.18.255.2:4242                             getpeername4
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    thread,
};

use mesh_core::CaptureRules;
use socket2::{Domain, Socket, Type};

use super::{
    config::{InboundMode, KernelConfig, KernelError, PodListenerFds, PodSpec},
    kernel::Kernel,
    netns, pins,
};

const POD: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);
const ASKED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 255, 1), 7);
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 255, 2), 4242);
/// Not a low port: nothing else that the agent does needs the right to one.
const APP: SocketAddrV4 = SocketAddrV4::new(POD, 8888);
const WAIT_SECONDS: i64 = 2;
/// Start of the name of the test's cgroup.
const SCRATCH: &str = "undermesh-selftest-";

/// Runs the test. On success nothing is left of it.
pub fn run(kernel: &Kernel, config: &KernelConfig) -> Result<(), KernelError> {
    let cgroup = Scratch::new(config)?;
    let outcome = thread::scope(|scope| {
        let thread = scope.spawn(|| in_scratch_namespace(kernel, &cgroup));
        thread.join().unwrap_or_else(|_| Err("the test panicked".to_owned()))
    });
    outcome.map_err(KernelError::SelfTest)
}

/// A child of the pods' cgroup that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new(config: &KernelConfig) -> Result<Self, KernelError> {
        // Agents that died in the middle of their test have left theirs; nobody else has this instance now.
        for left in pins::list(&config.pods_cgroup) {
            if left.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(SCRATCH.as_bytes())) {
                let _ = fs::remove_dir(&left);
            }
        }
        let path = config.pods_cgroup.join(format!("{SCRATCH}{}", std::process::id()));
        match fs::create_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(KernelError::Io { call: "mkdir", path, source })
            }
            _ => Ok(Self(path)),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "cannot remove the cgroup of the self-test");
        }
    }
}

/// Releases the made-up pod, whatever happened.
struct Enrolment<'a>(&'a Kernel, u64);

impl Drop for Enrolment<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove(self.1) {
            tracing::warn!(%error, "cannot release the pod of the self-test");
        }
    }
}

fn in_scratch_namespace(kernel: &Kernel, cgroup: &Scratch) -> Result<(), String> {
    // SAFETY: only this thread, which ends with the test, changes namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(format!("cannot make a network namespace: {}", io::Error::last_os_error()));
    }
    let prepare = || -> io::Result<_> {
        netns::loopback_up()?;
        netns::add_loopback_address(POD)?;
        let here = File::open("/proc/thread-self/ns/net")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let procs = OpenOptions::new().write(true).open(cgroup.0.join("cgroup.procs"))?;
        Ok((here, listener, netns::current_cookie()?, procs))
    };
    let (here, listener, cookie, procs) = prepare().map_err(|error| format!("cannot prepare: {error}"))?;
    let pod = PodSpec {
        cookie,
        netns: here.as_fd(),
        ips: &[POD.into()],
        nameservers: &[],
        listeners: &PodListenerFds { outbound_v4: Some(listener.as_fd()), ..PodListenerFds::default() },
        inbound: &InboundMode::default(),
        rules: &CaptureRules::default(),
        registry_only: false,
    };
    kernel.enrol(&pod).map_err(|error| format!("cannot enrol a pod: {error}"))?;
    let _enrolment = Enrolment(kernel, cookie);

    // SAFETY: between fork and _exit the child makes system calls only.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(format!("cannot fork: {}", io::Error::last_os_error()));
    }
    if child == 0 {
        // SAFETY: we are the child; this ends it.
        unsafe { libc::_exit(app(procs.as_raw_fd())) }
    }
    let agent = agent(kernel, cookie, &listener);
    let mut status = 0;
    // SAFETY: the child is ours and ends by itself, for all its calls have deadlines.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    agent?;
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        code => Err(CHILD_STEPS.get(code as usize).copied().unwrap_or("the app died").to_owned()),
    }
}

fn agent(kernel: &Kernel, cookie: u64, listener: &TcpListener) -> Result<(), String> {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, valid for the call.
    if unsafe { libc::poll(&raw mut poll, 1, WAIT_SECONDS as i32 * 1000) } != 1 {
        return Err("a captured connection does not arrive at the agent's listener".to_owned());
    }
    let (captured, from) = listener.accept().map_err(|error| format!("cannot accept: {error}"))?;
    let local = captured.local_addr().map_err(|error| format!("getsockname: {error}"))?;
    let original = kernel.original_destination(cookie, local);
    if original != Some(SocketAddr::V4(ASKED)) || from.ip() != POD {
        return Err(format!("a captured connection arrived from {from} with the destination {original:?}"));
    }
    let connect = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddrV4::new(POD, 0).into())?;
        kernel.set_client(socket.as_fd(), CLIENT.into()).map_err(io::Error::other)?;
        socket.connect(&APP.into())?;
        Ok(socket)
    };
    let socket = connect().map_err(|error| format!("the agent cannot connect to the app: {error}"))?;
    if !kernel.client_shown(socket.as_fd()) {
        return Err("the agent's hook did not see its connection: is the agent in its cgroup?".to_owned());
    }
    Ok(())
}

const CHILD_STEPS: [&str; 7] = [
    "",
    "the app cannot join its cgroup",
    "the app cannot listen",
    "the app's connect fails",
    "getpeername does not show the app the destination it asked for",
    "the app cannot accept",
    "accept does not show the app the client that the agent named",
];

/// The app. Returns the step that failed, 0 if none did.
fn app(procs: i32) -> i32 {
    // SAFETY: plain system calls on locals; the descriptors are ours.
    unsafe {
        if libc::write(procs, c"0".as_ptr().cast(), 1) != 1 {
            return 1;
        }
        // The agent's lock and listeners must not live on in here should the agent die now.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        let listener = socket();
        let connected = socket();
        let here = address(APP);
        let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        if libc::bind(listener.as_raw_fd(), (&raw const here).cast(), size) != 0
            || libc::listen(listener.as_raw_fd(), 1) != 0
        {
            return 2;
        }
        let to = address(ASKED);
        if libc::connect(connected.as_raw_fd(), (&raw const to).cast(), size) != 0 {
            return 3;
        }
        let mut seen = address(APP);
        let mut length = size;
        if libc::getpeername(connected.as_raw_fd(), (&raw mut seen).cast(), &raw mut length) != 0 || !same(&seen, &to) {
            return 4;
        }
        length = size;
        let accepted = libc::accept4(listener.as_raw_fd(), (&raw mut seen).cast(), &raw mut length, 0);
        if accepted < 0 {
            return 5;
        }
        if same(&seen, &address(CLIENT)) { 0 } else { 6 }
    }
}

/// A TCP socket whose calls have a deadline; an invalid one makes the next step fail.
unsafe fn socket() -> OwnedFd {
    let deadline = libc::timeval { tv_sec: WAIT_SECONDS, tv_usec: 0 };
    let size = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: plain system calls; a failed socket ends the child by the step after it.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        if fd < 0 {
            libc::_exit(2);
        }
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, (&raw const deadline).cast(), size);
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const deadline).cast(), size);
        OwnedFd::from_raw_fd(fd)
    }
}

fn address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

fn same(a: &libc::sockaddr_in, b: &libc::sockaddr_in) -> bool {
    a.sin_port == b.sin_port && a.sin_addr.s_addr == b.sin_addr.s_addr
}
