//! What happens to connections to addresses that nobody is known to have: the mesh settings say it for everybody, Sidecars for all namespaces (in a root
//! namespace), their own or some of its pods. As in Istio the most specific Sidecar counts alone: one that says nothing of it leaves it to the mesh settings.
//! One that cannot be read, and never could, may have said that only what is known may be reached: so it is said, before others that are for the same pods.
//! The joining calls [`index`]; agents are told only where something else holds than for whom is around.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::outbound::{Outbound, Scope};
use mesh_core::{ArcStr, NamespacedName, Workload};

use super::Settings;
use crate::diagnosis::Problem;
use crate::resource::routing::workload::{OutboundMode, Sidecar};
use crate::resource::routing::{Routed, Routes};
use crate::resource::{Key, Kind, Labels, Objects, Pod, meta};

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

/// Works it out. `routes` are those that count, `pods` those that are alive, each with its workload if it has one.
pub fn index<'a>(
    objects: &Objects,
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
    let unread = objects.unread_sidecars.iter();
    let unread = unread.filter(|(name, _)| !settings.istio_runs && settings.heeds(objects, &name.namespace));
    let mut shut = Shut::default();
    for (name, labels) in unread {
        let (namespace, own) = (name.namespace.clone(), name.name.clone());
        made.in_force.insert(Key { kind: Kind::Sidecar, namespace, name: own });
        shut.add(name, labels);
    }
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
    let mut of_namespaces = BTreeMap::new();
    for (namespace, sidecar) in counting {
        if let Some(said) = shut.namespaces.get(namespace) {
            let message = format!("{} counts: only what is known may be reached", said.origin);
            made.problems.push((key(sidecar), Problem::warning("spec.outboundTrafficPolicy", message)));
            continue;
        }
        of_namespaces.insert(namespace, made.said_by(sidecar, &of_mesh));
    }
    of_namespaces.extend(shut.namespaces);
    // Of several root namespaces the first one that says something.
    let of_root = settings.root_namespaces.iter().find_map(|root| of_namespaces.get(root.as_str()).cloned());
    let around = of_root.unwrap_or_else(|| of_mesh.clone());
    made.say(Scope::Mesh, &around, &Outbound::default());
    for (namespace, said) in &of_namespaces {
        made.say(Scope::Namespace((*namespace).into()), said, &around);
    }
    let mut selecting: BTreeMap<&str, Vec<Selecting<'_>>> = BTreeMap::new();
    for &sidecar in &sidecars {
        if let Some(selector) = &sidecar.spec.workload_selector {
            selecting.entry(sidecar.namespace.as_str()).or_default().push((&selector.labels, sidecar));
        }
    }
    for (namespace, said) in made.of_newcomers(&shut.pods, &selecting, &of_mesh) {
        let around = of_namespaces.get(namespace).unwrap_or(&around);
        if !around.registry_only {
            made.say(Scope::Newcomers(namespace.into()), &said, around);
        }
    }
    if selecting.is_empty() && shut.pods.is_empty() {
        return made;
    }
    for (pod, workload) in pods {
        let namespace = pod.namespace.as_str();
        let unread = shut.pods.get(namespace).into_iter().flatten();
        let mut unread = unread.filter(|(labels, _)| meta::selects(labels, &pod.labels));
        let own = selecting.get(namespace).into_iter().flatten();
        let mut own = own.filter(|(labels, _)| meta::selects(labels, &pod.labels));
        let said = match (unread.next(), own.next()) {
            (Some((_, said)), _) => said.clone(),
            (None, Some((_, sidecar))) => made.said_by(sidecar, &of_mesh),
            (None, None) => continue,
        };
        let around = of_namespaces.get(namespace).unwrap_or(&around);
        made.say(Scope::Workload(workload.uid.clone()), &said, around);
    }
    made
}

/// A Sidecar of some pods, and their labels.
type Selecting<'a> = (&'a Labels, &'a Arc<Routed<Sidecar>>);

/// What Sidecars say that cannot be read.
#[derive(Default)]
struct Shut<'a> {
    /// Of whole namespaces.
    namespaces: BTreeMap<&'a str, Outbound>,
    /// Of pods of a namespace with these labels.
    pods: BTreeMap<&'a str, Vec<(&'a Labels, Outbound)>>,
}

impl<'a> Shut<'a> {
    fn add(&mut self, name: &'a NamespacedName, labels: &'a Labels) {
        let origin = format!("Sidecar {name}, which cannot be read").into();
        let said = Outbound { registry_only: true, origin };
        let namespace = name.namespace.as_str();
        match labels.is_empty() {
            true => {
                self.namespaces.entry(namespace).or_insert(said);
            }
            false => self.pods.entry(namespace).or_default().push((labels, said)),
        }
    }
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

    /// By namespace the first of those for some of its pods that leaves only the registry. Whom it is for nobody knows before the pod is known, so it holds
    /// all that are not, also where it is for nobody yet.
    fn of_newcomers<'a>(
        &mut self,
        unread: &BTreeMap<&'a str, Vec<(&'a Labels, Outbound)>>,
        selecting: &BTreeMap<&'a str, Vec<Selecting<'a>>>,
        of_mesh: &Outbound,
    ) -> BTreeMap<&'a str, Outbound> {
        let first = |(namespace, said): (&&'a str, &Vec<(_, Outbound)>)| Some((*namespace, said.first()?.1.clone()));
        let mut least: BTreeMap<_, _> = unread.iter().filter_map(first).collect();
        for (namespace, (_, sidecar)) in selecting.iter().flat_map(|(name, of)| of.iter().map(move |one| (name, one))) {
            let said = self.said_by(sidecar, of_mesh);
            if said.registry_only {
                least.entry(namespace).or_insert(said);
            }
        }
        least
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
