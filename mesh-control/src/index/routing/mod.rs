//! What says where requests go, of the namespaces that are of the mesh, and what its objects mean together: which services and subsets the names in
//! them are ([`hosts`]), where references of the Gateway API lead ([`backends`]) and what its routes belong to ([`parents`]), and which of several objects
//! about one host counts ([`order`], [`virtual_services`]). Pure; whoever makes tables of routes makes them from [`Resolved`], so what an object is told
//! and what is done with it cannot differ. Whoever wrote an object that is for a mesh as ours and that nobody acts on is told so: here, where that
//! follows from the kind, and by the joining where it depends on waypoints.

#[cfg(test)]
mod absent_tests;
pub mod backends;
pub mod destination_rules;
pub mod findings;
pub mod gateways;
pub mod hosts;
pub mod listener_sets;
pub mod order;
pub mod parents;
#[cfg(test)]
mod tests;
pub mod virtual_services;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::{ArcStr, NamespacedName};

use super::Settings;
use crate::diagnosis::Problem;
use crate::resource::routing::grants::PolicyTarget;
use crate::resource::routing::{self, Gateway, Routed, Routes, Routing, reference::ParentReference};
use crate::resource::{Key, Kind, Objects};
use crate::verdict::Belonging;
use backends::{Broken, Place, Spot};
use destination_rules::Rules;
use findings::{Findings, Flaw};
use hosts::Hosts;
use parents::{Attached, Refusal};

type Problems = Vec<(Key, Problem)>;

/// Listeners that are served: the Gateway or ListenerSet, and its name there.
pub type Listening = BTreeSet<(Key, ArcStr)>;

/// What the objects mean together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Routes of the Gateway API that have a parent of ours.
    pub routes: BTreeMap<Key, Route>,
    /// Such routes that cannot be read and never could, with those parents. They count nowhere.
    pub unread: BTreeMap<Key, Vec<ParentReference>>,
    /// ListenerSets of each Gateway of ours that takes them, those that count first at the front.
    pub sets: BTreeMap<NamespacedName, Vec<NamespacedName>>,
    /// ListenerSets that a Gateway of ours does not take: which one, and why.
    pub refused_sets: BTreeMap<NamespacedName, (NamespacedName, String)>,
    /// BackendTLSPolicies that cannot be read and never could, with what of their targets can be.
    pub unread_policies: BTreeMap<Key, Vec<PolicyTarget>>,
    /// Routes of each service, those that count first at the front.
    pub by_service: BTreeMap<NamespacedName, Vec<Key>>,
    /// VirtualServices by gateway (`mesh`, or `namespace/name`) and host. Of the mesh's the first that a client sees counts; a gateway tries all, in this order.
    pub by_host: BTreeMap<(String, String), Vec<NamespacedName>>,
    /// Objects of which it is not known yet what they mean, because a kind that they name has never been heard of. They are told nothing.
    pub unknown: BTreeSet<Key>,
}

/// A route of the Gateway API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Its parents that are ours, in their order.
    pub parents: Vec<(ParentReference, Result<Attached, Refusal>)>,
    /// Where its references lead; those are left out of which that is not known yet. A request that comes to a broken one is answered with 500; the others
    /// are not affected.
    pub backends: BTreeMap<Spot, Result<Place, Broken>>,
}

impl Resolved {
    /// Whether a route is in force at all parents that take it; `served` are the services that waypoints serve, `listening` what gateways listen for.
    pub fn acts(&self, key: &Key, served: &BTreeSet<NamespacedName>, listening: &Listening) -> bool {
        self.belonging(key, served, listening).is_some_and(|route| {
            let mut taken = route.parents.iter().filter(|(_, refused)| refused.is_none()).peekable();
            taken.peek().is_some() && taken.all(|(parent, _)| route.served.contains(parent))
        })
    }

    /// What a route is to be told; `served` are the services that waypoints serve, `listening` what gateways listen for.
    pub fn belonging(&self, key: &Key, served: &BTreeSet<NamespacedName>, listening: &Listening) -> Option<Belonging> {
        if let Some(parents) = self.unread.get(key) {
            let parents = parents.iter().map(|parent| (parent.clone(), None)).collect();
            return Some(Belonging { parents, broken: None, ..Belonging::default() });
        }
        let route = self.routes.get(key)?;
        let refused = |outcome: &Result<Attached, Refusal>| {
            outcome.as_ref().err().map(|refusal| (refusal.reason.name(), refusal.why.clone()))
        };
        let parents = route.parents.iter().map(|(parent, outcome)| (parent.clone(), refused(outcome)));
        let broken = route.backends.iter().filter_map(|(spot, place)| {
            let broken = place.as_ref().err()?;
            Some((spot.to_string(), broken.reason.name(), broken.why.clone()))
        });
        let acts = |outcome: &Result<Attached, Refusal>| match (outcome, key.kind) {
            (Ok(to @ (Attached::Service(..) | Attached::Entry(..))), Kind::HttpRoute | Kind::GrpcRoute) => {
                to.services().0.iter().all(|service| served.contains(service))
            }
            // Where a service has no waypoint agents act on them.
            (Ok(Attached::Service(..) | Attached::Entry(..)), Kind::TcpRoute | Kind::TlsRoute) => true,
            (Ok(Attached::Listeners(object, names)), _) => {
                names.iter().any(|name| listening.contains(&(object.clone(), name.as_str().into())))
            }
            _ => false,
        };
        let served = route.parents.iter().filter(|(_, outcome)| acts(outcome)).map(|(parent, _)| parent.clone());
        Some(Belonging { parents: parents.collect(), served: served.collect(), broken: Some(broken.collect()) })
    }
}

/// The objects, what they mean together, and what is to be said of each. Nothing in it changes: it is the same for every join to which
/// [`reads_the_same`] applies.
#[derive(Clone, Debug, Default)]
pub struct Indexed {
    /// Those of the namespaces of the mesh.
    pub routes: Arc<Routes>,
    /// What they mean together.
    pub resolved: Arc<Resolved>,
    /// What is to be said.
    pub problems: Problems,
}

/// Whether [`index`] comes to the same with the same settings. It reads nothing of pods, nodes and policies, which are what changes all the time.
pub fn reads_the_same(old: &Objects, new: &Objects) -> bool {
    // Objects that have not changed are the same ones: they are not looked into.
    old.routes == new.routes
        && old.services == new.services
        && old.namespaces == new.namespaces
        && old.unread_namespaces == new.unread_namespaces
        && old.unread_routes == new.unread_routes
        && old.unread_policies == new.unread_policies
        && old.unheard == new.unheard
}

/// Makes of the objects what they mean together.
pub fn index(objects: &Objects, settings: &Settings) -> Indexed {
    let mut findings = Findings::default();
    let mut routes = objects.routes.clone();
    routes.retain(|name| name.namespace.is_empty() || settings.heeds(objects, &name.namespace));
    for (key, object) in routes.iter() {
        // What is done with tokens, and how many requests there may be, `index::security` knows.
        let is_idle = |_: &&str| {
            !matches!(key.kind, Kind::RequestAuthentication | Kind::RateLimit)
                && routing::is_ours(&object, settings.istio_runs)
                && !acts(&object, &routes)
        };
        if let Some(why) = routing::inaction(key.kind).filter(is_idle) {
            findings.add(&key, Problem::warning("", why));
        }
    }
    let hosts = Hosts::new(&routes, objects, settings);
    let mut resolved = Resolved::default();
    for (key, object) in routes.iter() {
        let Some(parents) = parents::of(&object) else { continue };
        if let Some(route) = route(&key, &object, parents, &routes, &hosts, &mut findings) {
            resolved.routes.insert(key, route);
        }
    }
    for (key, parents) in objects.unread_routes.iter().filter(|(key, _)| settings.heeds(objects, &key.namespace)) {
        let ours = unread(key, parents, &routes, &hosts, &mut findings);
        if !ours.is_empty() {
            resolved.unread.insert(key.clone(), ours);
        }
    }
    let unread = objects.unread_policies.iter().filter(|(key, _)| settings.heeds(objects, &key.namespace));
    resolved.unread_policies = unread.map(|(key, targets)| (key.clone(), targets.clone())).collect();
    order::conflicts(&mut resolved.routes, &mut findings.problems);
    resolved.by_service = order::by_service(&routes, &resolved.routes);
    order::same_matches(&routes, &resolved, &mut findings.problems);
    gateways::check(&routes, &hosts, &mut findings);
    listener_sets::resolve(&routes, &hosts, &mut resolved, &mut findings);
    // Istio's own kinds are Istio's where it runs.
    if !settings.istio_runs {
        resolved.by_host = virtual_services::by_host(&routes, &hosts);
        let rules = Rules::new(&routes, &hosts);
        virtual_services::check(&routes, &rules, &hosts, &resolved, &mut findings);
        destination_rules::check(&routes, &rules, &hosts, &mut findings);
    }
    resolved.unknown = findings.unknown;
    Indexed { routes: Arc::new(routes), resolved: Arc::new(resolved), problems: findings.problems }
}

/// Whether it is a Gateway that listens for something, or a class that has one: these are in force.
fn acts(object: &Routing, routes: &Routes) -> bool {
    match object {
        Routing::Gateway(gateway) => listens(gateway),
        // One is of no use before there is a Gateway of it.
        Routing::GatewayClass(class) => {
            let mut own = routes.gateways.values().filter(|g| g.spec.gateway_class_name == *class.name).peekable();
            own.peek().is_none() || own.any(|gateway| listens(gateway))
        }
        _ => false,
    }
}

/// For tunnels, or outside of the mesh; or ListenerSets may.
fn listens(gateway: &Routed<Gateway>) -> bool {
    gateway.spec.tunnels().chain(gateway.spec.edges()).next().is_some() || gateway.spec.allowed_listeners.is_some()
}

/// The parents that are ours, of a route that cannot be read. Whether they take it does not matter: what is wrong with it is that.
fn unread(
    key: &Key,
    parents: &[ParentReference],
    routes: &Routes,
    hosts: &Hosts<'_>,
    findings: &mut Findings,
) -> Vec<ParentReference> {
    let mut ours = Vec::new();
    for reference in parents {
        match parents::resolve(reference, key, &[], routes, hosts) {
            parents::Found::Ours(_) => ours.push(reference.clone()),
            parents::Found::Unknown => findings.add(key, Flaw::Unknown),
            parents::Found::Missing(_) | parents::Found::Foreign => {}
        }
    }
    ours
}

/// One route, if any of its parents is ours.
fn route(
    key: &Key,
    object: &Routing,
    parents: &[ParentReference],
    routes: &Routes,
    hosts: &Hosts<'_>,
    findings: &mut Findings,
) -> Option<Route> {
    let mut route = Route::default();
    for (index, reference) in parents.iter().enumerate() {
        let field = format!("spec.parentRefs[{index}]");
        match parents::resolve(reference, key, parents::hostnames(object), routes, hosts) {
            parents::Found::Missing(why) => findings.add(key, Problem::warning(field, why)),
            parents::Found::Unknown => findings.add(key, Flaw::Unknown),
            parents::Found::Foreign => {}
            parents::Found::Ours(outcome) => {
                if let Err(refusal) = &outcome {
                    findings.add(key, Problem::warning(field, refusal.why.clone()));
                }
                route.parents.push((reference.clone(), outcome));
            }
        }
    }
    if route.parents.is_empty() {
        return None;
    }
    let is_exposing = route.parents.iter().any(|(parent, _)| !parent.is_service());
    for (spot, reference) in backends::of(object) {
        let Some(outcome) = backends::resolve(&reference, key, is_exposing, routes, hosts) else {
            findings.add(key, Flaw::Unknown);
            continue;
        };
        if let Err(broken) = &outcome {
            let problem = Problem::error(spot.to_string(), broken.why.clone()).help(broken.help.clone());
            findings.add(key, problem);
        }
        route.backends.insert(spot, outcome);
    }
    Some(route)
}
