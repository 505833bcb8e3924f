//! The measurements of `cargo xtask bench --envoy PATH --haproxy PATH`: proxies of requests, one worker each, side by side in one pod, with the same 20 routes, the same
//! back end and the same load. Each measurement goes around all of them in turn and is repeated, and the median counts: what else the machine does hits all alike.
use super::generators::{Load, Result as Measured, h2load, wrk};
use super::rivals::{self, Proxy};
use super::table::{Column, print_against};
use crate::harness::agent::{cpu_seconds, resident_kib};
use crate::harness::waypoint::{GATEWAY_NAME, Waypoint};
use crate::harness::{Lab, LabConfig, Pod, PodSpec, Process, ServiceSpec};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::sync::Arc;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct RequestOptions {
    /// Seconds per measurement.
    pub seconds: u32,
    /// A real Envoy.
    pub envoy: Option<PathBuf>,
    /// A real HAProxy.
    pub haproxy: Option<PathBuf>,
    /// Client, proxies and back end in one pod, over its loopback device, instead of a pod for each.
    pub one_pod: bool,
    /// One measurement of ours alone that lasts so many seconds, instead of all that.
    pub soak: Option<u32>,
}

/// Routes of each proxy. The last one is asked for.
pub(super) const ROUTES: usize = 20;
/// Bytes of an answer.
const BYTES: &str = "1024";
/// How often each measurement is made.
const ROUNDS: usize = 3;
/// Ours; those of the others follow.
pub(super) const PORT: u16 = 8081;

/// The pods: who asks, what stands between, who answers.
struct Stage {
    client: Arc<Pod>,
    edge: Arc<Pod>,
    ours: Proxy,
    rivals: Vec<Proxy>,
    gateway: Waypoint,
    _back: Process,
    _lab: Lab,
}

/// Measures, and prints the table.
pub fn run(options: &RequestOptions) -> Result<()> {
    let stage = Stage::start(options)?;
    match options.soak {
        Some(seconds) => stage.soak(seconds),
        None => stage.compare(options.seconds),
    }
}

impl Stage {
    fn start(options: &RequestOptions) -> Result<Stage> {
        let lab = Lab::start(LabConfig::default())?;
        lab.control.start()?;
        // The gateway's own pods have this label.
        let answers = if options.one_pod { (GATEWAY_NAME, "edge") } else { ("app", "back") };
        lab.add_service(ServiceSpec::new("back").selector(&[answers]).port("http", 80, 8080))?;
        lab.apply("edge.yaml", &manifests(""))?;
        let gateway = lab.start_gateway_with("default", "edge", 1, &["--workers", "1"])?;
        let edge = gateway.pod.clone();
        let (client, back) = if options.one_pod {
            (edge.clone(), edge.clone())
        } else {
            (
                lab.add_pod(PodSpec::new("client"))?,
                lab.add_pod(PodSpec::new("back").label("app", "back").port("http", 8080))?,
            )
        };
        let serving = back.serve(["canned", "--port", "8080", "--bytes", BYTES])?;
        let ours =
            Proxy { name: "Undermesh", port: PORT, http2_port: PORT, pid: gateway.process().pid(), _process: None };
        let to = format!("{}:8080", back.address.v4);
        let mut rivals = Vec::new();
        if let Some(envoy) = &options.envoy {
            rivals.push(rivals::envoy(&lab, &edge, envoy, PORT + 1, &to)?);
        }
        if let Some(haproxy) = &options.haproxy {
            rivals.push(rivals::haproxy(&lab, &edge, haproxy, PORT + 2, &to)?);
        }
        Ok(Stage { client, edge, ours, rivals, gateway, _back: serving, _lab: lab })
    }

    fn all(&self) -> impl Iterator<Item = &Proxy> {
        std::iter::once(&self.ours).chain(&self.rivals)
    }

    fn url(&self, port: u16) -> String {
        format!("http://{}:{port}/r{}/item", self.edge.address.v4, ROUTES - 1)
    }

    fn load(&self, proxy: &Proxy, load: Load, seconds: u32) -> Result<(Measured, f64)> {
        let before = cpu_seconds(proxy.pid);
        let measured = match load {
            Load::Http1 { connections } => wrk(&self.client, &self.url(proxy.port), connections, seconds),
            Load::Http2 { connections, streams } => {
                h2load(&self.client, &self.url(proxy.http2_port), connections, streams, seconds)
            }
        };
        let measured = measured.with_context(|| format!("{load:?} against {}", proxy.name))?;
        ensure!(measured.failed == 0, "{load:?} against {}: {} requests failed", proxy.name, measured.failed);
        let cpu = (cpu_seconds(proxy.pid) - before) * 1e6 / measured.requests as f64;
        Ok((measured, cpu))
    }

    fn compare(&self, seconds: u32) -> Result<()> {
        let mut columns: Vec<Column> = self.all().map(|proxy| Column::new(proxy.name)).collect();
        for (proxy, column) in self.all().zip(&mut columns) {
            column.set("resident memory, idle, MiB", resident_kib(proxy.pid) as f64 / 1024.0);
        }
        for (load, name) in [
            (Load::Http1 { connections: 32 }, "HTTP/1.1, 32 connections"),
            (Load::Http2 { connections: 8, streams: 16 }, "HTTP/2, 8 connections of 16 streams"),
        ] {
            eprintln!("{name} ...");
            let mut rounds: Vec<Vec<(Measured, f64)>> = self.all().map(|_| Vec::new()).collect();
            for _ in 0..ROUNDS {
                for (proxy, round) in self.all().zip(&mut rounds) {
                    round.push(self.load(proxy, load, seconds)?);
                }
            }
            for (column, round) in columns.iter_mut().zip(&rounds) {
                let mut set = |line: &str, of: &dyn Fn(&(Measured, f64)) -> f64| {
                    column.set(&format!("{name}, {line}"), median(round.iter().map(of).collect()));
                };
                set("requests/s", &|(measured, _)| measured.per_second);
                set("p50, us", &|(measured, _)| measured.p50_us);
                set("p99, us", &|(measured, _)| measured.p99_us);
                set("CPU per request, us", &|(_, cpu)| *cpu);
            }
        }
        for (proxy, column) in self.all().zip(&mut columns) {
            column.set("resident memory after load, MiB", resident_kib(proxy.pid) as f64 / 1024.0);
        }
        self.counted()?;
        print_against(&columns);
        Ok(())
    }

    /// What was measured was also counted: metrics are not off.
    fn counted(&self) -> Result<()> {
        let counted = self.gateway.metrics()?.sum("istio_requests_total", &[("response_code", "200")]);
        ensure!(counted > 0.0, "the gateway has counted no request: requests per second are not what users get");
        Ok(())
    }

    /// Full load of both protocols, one after the other: no error, and no growth after the first quarter.
    fn soak(&self, seconds: u32) -> Result<()> {
        let mut column = Column::new(self.ours.name);
        for (load, name) in [
            (Load::Http1 { connections: 64 }, "wrk, HTTP/1.1, 64 connections"),
            (Load::Http2 { connections: 16, streams: 32 }, "h2load, HTTP/2, 16 connections of 32 streams"),
        ] {
            self.load(&self.ours, load, seconds.div_ceil(4).max(1))?;
            let before = resident_kib(self.ours.pid);
            eprintln!("{name}, {seconds} s ...");
            let (measured, _) = self.load(&self.ours, load, seconds)?;
            let grown = resident_kib(self.ours.pid) as f64 - before as f64;
            column.set(&format!("{name}, requests"), measured.requests as f64);
            column.set(&format!("{name}, failed"), measured.failed as f64);
            column.set(&format!("{name}, growth, MiB"), grown / 1024.0);
        }
        print_against(&[column]);
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The gateway with its routes, and with `more` listeners; a route may have 16 rules.
pub(super) fn manifests(more: &str) -> String {
    let mut all = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: default}}\nspec:\n  gatewayClassName: undermesh\n  \
         listeners: [{{name: http, port: {PORT}, protocol: HTTP}}{more}]\n"
    );
    for half in 0..2 {
        let rules: String = (0..ROUTES / 2)
            .map(|rule| {
                let path = half * ROUTES / 2 + rule;
                format!(
                    "  - matches: [{{path: {{type: PathPrefix, value: /r{path}}}}}]\n    backendRefs: [{{name: back, port: 80}}]\n"
                )
            })
            .collect();
        all.push_str(&format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: half-{half}, namespace: default}}\nspec:\n  parentRefs: [{{name: edge}}]\n  rules:\n{rules}"
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_not_moved_by_one_round() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn all_routes_are_written() {
        let text = manifests("");
        assert_eq!(text.matches("PathPrefix").count(), ROUTES);
        assert!(text.contains(&format!("/r{}}}", ROUTES - 1)), "{text}");
    }
}
