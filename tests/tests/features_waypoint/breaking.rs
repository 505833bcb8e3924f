//! What protects endpoints and those who ask for them: limits of connections, endpoints that are left out, endpoints nearby. Rows B10, B11 and B13.
use crate::stage::{SOON, Stage, bookinfo};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::bookinfo::{Load, parse};
use mesh_tests::harness::{Need, Pod, PodSpec, Process, ServiceSpec, eventually, in_lab};
use std::sync::Arc;
use std::time::Duration;

const URL: &str = "http://hello:9080/";
/// How long what takes many requests may take.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn features_B10_B11_B13_what_protects_endpoints() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("undermesh-waypoint")?;
        stage.lab.add_service(ServiceSpec::new("hello").selector(&[("app", "hello")]).port("http", 9080, 9080))?;
        circuits_break(&stage)?;
        who_fails_is_left_out(&stage)?;
        who_is_near_is_asked(&stage)
    })
}

/// An endpoint of the service, and its process.
struct Endpoint {
    pod: Arc<Pod>,
    process: Process,
}

impl Endpoint {
    fn start(stage: &Stage, name: &str, node: u8, args: &[&str]) -> Result<Endpoint> {
        let pod = PodSpec::new(name).label("app", "hello").service_account("hello").node(node);
        let pod = stage.lab.add_pod(pod)?;
        let process = serve(&pod, args)?;
        stage.lab.enrol(&pod)?;
        stage.lab.wait_hbone(&[&pod])?;
        Ok(Endpoint { pod, process })
    }

    fn asked(&self) -> usize {
        self.process.stdout().lines().filter(|line| line.starts_with("request ")).count()
    }
}

fn serve(pod: &Pod, args: &[&str]) -> Result<Process> {
    pod.serve([&["http", "--port", "9080", "--name", &pod.name], args].concat())
}

fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: hello, namespace: default}}\nspec:\n  host: hello\n  trafficPolicy: {{{policy}}}\n"
    )
}

/// Requests by so many clients at the same time, each one after the other.
fn loads(stage: &Stage, clients: usize, each: usize) -> Result<Vec<Load>> {
    let count = each.to_string();
    let start = || stage.bookinfo.client.start("lab", "lab", ["get", "--lines", "--count", &count, URL]);
    let started: Vec<Process> = (0..clients).map(|_| start()).collect::<Result<_>>()?;
    let mut all = Vec::new();
    for process in started {
        all.extend(parse(&process.wait(Duration::from_secs(60))?.stdout));
    }
    ensure!(all.len() == clients * each, "{} of {} loads were made", all.len(), clients * each);
    Ok(all)
}

fn with(loads: &[Load], status: u64) -> usize {
    loads.iter().filter(|load| load.status == status).count()
}

/// B10: one connection and one request that waits for it; a third at the same time is one too many.
fn circuits_break(stage: &Stage) -> Result<()> {
    let one = Endpoint::start(stage, "slow", 1, &["--delay-ms", "100"])?;
    let rule = rule(
        "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}, outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 3m, maxEjectionPercent: 100}",
    );
    eventually("an answer", SOON, || stage.bookinfo.client.get(URL)?.success())?;
    ensure!(with(&loads(stage, 4, 3)?, 200) == 12, "there is no rule yet");
    stage.lab.apply("hello", &rule)?;
    let flagged = || {
        let labels = [("response_code", "503"), ("response_flags", "UO"), ("destination_service_name", "hello")];
        Ok::<_, anyhow::Error>(stage.waypoint.metrics()?.sum("istio_requests_total", &labels) as usize)
    };
    let broken = eventually("requests that are too many", LONG, || {
        let before = flagged()?;
        let loads = loads(stage, 5, 6)?;
        let refused = loads.iter().find(|load| load.status == 503).context("none was refused")?;
        ensure!(with(&loads, 200) + with(&loads, 503) == loads.len(), "{loads:?}");
        ensure!(refused.text.ends_with("reset reason: overflow"), "{refused:?}");
        ensure!(with(&loads, 200) >= 6, "too few were answered: {loads:?}");
        let counted = flagged()? - before;
        ensure!(counted == with(&loads, 503), "{counted} counted, {} seen", with(&loads, 503));
        Ok(counted)
    })?;
    ensure!(broken > 0);
    // One client alone is never too many, and what the mesh says itself does not eject the endpoint.
    ensure!(with(&loads(stage, 1, 10)?, 200) == 10, "one client alone was refused");
    stage.lab.delete("hello")?;
    stage.lab.remove_pod(&one.pod)
}

/// B11: five errors in a row, then nothing for a while, then it is tried again. With outlier detection the waypoint's own zone goes first unless that is
/// not wanted.
fn who_fails_is_left_out(stage: &Stage) -> Result<()> {
    let mut all: Vec<Endpoint> = Vec::new();
    for (name, node) in [("a", 1), ("b", 2)] {
        all.push(Endpoint::start(stage, name, node, &[])?);
    }
    let mut failing = Endpoint::start(stage, "c", 1, &["--status", "500"])?;
    eventually("an error", SOON, || {
        ensure!(with(&loads(stage, 1, 10)?, 500) > 0, "the third is not asked yet");
        Ok(())
    })?;
    let ejecting = |time: &str| {
        rule(&format!(
            "loadBalancer: {{localityLbSetting: {{enabled: false}}}}, outlierDetection: {{consecutive5xxErrors: 5, interval: 1s, baseEjectionTime: {time}, maxEjectionPercent: 100}}"
        ))
    };
    let left_out = || {
        let labels = [("destination_service", "hello.default.svc.cluster.local")];
        Ok::<_, anyhow::Error>(stage.waypoint.metrics()?.sum("undermesh_outlier_ejections_total", &labels))
    };
    let before = left_out()?;
    stage.lab.apply("hello", &ejecting("1s"))?;
    // To be left out twice it must have been asked in between.
    eventually("it is left out, tried again and left out again", LONG, || {
        loads(stage, 1, 5)?;
        let times = left_out()? - before;
        ensure!(times >= 2.0, "{times} times by now");
        Ok(())
    })?;
    // Who has recovered is one of them again.
    failing.process.kill();
    failing.process = serve(&failing.pod, &[])?;
    eventually("the third answers", LONG, || {
        let loads = loads(stage, 1, 10)?;
        ensure!(with(&loads, 200) == 10 && failing.asked() > 0, "not yet");
        Ok(())
    })?;
    // While it is left out nobody asks it.
    failing.process.kill();
    failing.process = serve(&failing.pod, &["--status", "500"])?;
    stage.lab.apply("hello", &ejecting("60s"))?;
    eventually("it is left out", LONG, || {
        let asked = failing.asked();
        let loads = loads(stage, 1, 20)?;
        ensure!(with(&loads, 200) == 20, "{} of 20 failed", with(&loads, 500));
        ensure!(asked >= 5 && failing.asked() == asked, "it was asked {asked} times, then {}", failing.asked());
        Ok(())
    })?;
    stage.lab.delete("hello")?;
    all.push(failing);
    all.iter().try_for_each(|endpoint| stage.lab.remove_pod(&endpoint.pod))
}

/// B13: the waypoint's own zone, then the other one, then back.
fn who_is_near_is_asked(stage: &Stage) -> Result<()> {
    let near = Endpoint::start(stage, "near", 2, &[])?;
    let far = Endpoint::start(stage, "far", 1, &[])?;
    stage.lab.apply(
        "hello",
        &rule(
            "loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: true}}, outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1m}",
        ),
    )?;
    let only = |what: &str, one: &Endpoint, other: &Endpoint| {
        eventually(what, SOON, || {
            let before = (one.asked(), other.asked());
            let loads = loads(stage, 1, 20)?;
            let asked = (one.asked() - before.0, other.asked() - before.1);
            ensure!(with(&loads, 200) == 20 && asked == (20, 0), "{asked:?} of {loads:?}");
            Ok(())
        })
    };
    only("the zone of the waypoint", &near, &far)?;
    stage.lab.set_ready(&near.pod, false)?;
    only("the other zone", &far, &near)?;
    stage.lab.set_ready(&near.pod, true)?;
    only("the zone of the waypoint again", &near, &far)
}
