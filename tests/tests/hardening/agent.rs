//! The agent is killed, stopped, doubled and starved: rows F1, F5, F8, F30.
use crate::pair::{Pair, SOON, TOKEN, let_run};
use anyhow::{Result, ensure};
use mesh_tests::harness::{
    Capture, Lab, LabConfig, Need, PodSpec, agent, eventually, http, in_lab, rounds, soak, until,
};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn hardening_F1_killed_worker_is_replaced_and_nothing_is_refused() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let capture = Capture::start(&pair.lab.fabric, &[TOKEN])?;
        let load = pair.steady(if soak().is_some() { 500 } else { 100 }, 20)?;
        let kills = rounds(5, 200);
        for i in 0..kills {
            let agent = pair.lab.node(1 + (i % 2) as u8).agent()?;
            let old = agent.worker()?;
            let_run(Duration::from_millis(300));
            agent.signal_worker(Signal::SIGKILL)?;
            until("a new worker", SOON, || agent.worker().is_ok_and(|pid| pid != old))?;
            agent.wait_ready(SOON)?;
        }
        let_run(Duration::from_millis(500));
        let result = load.ended()?;
        // Whoever had not been accepted yet waited for the next worker.
        for key in ["refused", "timeout", "other"] {
            ensure!(result.count(key) == 0, "{key}: {}", result.0);
        }
        // Only connections that the dead process held are cut: at each kill at most one of each of the load's threads.
        ensure!(result.count("reset") <= u64::from(32 * kills), "{}", result.0);
        ensure!(result.count("cut") == 20, "relayed connections must end, not hang: {}", result.0);
        ensure!(capture.seen().sightings.is_empty(), "plaintext: {:?}", capture.seen().sightings);
        Ok(())
    })
}

#[test]
fn hardening_F1_F37_a_killed_agent_resets_both_ends_of_what_it_carried() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let echo = pair.server.serve(["tcp-echo", "--port", "9000"])?;
        for node in [1, 2] {
            // Both apps wait for the other: only the death of the agent ends this.
            let args = ["probe", &pair.address(), "9000", "--hold-ms", "60000"];
            let accepted = echo.stdout().matches("connection port=").count();
            let probe = pair.client.start("probe", "lab", args)?;
            until("the connection", SOON, || echo.stdout().matches("connection port=").count() > accepted)?;
            let agent = pair.lab.node(node).agent()?;
            let old = agent.worker()?;
            agent.signal_worker(Signal::SIGKILL)?;
            let client = probe.wait(SOON)?;
            ensure!(client.code == 56, "agent {node} died, and to the client it looked like an end: {client:?}");
            until("the server's end", SOON, || echo.stdout().matches("how=").count() > accepted)?;
            ensure!(!echo.stdout().contains("how=eof"), "agent {node} died: {}", echo.stdout());
            until("a new worker", SOON, || agent.worker().is_ok_and(|pid| pid != old))?;
            agent.wait_ready(SOON)?;
            eventually("service", SOON, || pair.serves())?;
        }
        Ok(())
    })
}

#[test]
fn hardening_F1_without_keeper_and_worker_all_is_refused_and_nothing_is_plain() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let capture = Capture::start(&pair.lab.fabric, &[TOKEN])?;
        let hold = pair.hold()?;
        let agent = pair.lab.node(1).agent()?;
        let worker = agent.worker()?;
        agent.process.signal(Signal::SIGKILL)?;
        until("the worker follows its keeper", SOON, || !Path::new(&format!("/proc/{worker}")).exists())?;
        hold.wait_for("cut", SOON)?;
        eventually("a quick refusal", SOON, || {
            let probe = pair.client.lab(["probe", &pair.address(), "8080", "--timeout", "2"])?;
            let took: f64 = probe.stderr.rsplit("ms=").next().and_then(|t| t.trim().parse().ok()).unwrap_or(9999.0);
            ensure!(probe.code == 7, "{probe:?}");
            ensure!(took < 100.0, "refused after {took} ms");
            Ok(())
        })?;
        ensure!(capture.seen().sightings.is_empty(), "plaintext: {:?}", capture.seen().sightings);

        pair.lab.start_agent(pair.lab.node(1))?;
        pair.lab.node(1).agent()?.wait_ready(Duration::from_secs(30))?;
        eventually("service after the restart", SOON, || pair.serves())
    })
}

#[test]
fn hardening_F5_stopped_agent_goes_on_where_it_was() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let capture = Capture::start(&pair.lab.fabric, &[TOKEN])?;
        let hold = pair.hold()?;
        for cycle in 0..rounds(2, 20) {
            let agent = pair.lab.node(1 + (cycle % 2) as u8).agent()?;
            let worker = agent.worker()?;
            agent.signal_worker(Signal::SIGSTOP)?;
            // Clients end by their own deadline: nobody answers for the agent, nothing goes round it.
            let late = pair.send_from(&pair.client, "1")?;
            ensure!(late == 28, "an exchange through a stopped agent ended with code {late}");
            if soak().is_some() {
                let_run(Duration::from_secs(30));
            }
            agent.signal_worker(Signal::SIGCONT)?;
            eventually("service", Duration::from_secs(5), || pair.serves())?;
            ensure!(agent.worker()? == worker, "another worker took over");
        }
        // A stop of half a minute is a dead peer to the other agent; a short one is nothing.
        if soak().is_none() {
            hold.close_stdin();
            hold.wait_for("done", SOON)?;
        }
        ensure!(capture.seen().sightings.is_empty(), "plaintext: {:?}", capture.seen().sightings);
        Ok(())
    })
}

#[test]
fn hardening_F8_second_agent_of_an_instance_leaves_the_first_alone() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let node = pair.lab.node(1);
        let worker = node.agent()?.worker()?;
        for _ in 0..2 {
            let second = pair.lab.spawn(pair.lab.agent_program(node)?)?.wait(SOON)?;
            ensure!(second.code != 0, "{second:?}");
            ensure!(second.stderr.contains("another agent"), "it must say why: {second:?}");
            ensure!(node.agent()?.worker()? == worker, "the first was disturbed");
            pair.serves()?;
        }
        Ok(())
    })
}

#[test]
fn hardening_F30_agent_short_of_descriptors_recovers() -> Result<()> {
    in_lab(Need::Mesh, || {
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
        let send = || {
            let code = client.lab(["send", &server.address.v4.to_string(), "8080", "Cx"])?.code;
            ensure!(code == 0, "code {code}");
            Ok(())
        };
        eventually("first connection", SOON, send)?;
        let target = format!("{}:8080", server.address.v4);
        let args = ["load", "steady", &target, "--rate", "50", "--long", "900", "--limit", "2", "--seconds", "3600"];
        let load = client.start("idle", "lab", args)?;
        load.wait_for("started", SOON)?;
        let_run(Duration::from_secs(2));
        let worker = agent.worker()?;
        let before = agent::cpu_seconds(worker);
        let_run(Duration::from_secs(1));
        ensure!(agent::cpu_seconds(worker) - before < 0.9, "the accept loop spins");
        let health = http::get_unix(&lab.node(1).run_dir.join("admin.sock"), "/healthz")?;
        ensure!(health.status == 200, "admin must answer: {health:?}");
        load.close_stdin();
        let outcome = load.wait(Duration::from_secs(30))?.stdout;
        let outcome: serde_json::Value = serde_json::from_str(outcome.lines().last().unwrap_or(""))?;
        ensure!(outcome["cut"].as_u64().is_some_and(|cut| cut > 300), "there was no shortage to speak of: {outcome}");
        let start = Instant::now();
        eventually("recovery", SOON, send)?;
        println!("recovered after {:?}", start.elapsed());
        Ok(())
    })
}
