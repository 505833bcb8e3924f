//! Load for a profile of `mesh-waypoint`, which `cargo xtask bench --train` starts with a binary that counts where it goes: as a gateway, and before a service of
//! the mesh. The binary writes what it counted when it is told to end, so nothing here may kill it.
use super::generators::finish;
use super::requests::{PORT, ROUTES, manifests};
use crate::harness::ingress::Authority;
use crate::harness::manifest::secret;
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
/// A second listener of the gateway, with TLS.
const SECURE_PORT: u16 = PORT + 1;
const SOON: Duration = Duration::from_secs(10);
/// What browsers send besides.
const FIELDS: [&str; 4] =
    ["-H", "user-agent: Mozilla/5.0 (X11; Linux x86_64)", "-H", "cookie: session=0123456789abcdef; theme=dark"];

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
    let own = Authority::new()?.issue(&["edge.example.com"])?;
    lab.apply("secret.yaml", &secret("default", "edge", &[("tls.crt", &own.cert), ("tls.key", &own.key)]))?;
    let secure =
        format!(", {{name: https, port: {SECURE_PORT}, protocol: HTTPS, tls: {{certificateRefs: [{{name: edge}}]}}}}");
    lab.apply("edge.yaml", &manifests(&secure))?;
    lab.apply("reader.yaml", READER)?;
    let gateway = lab.start_gateway_with("default", "edge", 1, &["--workers", "1", "--drain", "1s"])?;
    let address = gateway.pod.address.v4;
    let host = format!("{address}:{PORT}");
    let load = Generator { client: &client, waypoint: &gateway, seconds };
    load.all(&host, &host)?;
    let secure = format!("https://{address}:{SECURE_PORT}/r0/a");
    load.h2load(&["-c8", "-m16"], &secure)?;
    load.h2load(&["--h1", "-c8"], &secure)?;
    // A handshake for each request.
    load.wrk(&["-c8", "-H", "connection: close"], &secure)?;
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
    let load = Generator { client: &client, waypoint: &waypoint, seconds };
    load.all("back", "reader")?;
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

/// What puts load on a waypoint.
struct Generator<'a> {
    client: &'a Pod,
    waypoint: &'a Waypoint,
    seconds: u32,
}

impl Generator<'_> {
    /// What proxies meet: many connections and few, short ones, both protocols, routes that are found at once and last, bodies, and paths that nobody has.
    fn all(&self, host: &str, reader: &str) -> Result<()> {
        let mut body = tempfile::NamedTempFile::new()?;
        body.write_all(&[b'x'; BODY])?;
        let body = body.path().display().to_string();
        let first = format!("http://{host}/r0/a");
        let last = format!("http://{host}/r{}/b?c=d", ROUTES - 1);
        let post = format!("http://{reader}/post");
        for url in [&first, &post] {
            eventually("an answer through it", SOON, || {
                let before = self.answered()?;
                self.client.get(url)?.success()?;
                ensure!(self.answered()? > before, "it counted none");
                Ok(())
            })?;
        }
        self.wrk(&["-c32"], &last)?;
        self.wrk(&["-c2"], &first)?;
        self.wrk(&["-c8"], &format!("http://{host}/none"))?;
        self.wrk(&["-c8", "-H", "connection: close"], &first)?;
        self.h2load(&["-c8", "-m16"], &last)?;
        self.h2load(&["-c1", "-m1"], &first)?;
        self.h2load(&["-c4", "-m4", "-d", &body], &post)?;
        self.h2load(&["--h1", "-c8", "-d", &body], &post)
    }

    fn wrk(&self, more: &[&str], url: &str) -> Result<()> {
        let duration = format!("-d{}s", self.seconds);
        self.load("wrk", "wrk", &[&["-t1", &duration], more, &FIELDS, &[url]].concat())
    }

    fn h2load(&self, more: &[&str], url: &str) -> Result<()> {
        let duration = format!("-D{}", self.seconds);
        self.load(
            "h2load",
            "nghttp2-client",
            &[&["-t1", "--warm-up-time=0", &duration], more, &FIELDS, &[url]].concat(),
        )
    }

    /// A profile of failures would be worse than none, and both programs end well whatever they are answered.
    fn load(&self, program: &str, package: &str, args: &[&str]) -> Result<()> {
        let is_for_none = args.last().is_some_and(|url| url.ends_with("/none"));
        let (before, all) = (self.answered()?, self.asked()?);
        finish(self.client, program, package, args, self.seconds)?;
        let (answered, asked) = (self.answered()? - before, self.asked()? - all);
        ensure!(asked > 100.0, "{program} {args:?}: {asked} requests came");
        ensure!(
            is_for_none || answered > 0.99 * asked,
            "{program} {args:?}: {answered} of {asked} requests were answered"
        );
        Ok(())
    }

    /// Requests that were answered with 200.
    fn answered(&self) -> Result<f64> {
        Ok(self.waypoint.metrics()?.sum("istio_requests_total", &[("response_code", "200")]))
    }

    fn asked(&self) -> Result<f64> {
        Ok(self.waypoint.metrics()?.sum("istio_requests_total", &[]))
    }
}

/// Ends it as a kubelet does, and waits until it has written what it counted.
fn stop(lab: &Lab, waypoint: Waypoint) -> Result<()> {
    lab.stop_waypoint(waypoint)?.success().context("the end of mesh-waypoint").map(drop)
}
