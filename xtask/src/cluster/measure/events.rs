//! What is done to the mesh while load runs. Called by [`super`].
use super::super::plan::Host;
use super::super::process::{self, Process};
use super::super::{Cluster, node};
use super::bed::{Bed, Load, MESH, OUTSIDE, TOKEN};
use super::table::Row;
use super::{Event, Options, now_ms};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

const SYSTEM: &str = "undermesh-system";
const SAME: &str = "n1 to n1";
const BETWEEN: &str = "n1 to n2";
/// What load may go on for after something that is over in less.
const MOMENT: Duration = Duration::from_secs(3);

/// Does one thing, and says what the load noticed.
pub fn measure(bed: &Bed<'_>, event: Event, options: &Options) -> Result<Vec<Row>> {
    if event != Event::Label {
        bed.in_mesh()?;
    }
    match event {
        Event::Label => label(bed, options),
        Event::Deny => deny(bed, options),
        Event::KillWorker => kills(bed, options, "kill -9 of the worker", worker),
        Event::Kill => kills(bed, options, "kill -9 of the container", keeper),
        Event::Rollout => rollout(bed, options),
        Event::Reboot => reboot(bed, options),
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.2} s", ms as f64 / 1000.0)
}

fn rows(loads: [Load; 2], event: &str) -> Result<Vec<Row>> {
    let [same, between] = loads;
    // Both end at once, or the second would go on while the first is read.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| between.row(event, BETWEEN));
        let same = same.row(event, SAME)?;
        Ok(vec![same, other.join().map_err(|_| anyhow::anyhow!("reading a row panicked"))??])
    })
}

fn label(bed: &Bed<'_>, options: &Options) -> Result<Vec<Row>> {
    bed.label(false)?;
    bed.enrolled(false)?;
    bed.reaches(OUTSIDE, "outsider-2", 1)?;
    let outside = bed.load(OUTSIDE, "outsider-2", 1, options.rate, 0)?;
    let inside = bed.load(MESH, "caller-1", 2, options.rate, options.long)?;
    sleep(options.before());
    let asked = now_ms();
    bed.label(true)?;
    let labelled = now_ms();
    bed.enrolled(true)?;
    sleep(MOMENT);
    let outside = outside.row("label", "plaintext, n2 to n1")?;
    let note = format!(
        "STRICT {} after the label ({} with kubectl)",
        seconds(outside.last_ok_ms.saturating_sub(labelled)),
        seconds(outside.last_ok_ms.saturating_sub(asked))
    );
    ensure!(outside.failed() > 0, "plaintext to STRICT pods goes on");
    Ok(vec![outside.note(note), inside.row("label", BETWEEN)?])
}

fn deny(bed: &Bed<'_>, options: &Options) -> Result<Vec<Row>> {
    let loads = bed.both(options)?;
    sleep(options.before());
    let asked = now_ms();
    bed.apply(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": { "name": "deny", "namespace": MESH },
        "spec": { "action": "DENY", "rules": [{ "from": [{ "source": { "namespaces": [MESH] } }] }] },
    }))?;
    let applied = now_ms();
    sleep(MOMENT);
    let rows = rows(loads, "deny policy")?;
    bed.cluster.kubectl(&["-n", MESH, "delete", "authorizationpolicy", "deny"])?;
    let told = rows.into_iter().map(|row| {
        let last = row.cuts_ms.iter().max().copied().unwrap_or_default();
        let note = format!(
            "last one cut {} after the policy ({} with kubectl)",
            seconds(last.saturating_sub(applied)),
            seconds(last.saturating_sub(asked))
        );
        row.note(note)
    });
    Ok(told.collect())
}

fn kills(bed: &Bed<'_>, options: &Options, event: &str, whom: fn(&Cluster) -> Result<Pid>) -> Result<Vec<Row>> {
    let loads = bed.both(options)?;
    sleep(options.before());
    for round in 1..=options.kills {
        let victim = whom(bed.cluster).with_context(|| format!("kill number {round}"))?;
        kill(victim, Signal::SIGKILL).context("kill it")?;
        sleep(Duration::from_secs(options.every));
    }
    let rows = rows(loads, event)?;
    Ok(rows.into_iter().map(|row| row.note(format!("{} times", options.kills))).collect())
}

/// The agent's processes on n1, workers and others.
fn agents(cluster: &Cluster) -> (Vec<Process>, Vec<Process>) {
    let is_agent = |process: &Process| process.arguments.iter().any(|word| word.starts_with("--run-dir="));
    let all = process::inside(&cluster.plan.netns(Host::Node(1)));
    all.into_iter().filter(is_agent).partition(|process| process.arguments.get(1).is_some_and(|word| word == "worker"))
}

/// The youngest worker: an older one may still be letting its connections end.
fn worker(cluster: &Cluster) -> Result<Pid> {
    let mut found = None;
    process::until(Duration::from_secs(30), || {
        found = agents(cluster).0.into_iter().map(|process| process.pid).max_by_key(|pid| started(*pid));
        found.is_some()
    })
    .context("no worker runs on n1")?;
    found.context("no worker runs on n1")
}

/// The first process of the container with the worker.
fn keeper(cluster: &Cluster) -> Result<Pid> {
    let worker = worker(cluster)?;
    let status = fs::read_to_string(format!("/proc/{worker}/status")).context("read the worker's status")?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|pid| pid.trim().parse().ok());
    let parent = Pid::from_raw(parent.context("the worker has no parent")?);
    ensure!(agents(cluster).1.iter().any(|process| process.pid == parent), "the worker's parent is no agent");
    Ok(parent)
}

/// In ticks since the machine's start.
fn started(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)?.parse().ok()).unwrap_or_default()
}

fn rollout(bed: &Bed<'_>, options: &Options) -> Result<Vec<Row>> {
    let loads = bed.both(options)?;
    sleep(options.before());
    let asked = now_ms();
    bed.cluster.kubectl(&["-n", SYSTEM, "rollout", "restart", "daemonset/mesh-agent"])?;
    bed.cluster.kubectl(&["-n", SYSTEM, "rollout", "status", "daemonset/mesh-agent", "--timeout=600s"])?;
    let over = now_ms();
    sleep(options.after());
    let rows = rows(loads, "rollout")?;
    let told = rows.into_iter().map(|row| {
        let first = row
            .cuts_ms
            .iter()
            .min()
            .map(|first| format!(", first one cut after {}", seconds(first.saturating_sub(asked))));
        let note = format!("took {}{}", seconds(over - asked), first.unwrap_or_default());
        row.note(note)
    });
    Ok(told.collect())
}

/// Node 1 loses its power while its pods call and are called, and its agent's image is not to be had for a while.
fn reboot(bed: &Bed<'_>, options: &Options) -> Result<Vec<Row>> {
    let cluster = bed.cluster;
    let target = bed.address(2).to_string();
    bed.pod(
        MESH,
        "busy-1",
        1,
        &["load", "steady", &target, "--seconds", "86400", "--rate", "50", "--long", "10", "--token", TOKEN],
    )?;
    bed.enrolled(true)?;
    let wire = bed.wire(options.release)?;
    let [friend, stranger] = [(MESH, "caller-2"), (OUTSIDE, "outsider-2")];
    let friend = bed.load(friend.0, friend.1, 1, options.rate, options.long)?;
    let stranger = bed.load(stranger.0, stranger.1, 1, options.rate, 0)?;
    sleep(options.before());
    let image = agent_image(cluster)?;
    let hidden = format!("{image}-hidden");
    let ctr = |words: &[&str]| -> Result<String> {
        let mut ctr = node::inside(cluster, 1, "ctr")?;
        process::output(ctr.args(["--namespace", "k8s.io", "images"]).args(words))
    };
    ctr(&["tag", "--force", &image, &hidden])?;
    ctr(&["remove", "--sync", &image])?;
    node::power_off(cluster, 1)?;
    let off = now_ms();
    node::power_on(cluster, 1)?;
    sleep(Duration::from_secs(options.late));
    let agents = agents(cluster);
    ensure!(agents.0.is_empty() && agents.1.is_empty(), "the agent was not away");
    ctr(&["tag", "--force", &hidden, &image])?;
    // In both directions: then there is an agent again, and whatever was plaintext would have been seen.
    bed.reaches(MESH, "caller-2", 1)?;
    bed.reaches(MESH, "caller-1", 2)?;
    let back = now_ms();
    sleep(MOMENT);
    let friend = friend.row("reboot", "n2 to n1")?.note(format!("whole again after {}", seconds(back - off)));
    let stranger = stranger.row("reboot", "without identity, n2 to n1")?;
    let seen = wire.finish()?;
    let note = format!(
        "{} let through; on the wire: {} plaintext bytes of the port, {} tokens, {} bytes of HBONE, {} frames missed, {} bytes that it sent itself{}",
        stranger.new - stranger.failed(),
        seen["port_bytes"],
        seen["tokens"],
        seen["hbone_bytes"],
        seen["lost"],
        seen["strangers_bytes"],
        seen["first"].as_str().map(|flow| format!("; first in {flow}")).unwrap_or_default()
    );
    Ok(vec![friend, stranger.note(note)])
}

fn agent_image(cluster: &Cluster) -> Result<String> {
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    let image = cluster.kubectl(&["-n", SYSTEM, "get", "daemonset", "mesh-agent", "-o", path])?;
    // As containerd calls it.
    Ok(if image.split('/').count() == 2 { format!("docker.io/{image}") } else { image })
}
