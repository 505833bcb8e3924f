//! The kubelet's side of the enrolment socket of one node: it tells the agent which pods are in the mesh.
//!
//! Level-triggered: it keeps the wanted set, and whenever the agent's socket comes back it says hello, adds everything again and
//! closes with a snapshot, as a kubelet or a CNI plugin would after a restart.
use super::netns::Netns;
use super::process::lock;
use super::wait::eventually;
use anyhow::{Context, Result, bail};
use mesh_proto::enrol::{Add, Del, Dns, Hello, Request, Response, Snapshot, request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use prost::Message;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A pod as the agent is told about it.
#[derive(Clone)]
pub struct Enrolment {
    /// The message.
    pub add: Add,
    /// The pod's network namespace.
    pub netns: Netns,
    /// The pod's cgroup.
    pub cgroup: PathBuf,
}

/// One connection to an enrolment socket, for tests that speak it message by message.
pub struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Connects to the socket at `path`.
    pub fn open(path: &Path) -> Result<Connection> {
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).context("open socket")?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(15, 0)).context("set timeout")?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path).context("socket path")?)
            .with_context(|| format!("connect to {}", path.display()))?;
        Ok(Connection { socket })
    }

    /// Sends raw bytes with descriptors and returns the answer.
    pub fn exchange(&self, bytes: &[u8], fds: &[RawFd]) -> Result<Response> {
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
            .context("send enrolment request")?;
        let mut buffer = vec![0; 65536];
        let n = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("receive enrolment answer")?;
        if n == 0 {
            bail!("the agent closed the enrolment socket");
        }
        Response::decode(&buffer[..n]).context("decode enrolment answer")
    }

    /// Sends a request and fails on an error answer.
    pub fn request(&self, payload: request::Payload, fds: &[RawFd]) -> Result<()> {
        let answer = self.exchange(&Request { payload: Some(payload) }.encode_to_vec(), fds)?;
        if !answer.error.is_empty() || answer.code != 0 {
            bail!("agent refused: {} (code {})", answer.error, answer.code);
        }
        Ok(())
    }

    fn add(&self, pod: &Enrolment) -> Result<()> {
        let cgroup = File::open(&pod.cgroup).with_context(|| format!("open {}", pod.cgroup.display()))?;
        self.request(request::Payload::Add(pod.add.clone()), &[pod.netns.fd().as_raw_fd(), cgroup.as_raw_fd()])
            .with_context(|| format!("enrol {}", pod.add.name))
    }

    fn alive(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }
}

#[derive(Default)]
struct State {
    wanted: BTreeMap<String, Enrolment>,
    connection: Option<Connection>,
}

/// Keeps one agent's set of pods as wanted.
pub struct Kubelet {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Kubelet {
    /// Starts to follow the socket at `path`, which need not exist yet.
    pub fn start(path: PathBuf) -> Kubelet {
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (s, p, e) = (state.clone(), path.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !e.load(Ordering::Relaxed) {
                let mut state = lock(&s);
                if state.connection.as_ref().is_some_and(|c| !c.alive()) {
                    state.connection = None;
                }
                if state.connection.is_none() && !state.wanted.is_empty() {
                    let _ = reconnect(&mut state, &p);
                }
                drop(state);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Kubelet { path, state, stop, thread: Some(thread) }
    }

    /// Adds a pod and waits for the agent's acknowledgement.
    pub fn add(&self, pod: Enrolment) -> Result<()> {
        eventually(&format!("enrolment of {}", pod.add.name), Duration::from_secs(15), || {
            let mut state = lock(&self.state);
            if state.connection.is_none() {
                reconnect(&mut state, &self.path)?;
            }
            let connection = state.connection.as_ref().context("no connection")?;
            if let Err(e) = connection.add(&pod) {
                if !connection.alive() {
                    state.connection = None;
                }
                return Err(e);
            }
            state.wanted.insert(pod.add.uid.clone(), pod.clone());
            Ok(())
        })
    }

    /// Takes a pod out of the mesh and waits for the acknowledgement.
    pub fn del(&self, uid: &str) -> Result<()> {
        let mut state = lock(&self.state);
        state.wanted.remove(uid);
        if state.connection.is_none() {
            reconnect(&mut state, &self.path)?;
        }
        let connection = state.connection.as_ref().context("no connection")?;
        connection.request(request::Payload::Del(Del { uid: uid.into() }), &[])
    }

    /// Whether the connection stands and everything wanted was said on it.
    pub fn connected(&self) -> bool {
        lock(&self.state).connection.as_ref().is_some_and(Connection::alive)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn reconnect(state: &mut State, path: &Path) -> Result<()> {
    let connection = Connection::open(path)?;
    connection.request(request::Payload::Hello(Hello { version: 1 }), &[])?;
    for pod in state.wanted.values() {
        connection.add(pod)?;
    }
    connection.request(request::Payload::Snapshot(Snapshot {}), &[])?;
    state.connection = Some(connection);
    Ok(())
}

/// The enrolment message of a pod.
pub fn add_message(
    uid: &str,
    namespace: &str,
    name: &str,
    service_account: &str,
    ips: Vec<String>,
    dns: (Vec<String>, Vec<String>),
    node: &str,
) -> Add {
    Add {
        uid: uid.into(),
        namespace: namespace.into(),
        name: name.into(),
        service_account: service_account.into(),
        ips,
        dns: Some(Dns { nameservers: dns.0, searches: dns.1, ndots: 5 }),
        node: node.into(),
        capture: None,
    }
}
