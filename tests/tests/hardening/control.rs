//! The control plane is away, flaps, forgets and changes its root: rows F9-F14, F41, F43.
use crate::pair::{Pair, SOON, TOKEN, let_run};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::policy::Authorization;
use mesh_tests::harness::process::Program;
use mesh_tests::harness::{
    Agent, Capture, Lab, LabConfig, Need, PodSpec, agent, eventually, in_lab, rounds, soak, span, until,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A policy that refuses the client of a pair.
fn refuse_client() -> String {
    Authorization::deny("no-client", "server").from("default", "client").yaml()
}

/// What is written now arrives at the agents.
fn changes_arrive(pair: &Pair) -> Result<()> {
    pair.lab.apply("policy", &refuse_client())?;
    eventually("the policy", Duration::from_secs(35), || {
        ensure!(pair.send()? == 56, "the client is still served");
        Ok(())
    })
}

/// A sum over all agents.
fn total(lab: &Lab, name: &str) -> Result<f64> {
    lab.nodes.iter().map(|n| Ok(n.agent()?.metrics()?.sum(name, &[]))).sum()
}

#[test]
fn hardening_F9_agent_without_control_plane_is_not_ready_and_closed() -> Result<()> {
    in_lab(Need::Mesh, || {
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
        let text = format!("C{TOKEN}");
        let result = client.lab(["send", &server.address.v4.to_string(), "8080", &text, "--timeout", "30"])?;
        ensure!(result.code == 56, "held for a while and then refused: {result:?}");
        ensure!(capture.seen().sightings.is_empty(), "{:?}", capture.seen().sightings);

        lab.control.start()?;
        agent.wait_ready(Duration::from_secs(40))
    })
}

#[test]
fn hardening_F10_F11_control_plane_away_and_flapping() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let worker = pair.lab.node(2).agent()?.worker()?;

        pair.lab.control.kill();
        let away = span(Duration::from_secs(2), Duration::from_secs(3600));
        let load = pair.steady(20, 10)?;
        let_run(away);
        load.ended()?.flawless()?;
        let before = agent::cpu_seconds(worker);
        let idle = span(Duration::from_secs(2), Duration::from_secs(60));
        let_run(idle);
        let share = (agent::cpu_seconds(worker) - before) / idle.as_secs_f64();
        ensure!(share < 0.05, "without anything to do the agent uses {:.1} % of a CPU", share * 100.0);
        pair.lab.control.start()?;

        const BYTES: &str = "istio_xds_message_bytes_total";
        let everything = total(&pair.lab, BYTES)?;
        let load = pair.steady(50, 10)?;
        for _ in 0..rounds(4, 1000) {
            pair.lab.control.kill();
            let_run(Duration::from_millis(500));
            pair.lab.control.start()?;
            let_run(Duration::from_millis(500));
        }
        load.ended()?.flawless()?;
        let again = total(&pair.lab, BYTES)? - everything;
        ensure!(again < everything, "{again} bytes after the flaps, {everything} for everything before them");
        changes_arrive(&pair)
    })
}

#[test]
fn hardening_F12_a_policy_that_cannot_be_read_opens_nothing() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let lab = &pair.lab;
        let errors = |wanted: f64| {
            until("the diagnosis", SOON, || {
                lab.control.metrics().is_ok_and(|m| m.sum("mesh_control_diagnoses", &[("severity", "error")]) == wanted)
            })
        };
        let knows = |name: &str| {
            eventually(&format!("the policy {name}"), SOON, || {
                let dump = lab.node(2).agent()?.admin("/config_dump")?.body;
                ensure!(dump.contains(&format!("\"{name}\"")), "not there");
                Ok(())
            })
        };
        let refused = || {
            eventually("the refusal", SOON, || {
                let code = pair.send()?;
                ensure!(code == 56, "an exchange ended with code {code}");
                Ok(())
            })
        };

        // A typo keeps the last good form in force, and stops no other document.
        lab.apply("policy", &refuse_client())?;
        refused()?;
        lab.apply("policy", &refuse_client().replace("DENY", "DNEY"))?;
        errors(1.0)?;
        lab.apply("other", &Authorization::deny("other", "server").ports(&[9002]).yaml())?;
        knows("default/other")?;
        ensure!(pair.send()? == 56, "the typo opened the door");
        lab.delete("policy")?;
        errors(0.0)?;
        eventually("service", SOON, || pair.serves())?;

        // Without a good form what it selects is closed, an ALLOW too.
        lab.apply(
            "policy",
            &Authorization::allow("new", "server").from("default", "client").yaml().replace("ALLOW", "ALOW"),
        )?;
        errors(1.0)?;
        refused()
    })
}

/// Moves manifests out of the folder; gives back where they are now and where they belong.
fn hide(lab: &Lab, which: impl Fn(&str) -> bool) -> Result<Vec<(PathBuf, PathBuf)>> {
    let away = lab.dir.join("hidden");
    std::fs::create_dir_all(&away)?;
    let mut hidden = Vec::new();
    for entry in std::fs::read_dir(lab.manifests.dir())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if which(&name.to_string_lossy()) {
            let place = away.join(&name);
            std::fs::rename(&path, &place).with_context(|| format!("hide {}", path.display()))?;
            hidden.push((place, path));
        }
    }
    Ok(hidden)
}

#[test]
fn hardening_F13_a_control_plane_that_forgets_everything_stops_nobody() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        let lab = &pair.lab;
        // A mesh that is large enough for the loss of most of it to be suspicious.
        let bystanders: Vec<_> =
            (0..12).map(|n| lab.add_pod(PodSpec::new(&format!("bystander-{n}")))).collect::<Result<_>>()?;
        let known = |agent: &Agent| -> Result<usize> {
            let dump: serde_json::Value = serde_json::from_str(&agent.admin("/config_dump")?.body)?;
            Ok(dump["workloads"].as_array().map_or(0, Vec::len))
        };
        let everybody = bystanders.len() + 2;
        for node in &lab.nodes {
            let agent = node.agent()?;
            eventually("all workloads", SOON, || {
                let n = known(&agent)?;
                ensure!(n == everybody, "{n} of {everybody}");
                Ok(())
            })?;
        }
        const HELD_BACK: &str = "undermesh_xds_suspended_removals";
        ensure!(total(lab, HELD_BACK)? == 0.0);
        let load = pair.steady(50, 10)?;

        // Its folder holds the nodes alone, so agents still get in, and are told that there is nobody.
        lab.control.kill();
        let hidden = hide(lab, |name| !name.starts_with("node-"))?;
        lab.control.start()?;
        for node in &lab.nodes {
            let agent = node.agent()?;
            eventually("the alarm", Duration::from_secs(35), || {
                let metrics = agent.metrics()?;
                ensure!(metrics.sum(HELD_BACK, &[]) >= everybody as f64, "{}", metrics.sum(HELD_BACK, &[]));
                Ok(())
            })?;
            ensure!(agent.log().contains("held back"), "the log must say so too");
        }
        let_run(span(Duration::from_secs(2), Duration::from_secs(50)));
        for node in &lab.nodes {
            ensure!(known(&*node.agent()?)? == everybody, "{} forgot somebody", node.name);
        }
        for (place, path) in &hidden {
            std::fs::rename(place, path)?;
        }
        until("the alarm's end", SOON, || total(lab, HELD_BACK).is_ok_and(|n| n == 0.0))?;

        // Its folder is empty altogether: nobody gets in, and everybody goes on with what they know.
        lab.control.kill();
        let hidden = hide(lab, |_| true)?;
        lab.control.start()?;
        until("nobody is connected", SOON, || total(lab, "undermesh_xds_connected").is_ok_and(|n| n == 0.0))?;
        let_run(span(Duration::from_secs(1), Duration::from_secs(60)));
        for (place, path) in &hidden {
            std::fs::rename(place, path)?;
        }
        until("everybody is connected", Duration::from_secs(35), || {
            total(lab, "undermesh_xds_connected").is_ok_and(|n| n == 2.0)
        })?;
        load.ended()?.flawless()?;
        changes_arrive(&pair)
    })
}

#[test]
fn hardening_F14_cut_cable_to_the_control_plane() -> Result<()> {
    in_lab(Need::Mesh, || {
        let pair = Pair::start(LabConfig::default())?;
        pair.lab.control.connect(false)?;
        pair.lab.apply("policy", &refuse_client())?;
        // In a soak longer than the 30 s after which a silent control plane is given up.
        let cut = Duration::from_secs(if soak().is_some() { 60 } else { 1 });
        let start = Instant::now();
        while start.elapsed() < cut {
            pair.serves().context("the last good configuration must go on")?;
            let_run(Duration::from_millis(200));
        }
        if soak().is_some() {
            ensure!(total(&pair.lab, "undermesh_xds_connected")? == 0.0, "the silence was not noticed");
        }
        pair.lab.control.connect(true)?;
        changes_arrive(&pair)
    })
}

/// How often each identity of each agent got a new certificate.
fn generations(lab: &Lab) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for node in &lab.nodes {
        let dump: serde_json::Value = serde_json::from_str(&node.agent()?.admin("/config_dump")?.body)?;
        for certificate in dump["certificates"].as_array().context("certificates")? {
            let identity = certificate["identity"].as_str().context("identity")?;
            let generation = certificate["certChain"][0]["generation"].as_u64().context("generation")?;
            found.insert(format!("{identity} on {}", node.name), generation);
        }
    }
    Ok(found)
}

/// Waits until everybody has got `times` more certificates.
fn renewed(lab: &Lab, times: u64) -> Result<()> {
    let start = generations(lab)?;
    ensure!(start.len() >= 2, "{start:?}");
    eventually("renewal of every certificate", Duration::from_secs(60), || {
        let now = generations(lab)?;
        let late: Vec<_> = start.iter().filter(|(id, old)| now.get(*id).is_none_or(|g| *g < *old + times)).collect();
        ensure!(late.is_empty(), "still as old: {late:?}");
        Ok(())
    })
}

/// A root certificate and its key, as another control plane would make them for itself.
fn another_root(lab: &Lab, number: u32) -> Result<(String, String)> {
    let state = lab.dir.join(format!("root-{number}"));
    let program = Program::ours("root", "mesh-control")?
        .arg("--manifests")
        .arg(lab.manifests.dir())
        .arg("--state-dir")
        .arg(&state)
        .args(["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
        .netns(&lab.outside)
        .cgroup(lab.cgroup().join("system"));
    let process = lab.spawn(program)?;
    process.wait_for("ready", Duration::from_secs(20))?;
    let read = |file| std::fs::read_to_string(state.join(file)).with_context(|| format!("read {file}"));
    Ok((read("root-cert.pem")?, read("ca-key.pem")?))
}

#[test]
fn hardening_F41_F43_certificates_and_roots_change_under_load() -> Result<()> {
    in_lab(Need::Mesh, || {
        // Renewed every four seconds.
        let config = LabConfig { control_args: vec!["--secret-ttl".into(), "8s".into()], ..LabConfig::default() };
        let pair = Pair::start(config)?;
        let lab = &pair.lab;
        let load = pair.steady(20, 10)?;

        // F41: three renewals are more than the life of the first certificate.
        renewed(lab, 3)?;
        let_run(span(Duration::ZERO, Duration::from_secs(2 * 3600)));

        // F43: another root is trusted beside the old one, then signs, then is alone.
        let path = |file: &str| lab.control.state_dir.join(file);
        let replace = |file: &str, text: &str| -> Result<()> {
            let partial = path(&format!("{file}.partial"));
            std::fs::write(&partial, text)?;
            if file.ends_with("key.pem") {
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o600))?;
            }
            Ok(std::fs::rename(partial, path(file))?)
        };
        let taken_over = |times: usize| {
            until("the control plane takes it over", SOON, || {
                lab.control.log().matches("new authority taken over").count() >= times
            })
        };
        for round in 0..rounds(1, 100) {
            let done = 3 * round as usize;
            let old = std::fs::read_to_string(path("root-cert.pem"))?;
            let (new, key) = another_root(lab, round)?;
            replace("root-cert.pem", &format!("{old}{new}"))?;
            taken_over(done + 1)?;
            // A renewal may have been under way: the second one has certainly seen both roots.
            renewed(lab, 2)?;
            replace("ca-key.pem", &key)?;
            taken_over(done + 2)?;
            renewed(lab, 2)?;
            replace("root-cert.pem", &new)?;
            taken_over(done + 3)?;
            renewed(lab, 2)?;
        }
        load.ended()?.flawless()?;

        // A pod that comes now needs a new tunnel, so a handshake in which only the new root is trusted.
        let late = lab.add_pod(PodSpec::new("late").service_account("late"))?;
        lab.enrol(&late)?;
        lab.wait_hbone(&[&late])?;
        let code = pair.send_from(&late, "5")?;
        ensure!(code == 0, "the first connection of a new pod ended with code {code}");
        changes_arrive(&pair)
    })
}
