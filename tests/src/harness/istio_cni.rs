//! Istio's node agent on one node, as the mesh's agent meets it: the socket on which it names pods, and its rules of iptables in each of them.
use super::netns::Netns;
use super::pod::Pod;
use super::process::lock;
use super::wait::eventually;
use anyhow::{Context, Result, bail, ensure};
use mesh_proto::convert::{ZdsPod, ZdsRequest, encode_zds_request, zds_ack};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, recv,
    sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// From here the host's own processes reach pods.
pub const HOST_PROBE: &str = "169.254.7.127";
const HOST_PROBE_V6: &str = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff";

#[derive(Default)]
struct State {
    pods: Vec<(ZdsPod, Netns)>,
    connection: Option<OwnedFd>,
}

/// A running one. Its thread ends with the process.
pub struct IstioCni {
    state: Arc<Mutex<State>>,
}

impl IstioCni {
    /// Whether this machine has what it needs besides; the reason if not.
    pub fn missing() -> Option<String> {
        let there = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
        ["iptables-restore", "ip6tables-restore"].iter().find(|program| !there(program)).map(|p| format!("needs {p}"))
    }

    /// Listens at `path`.
    pub fn start(path: &Path) -> Result<IstioCni> {
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).context("open socket")?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path).context("socket path")?).context("bind")?;
        listen(&listener, Backlog::new(4).context("backlog")?).context("listen")?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || -> Result<()> {
            loop {
                let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
                // SAFETY: `accept4` has just returned this descriptor, and nothing else owns it.
                let connection = unsafe { OwnedFd::from_raw_fd(raw) };
                let mut state = lock(&shared);
                // The agent whose connection failed comes again.
                if greet(&connection, &state.pods).is_ok() {
                    state.connection = Some(connection);
                }
            }
        });
        Ok(IstioCni { state })
    }

    /// Redirects a pod and names it.
    pub fn add(&self, pod: &Pod) -> Result<()> {
        pod.netns.run(redirect)?;
        let info = ZdsPod {
            uid: pod.uid.as_str().into(),
            namespace: pod.namespace.as_str().into(),
            name: pod.name.as_str().into(),
            service_account: pod.service_account.as_str().into(),
        };
        eventually(&format!("enrolment of {}", pod.name), Duration::from_secs(15), || {
            let mut state = lock(&self.state);
            let connection = state.connection.as_ref().context("no connection")?;
            ask(connection, &ZdsRequest::Add(info.clone()), &[pod.netns.fd().as_raw_fd()])?;
            state.pods.push((info.clone(), pod.netns.clone()));
            Ok(())
        })
    }

    /// Takes a pod out. Its rules stay: who leaves the mesh for good is another test.
    pub fn del(&self, pod: &Pod) -> Result<()> {
        let mut state = lock(&self.state);
        state.pods.retain(|(info, _)| *info.uid != *pod.uid);
        ask(state.connection.as_ref().context("no connection")?, &ZdsRequest::Del(pod.uid.as_str().into()), &[])
    }
}

/// What the agent hears first: every pod, and that this is all.
fn greet(connection: &OwnedFd, pods: &[(ZdsPod, Netns)]) -> Result<()> {
    setsockopt(connection, sockopt::ReceiveTimeout, &TimeVal::new(5, 0)).context("set timeout")?;
    let mut hello = [0; 64];
    let length = recv(connection.as_raw_fd(), &mut hello, MsgFlags::empty()).context("hello")?;
    ensure!(hello[..length] == [0x08, 0x01], "hello: {:?}", &hello[..length]);
    for (pod, netns) in pods {
        ask(connection, &ZdsRequest::Add(pod.clone()), &[netns.fd().as_raw_fd()])?;
    }
    ask(connection, &ZdsRequest::Snapshot, &[])
}

fn ask(connection: &OwnedFd, request: &ZdsRequest, fds: &[RawFd]) -> Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let bytes = encode_zds_request(request);
    sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
        .context("send")?;
    let mut buffer = [0; 1024];
    let length = recv(connection.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("answer")?;
    match zds_ack(&buffer[..length])? {
        None => Ok(()),
        Some(error) => bail!("the agent refuses: {error}"),
    }
}

/// In the namespace of the calling thread: what comes from the network goes to port 15006, what leaves to 15001, names to 15053, unless it carries the
/// proxy's mark.
fn redirect() -> Result<()> {
    for (program, loopback, probe) in
        [("iptables-restore", "127.0.0.1/32", HOST_PROBE), ("ip6tables-restore", "::1/128", HOST_PROBE_V6)]
    {
        let mut child = Command::new(program)
            .args(["--noflush", "--wait"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| program.to_owned())?;
        child.stdin.take().context("stdin")?.write_all(rules(loopback, probe).as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for line in [
        "-4 rule add fwmark 0x111/0xfff pref 32764 lookup 100",
        "-4 route add local 0.0.0.0/0 dev lo table 100",
        "-6 rule add fwmark 0x111/0xfff pref 32764 lookup 100",
        "-6 route add local ::/0 dev lo table 100",
    ] {
        let output = Command::new("ip").args(line.split(' ')).output().context("ip")?;
        ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// The rules, for one family.
fn rules(loopback: &str, probe: &str) -> String {
    let chains = |hooks: &[&str]| {
        let mut text = String::from(":ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n");
        for hook in hooks {
            let chain = if *hook == "PREROUTING" { "ISTIO_PRERT" } else { "ISTIO_OUTPUT" };
            text.push_str(&format!("-A {hook} -j {chain}\n"));
        }
        text
    };
    let both = chains(&["PREROUTING", "OUTPUT"]);
    let (ours, not_ours) = ("-m mark --mark 0x539/0xfff", "-m mark ! --mark 0x539/0xfff");
    format!(
        "*raw\n{both}\
         -A ISTIO_OUTPUT -p udp {ours} -m udp --dport 53 -j CT --zone 1\n\
         -A ISTIO_PRERT -p udp {not_ours} -m udp --sport 53 -j CT --zone 1\n\
         COMMIT\n\
         *mangle\n{both}\
         -A ISTIO_PRERT {ours} -j CONNMARK --set-xmark 0x111/0xfff\n\
         -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
         COMMIT\n\
         *nat\n{both}\
         -A ISTIO_PRERT -s {probe} -p tcp -m tcp -j ACCEPT\n\
         -A ISTIO_PRERT ! -d {loopback} -p tcp ! --dport 15008 {not_ours} -j REDIRECT --to-ports 15006\n\
         -A ISTIO_OUTPUT -d {probe} -p tcp -m tcp -j ACCEPT\n\
         -A ISTIO_OUTPUT ! -o lo -p udp {not_ours} -m udp --dport 53 -j REDIRECT --to-ports 15053\n\
         -A ISTIO_OUTPUT ! -d {loopback} -p tcp --dport 53 {not_ours} -j REDIRECT --to-ports 15053\n\
         -A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n\
         -A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT\n\
         -A ISTIO_OUTPUT ! -d {loopback} -p tcp {not_ours} -j REDIRECT --to-ports 15001\n\
         COMMIT\n"
    )
}
