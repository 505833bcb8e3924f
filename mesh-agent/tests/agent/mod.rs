//! Harness of the agent's process tests: the real `mesh-agent`, keeper and worker, in a network namespace and cgroups of its own, without a
//! control plane; a raw enrolment client; pods that are empty namespaces. Sockets of pods come from the kernel tests' factories.

#![allow(dead_code, reason = "each test file uses its part")]

#[path = "../kernel/mod.rs"]
pub mod kernel;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kernel::{Cgroup, Factory, ip_command, new_netns};
use mesh_agent::bpf::KernelConfig;
use mesh_agent::keeper::packet;
use mesh_proto::enrol::{Add, Del, Dns, Hello, Keep, Request, Response, Snapshot, request::Payload};
use mesh_runtime::failpoint;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use prost::Message;

pub const DEADLINE: Duration = Duration::from_secs(60);
/// Where nobody listens: a connect that succeeds was captured.
pub const NOBODY: &str = "198.18.0.1:9999";
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Waits for `condition` with a deadline.
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within_deadline(condition).unwrap_or_else(|| panic!("not within {DEADLINE:?}: {what}"))
}

/// The same for tests that say themselves what was wrong.
pub fn within_deadline<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let value = condition();
        if value.is_some() || Instant::now() >= deadline {
            return value;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A node: folders, cgroups and a namespace for an agent.
pub struct Host {
    pub folder: tempfile::TempDir,
    pub netns: OwnedFd,
    pub instance: String,
    pub pods: Cgroup,
    pub agent: Cgroup,
    _parent: Cgroup,
}

impl Host {
    pub fn new() -> Host {
        let instance = format!("undermesh-test-{}-a{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let parent = Cgroup::new(&instance);
        let pods = Cgroup::new(&format!("{instance}/pods"));
        let agent = Cgroup::new(&format!("{instance}/agent"));
        let folder = tempfile::tempdir().unwrap();
        let root = rcgen::generate_simple_self_signed(vec!["control".to_owned()]).unwrap();
        fs::write(folder.path().join("root.pem"), root.cert.pem()).unwrap();
        fs::write(folder.path().join("token"), "token").unwrap();
        let netns = new_netns();
        ip_command(netns.as_fd(), "link set lo up");
        Host { folder, netns, instance, pods, agent, _parent: parent }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Where the kernel objects of a pod are pinned.
    pub fn pins(&self, pod: &Pod) -> PathBuf {
        let cookie = mesh_agent::bpf::netns_cookie(pod.netns.as_fd()).unwrap();
        self.pinned().join(format!("pods/{cookie:016x}"))
    }

    /// Where all kernel objects are pinned.
    pub fn pinned(&self) -> PathBuf {
        let version = format!("v{}", mesh_common::ABI_VERSION);
        Path::new("/sys/fs/bpf/undermesh").join(&self.instance).join(version)
    }

    /// Has the agent panic once at each of these points. Complete when none is left.
    pub fn fail_at(&self, points: &[&str]) {
        fs::write(self.folder.path().join("failpoints"), points.join("\n")).unwrap();
    }

    /// The points that nobody has passed yet.
    pub fn not_failed(&self) -> String {
        fs::read_to_string(self.folder.path().join("failpoints")).unwrap()
    }

    /// Has workers that start from now on wait where they read their configuration: a pipe that nobody writes to is in the place of a file of it. That of
    /// a worker that runs is of no use to it any more.
    pub fn hold_workers(&self) {
        let pipe = self.folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::rename(pipe, self.folder.path().join("token")).unwrap();
    }

    /// Those that start from now on do not; who waits does so until it is killed.
    pub fn release_workers(&self) {
        let file = self.folder.path().join("file");
        fs::write(&file, "token").unwrap();
        fs::rename(file, self.folder.path().join("token")).unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn command(&self) -> Command {
        let mut command = self.command_in(&self.run_dir());
        self.enter_on_start(&mut command);
        command
    }

    /// The command line with a run folder and ports of its own.
    pub fn command_in(&self, run_dir: &Path) -> Command {
        let path = |name: &str| self.folder.path().join(name);
        let log = File::options().create(true).append(true).open(path("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
        command
            .args(["--node", "node-a", "--instance", &self.instance, "--control", "127.0.0.1:1", "--drain", "500ms"])
            .arg("--control-root")
            .arg(path("root.pem"))
            .arg("--token")
            .arg(path("token"))
            .arg("--run-dir")
            .arg(run_dir)
            .arg("--pods-cgroup")
            .arg(&self.pods.0)
            .arg("--agent-cgroup")
            .arg(&self.agent.0)
            .env(failpoint::VARIABLE, path("failpoints"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    /// Has the command run in the node's namespace.
    fn enter_on_start(&self, command: &mut Command) {
        let netns = self.netns.as_raw_fd();
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
                match libc::setns(netns, libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
    }

    pub fn start(&self) -> Agent<'_> {
        let agent = Agent { host: self, keeper: self.command().spawn().unwrap() };
        eventually("the enrolment socket", || self.client().ok());
        agent
    }

    pub fn client(&self) -> io::Result<Client> {
        Client::connect(&self.run_dir().join("enrol.sock"))
    }

    /// An HTTP exchange over the admin socket. That of an agent before may still lie there when pods can be enrolled already.
    pub fn admin(&self, request: &str) -> String {
        let path = self.run_dir().join("admin.sock");
        let mut stream = eventually("the admin socket", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn get(&self, path: &str) -> String {
        self.admin(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    /// Names of the pods that run, sorted.
    pub fn pods(&self) -> Vec<String> {
        let answer = self.get("/config_dump");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        let dump: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        let pods = dump["pods"].as_array().cloned().unwrap_or_default();
        pods.iter().filter_map(|pod| pod["name"].as_str().map(str::to_owned)).collect()
    }

    /// An HTTP GET over TCP from inside the node's namespace.
    pub fn http(&self, port: u16, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        self.inside(move || {
            let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    }

    /// Does it on a thread in the node's namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let look = || {
                // SAFETY: changes the namespace of this thread only, which ends here.
                assert_eq!(unsafe { libc::setns(self.netns.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
                work()
            };
            scope.spawn(look).join().unwrap()
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of the agent\n{}", self.log());
        }
        let config = KernelConfig::new(self.instance.clone(), self.pods.0.clone(), self.agent.0.clone());
        // The lock goes with the last thread of the worker, a moment after its process.
        kernel::uninstall(&config);
    }
}

/// A running agent. Dropping it kills it.
pub struct Agent<'a> {
    pub host: &'a Host,
    pub keeper: Child,
}

impl Agent<'_> {
    /// The worker's pid, if there is one now.
    pub fn find_worker(&self) -> Option<i32> {
        let keeper = self.keeper.id();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
        children.split_whitespace().next().and_then(|pid| pid.parse().ok())
    }

    pub fn worker(&self) -> i32 {
        eventually("a worker", || self.find_worker())
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.keeper.id() as i32), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let keeper = &mut self.keeper;
        eventually("the end of the keeper", || keeper.try_wait().unwrap())
    }

    /// Kills the worker and returns the pid of the next, once that is a program of its own: before, it still shares the keeper's sockets.
    pub fn kill_worker(&self) -> i32 {
        let old = self.worker();
        kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
        let is_worker = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split('\0').nth(1) == Some("worker"))
        };
        eventually("another worker", || self.find_worker().filter(|pid| *pid != old).filter(is_worker))
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        // The worker dies with its keeper; its cgroup can be removed when it is gone.
        let procs = self.host.agent.0.join("cgroup.procs");
        // Unless it was stopped before it could ask for that.
        for pid in fs::read_to_string(&procs).unwrap_or_default().lines().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        eventually("the end of the worker", || {
            fs::read_to_string(&procs).is_ok_and(|pids| pids.trim().is_empty()).then_some(())
        });
    }
}

/// A pod that is not enrolled yet: a namespace with loopback, a dummy interface and a cgroup.
pub struct Pod {
    pub name: String,
    pub netns: OwnedFd,
    pub address: IpAddr,
    /// Before the cgroup: its process must be gone when that is removed.
    pub app: Factory,
    pub cgroup: Cgroup,
}

impl Pod {
    pub fn new(host: &Host, name: &str) -> Pod {
        let netns = new_netns();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let address: IpAddr = format!("198.18.{}.{}", 1 + n / 250, 1 + n % 250).parse().unwrap();
        ip_command(netns.as_fd(), "link set lo up");
        ip_command(netns.as_fd(), "link add eth0 type veth peer name eth1");
        ip_command(netns.as_fd(), &format!("addr add {address}/15 dev eth0"));
        ip_command(netns.as_fd(), "link set eth0 up");
        ip_command(netns.as_fd(), "link set eth1 up");
        let cgroup = Cgroup::new(&format!("{}/pods/{name}", host.instance));
        let app = Factory::new(&cgroup, netns.as_fd());
        Pod { name: name.to_owned(), netns, address, cgroup, app }
    }

    pub fn uid(&self) -> String {
        format!("uid-{}", self.name)
    }

    pub fn add(&self) -> Add {
        Add {
            uid: self.uid(),
            namespace: "default".into(),
            name: self.name.clone(),
            service_account: "app".into(),
            ips: vec![self.address.to_string()],
            dns: Some(Dns { nameservers: vec!["198.18.0.53".into()], searches: vec![], ndots: 5 }),
            node: "node-a".into(),
            capture: None,
        }
    }

    pub fn inode(&self) -> u64 {
        nix::sys::stat::fstat(&self.netns).unwrap().st_ino
    }

    /// Connects to where nobody listens. Only the agent can answer.
    pub fn connect(&self) -> io::Result<socket2::Socket> {
        let to: SocketAddr = NOBODY.parse().unwrap();
        let socket = self.app.tcp(to.ip());
        kernel::connect(&socket, to)?;
        Ok(socket)
    }
}

/// A raw enrolment client.
pub struct Client {
    socket: OwnedFd,
}

impl Client {
    pub fn connect(path: &Path) -> io::Result<Client> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(DEADLINE.as_secs() as i64, 0))?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Client { socket: fd })
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// A client that has said hello.
    pub fn greeted(host: &Host) -> Client {
        let client = host.client().unwrap();
        client.ok(Payload::Hello(Hello { version: 1 }), &[]);
        client
    }

    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        packet::send(self.socket.as_fd(), bytes, fds)
    }

    pub fn send(&self, payload: Payload, fds: &[BorrowedFd<'_>]) {
        self.send_bytes(&Request { payload: Some(payload) }.encode_to_vec(), fds).unwrap();
    }

    /// The next answer; none when the agent has hung up.
    pub fn receive(&self) -> Option<Response> {
        let packet = packet::receive(self.socket.as_fd()).ok().flatten()?;
        Some(Response::decode(packet.bytes.as_slice()).unwrap())
    }

    pub fn ask(&self, payload: Payload, fds: &[BorrowedFd<'_>]) -> Option<Response> {
        self.send(payload, fds);
        self.receive()
    }

    pub fn ok(&self, payload: Payload, fds: &[BorrowedFd<'_>]) {
        let text = format!("{payload:?}");
        assert_eq!(self.ask(payload, fds), Some(done()), "{text}");
    }

    pub fn send_add(&self, pod: &Pod) {
        let cgroup = File::open(&pod.cgroup.0).unwrap();
        self.send(Payload::Add(pod.add()), &[pod.netns.as_fd(), cgroup.as_fd()]);
    }

    pub fn add(&self, pod: &Pod) {
        self.send_add(pod);
        assert_eq!(self.receive(), Some(done()), "add of {}", pod.name);
    }

    pub fn keep(&self, pod: &Pod) {
        self.ok(Payload::Keep(Keep { uid: pod.uid() }), &[]);
    }

    pub fn del(&self, pod: &Pod) {
        self.ok(Payload::Del(Del { uid: pod.uid() }), &[]);
    }

    pub fn snapshot(&self) {
        self.ok(Payload::Snapshot(Snapshot {}), &[]);
    }
}

fn done() -> Response {
    Response { done: true, ..Response::default() }
}

/// Whether a process has a descriptor of, or a thread in, the namespace.
pub fn refers_to(pid: i32, netns_inode: u64) -> bool {
    let link = format!("net:[{netns_inode}]");
    let is = |path: PathBuf| fs::read_link(path).is_ok_and(|target| target.to_string_lossy() == link);
    let entries = |path: String| fs::read_dir(path).into_iter().flatten().flatten();
    entries(format!("/proc/{pid}/fd")).any(|entry| is(entry.path()))
        || entries(format!("/proc/{pid}/task")).any(|entry| is(entry.path().join("ns/net")))
}

/// What the descriptors of a process refer to, in order of their numbers; a socket with its kind and its two addresses.
pub fn open_files(pid: i32) -> Vec<String> {
    let mut files: Vec<(i32, String)> = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            Some((entry.file_name().to_str()?.parse().ok()?, target))
        })
        .collect();
    files.sort_unstable();
    let told = |(number, target): (i32, String)| match target.starts_with("socket:") {
        true => format!("{number} {target} {}", look_at_socket(pid, number).unwrap_or_else(|error| error.to_string())),
        false => format!("{number} {target}"),
    };
    files.into_iter().map(told).collect()
}

/// A socket of another process, by way of a descriptor of our own: the tables in /proc show those of one namespace only.
fn look_at_socket(pid: i32, number: i32) -> io::Result<String> {
    let checked = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) };
    // SAFETY: system calls without pointers; what they return is a descriptor that nobody else owns.
    let process = unsafe { OwnedFd::from_raw_fd(checked(libc::syscall(libc::SYS_pidfd_open, pid, 0))?) };
    // SAFETY: as above.
    let socket =
        unsafe { OwnedFd::from_raw_fd(checked(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0))?) };
    let socket = socket2::SockRef::from(&socket);
    let end = |address: io::Result<socket2::SockAddr>| match address {
        Ok(address) => {
            address.as_socket().map_or_else(|| format!("{:?}", address.as_pathname()), |address| address.to_string())
        }
        Err(error) => error.to_string(),
    };
    let (local, peer) = (end(socket.local_addr()), end(socket.peer_addr()));
    Ok(format!("{:?} {:?} {local} - {peer}", socket.domain()?, socket.r#type()?))
}

/// How many descriptors a process has.
pub fn open_fds(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map(|entries| entries.count()).unwrap_or(0)
}
