//! VirtualServices beside the other objects: where their destinations lead, and which of several for one host counts.

use std::collections::BTreeMap;

use mesh_core::NamespacedName;

use super::destination_rules::Rules;
use super::findings::{Findings, Flaw};
use super::hosts::{Host, Hosts, UNSELECTED, see_both};
use super::{Resolved, order};
use crate::diagnosis::{Problem, closest};
use crate::resource::routing::virtual_service::{Delegate, Destination, MESH, VirtualService};
use crate::resource::routing::{DestinationRule, Routed, Routes};
use crate::resource::{Key, Kind};

/// By gateway and host, those that count first at the front.
pub fn by_host(routes: &Routes, hosts: &Hosts<'_>) -> BTreeMap<(String, String), Vec<NamespacedName>> {
    let mut by_host: BTreeMap<(String, String), Vec<_>> = BTreeMap::new();
    for (name, object) in &routes.virtual_services {
        for gateway in gateways(object) {
            for host in &object.spec.hosts {
                let place = (gateway.clone(), hosts.full(host, &object.namespace));
                let of_it = by_host.entry(place).or_default();
                if !of_it.contains(name) {
                    of_it.push(name.clone());
                }
            }
        }
    }
    for names in by_host.values_mut() {
        names.sort_by_key(|name| order::age(&routes.virtual_services[name]));
    }
    by_host
}

/// Where it counts.
fn gateways(object: &Routed<VirtualService>) -> Vec<String> {
    if object.spec.gateways.is_empty() {
        return vec![MESH.to_owned()];
    }
    object.spec.gateways.iter().map(|gateway| gateway_name(gateway, &object.namespace)).collect()
}

/// The full name of a gateway that an object of `namespace` names: `mesh`, or `namespace/name`.
pub fn gateway_name(gateway: &str, namespace: &str) -> String {
    match gateway {
        MESH => MESH.to_owned(),
        named if named.starts_with("./") => format!("{namespace}{}", &named[1..]),
        named if named.contains('/') => named.to_owned(),
        short => format!("{namespace}/{short}"),
    }
}

/// Tells them what does not fit together.
pub fn check(routes: &Routes, rules: &Rules<'_>, hosts: &Hosts<'_>, resolved: &Resolved, findings: &mut Findings) {
    for (name, object) in &routes.virtual_services {
        let key = Key { kind: Kind::VirtualService, namespace: name.namespace.clone(), name: name.name.clone() };
        let mut told: Vec<Flaw> = Vec::new();
        for (field, destination) in destinations(&object.spec) {
            told.extend(self::destination(&field, destination, &object.namespace, rules, hosts).err());
        }
        for (index, gateway) in gateways(object).iter().enumerate().filter(|(_, gateway)| *gateway != MESH) {
            told.extend(gateway_problem(index, gateway, routes, hosts));
        }
        for (index, rule) in object.spec.http.iter().enumerate() {
            let delegate = rule.delegate.as_ref();
            told.extend(delegate.and_then(|to| delegate_problem(index, to, name, routes, hosts)).map(Flaw::from));
        }
        told.extend(contested(name, object, routes, hosts, resolved).into_iter().map(Flaw::from));
        told.into_iter().for_each(|flaw| findings.add(&key, flaw));
    }
}

/// Everywhere that requests or copies of them go, with the field.
pub fn destinations(spec: &VirtualService) -> Vec<(String, &Destination)> {
    let mut all = Vec::new();
    for (index, rule) in spec.http.iter().enumerate() {
        let field = format!("spec.http[{index}]");
        let targets = rule.route.iter().enumerate();
        all.extend(targets.map(|(i, target)| (format!("{field}.route[{i}].destination"), &target.destination)));
        all.extend(rule.mirror.iter().map(|mirror| (format!("{field}.mirror"), mirror)));
        let mirrors = rule.mirrors.iter().enumerate();
        all.extend(mirrors.map(|(i, mirror)| (format!("{field}.mirrors[{i}].destination"), &mirror.destination)));
    }
    let tls = spec.tls.iter().map(|rule| &rule.route).enumerate().map(|(index, route)| ("tls", index, route));
    let tcp = spec.tcp.iter().map(|rule| &rule.route).enumerate().map(|(index, route)| ("tcp", index, route));
    for (what, index, route) in tls.chain(tcp) {
        let field = |i: usize| format!("spec.{what}[{index}].route[{i}].destination");
        all.extend(route.iter().enumerate().map(|(i, target)| (field(i), &target.destination)));
    }
    all
}

/// Where requests, or copies of them, go.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// The name that it has in tables of services.
    pub service: NamespacedName,
    /// What it is.
    pub host: Host<'a>,
    /// The port; `None` if it is the one that the client connected to.
    pub port: Option<u16>,
}

/// Where a destination at `field` of an object of `namespace` is, or what is wrong with it.
pub fn destination<'a>(
    field: &str,
    destination: &Destination,
    namespace: &str,
    rules: &Rules<'_>,
    hosts: &Hosts<'a>,
) -> Result<Place<'a>, Flaw> {
    let full = hosts.full(&destination.host, namespace);
    let Some(host) = hosts.find(&full, namespace) else {
        if hosts.is_unheard(Kind::ServiceEntry) {
            return Err(Flaw::Unknown);
        }
        let message = hosts.ignored(&full, namespace).unwrap_or_else(|| hosts.nothing(&full));
        let help = hosts.meant(&full, namespace);
        let help = help.unwrap_or_else(|| "requests that come here are answered with 500".into());
        return Err(Problem::error(format!("{field}.host"), message).help(help).into());
    };
    if let Some(port) = destination.port.map(|port| port.number).filter(|port| !host.has_port(*port)) {
        let problem = Problem::error(format!("{field}.port.number"), format!("{full} has no port {port}"));
        return Err(problem.help(format!("it has {}", host.ports().join(", "))).into());
    }
    let port = destination.port.map(|port| port.number).or_else(|| host.only_port());
    let place = Place { service: hosts.name(host, &full), host, port };
    let Some(subset) = destination.subset.as_deref() else { return Ok(place) };
    let known = rules.subsets(&full, namespace, host.namespace(), hosts);
    if known.contains(&subset) {
        return Ok(place);
    }
    if hosts.is_unheard(Kind::DestinationRule) {
        return Err(Flaw::Unknown);
    }
    let message = match ignored_rule(&full, subset, host.namespace(), hosts) {
        Some(rule) => format!("DestinationRule {rule}, whose subset {subset:?} is, {UNSELECTED}"),
        None => format!("no DestinationRule of {full} has a subset {subset:?}"),
    };
    let help = match (closest(subset, &known), known.is_empty()) {
        (Some(meant), _) => format!("did you mean `{meant}`?"),
        (None, true) => "requests that come here are answered with 500".to_owned(),
        (None, false) => format!("there are {}", known.join(", ")),
    };
    Err(Problem::error(format!("{field}.subset"), message).help(help).into())
}

/// The rule with a subset that would count, if the namespace of the host did. That of the client does, and so do those that are everybody's.
fn ignored_rule<'a>(full: &str, subset: &str, home: &str, hosts: &Hosts<'a>) -> Option<&'a NamespacedName> {
    let first = NamespacedName::new(home, "");
    let mut rules = hosts.all().destination_rules.range(first..).take_while(|(name, _)| name.namespace == home);
    let has = |rule: &DestinationRule| rule.subsets.iter().any(|known| known.name == subset);
    let (name, _) = rules.find(|(_, rule)| hosts.full(&rule.spec.host, home) == full && has(&rule.spec))?;
    hosts.is_ignored(home).then_some(name)
}

fn gateway_problem(index: usize, gateway: &str, routes: &Routes, hosts: &Hosts<'_>) -> Option<Flaw> {
    let (namespace, name) = gateway.split_once('/')?;
    let full = NamespacedName::new(namespace, name);
    if routes.istio_gateways.contains_key(&full) {
        return None;
    }
    if hosts.is_unheard(Kind::IstioGateway) {
        return Some(Flaw::Unknown);
    }
    let is_there = hosts.all().istio_gateways.contains_key(&full);
    let problem = Problem::warning(format!("spec.gateways[{index}]"), hosts.missing("Gateway", &full, is_there));
    let elsewhere = routes.istio_gateways.keys().find(|known| &*known.name == name);
    Some(match elsewhere {
        Some(meant) => problem.help(format!("did you mean `{meant}`?")).into(),
        None => problem.into(),
    })
}

fn delegate_problem(
    index: usize,
    to: &Delegate,
    own: &NamespacedName,
    routes: &Routes,
    hosts: &Hosts<'_>,
) -> Option<Problem> {
    let namespace = to.namespace.as_deref().unwrap_or(&own.namespace);
    let name = NamespacedName::new(namespace, to.name.as_str());
    let field = format!("spec.http[{index}].delegate");
    match routes.virtual_services.get(&name) {
        _ if name == *own => Some(Problem::error(field, "it delegates to itself")),
        None => {
            let is_there = hosts.all().virtual_services.contains_key(&name);
            Some(Problem::error(field, hosts.missing("VirtualService", &name, is_there)))
        }
        Some(other) if !other.spec.hosts.is_empty() => Some(
            Problem::error(field, format!("VirtualService {name} has hosts of its own"))
                .help("only one without `hosts` can be delegated to"),
        ),
        Some(other) if other.spec.http.iter().any(|rule| rule.delegate.is_some()) => {
            Some(Problem::error(field, format!("VirtualService {name} delegates further")))
        }
        Some(_) => None,
    }
}

/// Hosts that others have, who count before it.
fn contested(
    name: &NamespacedName,
    object: &Routed<VirtualService>,
    routes: &Routes,
    hosts: &Hosts<'_>,
    resolved: &Resolved,
) -> Vec<Problem> {
    let mut told = Vec::new();
    let visible = |one: &NamespacedName| {
        let other = &routes.virtual_services[one];
        see_both((&other.spec.export_to, &other.namespace), (&object.spec.export_to, &object.namespace))
    };
    for gateway in gateways(object) {
        for (index, host) in object.spec.hosts.iter().enumerate() {
            let (field, full) = (format!("spec.hosts[{index}]"), hosts.full(host, &object.namespace));
            let all = resolved.by_host.get(&(gateway.clone(), full.clone())).map(Vec::as_slice).unwrap_or_default();
            let before = all.iter().take_while(|other| *other != name).find(|other| visible(other));
            if let Some(first) = before {
                told.push(match gateway.as_str() {
                    MESH => Problem::warning(field.clone(), format!("VirtualService {first} has {full} in the mesh"))
                        .help("the oldest counts, then the first by name: make one of the two"),
                    _ => Problem::note(
                        field.clone(),
                        format!(
                            "rules of VirtualService {first} for {full} at Gateway {gateway} are tried before these"
                        ),
                    ),
                });
            }
            let Some(Host::Service(service)) = hosts.find(&full, &object.namespace).filter(|_| gateway == MESH) else {
                continue;
            };
            let routed = resolved.by_service.get(&hosts.key(service)).into_iter().flatten();
            if let Some(route) = routed.clone().find(|route| matches!(route.kind, Kind::HttpRoute | Kind::GrpcRoute)) {
                let message = format!("{route} is for {full}, too, and comes before any VirtualService");
                told.push(Problem::warning(field, message));
            }
        }
    }
    told
}
