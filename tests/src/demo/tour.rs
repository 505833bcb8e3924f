//! What the demo shows, chapter by chapter. A chapter that others build on ends the tour if it fails; the rest go on.
use super::facts;
use super::report::Report;
use crate::harness::policy::{Authorization, peer_authentication};
use crate::harness::{Bookinfo, Capture, Lab, LabConfig, PodSpec, ServiceSpec, eventually, until};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// What the user asked for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Fewer loads.
    pub fast: bool,
}

const PAGE: &str = "http://productpage:9080/productpage";
const SOON: Duration = Duration::from_secs(10);

/// Shows everything. The lab comes back for `--keep`; it is none if it could not be built.
pub fn run(report: &mut Report, options: Options) -> Option<(Lab, Bookinfo)> {
    let (lab, bookinfo) = build(report)?;
    let capture = Capture::start(&lab.fabric, &[&bookinfo.canary, "Simple Bookstore App", "William Shakespeare"]);
    let Ok(capture) = capture.inspect_err(|e| eprintln!("{e:#}")) else { return Some((lab, bookinfo)) };
    before(report, &bookinfo, &capture);
    if enrol(report, &lab, &bookinfo, &capture) {
        load(report, &lab, &bookinfo, &capture, options);
        strict(report, &lab, &bookinfo);
        policy(report, &lab, &bookinfo);
        restart(report, &lab, &bookinfo);
        leave(report, &lab, &bookinfo, &capture);
    }
    Some((lab, bookinfo))
}

fn build(report: &mut Report) -> Option<(Lab, Bookinfo)> {
    report.chapter(
        "A small cluster",
        "Two nodes and Bookinfo's six workloads, each a network namespace with a cgroup of its own.",
    );
    let mut lab = None;
    report.fact("two nodes on a fabric, with service addresses and cluster DNS", |_| {
        lab = Some(Lab::start(LabConfig::default())?);
        Ok(Vec::new())
    });
    let lab = lab?;
    let mut bookinfo = None;
    report.fact("Bookinfo runs, and nothing in it knows of a mesh", |_| {
        let deployed = Bookinfo::deploy(&lab, "default")?;
        let lines = facts::pods(&deployed);
        bookinfo = Some(deployed);
        Ok(lines)
    });
    let bookinfo = bookinfo?;
    let ready = report.fact("control plane and one agent per node are ready", |_| {
        lab.start_mesh()?;
        lab.nodes
            .iter()
            .map(|n| Ok(format!("{}: agent {} (keeper {})", n.name, n.agent()?.worker()?, n.agent()?.process.pid())))
            .collect()
    });
    if !ready {
        println!("{}", lab.report());
        return None;
    }
    Some((lab, bookinfo))
}

fn before(report: &mut Report, bookinfo: &Bookinfo, capture: &Capture) {
    report.chapter("Before", "Without the mesh anybody on the wire between the nodes reads along.");
    report.fact("the page loads, and the wire carries it in clear", |_| {
        let loads = bookinfo.load(&bookinfo.client, 12)?;
        ensure!(loads.iter().all(|l| l.status == 200), "a load failed: {loads:?}");
        until("plaintext on the wire", SOON, || capture.seen().count(&bookinfo.canary) > 0)?;
        let seen = capture.seen();
        let flow = seen.sightings.first().context("no sighting")?.flow;
        let (from, to) = (flow.source, flow.destination);
        Ok(vec![format!(
            "{} sightings, the first from {}:{} to {}:{}",
            seen.sightings.len(),
            from.0,
            from.1,
            to.0,
            to.1
        )])
    });
}

fn enrol(report: &mut Report, lab: &Lab, bookinfo: &Bookinfo, capture: &Capture) -> bool {
    report.chapter("Into the mesh", "One label on the namespace; no restart, no sidecar, no iptables.");
    let enrolled = report.fact("namespace `default` gets istio.io/dataplane-mode=ambient", |progress| {
        let start = Instant::now();
        lab.enrol_namespace("default")?;
        let took = start.elapsed();
        progress.say("agents learn about each other");
        lab.wait_hbone(&bookinfo.everyone())?;
        let count = bookinfo.everyone().len();
        Ok(vec![format!(
            "{count} pods enrolled in {} ms, all announced in {} ms",
            took.as_millis(),
            start.elapsed().as_millis()
        )])
    });
    report.fact("no process was restarted", |_| {
        let gone: Vec<_> = bookinfo.processes.iter().filter(|p| !p.running()).map(|p| p.name()).collect();
        ensure!(gone.is_empty(), "ended: {gone:?}");
        Ok(Vec::new())
    });
    capture.reset();
    enrolled
}

fn load(report: &mut Report, lab: &Lab, bookinfo: &Bookinfo, capture: &Capture, options: Options) {
    report.chapter("Load", "The client loads the page; each load is four hops, each hop a new connection.");
    // With n loads a third has a standard deviation of sqrt(2 / 9n): the slack is over five of them.
    let (count, slack) = if options.fast { (300, 14.0) } else { (2000, 7.0) };
    report.fact("every load succeeds, a third on each version of reviews", |progress| {
        let process = bookinfo.start_load(&bookinfo.client, count, Duration::ZERO)?;
        while process.running() {
            progress.say(format!("{} of {count}", process.stdout().lines().count()));
            std::thread::sleep(Duration::from_millis(100));
        }
        let loads = crate::harness::bookinfo::parse(&process.wait(SOON)?.stdout);
        ensure!(loads.len() == count as usize, "{} of {count} loads were made", loads.len());
        facts::spread(&loads, slack)
    });
    report.fact("every hop was mutual TLS between the identities of the service accounts", |_| {
        facts::identities(&facts::scrape(lab)?)
    });
    report.fact("no byte of it crossed the wire between the nodes in clear", |_| facts::sealed(capture));
    report.fact("the agents logged every connection", |_| {
        let mut line = Vec::new();
        for node in &lab.nodes {
            line.extend(node.agent()?.access_log(&["productpage", "inbound"]).into_iter().next());
        }
        ensure!(!line.is_empty(), "no access log line for productpage");
        Ok(line.into_iter().take(1).collect())
    });
}

fn strict(report: &mut Report, lab: &Lab, bookinfo: &Bookinfo) {
    report.chapter("STRICT", "A pod without an identity may call while the mesh is PERMISSIVE, and no longer.");
    let mut legacy = None;
    report.fact("an un-enrolled pod reaches the page while nothing forbids it", |_| {
        lab.namespace("legacy", &[])?;
        let pod = lab.add_pod(PodSpec::new("legacy").namespace("legacy").node(2))?;
        let line = facts::becomes("the page", SOON, &pod, "http://productpage.default:9080/productpage", &[0])?;
        legacy = Some(pod);
        Ok(vec![line])
    });
    let Some(legacy) = legacy else { return };
    report.fact("PeerAuthentication STRICT: it is refused, the enrolled client is not", |_| {
        let text = peer_authentication("default", "STRICT", None, &[]);
        lab.apply("strict", &text)?;
        let url = "http://productpage.default:9080/productpage";
        let refused = facts::becomes("the refusal", SOON, &legacy, url, &[7, 56, 52])?;
        let allowed = facts::becomes("the page", SOON, &bookinfo.client, PAGE, &[0])?;
        Ok(vec![refused, allowed])
    });
}

fn policy(report: &mut Report, lab: &Lab, bookinfo: &Bookinfo) {
    report.chapter("Policy", "An AuthorizationPolicy reaches connections that are already open.");
    let mut hold = None;
    report.fact("the client holds a connection to a TCP service", |_| {
        lab.add_service(ServiceSpec::new("echo").port("tcp", 8080, 8080))?;
        let echo = lab.add_pod(PodSpec::new("echo").service_account("echo").node(2))?;
        let server = echo.serve(["load", "serve"])?;
        lab.enrol(&echo)?;
        lab.wait_hbone(&[&echo])?;
        let process = bookinfo.client.start("hold", "lab", ["hold", "echo", "8080", "--token", &bookinfo.canary])?;
        process.wait_for("open", SOON)?;
        hold = Some((process, server));
        Ok(Vec::new())
    });
    let Some((process, server)) = hold else { return };
    report.fact("DENY for its identity cuts it at once and refuses the next", |_| {
        let text = Authorization::deny("no-sleep", "echo").from("default", "sleep").yaml();
        let start = Instant::now();
        lab.apply("no-sleep", &text)?;
        let line = process.wait_for("cut", SOON)?;
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(2), "it took {took:?}");
        let next = bookinfo.client.lab(["send", "echo", "8080", "Chello"])?;
        ensure!(next.code == 56 || next.code == 52, "the next connection ended with code {}", next.code);
        Ok(vec![
            format!("{} ms after the file was written: {line}", took.as_millis()),
            format!("next: {}", next.stderr.trim()),
        ])
    });
    report.fact("without the policy it is let in again", |_| {
        lab.delete("no-sleep")?;
        eventually("the next connection", SOON, || {
            bookinfo.client.lab(["send", "echo", "8080", "Chello"])?.success()?;
            Ok(Vec::new())
        })
    });
    // The server stays for the next chapter.
    std::mem::forget(server);
}

fn restart(report: &mut Report, lab: &Lab, bookinfo: &Bookinfo) {
    report.chapter(
        "An agent dies",
        "kill -9 under load: new connections wait in the kernel until its successor takes them.",
    );
    report.fact("no new connection was refused or failed meanwhile", |progress| {
        let target = lab.pods("default").iter().find(|p| p.name == "echo").context("no echo pod")?.address.v4;
        let agent = lab.node(1).agent()?;
        let old = agent.worker()?;
        let args = ["load", "steady", &format!("{target}:8080"), "--rate", "100", "--seconds", "5", "--limit", "5"];
        let load = bookinfo.client.start("steady", "lab", args)?;
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
        let output = load.wait(Duration::from_secs(20))?.stdout;
        let line = output.lines().last().unwrap_or("");
        let result: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("result of the load: {line}"))?;
        let count = |key: &str| result[key].as_u64().unwrap_or(u64::MAX);
        // A connection that the dead agent carried is cut; one that had not been accepted yet must not notice.
        ensure!(count("refused") == 0 && count("timeout") == 0 && count("other") == 0, "{result}");
        ensure!(count("reset") <= 2, "{result}");
        ensure!(count("ok") > 400, "{result}");
        Ok(vec![format!(
            "worker {old} killed, {new} took over; {} connections, longest wait {} ms",
            count("ok"),
            count("slowest_us") / 1000
        )])
    });
    report.fact("the page still loads, by mutual TLS", |_| {
        let line = facts::becomes("the page", SOON, &bookinfo.client, PAGE, &[0])?;
        Ok(vec![line])
    });
}

fn leave(report: &mut Report, lab: &Lab, bookinfo: &Bookinfo, capture: &Capture) {
    report.chapter("Out of the mesh", "The label goes; running loads go on, and nothing stays behind in the pods.");
    report.fact("loads go on while the namespace leaves", |_| {
        lab.delete("strict")?;
        std::thread::sleep(Duration::from_millis(500));
        let load = bookinfo.start_load(&bookinfo.client, 60, Duration::from_millis(50))?;
        until("the first loads", SOON, || load.stdout().lines().count() > 5)?;
        lab.unenrol_namespace("default")?;
        let loads = crate::harness::bookinfo::parse(&load.wait(Duration::from_secs(60))?.stdout);
        let bad = loads.iter().filter(|l| l.status != 200).count();
        ensure!(bad == 0 && loads.len() == 60, "{bad} of {} loads failed", loads.len());
        Ok(Vec::new())
    });
    report.fact("the wire shows plaintext again, the pods have no listener of the mesh", |_| {
        capture.reset();
        until("plaintext", SOON, || {
            let _ = bookinfo.client.get(PAGE);
            capture.seen().count("Simple Bookstore App") + capture.seen().count("William Shakespeare") > 0
        })?;
        for pod in bookinfo.everyone() {
            facts::no_residue(pod)?;
        }
        Ok(Vec::new())
    });
}

/// Enrols everything again and prints commands to try; the caller waits.
pub fn keep(lab: &Lab, bookinfo: &Bookinfo) -> Result<()> {
    lab.enrol_namespace("default")?;
    let lab_binary = crate::harness::process::binary_path("lab")?;
    let lab_binary = lab_binary.display();
    // The client pod needs a process to enter it by.
    let anchor = bookinfo.client.start("anchor", "lab", ["http", "--port", "80"])?;
    let (client, page) = (anchor.pid(), bookinfo.processes[0].pid());
    std::mem::forget(anchor);
    println!("\nThe lab is running. Try, as root, from another terminal:\n");
    println!("  {lab_binary} enter {client} {lab_binary} get {PAGE}        # the client pod loads the page");
    println!("  {lab_binary} enter {client} bash                           # a shell in the client pod");
    println!("  {lab_binary} enter {page} {lab_binary} resolve reviews     # what productpage resolves");
    println!("  ls {}                       # the manifests: edit them live", lab.manifests.dir().display());
    for node in &lab.nodes {
        let socket = node.run_dir.join("admin.sock");
        println!("  curl --unix-socket {} http://localhost/config_dump   # what {} knows", socket.display(), node.name);
    }
    println!("\nCtrl-C ends it and removes everything.");
    Ok(())
}
