//! Faults of the agent and of the pods it serves, against real processes: rows F1, F5, F8, F9, F10, F11, F21, F22, F30, F36, F37, F41.

#![expect(non_snake_case, reason = "tests carry the ids of their rows")]

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::policy::Authorization;
use mesh_tests::harness::{
    Agent, Capture, Lab, LabConfig, Need, Pod, PodSpec, Process, ServiceSpec, agent, can_run, eventually, until,
};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);
const TOKEN: &str = "canary-of-the-hardening-tests";

/// A client on node 1, a load server on node 2 (port 8080), enrolled; and the address to call.
struct Pair {
    lab: Lab,
    client: Arc<Pod>,
    server: Arc<Pod>,
    target: String,
    _server: Process,
}

impl Pair {
    fn start(config: LabConfig) -> Result<Pair> {
        let lab = Lab::with_mesh(config)?;
        let client = lab.add_pod(PodSpec::new("client").service_account("client"))?;
        let server = lab.add_pod(PodSpec::new("server").service_account("server").node(2))?;
        let _server = server.serve(["load", "serve"])?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&client, &server])?;
        let target = format!("{}:8080", server.address.v4);
        Ok(Pair { lab, client, server, target, _server })
    }

    /// Starts steady load that ends when its standard input closes.
    fn steady(&self, rate: u32, long: u32) -> Result<Process> {
        let (rate, long) = (rate.to_string(), long.to_string());
        let args = ["load", "steady", &self.target, "--rate", &rate, "--long", &long, "--token", TOKEN, "--limit", "5"];
        let load = self.client.start("steady", "lab", args)?;
        load.wait_for("started", SOON)?;
        Ok(load)
    }

    fn send(&self) -> Result<i32> {
        Ok(self.client.lab(["send", &self.server.address.v4.to_string(), "8080", "Chello", "--timeout", "5"])?.code)
    }
}

/// Ends a steady load and reads its result.
fn result(load: &Process) -> Result<serde_json::Value> {
    load.close_stdin();
    let output = load.wait(Duration::from_secs(30))?.stdout;
    serde_json::from_str(output.lines().last().unwrap_or("")).with_context(|| format!("result of the load: {output}"))
}

fn count(result: &serde_json::Value, key: &str) -> u64 {
    result[key].as_u64().unwrap_or(u64::MAX)
}

fn wait_for_loads(time: Duration) {
    // The load itself is the clock here: it must go on for a while before and after a fault.
    std::thread::sleep(time);
}

#[test]
fn hardening_F1_killed_worker_is_replaced_and_nothing_is_refused() -> Result<()> {
    if !can_run("hardening_F1 worker", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    let capture = Capture::start(&pair.lab.fabric, &[TOKEN])?;
    let load = pair.steady(100, 20)?;
    let kills = if mesh_tests::harness::soak() { 200 } else { 5 };
    for i in 0..kills {
        let agent = pair.lab.node(1 + (i % 2) as u8).agent()?;
        let old = agent.worker()?;
        wait_for_loads(Duration::from_millis(300));
        agent.signal_worker(Signal::SIGKILL)?;
        let start = Instant::now();
        until("a new worker", SOON, || agent.worker().is_ok_and(|pid| pid != old))?;
        agent.wait_ready(SOON)?;
        ensure!(start.elapsed() < Duration::from_secs(3), "back after {:?}", start.elapsed());
    }
    wait_for_loads(Duration::from_millis(500));
    let result = result(&load)?;
    ensure!(
        count(&result, "refused") == 0 && count(&result, "timeout") == 0 && count(&result, "other") == 0,
        "{result}"
    );
    // Only connections that the dead process held are cut: those in flight at each kill.
    ensure!(count(&result, "reset") <= 8 * kills, "{result}");
    ensure!(count(&result, "cut") == 20, "relayed connections must end, not hang: {result}");
    ensure!(capture.seen().sightings.is_empty(), "plaintext: {:?}", capture.seen().sightings);
    Ok(())
}

#[test]
fn hardening_F1_without_keeper_and_worker_all_is_refused_and_nothing_is_plain() -> Result<()> {
    if !can_run("hardening_F1 whole agent", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    let capture = Capture::start(&pair.lab.fabric, &[TOKEN])?;
    let hold =
        pair.client.start("hold", "lab", ["hold", &pair.server.address.v4.to_string(), "8080", "--token", TOKEN])?;
    hold.wait_for("open", SOON)?;
    let agent = pair.lab.node(1).agent()?;
    let worker = agent.worker()?;
    agent.process.signal(Signal::SIGKILL)?;
    until("the worker follows its keeper", SOON, || !std::path::Path::new(&format!("/proc/{worker}")).exists())?;
    hold.wait_for("cut", SOON)?;
    eventually("a quick refusal", SOON, || {
        let start = Instant::now();
        let probe = pair.client.lab(["probe", &pair.server.address.v4.to_string(), "8080", "--timeout", "2"])?;
        let took: f64 = probe.stderr.rsplit("ms=").next().and_then(|t| t.trim().parse().ok()).unwrap_or(9999.0);
        ensure!(probe.code == 7, "{probe:?}");
        ensure!(took < 100.0, "refused after {took} ms ({:?} with the process)", start.elapsed());
        Ok(())
    })?;
    ensure!(capture.seen().sightings.is_empty(), "plaintext: {:?}", capture.seen().sightings);

    pair.lab.start_agent(pair.lab.node(1))?;
    pair.lab.node(1).agent()?.wait_ready(Duration::from_secs(30))?;
    eventually("service after the restart", SOON, || {
        let code = pair.send()?;
        ensure!(code == 0, "code {code}");
        Ok(())
    })
}

#[test]
fn hardening_F5_stopped_agent_goes_on_where_it_was() -> Result<()> {
    if !can_run("hardening_F5", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    let hold =
        pair.client.start("hold", "lab", ["hold", &pair.server.address.v4.to_string(), "8080", "--token", TOKEN])?;
    hold.wait_for("open", SOON)?;
    let agent = pair.lab.node(2).agent()?;
    let pause = Duration::from_secs(if mesh_tests::harness::soak() { 30 } else { 2 });
    agent.signal_worker(Signal::SIGSTOP)?;
    wait_for_loads(pause);
    agent.signal_worker(Signal::SIGCONT)?;
    let start = Instant::now();
    eventually("service", Duration::from_secs(5), || {
        let code = pair.send()?;
        ensure!(code == 0, "code {code}");
        Ok(())
    })?;
    ensure!(start.elapsed() < Duration::from_secs(5));
    ensure!(agent.worker().is_ok(), "the worker is gone");
    Ok(())
}

#[test]
fn hardening_F8_second_agent_of_an_instance_leaves_the_first_alone() -> Result<()> {
    if !can_run("hardening_F8", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    let node = pair.lab.node(1);
    let worker = node.agent()?.worker()?;
    for _ in 0..2 {
        let second = pair.lab.spawn(pair.lab.agent_program(node)?)?.wait(SOON)?;
        ensure!(second.code != 0, "{second:?}");
        ensure!(!second.stderr.is_empty() || !second.stdout.is_empty(), "it must say why");
    }
    ensure!(node.agent()?.worker()? == worker && pair.send()? == 0, "the first agent was disturbed");
    Ok(())
}

#[test]
fn hardening_F9_agent_without_control_plane_is_not_ready_and_closed() -> Result<()> {
    if !can_run("hardening_F9", Need::Mesh) {
        return Ok(());
    }
    let lab = Lab::start(LabConfig::default())?;
    lab.control.start()?;
    let node = lab.node(1);
    let program = lab.agent_program(node)?;
    lab.control.kill();
    let agent: Agent = lab.adopt_agent(node, program)?;
    let client = lab.add_pod(PodSpec::new("client"))?;
    let server = lab.add_pod(PodSpec::new("server").node(2))?;
    let _server = server.serve(["load", "serve"])?;
    let capture = Capture::start(&lab.fabric, &[TOKEN])?;
    eventually("the readiness endpoint", SOON, || agent.ready_status())?;
    ensure!(agent.ready_status()? != 200, "ready without a control plane");
    lab.enrol(&client)?;
    let start = Instant::now();
    let text = format!("C{TOKEN}");
    let result = client.lab(["send", &server.address.v4.to_string(), "8080", &text, "--timeout", "15"])?;
    ensure!(result.code != 0 && result.code != 28, "{result:?}");
    ensure!(start.elapsed() < Duration::from_secs(13), "held for {:?}", start.elapsed());
    ensure!(capture.seen().sightings.is_empty(), "{:?}", capture.seen().sightings);

    lab.control.start()?;
    agent.wait_ready(Duration::from_secs(40))
}

#[test]
fn hardening_F10_and_F11_control_plane_away_and_flapping() -> Result<()> {
    if !can_run("hardening_F10", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    let load = pair.steady(50, 10)?;
    let flaps = if mesh_tests::harness::soak() { 1000 } else { 4 };
    for _ in 0..flaps {
        pair.lab.control.kill();
        wait_for_loads(Duration::from_millis(500));
        pair.lab.control.start()?;
        wait_for_loads(Duration::from_millis(500));
    }
    let result = result(&load)?;
    for key in ["refused", "reset", "timeout", "other", "cut"] {
        ensure!(count(&result, key) == 0, "{key}: {result}");
    }
    // What changed meanwhile arrives.
    pair.lab.apply("policy", &Authorization::deny("no-client", "server").from("default", "client").yaml())?;
    eventually("the policy", Duration::from_secs(35), || {
        ensure!(pair.send()? != 0);
        Ok(())
    })
}

#[test]
fn hardening_F14_cut_cable_to_the_control_plane() -> Result<()> {
    if !can_run("hardening_F14", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    pair.lab.control.connect(false)?;
    pair.lab.apply("policy", &Authorization::deny("no-client", "server").from("default", "client").yaml())?;
    wait_for_loads(Duration::from_secs(if mesh_tests::harness::soak() { 60 } else { 2 }));
    ensure!(pair.send()? == 0, "the last good configuration must go on");
    pair.lab.control.connect(true)?;
    eventually("the policy", Duration::from_secs(35), || {
        ensure!(pair.send()? != 0);
        Ok(())
    })
}

#[test]
fn hardening_F21_reused_address_never_has_the_old_identity() -> Result<()> {
    if !can_run("hardening_F21", Need::Mesh) {
        return Ok(());
    }
    let lab = Lab::with_mesh(LabConfig::default())?;
    let client = lab.add_pod(PodSpec::new("client").service_account("client"))?;
    lab.enrol_namespace("default")?;
    let rounds = if mesh_tests::harness::soak() { 200 } else { 6 };
    for i in 0..rounds {
        let account = if i % 2 == 0 { "even" } else { "odd" };
        let spec = PodSpec::new(&format!("server-{account}")).service_account(account).node(2).address_number(77);
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
        lab.remove_pod(&server)?;
    }
    for node in &lab.nodes {
        for sample in node.agent()?.metrics()?.samples {
            let label = |k: &str| sample.labels.get(k).map(String::as_str).unwrap_or("");
            for account in ["even", "odd"] {
                if label("destination_workload") == format!("server-{account}") && label("response_flags") == "-" {
                    let want = format!("spiffe://cluster.local/ns/default/sa/{account}");
                    ensure!(label("destination_principal") == want, "{sample:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn hardening_F22_pod_disappears_with_connections_open() -> Result<()> {
    if !can_run("hardening_F22", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    let address = pair.server.address.v4.to_string();
    let holds: Vec<Process> = (0..5)
        .map(|_| pair.client.start("hold", "lab", ["hold", &address, "8080", "--token", TOKEN]))
        .collect::<Result<_>>()?;
    for hold in &holds {
        hold.wait_for("open", SOON)?;
    }
    pair.lab.remove_pod(&pair.server)?;
    for hold in &holds {
        hold.wait_for("cut", SOON)?;
    }
    let worker = pair.lab.node(2).agent()?.worker()?;
    let before = agent::cpu_seconds(worker);
    wait_for_loads(Duration::from_secs(1));
    let busy = agent::cpu_seconds(worker) - before;
    ensure!(busy < 0.5, "the agent burns {busy} s of CPU per second");
    Ok(())
}

#[test]
fn hardening_F30_agent_short_of_descriptors_recovers() -> Result<()> {
    if !can_run("hardening_F30", Need::Mesh) {
        return Ok(());
    }
    let lab = Lab::start(LabConfig::default())?;
    lab.control.start()?;
    lab.start_agent(lab.node(2))?;
    let small = lab.agent_program(lab.node(1))?.open_files(512);
    let agent = lab.adopt_agent(lab.node(1), small)?;
    for ready in [&agent, &*lab.node(2).agent()?] {
        ready.wait_ready(Duration::from_secs(30))?;
    }
    let client = lab.add_pod(PodSpec::new("client"))?;
    let server = lab.add_pod(PodSpec::new("server").node(2))?;
    let _server = server.serve(["load", "serve"])?;
    lab.enrol(&client)?;
    lab.enrol(&server)?;
    eventually("first connection", SOON, || {
        let code = client.lab(["send", &server.address.v4.to_string(), "8080", "Cx"])?.code;
        ensure!(code == 0, "code {code}");
        Ok(())
    })?;
    let target = format!("{}:8080", server.address.v4);
    let load =
        client.start("idle", "lab", ["load", "steady", &target, "--rate", "50", "--long", "900", "--limit", "2"])?;
    load.wait_for("started", SOON)?;
    wait_for_loads(Duration::from_secs(2));
    let worker = agent.worker()?;
    let before = agent::cpu_seconds(worker);
    wait_for_loads(Duration::from_secs(1));
    ensure!(agent::cpu_seconds(worker) - before < 0.9, "the accept loop spins");
    let health = mesh_tests::harness::http::get_unix(&lab.node(1).run_dir.join("admin.sock"), "/healthz")?;
    ensure!(health.status == 200, "admin must answer: {health:?}");
    load.kill();
    eventually("recovery", SOON, || {
        let code = client.lab(["send", &server.address.v4.to_string(), "8080", "Cx"])?.code;
        ensure!(code == 0, "code {code}");
        Ok(())
    })
}

#[test]
fn hardening_F36_half_close_is_kept_in_both_orders() -> Result<()> {
    if !can_run("hardening_F36", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    // The client ends its side first; the server's count of every byte comes back afterwards.
    let output =
        pair.client.lab(["load", "stream", &pair.target, "--connections", "4", "--seconds", "1"])?.success()?;
    let value: serde_json::Value = serde_json::from_str(output.stdout.trim())?;
    ensure!(value["bytes"].as_u64().is_some_and(|n| n > 1 << 20), "{value}");
    // The server ends first; the client reads to a clean end.
    let output = pair.client.lab(["load", "conn", &pair.target, "--clients", "4", "--seconds", "1"])?.success()?;
    let value: serde_json::Value = serde_json::from_str(output.stdout.trim())?;
    ensure!(count(&value, "errors") == 0 && value["per_second"].as_f64().is_some_and(|n| n > 10.0), "{value}");
    Ok(())
}

#[test]
fn hardening_F37_reset_stays_reset_in_both_directions() -> Result<()> {
    if !can_run("hardening_F37", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    let address = pair.server.address.v4.to_string();
    let result = pair.client.lab(["send", &address, "8080", "Rx"])?;
    ensure!(result.code == 56, "the server's reset must not look like an end: {result:?}");
    let echo = pair.server.serve(["tcp-echo", "--port", "9000"])?;
    pair.client.lab(["send", &address, "9000", "x", "--reset"])?.success()?;
    echo.wait_for("how=reset", SOON)?;
    pair.client.lab(["send", &address, "9000", "x"])?.success()?;
    echo.wait_for("how=eof", SOON)?;
    Ok(())
}

#[test]
fn hardening_F41_rotation_under_load_fails_nothing() -> Result<()> {
    if !can_run("hardening_F41", Need::Mesh) {
        return Ok(());
    }
    let config = LabConfig { control_args: vec!["--secret-ttl".into(), "10s".into()], ..LabConfig::default() };
    let pair = Pair::start(config)?;
    let load = pair.steady(20, 10)?;
    wait_for_loads(Duration::from_secs(if mesh_tests::harness::soak() { 600 } else { 15 }));
    let result = result(&load)?;
    for key in ["refused", "reset", "timeout", "other", "cut"] {
        ensure!(count(&result, key) == 0, "{key}: {result}");
    }
    let dump: serde_json::Value = serde_json::from_str(&pair.lab.node(1).agent()?.admin("/config_dump")?.body)?;
    let generations = dump["certificates"].to_string();
    ensure!(dump["certificates"].as_array().is_some_and(|c| !c.is_empty()), "{generations}");
    Ok(())
}

#[test]
fn hardening_F38_server_first_protocols_wait_for_nobody() -> Result<()> {
    if !can_run("hardening_F38", Need::Mesh) {
        return Ok(());
    }
    let pair = Pair::start(LabConfig::default())?;
    let _banner = pair.server.serve(["banner", "--port", "2525", "--text", "220 lab"])?;
    let output = pair.client.lab(["listen", &pair.server.address.v4.to_string(), "2525"])?.success()?.stdout;
    let ms: f64 = output.split_whitespace().last().and_then(|t| t.parse().ok()).context("milliseconds")?;
    ensure!(output.starts_with("220 lab ") && ms < 1000.0, "{output}");
    Ok(())
}

#[test]
fn hardening_a_dead_endpoint_costs_no_load() -> Result<()> {
    if !can_run("hardening_dead_endpoint", Need::Mesh) {
        return Ok(());
    }
    let lab = Lab::with_mesh(LabConfig::default())?;
    let client = lab.add_pod(PodSpec::new("client"))?;
    lab.add_service(ServiceSpec::new("web").port("http", 80, 8080))?;
    let (alive, dead) = (
        lab.add_pod(PodSpec::new("web-1").label("app", "web").node(2))?,
        lab.add_pod(PodSpec::new("web-2").label("app", "web").node(1))?,
    );
    let _http = alive.serve(["http", "--port", "8080", "--name", "alive"])?;
    lab.enrol_namespace("default")?;
    lab.wait_hbone(&[&client, &alive, &dead])?;
    let output = client.lab(["get", "http://web/", "--count", "60"])?.stdout;
    let good = output.lines().filter(|l| l.contains("\"status\":200")).count();
    ensure!(good == 60, "{good} of 60 loads: the next endpoint must be tried: {:.600}", output);
    Ok(())
}
