//! Runs the plugin as a runtime does, against an agent that says what it is told to.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::VecDeque;
use std::fs;
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use mesh_proto::convert::{CniAnswer, CniRequest, cni_request, encode_cni_answer};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen,
    recvmsg, send, socket,
};
use serde_json::{Value, json};

pub const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";

pub fn is_root(test: &str) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let root = status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    if !root {
        println!("SKIPPED: {test}: the plugin believes root's sockets alone, and this test is not root");
    }
    root
}

/// A node's folder.
pub struct Node {
    pub root: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Node {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("netns"), "").unwrap();
        Node { root }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The configuration with paths as the plugin sees them.
    pub fn config(&self, seen: &Path) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "undermesh-cni",
            "socket": seen.join("cni.sock"), "scope": seen.join("scope.json"), "waitSeconds": 1, "exempt": ["kube-system"],
            "runtimeConfig": { "dns": { "servers": ["198.19.0.10"], "searches": ["shop.svc.cluster.local"], "options": ["ndots:5"] } },
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{ "name": "veth1" }, { "name": "eth0", "sandbox": "/run/netns/a" }],
                "ips": [{ "address": "198.18.1.7/24", "interface": 1 }, { "address": "fd00:198::7/64", "interface": 1 }],
                "dns": {},
            },
        })
    }

    /// A call of a runtime about a pod.
    pub fn call(&self, command: &str, namespace: &str) -> Command {
        let mut plugin = Command::new(env!("CARGO_BIN_EXE_mesh-cni"));
        self.environment(&mut plugin, command, namespace, self.root.path());
        plugin
    }

    pub fn environment(&self, plugin: &mut Command, command: &str, namespace: &str, seen: &Path) {
        plugin.env_clear().env("CNI_COMMAND", command).env("CNI_CONTAINERID", "0f9d").env("CNI_IFNAME", "eth0");
        plugin.env("CNI_NETNS", seen.join("netns")).env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web-0;K8S_POD_UID={UID}"),
        );
    }

    pub fn add(&self, namespace: &str) -> (Value, Output) {
        let config = self.config(self.root.path());
        let output = run(self.call("ADD", namespace), config.to_string().as_bytes());
        (config, output)
    }
}

/// Runs the plugin to its end.
pub fn run(mut plugin: Command, input: &[u8]) -> Output {
    let piped = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // One that fails early does not read all.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// The code of the error that was printed, and what it says.
pub fn refusal(output: &Output) -> (u64, String) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(error["cniVersion"].is_string(), "{error}");
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

/// Asserts that the pod went on with the result of the plugins before.
pub fn passed((config, output): &(Value, Output)) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), config["prevResult"]);
}

/// A request and the inodes of the descriptors that came with it.
pub type Received = (CniRequest, Vec<u64>);

/// An agent that gives these answers, one to each request; none closes the connection.
pub struct FakeAgent {
    pub requests: Arc<Mutex<Vec<Received>>>,
}

impl FakeAgent {
    pub fn listen(path: &Path, answers: Vec<Option<CniAnswer>>) -> FakeAgent {
        let listener: OwnedFd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&listener, Backlog::new(8).unwrap()).unwrap();
        let agent = FakeAgent { requests: Arc::default() };
        let (requests, mut answers) = (agent.requests.clone(), VecDeque::from(answers));
        thread::spawn(move || {
            while let Some(answer) = answers.pop_front() {
                let Ok(connection) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else { return };
                requests.lock().unwrap().push(receive(connection));
                if let Some(answer) = answer {
                    let bytes = encode_cni_answer(&answer);
                    let _ = send(connection, &bytes, MsgFlags::MSG_NOSIGNAL);
                }
                let _ = nix::unistd::close(connection);
            }
        });
        agent
    }
}

fn receive(connection: RawFd) -> Received {
    let mut bytes = vec![0; 64 << 10];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let (length, fds) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(connection, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        let mut fds = Vec::new();
        for part in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(more) = part {
                fds.extend(more);
            }
        }
        (message.bytes, fds)
    };
    let inodes = fds.into_iter().map(|fd| {
        let metadata = fs::metadata(format!("/proc/self/fd/{fd}")).unwrap();
        nix::unistd::close(fd).unwrap();
        std::os::unix::fs::MetadataExt::ino(&metadata)
    });
    let inodes = inodes.collect();
    (cni_request(&bytes[..length]).unwrap(), inodes)
}
