//! Manifests in, what agents get out: the manifests that the tests are made of.

mod at_gateways;
mod bypass;
mod canary;
mod decoration;
mod given;
mod in_force;
mod joins;
mod optional;
mod outbound;
mod policies;
mod security;
mod service_entries;
mod services;
mod settings;
mod unheard;
mod waypoints;
mod workloads;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::policy::{Action, Policy, Scope, StringMatch};
use mesh_core::service::{HealthPolicy, Mode, Scope as Locality};
use mesh_core::workload::{Health, NetworkMode, TunnelProtocol, WorkloadType};
use mesh_core::{Change, Connection, Decision, Identity, Store, authorize};

use super::{Settings, View, build};
use crate::manifest::file;
use crate::resource::catalog::{Catalog, Scan};
use crate::resource::{Key, Kind, Objects};
use crate::verdict::Binding;

/// What is in some manifests.
fn read(text: &str) -> Objects {
    let read = file::read("a.yaml", text.as_bytes());
    let scan = Scan { found: read.found.into_iter().map(|(f, _)| f).collect(), ..Scan::default() };
    Catalog::default().apply(&scan).0
}

/// What the shop's service is told of its waypoint.
fn binding(view: &View) -> Option<&Binding> {
    view.bindings.get(&Key { kind: Kind::Service, namespace: "shop".into(), name: "web".into() })
}

/// The view of some manifests.
fn view(text: &str) -> View {
    build(&read(text), &Settings::default())
}

fn pod(name: &str, more: &str) -> String {
    pod_in("shop", name, "198.18.0.1", "app: web", more)
}

fn pod_in(namespace: &str, name: &str, address: &str, labels: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{{labels}}}\n  annotations: {{ambient.istio.io/redirection: enabled}}\nspec:\n  nodeName: n1\n  serviceAccountName: web\n  containers:\n  - name: c\n    ports: [{{containerPort: 8080, name: http}}, {{containerPort: 53, name: dns, protocol: UDP}}]\nstatus: {{phase: Running, podIP: {address}, conditions: [{{type: Ready, status: \"True\"}}]}}\n{more}"
    )
}

const NODE: &str = "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}\n";

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
}
