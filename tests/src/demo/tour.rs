//! What the demo shows, chapter by chapter. A chapter that others build on ends the tour if it fails; the rest go on.
use super::facts;
use super::report::{Progress, Report, say};
use crate::harness::bookinfo::{Load, parse};
use crate::harness::manifest::DATAPLANE_MODE;
use crate::harness::{Bookinfo, Capture, Lab, LabConfig, agent, plan, until};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// What the user asked for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Fewer loads.
    pub fast: bool,
}

pub(super) const PAGE: &str = "http://productpage:9080/productpage";
/// Long enough for whatever should happen at once, on a slow machine too.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// Where the tour is.
pub(super) struct Stage<'a> {
    pub report: &'a mut Report,
    pub lab: &'a Lab,
    pub bookinfo: &'a Bookinfo,
    pub capture: &'a Capture,
    pub options: Options,
}

/// Shows everything. The lab comes back for `--keep`; it is none if it could not be built.
pub fn run(report: &mut Report, options: Options) -> Option<(Lab, Bookinfo)> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    report.title(
        "Undermesh: a service mesh under the pods",
        &[
            format!(
                "Kernel {}, {cpus} CPUs. Kernel programs, TLS and processes are real; nodes and pods are network namespaces.",
                kernel.trim()
            ),
            "Each line with a mark was checked just now. Ctrl-C ends it at any moment and leaves nothing behind.".into(),
        ],
    );
    let lab = cluster(report)?;
    let (bookinfo, capture) = application(report, &lab)?;
    let mut stage = Stage { report, lab: &lab, bookinfo: &bookinfo, capture: &capture, options };
    stage.before();
    if stage.enrol() {
        stage.load();
        stage.strict();
        stage.policy();
        stage.http();
        stage.ingress();
        stage.agent_dies();
        stage.leave();
    }
    Some((lab, bookinfo))
}

fn cluster(report: &mut Report) -> Option<Lab> {
    report.chapter(
        "A small cluster",
        "Two nodes, each with service addresses and cluster DNS, as Kubernetes gives them.",
    );
    let mut lab = None;
    report.fact("two nodes on a fabric", |_| {
        let lab = lab.insert(Lab::start(LabConfig::default())?);
        let line = |n: u8| {
            let (own, pods) = (plan::node(n), plan::gateway(n));
            let (v4, v6) = (plan::network(pods.v4.into()), plan::network(pods.v6.into()));
            format!("node{n}  {}  pods {v4}/24, {v6}/64", own.v4)
        };
        Ok(lab.nodes.iter().map(|n| line(n.number)).collect())
    });
    let lab = lab?;
    let ready = report.fact("control plane and one agent per node are ready", |_| {
        lab.start_mesh()?;
        let mut lines = vec![format!("mesh-control  pid {}: xDS and certificates", lab.control.pid()?)];
        for node in &lab.nodes {
            let (agent, worker) = (node.agent()?, node.agent()?.worker()?);
            let mib = agent::resident_kib(worker) / 1024;
            lines.push(format!(
                "mesh-agent    pid {worker} on {}, {mib} MiB; keeper {}",
                node.name,
                agent.process.pid()
            ));
        }
        Ok(lines)
    });
    if !ready {
        say(&lab.report());
        return None;
    }
    Some(lab)
}

fn application(report: &mut Report, lab: &Lab) -> Option<(Bookinfo, Capture)> {
    let mut bookinfo = None;
    report.fact("Bookinfo runs in pods, and nothing in it knows of a mesh", |_| {
        Ok(facts::pods(bookinfo.insert(Bookinfo::deploy(lab, "default")?)))
    });
    let bookinfo = bookinfo?;
    let mut capture = None;
    report.fact("a capture reads every packet between the nodes", |_| {
        let tokens = [&bookinfo.canary, "Simple Bookstore App", "William Shakespeare"];
        capture = Some(Capture::start(&lab.fabric, &tokens)?);
        Ok(vec![format!(
            "it looks for words of the pages, and for `{:.20}...`, which all requests carry",
            bookinfo.canary
        )])
    });
    Some((bookinfo, capture?))
}

impl Stage<'_> {
    fn before(&mut self) {
        self.report.chapter("Before", "Without the mesh anybody on the wire between the nodes reads along.");
        self.report.fact("the page loads, and the wire carries it in clear", |_| {
            let loads = self.bookinfo.load(&self.bookinfo.client, 12)?;
            ensure!(loads.iter().all(|l| l.status == 200), "a load failed: {loads:?}");
            until("plaintext on the wire", SOON, || self.capture.seen().count(&self.bookinfo.canary) > 0)?;
            let seen = self.capture.seen();
            let first = seen.sightings.first().context("no sighting")?;
            Ok(vec![
                format!("{} packets with one of the words in clear, the first:", seen.sightings.len()),
                facts::wire(&first.flow, &facts::printable(&first.start)),
            ])
        });
    }

    fn enrol(&mut self) -> bool {
        self.report.chapter(
            "Into the mesh",
            "One label on the namespace. No sidecar, no iptables, no restart: the next connect() of a pod is captured in the kernel.",
        );
        self.report
            .quote(&format!("kind: Namespace\nmetadata:\n  name: default\n  labels:\n    {DATAPLANE_MODE}: ambient"));
        let enrolled = self.report.fact("every pod is in the mesh", |progress| {
            let start = Instant::now();
            self.lab.enrol_namespace("default")?;
            let took = start.elapsed().as_millis();
            progress.say("agents learn about each other");
            self.lab.wait_hbone(&self.bookinfo.everyone())?;
            let (count, all) = (self.bookinfo.everyone().len(), start.elapsed().as_millis());
            Ok(vec![format!(
                "{count} pods enrolled, each with its certificate, in {took} ms; known to both agents after {all} ms"
            )])
        });
        self.report.fact("no process was restarted", |_| {
            let gone: Vec<_> = self.bookinfo.processes.iter().filter(|p| !p.running()).map(|p| p.name()).collect();
            ensure!(gone.is_empty(), "ended: {gone:?}");
            Ok(Vec::new())
        });
        self.capture.reset();
        enrolled
    }

    fn leave(&mut self) {
        self.report
            .chapter("Out of the mesh", "The label goes. Running loads go on, and nothing stays behind in the pods.");
        self.report.fact("no load fails while the namespace leaves", |_| {
            self.lab.delete("strict")?;
            let load = self.bookinfo.start_load(&self.bookinfo.client, 60, Duration::from_millis(50))?;
            until("the first loads", SOON, || load.stdout().lines().count() > 5)?;
            self.lab.unenrol_namespace("default")?;
            let loads = parse(&load.wait(Duration::from_secs(60))?.stdout);
            let bad = loads.iter().filter(|l| l.status != 200).count();
            ensure!(bad == 0 && loads.len() == 60, "{bad} of {} loads failed", loads.len());
            Ok(vec![format!("{} loads, before, during and after", loads.len())])
        });
        self.report.fact("the wire shows plaintext again, the pods have no listener and no route of the mesh", |_| {
            self.capture.reset();
            until("plaintext", SOON, || {
                let _ = self.bookinfo.client.get(PAGE);
                !self.capture.seen().sightings.is_empty()
            })?;
            let seen = self.capture.seen();
            let first = seen.sightings.first().context("no sighting")?;
            self.bookinfo.everyone().into_iter().try_for_each(facts::no_residue)?;
            Ok(vec![facts::wire(&first.flow, &facts::printable(&first.start))])
        });
    }
}

/// What a load of `count` pages from the client gave, with progress.
pub(super) fn load_pages(bookinfo: &Bookinfo, count: u32, progress: &Progress) -> Result<Vec<Load>> {
    let process = bookinfo.start_load(&bookinfo.client, count, Duration::ZERO)?;
    while process.running() {
        progress.say(format!("{} of {count}", process.stdout().lines().count()));
        std::thread::sleep(Duration::from_millis(100));
    }
    let loads = parse(&process.wait(SOON)?.stdout);
    ensure!(loads.len() == count as usize, "{} of {count} loads were made", loads.len());
    Ok(loads)
}
