//! Pods come, go and take over each other's addresses: rows F20, F21, F22.
use crate::pair::{Pair, SOON, let_run};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::enrol::{Enrolment, add_message};
use mesh_tests::harness::{
    Agent, Lab, LabConfig, Need, Netns, Node, PodSpec, Process, agent, cgroup, eventually, in_lab, netlink, rounds,
    soak, span,
};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A pod that is nothing but what the agent is told about: a namespace with an address, a cgroup, an account.
struct Shell {
    enrolment: Enrolment,
}

impl Shell {
    /// Shell number `n` on `node`, of the account `crowd` in `default`.
    fn create(node: &Node, n: u32) -> Result<Shell> {
        let netns = Netns::create("shell")?;
        let [_, _, high, low] = (n % 0x4000).to_be_bytes();
        let ip: IpAddr = Ipv4Addr::new(198, 18, 0x80 + high, low).into();
        netns.run(|| netlink::add_address("lo", ip, 32))?;
        let cgroup = node.pods_cgroup().join(format!("shell-{n}"));
        cgroup::create(&cgroup)?;
        let uid = format!("00000000-0000-4000-8000-{n:012x}");
        let (name, dns) = (format!("shell-{n}"), (Vec::new(), Vec::new()));
        let add = add_message(&uid, "default", &name, "crowd", vec![ip.to_string()], dns, &node.name);
        Ok(Shell { enrolment: Enrolment { add, netns, cgroup } })
    }

    /// Enrols it; how long the acknowledgement took.
    fn enrol(&self, node: &Node) -> Result<Duration> {
        let start = Instant::now();
        node.kubelet().add(self.enrolment.clone())?;
        Ok(start.elapsed())
    }

    /// Removes it; how long that took.
    fn leave(self, node: &Node) -> Result<Duration> {
        let start = Instant::now();
        node.kubelet().del(&self.enrolment.add.uid)?;
        let took = start.elapsed();
        cgroup::remove(&self.enrolment.cgroup)?;
        Ok(took)
    }
}

/// What an agent holds for its pods: descriptors of both processes, and entries of each kernel map.
fn holdings(agent: &Agent) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for (name, pid) in [("keeper", agent.process.pid()), ("worker", agent.worker()?)] {
        let count = std::fs::read_dir(format!("/proc/{pid}/fd")).context("list descriptors")?.count();
        found.push((format!("descriptors of the {name}"), count as u64));
    }
    for sample in agent.metrics()?.select("mesh_bpf_map_entries", &[]) {
        let map = sample.labels.get("map").cloned().unwrap_or_default();
        found.push((format!("entries of the map {map}"), sample.value as u64));
    }
    Ok(found)
}

fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times.get((times.len() as f64 * share) as usize).or(times.last()).copied().unwrap_or_default()
}

#[test]
fn hardening_F20_pods_that_come_and_go_leave_nothing() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig { nodes: 1, ..LabConfig::default() })?;
        let node = lab.node(1);
        let agent = node.agent()?;
        // The authority signs for accounts that have a pod on the node.
        lab.add_pod(PodSpec::new("crowd").service_account("crowd"))?;
        let live = rounds(20, 1000) as usize;
        let first = Shell::create(node, 0)?;
        first.enrol(node)?;
        first.leave(node)?;
        let before = holdings(&agent)?;
        ensure!(before.iter().any(|(what, _)| what.contains("map")), "no map is watched: {before:?}");

        let (mut shells, mut added, mut removed) = (VecDeque::new(), Vec::new(), Vec::new());
        let (start, long) = (Instant::now(), span(Duration::ZERO, Duration::from_secs(1800)));
        let mut n = 1;
        while n <= 3 * live as u32 || start.elapsed() < long {
            // Fifty a second, in a soak.
            let due = start + Duration::from_millis(20) * n;
            if soak().is_some() {
                let_run(due.saturating_duration_since(Instant::now()));
            }
            let shell = Shell::create(node, n)?;
            added.push(shell.enrol(node)?);
            shells.push_back(shell);
            if shells.len() > live {
                removed.push(shells.pop_front().context("the oldest")?.leave(node)?);
            }
            n += 1;
        }
        ensure!(agent.worker().is_ok() && agent.ready_status()? == 200);
        for shell in shells.drain(..) {
            removed.push(shell.leave(node)?);
        }
        ensure!(added.len() == removed.len());
        eventually("everything is as before", Duration::from_secs(60), || {
            let now = holdings(&agent)?;
            for ((what, was), (_, is)) in before.iter().zip(&now) {
                ensure!(is <= was, "{what}: {was} before, {is} after {n} pods");
            }
            Ok(())
        })?;
        let (add, remove) = (percentile(&mut added, 0.99), percentile(&mut removed, 0.99));
        println!("{} pods, p99 of enrolment {add:?}, of removal {remove:?}", added.len());
        // Both figures are those of a quiet machine of the present; what matters elsewhere is that there is a bound.
        if soak().is_some() {
            ensure!(add < Duration::from_millis(200), "p99 of enrolment is {add:?}");
            ensure!(remove < Duration::from_secs(1), "p99 of removal is {remove:?}");
        }
        Ok(())
    })
}

#[test]
fn hardening_F21_reused_address_never_has_the_old_identity() -> Result<()> {
    in_lab(Need::Mesh, || {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let client = lab.add_pod(PodSpec::new("client").service_account("client"))?;
        lab.enrol_namespace("default")?;
        for i in 0..rounds(6, 10_000) {
            let account = if i % 2 == 0 { "even" } else { "odd" };
            let name = format!("server-{account}");
            let spec = PodSpec::new(&name).service_account(account).node(2).address_number(77);
            let server = lab.add_pod(spec)?;
            let _http = server.serve(["http", "--port", "8080", "--name", account])?;
            lab.enrol(&server)?;
            lab.wait_hbone(&[&server])?;
            let url = format!("http://{}:8080/", server.address.v4);
            eventually("the new pod", SOON, || {
                let result = client.get(&url)?;
                ensure!(result.code == 0, "{result:?}");
                ensure!(result.stdout.contains(&format!("\"server\":\"{account}\"")), "{}", result.stdout);
                Ok(())
            })?;
            // Both ends say who answered; the former owner of the address is not mentioned with the present one.
            let identity = server.identity();
            for node in &lab.nodes {
                let metrics = node.agent()?.metrics()?;
                let with = |labels: &[(&str, &str)]| metrics.sum("istio_tcp_connections_opened_total", labels);
                let mine = [("destination_workload", name.as_str()), ("response_flags", "-")];
                let named = [&mine[..], &[("destination_principal", identity.as_str())]].concat();
                ensure!(with(&mine) > 0.0 && with(&mine) == with(&named), "{}: {name} is not {identity}", node.name);
            }
            lab.remove_pod(&server)?;
        }
        Ok(())
    })
}

#[test]
fn hardening_F22_pod_disappears_with_connections_open() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let worker = pair.lab.node(2).agent()?.worker()?;
        let mut server = Arc::clone(&pair.server);
        let mut _serving = None;
        for _ in 0..rounds(1, 1000) {
            let address = server.address.v4.to_string();
            let holds: Vec<Process> =
                (0..5).map(|_| pair.client.start("hold", "lab", ["hold", &address, "8080"])).collect::<Result<_>>()?;
            for hold in &holds {
                hold.wait_for("open", SOON)?;
            }
            pair.lab.remove_pod(&server)?;
            for hold in &holds {
                hold.wait_for("cut", SOON)?;
            }
            let before = agent::cpu_seconds(worker);
            let_run(Duration::from_secs(1));
            let busy = agent::cpu_seconds(worker) - before;
            ensure!(busy < 0.5, "with nothing to do the agent burns {busy} s of CPU per second");
            server = pair.lab.add_pod(PodSpec::new("server").service_account("server").node(2).address_number(0))?;
            _serving = Some(server.serve(["load", "serve"])?);
            pair.lab.enrol(&server)?;
            pair.lab.wait_hbone(&[&server])?;
        }
        Ok(())
    })
}
