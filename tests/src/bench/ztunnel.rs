//! The peer: two real ztunnels, driven by our control plane and CA over the same manifests, on the same kind of pods.
//!
//! ztunnel learns of pods over its own socket (`harness::zds`); its redirection inside the pods is the user's script.
use super::measure::Pair;
use crate::harness::process::{Process, Program};
use crate::harness::{eventually, http, zds};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where the real thing is.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The ztunnel binary.
    pub binary: PathBuf,
    /// A script that sets up redirection in the network namespace it runs in.
    pub redirect: PathBuf,
}

/// Starts the pair of pods with a ztunnel on each node, ready.
pub(super) fn start(peer: &Peer) -> Result<(Pair, Vec<Process>)> {
    let pair = Pair::start()?;
    let lab = &pair.lab;
    lab.control.start()?;
    let mut processes = Vec::new();
    for (node, pod) in [(lab.node(1), &pair.client), (lab.node(2), &pair.server)] {
        let script = Program::new(format!("redirect-{}", pod.name), "/bin/bash").arg(&peer.redirect).netns(&pod.netns);
        lab.spawn(script)?.wait(Duration::from_secs(20))?.success().context("redirection script")?;
        let uds = node.run_dir.join("ztunnel.sock");
        zds::serve(&uds, pod)?;
        let control = format!("https://{}:15012", crate::harness::plan::control());
        let root = lab.control.root_certificate();
        let root = root.to_string_lossy();
        // It looks itself up in /proc by thread id, so it needs the /proc of the lab's pid namespace, in a mount namespace of its own.
        let own_proc = "mount -t proc proc /proc && exec \"$0\"";
        let mut program = Program::new(format!("ztunnel-{}", node.name), "/usr/bin/unshare")
            .args(["--mount", "/bin/sh", "-c", own_proc])
            .arg(&peer.binary)
            .netns(&node.netns);
        for (key, value) in [
            ("XDS_ADDRESS", control.as_str()),
            ("CA_ADDRESS", &control),
            ("XDS_ROOT_CA", &root),
            ("CA_ROOT_CA", &root),
            ("PROXY_MODE", "shared"),
            ("INPOD_UDS", &uds.to_string_lossy()),
            ("NODE_NAME", &node.name),
            ("CLUSTER_ID", "Kubernetes"),
            ("NETWORK", ""),
            ("ISTIO_META_DNS_CAPTURE", "false"),
            ("ZTUNNEL_WORKER_THREADS", "2"),
            ("RUST_LOG", "error"),
            ("AUTH_TOKEN", &lab.control.token(&node.name)?.to_string_lossy()),
        ] {
            program = program.env(key, value);
        }
        let process = lab.spawn(program.cgroup(node.cgroup.join("agent")))?;
        eventually(&format!("ztunnel on {}", node.name), Duration::from_secs(30), || {
            ensure!(process.running(), "it ended: {}", process.log());
            let ready = http::get(&node.netns, SocketAddr::from(([127, 0, 0, 1], 15021)), "/healthz/ready")?;
            ensure!(ready.status == 200, "{ready:?}: {}", process.log());
            Ok(())
        })?;
        lab.announce(pod)?;
        processes.push(process);
    }
    // Until each has heard of the other by HBONE the pods talk plain: wait until the tunnel port is used.
    let capture = crate::harness::Capture::start(&lab.fabric, &[])?;
    eventually("HBONE between the ztunnels", Duration::from_secs(20), || {
        pair.client.lab(["send", &pair.server.address.v4.to_string(), "8080", "Cx"])?;
        ensure!(capture.seen().hbone_packets > 0, "still plain");
        Ok(())
    })?;
    Ok((pair, processes))
}
