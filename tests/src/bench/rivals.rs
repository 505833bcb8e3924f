//! A real Envoy and a real HAProxy beside our gateway, in its pod: one worker each, the same routes to the same back end.
use super::requests::ROUTES;
use crate::harness::process::Program;
use crate::harness::wait::eventually;
use crate::harness::{Lab, Pod, Process, http};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// One proxy that is measured.
pub struct Proxy {
    /// Heading of its column.
    pub name: &'static str,
    /// Where it takes HTTP/1.1.
    pub port: u16,
    /// Where it takes HTTP/2 by prior knowledge.
    pub http2_port: u16,
    /// Whose CPU time and memory count.
    pub pid: i32,
    /// Held for as long as it is needed; none of ours, which the lab has.
    pub _process: Option<Process>,
}

/// Starts Envoy with one worker.
pub fn envoy(lab: &Lab, pod: &Pod, binary: &Path, port: u16, to: &str) -> Result<Proxy> {
    let (address, back_port) = to.rsplit_once(':').context("an address with a port")?;
    let routes: String = (0..ROUTES)
        .map(|route| {
            format!("            - {{match: {{path_separated_prefix: /r{route}}}, route: {{cluster: back}}}}\n")
        })
        .collect();
    let config = format!(
        "static_resources:
  listeners:
  - address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          codec_type: AUTO
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
{routes}  clusters:
  - name: back
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: back
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {address}, port_value: {back_port}}}}}}}}}]}}]
"
    );
    let config = config.replace("\n            - {match", "\n              - {match");
    let path = write(lab, "envoy.yaml", &config)?;
    let program =
        Program::new("envoy", binary).args(["--concurrency", "1", "--disable-hot-restart", "-l", "warn", "-c"]);
    start(pod, "Envoy", program.arg(path), port, port)
}

/// Starts HAProxy with one thread.
pub fn haproxy(lab: &Lab, pod: &Pod, binary: &Path, port: u16, to: &str) -> Result<Proxy> {
    let http2_port = port + 1;
    let routes: String =
        (0..ROUTES).map(|route| format!("  use_backend r{route} if {{ path_beg /r{route}/ }}\n")).collect();
    let back_ends: String = (0..ROUTES).map(|route| format!("backend r{route}\n  server back {to}\n")).collect();
    let config = format!(
        "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\n\
         frontend edge\n  bind :{port}\n  bind :{http2_port} proto h2\n{routes}{back_ends}"
    );
    let path = write(lab, "haproxy.cfg", &config)?;
    start(pod, "HAProxy", Program::new("haproxy", binary).args(["-db", "-f"]).arg(path), port, http2_port)
}

fn write(lab: &Lab, name: &str, text: &str) -> Result<std::path::PathBuf> {
    let path = lab.dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn start(pod: &Pod, name: &'static str, program: Program, port: u16, http2_port: u16) -> Result<Proxy> {
    let process = pod.spawn(pod.inside(program))?;
    let pid = process.pid();
    eventually(&format!("{name} to answer"), Duration::from_secs(30), || {
        ensure!(process.running(), "{name} ended: {}", process.log());
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let answer = http::get(&pod.netns, address, &format!("/r{}/item", ROUTES - 1))?;
        ensure!(answer.status == 200, "status {}", answer.status);
        Ok(())
    })?;
    Ok(Proxy { name, port, http2_port, pid, _process: Some(process) })
}
