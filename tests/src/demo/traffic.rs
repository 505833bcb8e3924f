//! What the mesh does to traffic: load over versions, identities, the sealed wire, STRICT, policy on open connections.
use super::facts;
use super::report::wrap;
use super::tour::{PAGE, SOON, Stage, load_pages};
use crate::harness::policy::{Authorization, peer_authentication};
use crate::harness::{PodSpec, ServiceSpec, eventually};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};

impl Stage<'_> {
    pub(super) fn load(&mut self) {
        self.report
            .chapter("Load", "The client loads the page. Each load is three or four hops, each hop a new connection.");
        // With n loads a third has a standard deviation of sqrt(2 / 9n): the slack is over five of them.
        let (count, slack) = if self.options.fast { (300, 14.0) } else { (2000, 7.0) };
        self.report.fact("every load succeeds, a third on each version of reviews", |progress| {
            facts::spread(&load_pages(self.bookinfo, count, progress)?, slack)
        });
        self.report.fact("every hop was mutual TLS between the SPIFFE identities of the service accounts", |_| {
            facts::identities(&facts::scrape(self.lab)?)
        });
        self.report.fact("no byte of it crossed the wire between the nodes in clear", |_| facts::sealed(self.capture));
        self.report.fact("the server's agent logged each connection in one line", |_| {
            let words = ["src.workload=\"client\"", "dst.workload=\"productpage-v1\"", "direction=\"inbound\""];
            eventually("the lines", SOON, || {
                let mut lines = Vec::new();
                for node in &self.lab.nodes {
                    lines.extend(node.agent()?.access_log(&words));
                }
                ensure!(lines.len() == count as usize, "{} lines for {count} connections", lines.len());
                let mut shown = vec![format!("{} lines for productpage, the last:", lines.len())];
                shown.extend(wrap(lines.last().context("no line")?, 103));
                Ok(shown)
            })
        });
    }

    pub(super) fn strict(&mut self) {
        self.report
            .chapter("STRICT", "While the mesh is PERMISSIVE a pod without an identity may call. Now no longer.");
        let mut legacy = None;
        self.report.fact("a pod that is not in the mesh reaches the page", |_| {
            self.lab.namespace("legacy", &[])?;
            let pod = self.lab.add_pod(PodSpec::new("legacy").namespace("legacy").node(2))?;
            let line = facts::becomes("the page", SOON, &pod, "http://productpage.default:9080/productpage", &[0])?;
            legacy = Some(pod);
            Ok(vec![line])
        });
        let Some(legacy) = legacy else { return };
        let text = peer_authentication("default", "STRICT", None, &[]);
        self.report.quote(&text);
        self.report.fact("it is refused, and the client in the mesh is not", |_| {
            let start = Instant::now();
            self.lab.apply("strict", &text)?;
            let url = "http://productpage.default:9080/productpage";
            let refused = facts::becomes("the refusal", SOON, &legacy, url, &[7, 56])?;
            let took = start.elapsed().as_millis();
            let allowed = facts::becomes("the page", SOON, &self.bookinfo.client, PAGE, &[0])?;
            Ok(vec![format!("{took} ms after the file was written:"), refused, allowed])
        });
    }

    pub(super) fn policy(&mut self) {
        self.report.chapter("Policy", "An AuthorizationPolicy reaches connections that are already open.");
        let mut hold = None;
        self.report.fact("the client holds a connection to a TCP service", |_| {
            self.lab.add_service(ServiceSpec::new("echo").port("tcp", 8080, 8080))?;
            let echo = self.lab.add_pod(PodSpec::new("echo").service_account("echo").node(2))?;
            let server = echo.serve(["load", "serve"])?;
            self.lab.enrol(&echo)?;
            self.lab.wait_hbone(&[&echo])?;
            let args = ["hold", "echo", "8080", "--token", &self.bookinfo.canary];
            let process = self.bookinfo.client.start("hold", "lab", args)?;
            process.wait_for("open", SOON)?;
            hold = Some((process, server));
            Ok(Vec::new())
        });
        let Some((process, server)) = hold else { return };
        let text = Authorization::deny("no-sleep", "echo").from("default", "sleep").yaml();
        self.report.quote(&text);
        self.report.fact("it is cut at once, and the next one is refused", |_| {
            ensure!(process.running(), "the connection ended before");
            let start = Instant::now();
            self.lab.apply("no-sleep", &text)?;
            process.wait_for("cut reset", SOON)?;
            let took = start.elapsed();
            ensure!(took < Duration::from_secs(2), "it took {took:?}");
            let next = self.bookinfo.client.lab(["send", "echo", "8080", "Chello"])?;
            ensure!(next.code == 56, "the next connection ended with code {}", next.code);
            Ok(vec![
                format!("reset {} ms after the file was written", took.as_millis()),
                format!("the next: {}", next.stderr.trim()),
            ])
        });
        self.report.fact("without the policy it is let in again", |_| {
            self.lab.delete("no-sleep")?;
            eventually("the next connection", SOON, || {
                self.bookinfo.client.lab(["send", "echo", "8080", "Chello"])?.success()?;
                Ok(Vec::new())
            })
        });
        // The server stays for the next chapter.
        std::mem::forget(server);
    }
}
