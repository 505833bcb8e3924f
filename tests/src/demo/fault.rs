//! An agent dies under load and is replaced.
use super::facts;
use super::tour::{PAGE, SOON, Stage};
use crate::harness::eventually;
use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use std::time::Duration;

/// Connections that are open when the agent dies.
const OPEN: u64 = 10;

impl Stage<'_> {
    pub(super) fn agent_dies(&mut self) {
        self.report.chapter(
            "An agent dies",
            "kill -9 under load. The keeper holds the listening sockets: new connections wait in the kernel until the next agent takes them.",
        );
        self.report.fact("no new connection was refused, and those that it carried were reset", |progress| {
            let target = self.lab.pods("default").iter().find(|p| p.name == "echo").context("no echo pod")?.address.v4;
            let (target, open) = (format!("{target}:8080"), OPEN.to_string());
            let agent = self.lab.node(1).agent()?;
            let old = agent.worker()?;
            let args = ["load", "steady", &target, "--rate", "100", "--seconds", "4", "--limit", "5", "--long", &open];
            let load = self.bookinfo.client.start("steady", "lab", args)?;
            load.wait_for("started", SOON)?;
            std::thread::sleep(Duration::from_secs(1));
            progress.say("killed");
            agent.signal_worker(Signal::SIGKILL)?;
            let new = eventually("a new worker", SOON, || {
                let pid = agent.worker()?;
                if pid == old {
                    bail!("still {pid}");
                }
                Ok(pid)
            })?;
            let output = load.wait(Duration::from_secs(30))?.stdout;
            let line = output.lines().last().unwrap_or("");
            let result: serde_json::Value =
                serde_json::from_str(line).with_context(|| format!("result of the load: {line}"))?;
            let count = |key: &str| result[key].as_u64().unwrap_or(u64::MAX);
            // What the dead agent had accepted is reset, at most one connection of each of the load's threads. What it had not accepted
            // yet must not notice.
            ensure!(count("refused") == 0 && count("timeout") == 0 && count("other") == 0, "{result}");
            ensure!(count("reset") <= 32 && count("cut") == OPEN, "{result}");
            ensure!(count("ok") > 100, "{result}");
            Ok(vec![
                format!("agent {old} killed, {new} took over its sockets, kernel programs and maps"),
                format!(
                    "{} new connections served, longest wait {} ms; {} open ones reset",
                    count("ok"),
                    count("slowest_us") / 1000,
                    OPEN + count("reset")
                ),
            ])
        });
        self.report.fact("the page still loads, all of it by mutual TLS", |_| {
            self.capture.reset();
            let line = facts::becomes("the page", SOON, &self.bookinfo.client, PAGE, &[0])?;
            facts::only_mutual(&facts::scrape(self.lab)?, "client", "productpage-v1")?;
            facts::sealed(self.capture)?;
            Ok(vec![line])
        });
    }
}
