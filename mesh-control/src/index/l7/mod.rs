//! Tables of HTTP requests, made of what the objects mean together (`index::routing`), for waypoints: for each service that one serves, the rules that count
//! for clients of each namespace. The joining calls [`index`] when something that tables are made of has changed.
//!
//! ```text
//! VirtualService, HTTPRoute, GRPCRoute --parts--> Candidate --l7::order--> VirtualHost of a service --table--> Table of a waypoint
//! ```
//!
//! `listeners` is the same for gateways: of each listener the routes that are attached to it. `clusters` is what DestinationRules say of the places that a table
//! names, `labels` which labels of workloads both ask for.
//!
//! What is written and cannot be done is noted ([`notes`]): its rule answers 500, and its writer is told. It is never left out, because a later rule would
//! match instead.

pub mod backend_tls;
pub mod clusters;
mod filter;
pub mod grpc_route;
pub mod http_route;
mod in_force;
pub mod labels;
pub mod listeners;
pub mod notes;
mod parts;
pub mod table;
#[cfg(test)]
mod tests;
mod text;
pub mod virtual_service;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use mesh_core::l4::ConnectionRoutes;
use mesh_core::l7::order::Candidate;
use mesh_core::l7::{Clusters, Retries, Table};
use mesh_core::listener::Listeners;
use mesh_core::{ArcStr, NamespacedName};

use super::Settings;
use super::certificates::{self, Part, Reference};
use super::datagram;
use super::routing::destination_rules::Rules;
use super::routing::hosts::Hosts;
use super::routing::parents::Owner;
use super::routing::{Indexed, Listening, Resolved};
use super::waypoint::{PodLabels, PodTopologies, Served};
use crate::diagnosis::Problem;
use crate::resource::mesh_defaults::MeshDefaults;
use crate::resource::routing::Routes;
use crate::resource::secret::named;
use crate::resource::{Key, Kind, Objects};

use listeners::frontend;

pub(super) type Problems = Vec<(Key, Problem)>;

/// The objects that rules are made of.
#[derive(Debug)]
pub struct Around<'a> {
    /// Those of the namespaces of the mesh.
    pub routes: &'a Routes,
    /// What they mean together.
    pub resolved: &'a Resolved,
    /// What names of hosts are.
    pub hosts: Hosts<'a>,
    /// What is said of the endpoints of hosts.
    pub rules: Rules<'a>,
    /// What holds where manifests say nothing.
    pub defaults: &'a MeshDefaults,
    /// Of these, what is tried again.
    pub retries: Retries,
    /// Labels of pods of gateways.
    pub pods: PodLabels,
    /// Where the UDP ports of services lead.
    pub datagrams: datagram::Targets,
    /// What stands before those.
    pub topologies: PodTopologies,
    /// Services around whose waypoints nothing may go.
    pub refusing: BTreeSet<NamespacedName>,
    /// Where what is no request goes, by service, once that is made.
    pub connections: BTreeMap<NamespacedName, Arc<ConnectionRoutes>>,
}

/// The rules of each object, before it is known who is asked.
#[derive(Debug, Default)]
pub struct Read {
    /// Of VirtualServices with hosts of their own.
    pub virtual_services: BTreeMap<NamespacedName, virtual_service::Rules>,
    /// Of HTTPRoutes and GRPCRoutes with a parent of ours.
    pub routes: BTreeMap<Key, Vec<Candidate>>,
}

/// What waypoints are given, and what is to be said of the objects that it is made of. The same for every join to which `routing::reads_the_same` applies.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// What is done with requests, by gateway.
    pub tables: BTreeMap<NamespacedName, Arc<Table>>,
    /// How the places that they go to are reached, by gateway.
    pub clusters: BTreeMap<NamespacedName, Arc<Clusters>>,
    /// What is listened for outside of the mesh, by gateway.
    pub listeners: BTreeMap<NamespacedName, Arc<Listeners>>,
    /// Those of Gateways by name.
    pub listening: Arc<Listening>,
    /// What these are told.
    pub told: Arc<listeners::told::Told>,
    /// What Gateways themselves are told.
    pub gateways: Arc<frontend::GatewaysTold>,
    /// What BackendTLSPolicies are told, as far as it does not depend on what they name.
    pub policies: Arc<backend_tls::Told>,
    /// The Secrets that they name.
    pub references: Vec<Reference>,
    /// Their names.
    pub secrets: Arc<BTreeSet<Key>>,
    /// Which labels of workloads both ask for, by gateway.
    pub wanted: BTreeMap<NamespacedName, Arc<labels::Wanted>>,
    /// The services that any of them serves.
    pub served: BTreeSet<NamespacedName>,
    /// VirtualServices and DestinationRules that any of them acts on.
    pub in_force: BTreeSet<Key>,
    /// What is to be said.
    pub problems: Problems,
}

impl Made {
    /// What says the same as before is the same: whoever serves it need not look.
    pub fn keep(&mut self, before: &Self) {
        fn keep<T: PartialEq>(now: &mut BTreeMap<NamespacedName, Arc<T>>, before: &BTreeMap<NamespacedName, Arc<T>>) {
            for (gateway, value) in now {
                if let Some(same) = before.get(gateway).filter(|same| *same == value) {
                    *value = same.clone();
                }
            }
        }
        keep(&mut self.tables, &before.tables);
        keep(&mut self.clusters, &before.clusters);
        keep(&mut self.listeners, &before.listeners);
    }
}

impl<'a> Around<'a> {
    /// The objects, read.
    pub fn new(objects: &'a Objects, settings: &'a Settings, indexed: &'a Indexed) -> Self {
        let hosts = Hosts::new(&indexed.routes, objects, settings);
        let rules = Rules::new(&indexed.routes, &hosts);
        let (routes, resolved) = (&*indexed.routes, &*indexed.resolved);
        let (pods, topologies, refusing) = (PodLabels::new(), PodTopologies::new(), BTreeSet::new());
        let (datagrams, connections) = (datagram::Targets::new(), BTreeMap::new());
        let defaults = &settings.defaults;
        // What is wrong with it the reader of the settings has refused.
        let written = defaults.retries.as_ref();
        let retries = written.and_then(|written| virtual_service::retries(written).ok()).unwrap_or_default();
        Self { routes, resolved, hosts, rules, defaults, retries, pods, topologies, refusing, datagrams, connections }
    }

    /// With what the pods that there are of gateways say.
    #[must_use]
    pub fn with_pods(self, pods: PodLabels, topologies: PodTopologies) -> Self {
        Self { pods, topologies, ..self }
    }
}

/// Makes the tables of the waypoints that serve `served`.
pub fn index(settings: &Settings, around: &Around<'_>, served: &Served) -> Made {
    let mut made = Made { served: served.values().flatten().cloned().collect(), ..Made::default() };
    // Istio's own kinds are Istio's where it runs.
    let read = read(around, !settings.istio_runs, &mut made.problems);
    if !settings.istio_runs {
        made.in_force = in_force::of(&made.served, around);
    }
    let listened = listeners::index(around, &read, settings, &mut made.problems);
    made.in_force.extend(listened.in_force);
    (made.listeners, made.references) = (listened.listeners, listened.references);
    made.told = Arc::new(listeners::told::told(around));
    made.gateways = Arc::new(gateways_told(around));
    made.listening = Arc::new(listeners::told::listening(&made.told));
    let policies = backend_tls::Policies::new(around, &mut made.problems);
    backend_tls::check(around, &mut made.problems);
    let mut policies_told = backend_tls::Told::new();
    let none = BTreeSet::new();
    let gateways: BTreeSet<NamespacedName> = served.keys().chain(made.listeners.keys()).cloned().collect();
    for gateway in &gateways {
        let services = served.get(gateway).unwrap_or(&none);
        let listeners = made.listeners.get(gateway);
        let table = table::table(gateway, services, around, &read, &mut made.problems);
        let (problems, references) = (&mut made.problems, &mut made.references);
        let shown = shown(gateway, around, problems, references);
        let of_gateway = Some(clusters::Of { gateway, policies: &policies, shown: &shown });
        let mut reader = clusters::Reader { around, of_gateway, problems, references };
        let clusters = clusters::clusters(&table, listeners, services, &mut reader);
        let reached = clusters.iter().map(|cluster| (&cluster.key.service, cluster.key.port)).collect();
        policies.used(gateway, &reached, &mut policies_told);
        if listeners.is_some() && !settings.istio_runs {
            let places: BTreeSet<_> = clusters.iter().map(|cluster| cluster.key.service.clone()).collect();
            made.in_force.extend(in_force::destination_rules(&places, around));
        }
        if let Some(listeners) = made.listeners.get_mut(gateway) {
            let places = clusters.iter().map(|cluster| &cluster.key.service);
            let through = places.filter(|service| listeners::goes_through(service, around)).cloned().collect();
            *listeners = Arc::new(Listeners::clone(listeners).through_waypoints(through));
        }
        made.wanted.insert(gateway.clone(), Arc::new(labels::Wanted::of(&table, &clusters).with_gateways()));
        made.clusters.insert(gateway.clone(), Arc::new(clusters));
        if served.contains_key(gateway) {
            made.tables.insert(gateway.clone(), Arc::new(table));
        }
    }
    made.secrets = Arc::new(certificates::wanted(&made.references));
    made.in_force.extend(policies_told.iter().filter(|(_, told)| told.acts()).map(|(key, _)| key.clone()));
    made.policies = Arc::new(policies_told);
    // Who is delegated to by several, or asked on several ports, is read as often.
    let mut told = HashSet::new();
    made.problems.retain(|said| told.insert(said.clone()));
    made
}

/// What a gateway shows to backends, by what it is called there; or why those are not reached.
fn shown(
    name: &NamespacedName,
    around: &Around<'_>,
    problems: &mut Problems,
    references: &mut Vec<Reference>,
) -> Result<Option<ArcStr>, ArcStr> {
    let Some(shown) = around.routes.gateways.get(name).and_then(|gateway| frontend::shown(gateway, around.routes))
    else {
        return Ok(None);
    };
    let object = Key { kind: Kind::Gateway, namespace: name.namespace.clone(), name: name.name.clone() };
    let holder = shown.map_err(|(_, why)| {
        let text = ArcStr::from(format!("{}: {why}", frontend::SHOWN));
        let help = "until then backends that are reached with TLS answer with 500";
        problems.push((object.clone(), Problem::error(frontend::SHOWN, why).help(help)));
        text
    })?;
    let own = named(&holder);
    references.push(Reference {
        gateway: name.clone(),
        object,
        listener: ArcStr::new(),
        field: frontend::SHOWN.to_owned(),
        holder,
        or: None,
        part: Part::Shown,
    });
    Ok(Some(own))
}

/// What Gateways of ours are told that is about no listener.
fn gateways_told(around: &Around<'_>) -> frontend::GatewaysTold {
    let ours =
        around.routes.gateways.iter().filter(|(_, gateway)| matches!(around.hosts.owner(gateway), Owner::Ours(_)));
    ours.map(|(name, gateway)| (name.clone(), frontend::GatewayTold::of(name, gateway, around))).collect()
}

fn read(around: &Around<'_>, with_istio_s: bool, problems: &mut Problems) -> Read {
    let mut read = Read::default();
    for (name, object) in around.routes.virtual_services.iter().filter(|_| with_istio_s) {
        let rules = virtual_service::rules(object, None, around, problems);
        if !object.spec.hosts.is_empty() {
            read.virtual_services.insert(name.clone(), rules);
        }
    }
    for (key, route) in &around.resolved.routes {
        let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
        let rules = match key.kind {
            Kind::HttpRoute => {
                let object = around.routes.http_routes.get(&name);
                object.map(|object| http_route::rules(object, route, around, problems))
            }
            Kind::GrpcRoute => {
                let object = around.routes.grpc_routes.get(&name);
                object.map(|object| grpc_route::rules(object, route, around, problems))
            }
            _ => None,
        };
        read.routes.extend(rules.map(|rules| (key.clone(), rules)));
    }
    read
}
