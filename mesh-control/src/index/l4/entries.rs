//! Connections to hosts of ServiceEntries, which VirtualServices lead through egress gateways. Istio writes that as an `http` rule of the mesh that tells
//! requests by nothing but the port: such a rule means whole connections, so the client's agent can act on it, and the gateway's rules do the rest.

use std::collections::BTreeSet;

use mesh_core::NamespacedName;
use mesh_core::l4::Rule;

use super::{Around, Match, Reading};
use crate::index::Settings;
use crate::index::routing::hosts::Host;
use crate::index::routing::virtual_services::gateway_name;
use crate::index::service_entry;
use crate::resource::Objects;
use crate::resource::routing::virtual_service::{self as kind, Headers, HttpMatch, HttpRule, HttpTarget, MESH};
use crate::resource::service::{Port, Target};

/// Hosts that are services of their own, with their ports.
pub(super) fn hosts(objects: &Objects, settings: &Settings, around: &Around<'_>) -> Vec<(NamespacedName, Vec<Port>)> {
    let mut all: Vec<(NamespacedName, Vec<Port>)> = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in service_entry::entries(objects, settings) {
        for (_, host) in service_entry::hosts(entry, objects, settings) {
            let key = service_entry::key(entry, host);
            let is_known = matches!(around.hosts.find(&key.name, &key.namespace), Some(Host::Service(_)))
                || !seen.insert(key.clone());
            if !is_known {
                let ports = entry.spec.ports.iter().map(|port| Port {
                    name: port.name.clone(),
                    port: port.number,
                    target: Target::Number(port.target_port.unwrap_or(port.number)),
                    protocol: service_entry::protocol(port),
                });
                all.push((key, ports.collect()));
            }
        }
    }
    all
}

/// Rules for requests that mean whole connections to the port, up to the first that means all of them. `None` if there are none, or if one comes before
/// that looks at requests or changes them: that is for a waypoint, and so is all that comes after it.
pub(super) fn of_requests(reading: &mut Reading<'_>) -> Option<Vec<Rule>> {
    let (object, port) = (reading.object, reading.port.port);
    let mut rules = Vec::new();
    for (index, rule) in object.spec.http.iter().enumerate() {
        let is_here = |one: &HttpMatch| {
            let is_of_mesh = one.gateways.iter().any(|name| gateway_name(name, &object.namespace) == MESH);
            (one.gateways.is_empty() || is_of_mesh) && one.port.is_none_or(|asked| asked == port)
        };
        let here = || rule.matches.iter().filter(|one| is_here(one));
        if !rule.matches.is_empty() && here().next().is_none() {
            continue;
        }
        if !leads_on(rule) || !here().all(tells_connections) {
            return None;
        }
        let targets =
            rule.route.iter().map(|one| kind::Target { destination: one.destination.clone(), weight: one.weight });
        let targets: Vec<kind::Target> = targets.collect();
        let matches = rule.matches.iter().enumerate().map(|(at, one)| (at, Match::from(one)));
        rules.extend(reading.rule(matches.collect(), &targets, &format!("spec.http[{index}]")));
        let is_for_all =
            |one: &HttpMatch| one.source_labels.is_empty() && one.source_namespace.as_deref().is_none_or(str::is_empty);
        if rule.matches.is_empty() || here().any(is_for_all) {
            return Some(rules);
        }
    }
    (!rules.is_empty()).then_some(rules)
}

/// It leads requests somewhere, and does nothing else with them.
fn leads_on(rule: &HttpRule) -> bool {
    let plain = HttpRule {
        name: rule.name.clone(),
        matches: rule.matches.clone(),
        route: rule.route.clone(),
        ..HttpRule::default()
    };
    let is_plain = |target: &HttpTarget| target.headers == Headers::default();
    !rule.route.is_empty() && *rule == plain && rule.route.iter().all(is_plain)
}

/// It holds for all requests of a connection or for none.
fn tells_connections(one: &HttpMatch) -> bool {
    let plain = HttpMatch {
        name: one.name.clone(),
        port: one.port,
        source_labels: one.source_labels.clone(),
        source_namespace: one.source_namespace.clone(),
        gateways: one.gateways.clone(),
        stat_prefix: one.stat_prefix.clone(),
        ..HttpMatch::default()
    };
    *one == plain
}

impl<'a> From<&'a HttpMatch> for Match<'a> {
    fn from(one: &'a HttpMatch) -> Self {
        Self {
            names: &[],
            subnets: &[],
            port: one.port,
            labels: &one.source_labels,
            gateways: &one.gateways,
            namespace: one.source_namespace.as_deref(),
        }
    }
}
