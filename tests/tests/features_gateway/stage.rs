//! httpbin and Bookinfo in the mesh, a gateway that listens outside of it, and a visitor.
use anyhow::{Result, ensure};
use mesh_tests::harness::ingress::Visitor;
use mesh_tests::harness::{Bookinfo, Lab, LabConfig, PodSpec, Process, ServiceSpec, Waypoint, eventually};
use std::net::SocketAddr;
use std::time::Duration;

/// How long a change may take until it is in force.
pub const CHANGE: Duration = Duration::from_secs(5);
/// The label by which Gateways of Istio select its pods.
pub const SELECTED: (&str, &str) = ("istio", "ingressgateway");
/// All requests to the gateway go to httpbin.
pub const HTTPBIN: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: httpbin, namespace: default}\nspec:\n  parentRefs: [{name: edge}]\n  rules:\n  - backendRefs: [{name: httpbin, port: 8000}]\n";

/// What stands.
pub struct Stage {
    pub lab: Lab,
    pub bookinfo: Bookinfo,
    pub gateway: Waypoint,
    _httpbin: Process,
}

/// Everything enrolled, and a gateway with these listeners.
pub fn stage(listeners: &str) -> Result<Stage> {
    let lab = Lab::with_mesh(LabConfig::default())?;
    let bookinfo = Bookinfo::deploy(&lab, "default")?;
    lab.add_service(ServiceSpec::new("httpbin").port("http", 8000, 8000))?;
    let pod = lab.add_pod(PodSpec::new("httpbin").label("app", "httpbin").service_account("httpbin").node(2))?;
    let httpbin = pod.serve(["http", "--port", "8000", "--name", "httpbin"])?;
    lab.enrol_namespace("default")?;
    lab.wait_hbone(&bookinfo.everyone())?;
    lab.wait_hbone(&[&pod])?;
    lab.apply("edge", &edge(listeners))?;
    let gateway = lab.start_gateway("default", "edge", 1, &[SELECTED])?;
    Ok(Stage { lab, bookinfo, gateway, _httpbin: httpbin })
}

/// A Gateway with these listeners.
pub fn edge(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: edge\n  namespace: default\nspec:\n  gatewayClassName: undermesh\n  listeners: {listeners}\n"
    )
}

/// The same, whose pods have the annotation `proxy.istio.io/config` with this text.
pub fn behind(listeners: &str, config: &str) -> String {
    format!("{}  infrastructure: {{annotations: {{proxy.istio.io/config: {config:?}}}}}\n", edge(listeners))
}

impl Stage {
    /// Somebody outside who visits a port of the gateway.
    pub fn visitor(&self, port: u16) -> Visitor {
        Visitor::new(&self.lab.outside, SocketAddr::new(self.gateway.pod.ips()[0], port))
    }

    /// Waits until a question is answered so.
    pub fn becomes(&self, what: &str, wanted: u16, ask: impl Fn() -> Result<u16>) -> Result<()> {
        eventually(what, CHANGE, || {
            let status = ask()?;
            ensure!(status == wanted, "it is {status}");
            Ok(())
        })
    }
}
