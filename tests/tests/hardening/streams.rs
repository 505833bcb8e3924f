//! How connections begin, stall and end, and what others on the wire can do to them: rows F34-F39, R6.
use crate::pair::{Pair, SOON, let_run};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{
    Capture, Lab, LabConfig, Need, Node, PodSpec, ServiceSpec, agent, eventually, in_lab, netlink, rounds, soak, span,
    until,
};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn hardening_F34_readers_that_stop_cost_little_and_hold_up_nobody() -> Result<()> {
    in_lab(Need::Mesh, || {
        const STALLED: u64 = 100;
        let pair = Pair::start(LabConfig::default())?;
        let stopped = pair.server.serve(["load", "serve", "--port", "8081"])?;
        let resident = || -> Result<u64> {
            let of = |node: &Arc<Node>| Ok(agent::resident_kib(node.agent()?.worker()?));
            pair.lab.nodes.iter().map(of).sum()
        };
        let sent = || -> Result<f64> {
            let to_server = [("reporter", "source"), ("destination_workload", "server")];
            Ok(pair.lab.node(1).agent()?.metrics()?.sum("istio_tcp_sent_bytes_total", &to_server))
        };
        // Both agents have carried as many connections before, so that what grows later is what is buffered.
        let many = STALLED.to_string();
        pair.client.lab(["load", "stream", &pair.target, "--connections", &many, "--seconds", "0.5"])?.success()?;
        let before = resident()?;

        // The kernel goes on accepting for a stopped server, and nobody reads.
        stopped.signal(Signal::SIGSTOP)?;
        let target = format!("{}:8081", pair.address());
        let args = ["load", "stream", &target, "--connections", &many, "--seconds", "600", "--patience", "600"];
        let _writers = pair.client.start("writers", "lab", args)?;
        let mut last = sent()?;
        eventually("every writer to be stuck", Duration::from_secs(60), || {
            let_run(Duration::from_millis(500));
            let (now, was) = (sent()?, last);
            last = now;
            ensure!(now == was && now > 0.0, "{was} bytes, then {now}");
            Ok(())
        })?;

        let grown = resident()?.saturating_sub(before);
        ensure!(grown < STALLED * 2 * 320, "{STALLED} stalled streams cost {grown} KiB in both agents");
        let load = pair.steady(50, 10)?;
        let bulk =
            pair.client.lab(["load", "stream", &pair.target, "--connections", "4", "--seconds", "1"])?.success()?;
        let bulk: serde_json::Value = serde_json::from_str(bulk.stdout.trim())?;
        ensure!(bulk["bytes"].as_u64().is_some_and(|n| n > 1 << 20), "{bulk}");
        load.ended()?.flawless()
    })
}

#[test]
fn hardening_F35_handshakes_that_never_end_hinder_nobody_else() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let lab = &pair.lab;
        lab.namespace("outer", &[])?;
        let attacker = lab.add_pod(PodSpec::new("attacker").namespace("outer"))?;
        let agent = lab.node(2).agent()?;
        let refused = |reason: &str| -> Result<f64> {
            Ok(agent.metrics()?.sum("undermesh_proxy_refused_total", &[("reason", reason)]))
        };
        let descriptors =
            || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/fd", agent.worker()?))?.count()) };
        let before = descriptors()?;
        let load = pair.steady(50, 10)?;

        let (port, count) = (format!("{}:15008", pair.address()), rounds(400, 10_000).to_string());
        let trickle =
            attacker.start("trickle", "lab", ["trickle", &port, "--count", &count, "--interval-ms", "100"])?;
        trickle.wait_for("open", Duration::from_secs(60))?;
        until("more than one address may begin are refused", SOON, || {
            refused("half_open_limit").is_ok_and(|n| n > 0.0)
        })?;

        // Somebody new needs a handshake of their own in the middle of it.
        let late = lab.add_pod(PodSpec::new("late").service_account("late"))?;
        lab.enrol(&late)?;
        lab.wait_hbone(&[&late])?;
        ensure!(pair.send_from(&late, "5")? == 0, "a new pod was not let in");
        until("the deadline of handshakes", SOON, || refused("handshake_failed").is_ok_and(|n| n > 100.0))?;
        let_run(span(Duration::ZERO, Duration::from_secs(600)));
        load.ended()?.flawless()?;

        trickle.close_stdin();
        let outcome = trickle.wait(SOON)?.success()?.stdout;
        println!("{outcome}");
        eventually("everything of it is gone", SOON, || {
            let now = descriptors()?;
            // A few sockets are kept in stock for each pod; hundreds of handshakes were open.
            ensure!(now <= before + 64, "{before} descriptors before, {now} after");
            Ok(())
        })
    })
}

#[test]
fn hardening_F36_F37_every_order_of_end_and_reset_is_kept() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let capture = Capture::start(&pair.lab.fabric, &[])?;
        let _ends = pair.server.start("ends", "lab", ["ends", "serve", "--port", "7000"]).and_then(|process| {
            process.wait_for("ready", SOON)?;
            Ok(process)
        })?;
        let (target, rounds) = (format!("{}:7000", pair.address()), rounds(2, 30).to_string());
        let played = pair.client.lab(["ends", "play", &target, "--rounds", &rounds])?;
        ensure!(played.code == 0, "{}{}", played.stdout, played.stderr);
        ensure!(capture.seen().hbone_packets > 0, "it did not go through the agents");
        Ok(())
    })
}

#[test]
fn hardening_R10_a_half_close_behind_100_MB_loses_nothing() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let capture = Capture::start(&pair.lab.fabric, &[])?;
        let ends = pair.server.start("ends", "lab", ["ends", "serve", "--port", "7000"])?;
        ends.wait_for("ready", SOON)?;
        let target = format!("{}:7000", pair.address());
        let process = pair.client.start("ends", "lab", ["ends", "play", &target, "--bytes", "100000000"])?;
        process.wait(Duration::from_secs(120))?.success()?;
        ensure!(capture.seen().hbone_packets > 0, "it did not go through the agents");
        Ok(())
    })
}

#[test]
fn hardening_F38_server_first_protocols_wait_for_nobody() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let _banner = pair.server.serve(["banner", "--port", "2525", "--text", "220 lab"])?;
        let output = pair.client.lab(["listen", &pair.address(), "2525"])?.success()?.stdout;
        let ms: f64 = output.split_whitespace().last().and_then(|t| t.parse().ok()).context("milliseconds")?;
        // Whoever waits for the client's first byte waits for seconds.
        ensure!(output.starts_with("220 lab ") && ms < 1000.0, "{output}");
        Ok(())
    })
}

#[test]
fn hardening_F39_a_cut_cable_is_noticed_and_a_short_cut_is_not() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let cable = |whole: bool| pair.lab.fabric.run(|| netlink::set_up("n2", whole));
        let (hold, idle) =
            (pair.hold()?, pair.client.start("idle", "lab", ["load", "idle", &pair.target, "--count", "3"])?);
        idle.wait_for("open 3", SOON)?;
        cable(false)?;
        let_run(Duration::from_secs(1));
        cable(true)?;
        eventually("service", SOON, || pair.serves())?;
        hold.close_stdin();
        hold.wait_for("done", Duration::from_secs(60))?;

        if soak().is_some() {
            // Idle connections of apps are kept for ever.
            let_run(span(Duration::ZERO, Duration::from_secs(24 * 3600)));
            idle.close_stdin();
            ensure!(idle.wait(SOON)?.stdout.contains("\"broken\":0"), "{}", idle.stdout());
            let hold = pair.hold()?;
            let start = Instant::now();
            cable(false)?;
            let line = hold.wait_for("cut", Duration::from_secs(50))?;
            ensure!(line.contains("cut reset"), "{line}");
            ensure!(start.elapsed() < Duration::from_secs(45), "noticed after {:?}", start.elapsed());
            cable(true)?;
            eventually("service", Duration::from_secs(30), || pair.serves())?;
        }
        Ok(())
    })
}

#[test]
fn hardening_R6_the_agents_own_connections_are_never_captured() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let captured = || -> Result<Vec<f64>> {
            let of = |n: usize| -> Result<f64> {
                Ok(pair.lab.nodes[n].agent()?.metrics()?.sum("mesh_kernel_decisions_total", &[("reason", "captured")]))
            };
            Ok(vec![of(0)?, of(1)?])
        };
        let before = captured()?;
        // About a million in a soak.
        let seconds = span(Duration::from_secs(1), Duration::from_secs(300)).as_secs().to_string();
        let args = ["load", "conn", &pair.target, "--clients", "8", "--seconds", &seconds];
        let process = pair.client.start("conn", "lab", args)?;
        let output = process.wait(Duration::from_secs(600))?.success()?.stdout;
        let value: serde_json::Value = serde_json::from_str(output.trim())?;
        let made = value["latency"]["n"].as_u64().context("number of connections")? as f64;
        ensure!(value["errors"] == 0 && made > 10.0, "{value}");
        let after = captured()?;
        // The app's connections on the one node, none of the agent's own on the other.
        ensure!(after[0] - before[0] == made && after[1] == before[1], "{before:?} {after:?} {made} connections");
        Ok(())
    })
}

#[test]
fn hardening_a_dead_endpoint_costs_no_load() -> Result<()> {
    in_lab(Need::Mesh, || {
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
        ensure!(good == 60, "{good} of 60 loads: the next endpoint must be tried: {output:.600}");
        Ok(())
    })
}
