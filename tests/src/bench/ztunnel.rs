//! The peer: two real ztunnels, driven by our control plane and CA over the same manifests, on the same kind of pods.
//!
//! Or one of them beside one of our agents, which shows that the two speak the same HBONE. ztunnel learns of pods over its own socket (`harness::zds`); its redirection inside the pods is the user's script.
use super::measure::Pair;
use crate::harness::manifest::DATAPLANE_MODE;
use crate::harness::process::{Process, Program};
use crate::harness::{Capture, Pod, eventually, http, zds};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Sent to see whether it crosses the wire in clear.
const PROBE: &str = "bench-probe-in-clear";

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
    pair.lab.control.start()?;
    let mut processes = Vec::new();
    for pod in [&pair.client, &pair.server] {
        processes.push(start_on(&pair, peer, pod)?);
    }
    wait_for_hbone(&pair)?;
    Ok((pair, processes))
}

/// Starts the pair with our agent on the node of one pod and a ztunnel on the node of the other: the two have to understand each other.
pub(super) fn start_mixed(peer: &Peer, ours_calls: bool) -> Result<(Pair, Process)> {
    let pair = Pair::start()?;
    pair.lab.control.start()?;
    let (ours, theirs) = if ours_calls { (&pair.client, &pair.server) } else { (&pair.server, &pair.client) };
    let process = start_on(&pair, peer, theirs)?;
    pair.lab.start_agent(&ours.node)?;
    ours.node.agent()?.wait_ready(Duration::from_secs(30))?;
    pair.lab.namespace("default", &[(DATAPLANE_MODE, "ambient")])?;
    pair.lab.enrol(ours)?;
    wait_for_hbone(&pair)?;
    Ok((pair, process))
}

/// A ztunnel on a pod's node, that has the pod.
fn start_on(pair: &Pair, peer: &Peer, pod: &Pod) -> Result<Process> {
    let (lab, node) = (&pair.lab, &pod.node);
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
    Ok(process)
}

/// Until each side has heard of the other by HBONE the pods talk plain: waits until a call uses the tunnel port and nothing else.
fn wait_for_hbone(pair: &Pair) -> Result<()> {
    eventually("HBONE between the pods", Duration::from_secs(20), || {
        let capture = Capture::start(&pair.lab.fabric, &[PROBE])?;
        pair.client.lab(["send", &pair.server.address.v4.to_string(), "8080", &format!("C{PROBE}")])?;
        let seen = capture.seen();
        ensure!(seen.hbone_packets > 0 && seen.sightings.is_empty(), "still plain");
        Ok(())
    })
}
