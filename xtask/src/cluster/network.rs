//! The network of a cluster: a switch, which is a namespace with a bridge, and the hosts that hang off it. Called by `up`, `down` and `reboot`.
use super::plan::{Host, NODES, Plan};
use super::process;
use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::process::Command;
use std::thread;

fn ip(netns: Option<&str>, line: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    process::output(command.args(line.split_whitespace())).map(drop)
}

/// Fails if the cluster exists.
pub fn must_be_free(plan: Plan) -> Result<()> {
    let index = plan.index;
    ensure!(
        !exists(plan),
        "cluster {index} is there already: `cargo xtask cluster --cluster {index} down` ends it, `--cluster N` takes another number, and `cargo xtask cluster free` names one"
    );
    Ok(())
}

/// Makes the namespace of the switch. It fails if the cluster exists, so of two who try at the same time one wins.
pub fn claim(plan: Plan) -> Result<()> {
    must_be_free(plan)?;
    ip(None, &format!("netns add {}", plan.switch()))
}

/// Makes the switch.
pub fn switch_on(plan: Plan) -> Result<()> {
    let switch = plan.switch();
    ip(Some(&switch), "link set lo up")?;
    ip(Some(&switch), "link add br0 type bridge")?;
    ip(Some(&switch), "link set br0 up")
}

/// Whether the cluster has been started and not ended.
pub fn exists(plan: Plan) -> bool {
    process::netns_path(&plan.switch()).exists()
}

/// Makes a host's namespace on the switch, with the ways to the pods of the other nodes.
pub fn attach(plan: Plan, host: Host) -> Result<()> {
    let (netns, switch) = (plan.netns(host), plan.switch());
    let port = format!("v-{host}");
    ip(None, &format!("netns add {netns}"))?;
    ip(Some(&netns), "link set lo up")?;
    ip(None, &format!("link add eth0 netns {netns} type veth peer name {port} netns {switch}"))?;
    ip(Some(&switch), &format!("link set {port} master br0 up"))?;
    let address = plan.address(host);
    ip(Some(&netns), &format!("link set eth0 address {}", plan.mac(host)))?;
    ip(Some(&netns), &format!("addr add {}/24 dev eth0", address.v4))?;
    ip(Some(&netns), &format!("addr add {}/64 dev eth0 nodad", address.v6))?;
    ip(Some(&netns), "link set eth0 up")?;
    forward(&netns)?;
    for node in (1..=NODES).filter(|node| host != Host::Node(*node)) {
        let (pods, via) = (plan.pods(node), plan.address(Host::Node(node)));
        ip(Some(&netns), &format!("route add {} via {}", pods.v4, via.v4))?;
        ip(Some(&netns), &format!("-6 route add {} via {}", pods.v6, via.v6))?;
    }
    if host != Host::Control {
        // Routing comes before kube-proxy's translation: without a default route the node itself has no way to Services.
        let via = plan.address(Host::Control);
        ip(Some(&netns), &format!("route add default via {}", via.v4))?;
        ip(Some(&netns), &format!("-6 route add default via {}", via.v6))?;
    }
    Ok(())
}

/// Removes a host's namespace and its port of the switch. The port first: a namespace that somebody still holds would keep it up.
pub fn detach(plan: Plan, host: Host) -> Result<()> {
    let _ = ip(Some(&plan.switch()), &format!("link del v-{host}"));
    ip(None, &format!("netns del {}", plan.netns(host)))
}

/// Names of this cluster's namespaces; the switch is the last one.
pub fn namespaces(plan: Plan) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&plan.prefix()) && *name != plan.switch())
        .collect();
    names.sort();
    names.extend(exists(plan).then(|| plan.switch()));
    names
}

/// Removes a namespace, and what of the network is in it.
pub fn remove(netns: &str) -> Result<()> {
    ip(None, &format!("netns del {netns}"))
}

fn forward(netns: &str) -> Result<()> {
    const SETTINGS: [(&str, &str); 3] =
        [("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0"), ("ipv6/conf/all/forwarding", "1")];
    inside(netns, || {
        for (name, value) in SETTINGS {
            fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("set {name}"))?;
        }
        Ok(())
    })
}

/// Runs something in a network namespace, on a thread of its own that ends with it.
fn inside(netns: &str, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let namespace = File::open(process::netns_path(netns)).with_context(|| format!("open {netns}"))?;
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {netns}"))?;
            work()
        });
        worker.join().unwrap_or_else(|_| anyhow::bail!("the thread in {netns} died"))
    })
}
