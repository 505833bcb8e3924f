//! Making and removing a whole cluster, and saying what of it runs.
use super::control::{self, Part};
use super::plan::{Family, Host, NODES};
use super::{Cluster, cgroup, config, fault, network, node, pki, process, programs};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Starts a cluster that is not there yet. Of one that does not come up nothing is left but its logs.
pub fn up(cluster: &Cluster, nodes: u8) -> Result<()> {
    network::must_be_free(cluster.plan)?;
    programs::build()?;
    let start = Instant::now();
    network::claim(cluster.plan)?;
    make(cluster, nodes).map_err(|error| give_up(cluster, error))?;
    eprintln!("cluster {} is up: {nodes} nodes, after {:.1} s", cluster.plan.index, start.elapsed().as_secs_f32());
    Ok(())
}

fn make(cluster: &Cluster, nodes: u8) -> Result<()> {
    // What a crash or another `down` may have left.
    let _ = fs::remove_dir_all(&cluster.folder);
    fs::create_dir_all(cluster.folder.join("log")).with_context(|| format!("make {}", cluster.folder.display()))?;
    if cluster.plan.primary == Family::V6 {
        fs::write(cluster.folder.join("ipv6"), "")?;
    }
    network::switch_on(cluster.plan)?;
    pki::create(cluster)?;
    network::attach(cluster.plan, Host::Control)?;
    control::start(cluster, Part::Etcd)?;
    control::start(cluster, Part::KubeApiserver)?;
    for index in 1..=nodes {
        node::create(cluster, index)?;
        node::power_on(cluster, index)?;
        for archive in programs::archives(&cluster.programs)? {
            node::load(cluster, index, &archive)?;
        }
    }
    control::await_ready(cluster)?;
    for part in [Part::KubeControllerManager, Part::KubeScheduler, Part::Balancer] {
        control::start(cluster, part)?;
    }
    apply(cluster, &config::addons(cluster))?;
    for index in 1..=nodes {
        let name = format!("node/n{index}");
        // It fails at once until the kubelet has registered its node.
        let ready = || cluster.kubectl(&["wait", "--for=condition=Ready", &name, "--timeout=60s"]).is_ok();
        process::until(Duration::from_secs(120), ready).with_context(|| {
            format!("n{index} is not Ready, see {}", cluster.log(&format!("n{index}-kubelet")).display())
        })?;
    }
    cluster.kubectl(&["--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s"])?;
    Ok(())
}

/// Takes down what there is of a cluster that cannot be made. Its logs stay until another one of its number fails.
fn give_up(cluster: &Cluster, error: anyhow::Error) -> anyhow::Error {
    let index = cluster.plan.index;
    let kept = cluster.folder.with_file_name(format!("cluster{index}-failed"));
    let _ = fs::remove_dir_all(&kept);
    let logs = fs::rename(cluster.folder.join("log"), &kept).map(|()| format!(", its logs are in {}", kept.display()));
    let end = match down(cluster) {
        Ok(()) => "was taken down".to_owned(),
        Err(left) => format!("is not all down (`cargo xtask cluster --cluster {index} down` tries again: {left:#})"),
    };
    error.context(format!("cluster {index} did not come up and {end}{}", logs.unwrap_or_default()))
}

fn apply(cluster: &Cluster, objects: &str) -> Result<()> {
    let mut child = cluster
        .kubectl_command()
        .args(["apply", "--filename=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("start kubectl")?;
    child.stdin.take().context("no input")?.write_all(objects.as_bytes()).context("hand over the first objects")?;
    ensure!(child.wait().context("wait for kubectl")?.success(), "the first objects were refused");
    Ok(())
}

/// Ends everything and removes everything, whatever state it is in. What cannot be removed is named, after all else is gone.
pub fn down(cluster: &Cluster) -> Result<()> {
    let mut left = Vec::new();
    let mut note = |result: Result<()>| left.extend(result.err().map(|error| format!("{error:#}")));
    let namespaces = network::namespaces(cluster.plan);
    for name in &namespaces {
        note(process::end_all(name));
    }
    for index in 1..=NODES {
        note(cgroup::remove(&cluster.plan.cgroup(index)));
    }
    for name in &namespaces {
        note(network::remove(name));
    }
    if cluster.folder.exists() {
        note(fs::remove_dir_all(&cluster.folder).with_context(|| format!("remove {}", cluster.folder.display())));
    }
    ensure!(left.is_empty(), "left behind: {}", left.join("; "));
    Ok(())
}

/// Prints what runs, and what the API server says.
pub fn status(cluster: &Cluster) -> Result<()> {
    let word = |runs: bool| if runs { "up" } else { "DOWN" };
    for part in Part::ALL {
        println!("{:24} {}", part.name(), word(!control::find(cluster, part).is_empty()));
    }
    if !fault::find(cluster).is_empty() {
        println!("{:24} up", "fault");
    }
    for index in node::all(cluster) {
        println!("{:24} {}", Host::Node(index).to_string(), word(node::first(cluster, index).is_some()));
    }
    println!(
        "{}",
        cluster.kubectl(&["get", "nodes,pods", "--all-namespaces", "--output=wide", "--request-timeout=5s"])?
    );
    Ok(())
}
