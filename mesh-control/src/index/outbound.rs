//! What happens to connections to addresses that nobody is known to have: the mesh settings say it for everybody, Sidecars for all namespaces (in a root
//! namespace), their own or some of its pods. As in Istio the most specific Sidecar counts alone: one that says nothing of it leaves it to the mesh settings.
//! The joining calls [`index`]; agents are told only where something else holds than for whom is around.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::outbound::{Outbound, Scope};
use mesh_core::{ArcStr, Workload};

use super::Settings;
use crate::diagnosis::Problem;
use crate::resource::routing::workload::{OutboundMode, Sidecar};
use crate::resource::routing::{Routed, Routes};
use crate::resource::{Key, Kind, Pod, meta};

/// What agents are told, and what is to be said.
#[derive(Debug, Default)]
pub struct Made {
    /// By whom it is for, as [`Scope`] writes it.
    pub said: BTreeMap<ArcStr, Arc<Outbound>>,
    /// Sidecars of which it is made.
    pub in_force: BTreeSet<Key>,
    /// What is to be said.
    pub problems: Vec<(Key, Problem)>,
}

/// Works it out. `pods` are those that are alive, each with its workload if it has one.
pub fn index<'a>(
    routes: &Routes,
    settings: &Settings,
    pods: impl Iterator<Item = (&'a Arc<Pod>, &'a Arc<Workload>)>,
) -> Made {
    let mut made = Made::default();
    let of_mesh = Outbound { registry_only: settings.registry_only, origin: "the mesh settings".into() };
    let mut sidecars: Vec<&Arc<Routed<Sidecar>>> = match settings.istio_runs {
        true => Vec::new(),
        false => routes.sidecars.values().collect(),
    };
    // Stable: those of one age stay in the order of their names. The oldest one counts.
    sidecars.sort_by_key(|sidecar| sidecar.created.unwrap_or(i64::MIN));
    let mut counting: BTreeMap<&str, &Arc<Routed<Sidecar>>> = BTreeMap::new();
    for sidecar in sidecars.iter().filter(|sidecar| sidecar.spec.workload_selector.is_none()) {
        let first = *counting.entry(sidecar.namespace.as_str()).or_insert(sidecar);
        if !Arc::ptr_eq(first, sidecar) {
            let message = format!("{} is for the whole namespace, too, and is older: it counts", first.name);
            made.problems.push((key(sidecar), Problem::warning("spec.workloadSelector", message)));
        }
    }
    // Of several root namespaces the first one that says something.
    let of_root = settings.root_namespaces.iter().find_map(|root| counting.get(root.as_str()).copied());
    let around = of_root.map_or_else(|| of_mesh.clone(), |sidecar| made.said_by(sidecar, &of_mesh));
    made.say(Scope::Mesh, &around, &Outbound::default());
    let mut of_namespaces = BTreeMap::new();
    for (namespace, sidecar) in counting {
        let said = made.said_by(sidecar, &of_mesh);
        made.say(Scope::Namespace(namespace.into()), &said, &around);
        of_namespaces.insert(namespace, said);
    }
    let selecting: Vec<_> = sidecars.iter().filter(|sidecar| sidecar.spec.workload_selector.is_some()).collect();
    if selecting.is_empty() {
        return made;
    }
    for (pod, workload) in pods {
        let selects = |sidecar: &&&&Arc<Routed<Sidecar>>| {
            let labels = sidecar.spec.workload_selector.as_ref().map(|selector| &selector.labels);
            sidecar.namespace == pod.namespace && labels.is_some_and(|labels| meta::selects(labels, &pod.labels))
        };
        if let Some(sidecar) = selecting.iter().find(selects) {
            let said = made.said_by(sidecar, &of_mesh);
            let around = of_namespaces.get(pod.namespace.as_str()).unwrap_or(&around);
            made.say(Scope::Workload(workload.uid.clone()), &said, around);
        }
    }
    made
}

impl Made {
    fn said_by(&mut self, sidecar: &Routed<Sidecar>, of_mesh: &Outbound) -> Outbound {
        let Some(policy) = &sidecar.spec.outbound_traffic_policy else { return of_mesh.clone() };
        self.in_force.insert(key(sidecar));
        Outbound {
            registry_only: policy.mode.unwrap_or(OutboundMode::RegistryOnly) == OutboundMode::RegistryOnly,
            origin: format!("Sidecar {}/{}", sidecar.namespace, sidecar.name).into(),
        }
    }

    fn say(&mut self, scope: Scope, said: &Outbound, around: &Outbound) {
        if said.registry_only != around.registry_only || (said.registry_only && said.origin != around.origin) {
            self.said.insert(scope.to_string().into(), Arc::new(said.clone()));
        }
    }
}

fn key(sidecar: &Routed<Sidecar>) -> Key {
    Key { kind: Kind::Sidecar, namespace: sidecar.namespace.clone(), name: sidecar.name.clone() }
}
