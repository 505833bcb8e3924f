//! Load for a profile of `mesh-waypoint`, which `cargo xtask bench --train` starts with a binary that counts where it goes: as a gateway, and before a service of
//! the mesh. The binary writes what it counted when it is told to end, so nothing here may kill it.
use super::generators::finish;
use super::requests::{PORT, ROUTES, manifests};
use crate::harness::routing::virtual_service;
use crate::harness::waypoint::{USE_WAYPOINT, Waypoint};
use crate::harness::{Lab, LabConfig, Pod, PodSpec, Process, ServiceSpec, eventually};
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// A body that is asked with.
const BODY: usize = 4 << 10;
/// Where the gateway sends requests with a body.
const READER: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reader, namespace: default}
spec:
  parentRefs: [{name: edge}]
  rules: [{matches: [{path: {type: PathPrefix, value: /post}}], backendRefs: [{name: reader, port: 80}]}]
";
const SOON: Duration = Duration::from_secs(10);

/// Puts load on both, each part for so many seconds.
pub fn run(seconds: u32) -> Result<()> {
    eprintln!("a gateway under load ...");
    edge(seconds)?;
    eprintln!("a waypoint under load ...");
    inside(seconds)
}

fn edge(seconds: u32) -> Result<()> {
    let lab = Lab::start(LabConfig::default())?;
    lab.control.start()?;
    let (client, _servers) = pods(&lab)?;
    lab.apply("edge.yaml", &manifests())?;
    lab.apply("reader.yaml", READER)?;
    let gateway = lab.start_gateway_with("default", "edge", 1, &["--workers", "1", "--drain", "1s"])?;
    let host = format!("{}:{PORT}", gateway.pod.address.v4);
    load(&client, &host, &host, seconds)?;
    stop(&lab, gateway)
}

fn inside(seconds: u32) -> Result<()> {
    let lab = Lab::with_mesh(LabConfig::default())?;
    let (client, _servers) = pods(&lab)?;
    lab.enrol_namespace("default")?;
    lab.wait_hbone(&[&client])?;
    lab.add_gateway("default", "waypoint", "istio-waypoint", &Default::default())?;
    let rules =
        ["{match: [{uri: {prefix: /none}}], directResponse: {status: 404}}", "{route: [{destination: {host: back}}]}"];
    lab.apply("back.yaml", &virtual_service("back", &rules))?;
    let waypoint = lab.start_waypoint("default", "waypoint", 2)?;
    lab.enrol_namespace_with("default", &[(USE_WAYPOINT, "waypoint")])?;
    eventually("requests through the waypoint", SOON, || {
        client.get("http://back/")?.success()?;
        ensure!(waypoint.metrics()?.sum("istio_requests_total", &[]) > 0.0, "it counted none");
        Ok(())
    })?;
    load(&client, "back", "reader", seconds)?;
    stop(&lab, waypoint)
}

/// Who asks, and who answers: plain requests a server that does nothing else, those with a body one that reads it.
fn pods(lab: &Lab) -> Result<(Arc<Pod>, Vec<Process>)> {
    let client = lab.add_pod(PodSpec::new("client"))?;
    let mut servers = Vec::new();
    for (name, app) in [("back", ["canned", "--bytes", "1024"]), ("reader", ["http", "--name", "reader"])] {
        let pod = lab.add_pod(PodSpec::new(name).label("app", name).port("http", 8080))?;
        servers.push(pod.serve(app.into_iter().chain(["--port", "8080"]))?);
        lab.add_service(ServiceSpec::new(name).selector(&[("app", name)]).port("http", 80, 8080))?;
    }
    Ok((client, servers))
}

/// What proxies meet: many connections and few, both protocols, routes that are found at once and last, bodies, and paths that nobody has.
fn load(client: &Pod, host: &str, reader: &str, seconds: u32) -> Result<()> {
    let mut body = tempfile::NamedTempFile::new()?;
    body.write_all(&[b'x'; BODY])?;
    let body = body.path().display().to_string();
    let (first, last, none) =
        (format!("http://{host}/r0/a"), format!("http://{host}/r{}/b?c=d", ROUTES - 1), format!("http://{host}/none"));
    let post = format!("http://{reader}/post");
    let fields =
        ["-H", "user-agent: Mozilla/5.0 (X11; Linux x86_64)", "-H", "cookie: session=0123456789abcdef; theme=dark"];
    let wrk = |connections: &str, url: &str| -> Result<()> {
        let duration = format!("-d{seconds}s");
        let args = [&["-t1", connections, &duration], &fields[..], &[url]].concat();
        finish(client, "wrk", "wrk", &args, seconds).map(drop)
    };
    let h2load = |more: &[&str], url: &str| -> Result<()> {
        let duration = format!("-D{seconds}");
        let args = [&["-t1", "--warm-up-time=0", &duration], more, &fields[..], &[url]].concat();
        finish(client, "h2load", "nghttp2-client", &args, seconds).map(drop)
    };
    wrk("-c32", &last)?;
    wrk("-c2", &first)?;
    wrk("-c8", &none)?;
    h2load(&["-c8", "-m16"], &last)?;
    h2load(&["-c1", "-m1"], &first)?;
    h2load(&["-c4", "-m4", "-d", &body], &post)?;
    h2load(&["--h1", "-c8", "-d", &body], &post)
}

/// Ends it as a kubelet does, and waits until it has written what it counted.
fn stop(lab: &Lab, waypoint: Waypoint) -> Result<()> {
    let finished = lab.stop_waypoint(waypoint)?;
    finished.success().context("the end of mesh-waypoint").map(drop)
}
