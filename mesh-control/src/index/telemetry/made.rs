//! What all waypoints are given of Telemetry objects and mesh settings, and which objects have a part in it. Called by the joining.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::NamespacedName;
use mesh_core::telemetry::Scopes;

use super::super::service::key as service_key;
use super::super::waypoint::{PodLabels, Served, Waypoints, has_labels};
use super::{Around, Problems, Settings, Stands, Told, key, selector};
use crate::diagnosis::Problem;
use crate::resource::mesh_telemetry::MeshTelemetry;
use crate::resource::routing::telemetry::TargetReference;
use crate::resource::{Key, Labels, Objects, Secured};

/// What waypoints are given, and what is to be said of the objects that it is made of.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// By gateway. One of which nobody says anything has none, and does what its command line says.
    pub scopes: BTreeMap<NamespacedName, Arc<Scopes>>,
    /// Objects that hold at some waypoint.
    pub in_force: BTreeSet<Key>,
    /// Objects of which it is said in `problems` why they do not.
    pub explained: BTreeSet<Key>,
    /// What is to be said.
    pub problems: Problems,
}

impl Made {
    /// What says the same as before is the same: whoever serves it need not look.
    pub fn keep(&mut self, before: &Self) {
        for (gateway, own) in &mut self.scopes {
            if let Some(same) = before.scopes.get(gateway).filter(|same| *same == own) {
                *own = same.clone();
            }
        }
    }
}

/// Finds what each waypoint is to be told; `labels` are those of pods that serve gateways. Where an Istio runs, these objects and settings are its own.
pub fn index(
    objects: &Objects,
    settings: &Settings,
    waypoints: &Waypoints,
    served: &Served,
    labels: &PodLabels,
) -> Made {
    let none = MeshTelemetry::default();
    let mesh = match objects.mesh_configs.get(&settings.config_name()) {
        Some(Secured::Readable(config)) => &config.telemetry,
        _ => &none,
    };
    let mut all = objects.routes.telemetries.clone();
    all.retain(|name, _| !settings.istio_runs && settings.heeds(objects, &name.namespace));
    let entries = super::entries(objects, settings);
    let around = Around { objects: &all, mesh, settings, entries };
    // Whoever may take something is nobody who does.
    let is_said = !mesh.default_logs.is_empty() || mesh.file.is_some() || mesh.enable_tracing;
    let (mut made, mut problems) = (Made::default(), Problems::new());
    for (gateway, own) in waypoints.deployed() {
        // Waypoints are found by targetRefs alone, as in Istio.
        let selects =
            |selector: &Labels| waypoints.is_edge(gateway) && has_labels(objects, labels, gateway, own, selector);
        let class = objects.routes.gateways.get(gateway).map_or("", |object| &object.spec.gateway_class_name);
        let stands = if waypoints.is_edge(gateway) { Stands::AtEdge } else { Stands::BeforeServers };
        let nothing = BTreeSet::new();
        let mut told = Told::default();
        let scopes =
            around.scopes(gateway, (class, stands), served.get(gateway).unwrap_or(&nothing), selects, &mut told);
        if is_said || !told.in_force.is_empty() {
            made.scopes.insert(gateway.clone(), Arc::new(scopes));
        }
        made.in_force.append(&mut told.in_force);
        made.explained.append(&mut told.late);
        problems.append(&mut told.problems);
    }
    for object in all.values() {
        let is_idle = !made.in_force.contains(&key(object)) && !made.explained.contains(&key(object));
        if selector(object).is_some() && is_idle {
            let message = "agents make all of their metrics and logs, waypoints are found by targetRefs, also a Gateway that is a waypoint besides, and no other gateway of its namespace has pods with these labels: it has no effect";
            problems.push((key(object), Problem::warning("spec.selector", message)));
            made.explained.insert(key(object));
        }
        for (index, target) in object.spec.target_refs.iter().chain(&object.spec.target_ref).enumerate() {
            if !is_found(&object.namespace, target, (objects, &around), waypoints, served) {
                let message = format!("{} {} has no waypoint and is no gateway of ours", target.kind, target.name);
                let field = format!("spec.targetRefs[{index}]");
                problems.push((key(object), Problem::warning(field, format!("{message}: it is not in force there"))));
            }
        }
    }
    // What holds for several waypoints is said once.
    let mut said = std::collections::HashSet::new();
    problems.retain(|(key, problem)| said.insert((key.clone(), problem.clone())));
    made.explained.retain(|key| !made.in_force.contains(key));
    made.problems = problems;
    made
}

/// Whether some waypoint has something of what is named.
fn is_found(
    namespace: &mesh_core::ArcStr,
    target: &TargetReference,
    (objects, around): (&Objects, &Around<'_>),
    waypoints: &Waypoints,
    served: &Served,
) -> bool {
    let settings = around.settings;
    let mut deployed = waypoints.deployed().map(|(gateway, _)| gateway);
    match target.kind.as_str() {
        "Gateway" => deployed.any(|gateway| gateway.namespace == *namespace && *gateway.name == *target.name),
        "GatewayClass" if !settings.is_root(namespace) => false,
        "GatewayClass" => deployed.any(|gateway| {
            let object = objects.routes.gateways.get(gateway);
            object.is_some_and(|object| object.spec.gateway_class_name == target.name)
        }),
        "Service" => {
            let name = service_key(namespace, &target.name, settings);
            !around.entries.contains_key(&name) && served.values().any(|services| services.contains(&name))
        }
        "ServiceEntry" => served.values().flatten().any(|service| {
            service.namespace == *namespace && around.entries.get(service).is_some_and(|own| **own == *target.name)
        }),
        _ => false,
    }
}
