//! Which of several routes of one service counts. What does not say its age comes first, then the oldest, then the first by name; so a restart, and
//! another replica, decide the same.

use std::collections::BTreeMap;

use mesh_core::{ArcStr, NamespacedName};

use super::parents::{Attached, Reason, Refusal};
use super::{Problems, Resolved, Route};
use crate::diagnosis::Problem;
use crate::resource::routing::http_route::{Match, NamedMatch, PathKind, ValueKind};
use crate::resource::routing::routes::GrpcMatch;
use crate::resource::routing::{Routed, Routes};
use crate::resource::{Key, Kind};

/// What decides between objects: the smaller one counts.
pub type Age<'a> = (Option<i64>, &'a ArcStr, &'a ArcStr);

/// When a route was made, as far as it says so.
pub fn created(routes: &Routes, key: &Key) -> Option<i64> {
    let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
    match key.kind {
        Kind::HttpRoute => routes.http_routes.get(&name)?.created,
        Kind::GrpcRoute => routes.grpc_routes.get(&name)?.created,
        Kind::TlsRoute => routes.tls_routes.get(&name)?.created,
        Kind::TcpRoute => routes.tcp_routes.get(&name)?.created,
        Kind::UdpRoute => routes.udp_routes.get(&name)?.created,
        _ => None,
    }
}

/// Routes of each service, in their order.
pub fn by_service(routes: &Routes, resolved: &BTreeMap<Key, Route>) -> BTreeMap<NamespacedName, Vec<Key>> {
    let mut by_service: BTreeMap<NamespacedName, Vec<Key>> = BTreeMap::new();
    for (key, route) in resolved {
        for (_, outcome) in &route.parents {
            for service in outcome.iter().flat_map(|attached| attached.services().0) {
                let of_it = by_service.entry(service.clone()).or_default();
                if !of_it.contains(key) {
                    of_it.push(key.clone());
                }
            }
        }
    }
    for keys in by_service.values_mut() {
        keys.sort_by_cached_key(|key| (created(routes, key), key.clone()));
    }
    by_service
}

/// How specific a kind of routes is: of several for one port of a service the first counts, and the others do not. Datagrams are ports of their own.
fn specificity(kind: Kind) -> Option<usize> {
    [Kind::GrpcRoute, Kind::HttpRoute, Kind::TlsRoute, Kind::TcpRoute].iter().position(|known| *known == kind)
}

/// Refuses routes of services that a route of a more specific kind, of the same namespace, leaves nothing of. One that it leaves some ports counts there.
pub fn conflicts(resolved: &mut BTreeMap<Key, Route>, problems: &mut Problems) {
    let mut attached: Vec<(NamespacedName, Option<u16>, Key)> = Vec::new();
    for (key, route) in resolved.iter() {
        for (_, outcome) in &route.parents {
            for (services, port) in outcome.iter().map(Attached::services) {
                attached.extend(services.iter().map(|service| (service.clone(), port, key.clone())));
            }
        }
    }
    for (key, route) in resolved.iter_mut() {
        for (index, (_, outcome)) in route.parents.iter_mut().enumerate() {
            let Ok((services, port)) = outcome.as_ref().map(Attached::services) else { continue };
            let before = attached.iter().find(|(of, on, other)| {
                services.contains(of)
                    && other.namespace == key.namespace
                    && (on.is_none() || *on == port)
                    && specificity(other.kind).is_some_and(|one| specificity(key.kind).is_some_and(|two| one < two))
            });
            let Some((_, _, other)) = before else { continue };
            let why = format!("{other} is for the same port, and of several kinds the more specific one counts");
            let help = "give each its own port or service";
            problems.push((key.clone(), Problem::warning(format!("spec.parentRefs[{index}]"), why.clone()).help(help)));
            *outcome = Err(Refusal { reason: Reason::Conflicted, why });
        }
    }
}

/// Tells routes whose matches another route has that counts before them.
pub fn same_matches(routes: &Routes, resolved: &Resolved, problems: &mut Problems) {
    let mut first: BTreeMap<(String, Kind, String), &Key> = BTreeMap::new();
    let mut keys: Vec<&Key> = resolved.routes.keys().collect();
    keys.sort_by_cached_key(|key| (created(routes, key), (*key).clone()));
    for key in keys {
        let matches = matches(routes, key);
        for place in resolved.routes[key].parents.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()) {
            // Hosts of a route count at gateways only.
            let hosts = match place {
                Attached::Listeners(..) => format!("{:?}", hosts(routes, key)),
                _ => String::new(),
            };
            for (field, one) in &matches {
                let place = (format!("{place:?} {hosts}"), key.kind, one.clone());
                match first.get(&place) {
                    Some(other) if **other != *key => {
                        let message = format!("{other} has the same match and comes first");
                        problems.push((key.clone(), Problem::warning(field.clone(), message)));
                    }
                    Some(_) => {}
                    None => drop(first.insert(place, key)),
                }
            }
        }
    }
}

fn hosts(routes: &Routes, key: &Key) -> Vec<String> {
    let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
    let mut hosts = match key.kind {
        Kind::HttpRoute => routes.http_routes.get(&name).map(|route| route.spec.hostnames.clone()),
        Kind::GrpcRoute => routes.grpc_routes.get(&name).map(|route| route.spec.hostnames.clone()),
        _ => None,
    }
    .unwrap_or_default();
    hosts.sort();
    hosts
}

/// What a route matches, each with its field, in a form in which what means the same is the same.
fn matches(routes: &Routes, key: &Key) -> Vec<(String, String)> {
    let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
    let field = |rule: usize, index: usize| format!("spec.rules[{rule}].matches[{index}]");
    let mut all = Vec::new();
    match key.kind {
        Kind::HttpRoute => {
            for (rule, one) in routes.http_routes.get(&name).into_iter().flat_map(|r| r.spec.rules.iter().enumerate()) {
                all.extend(one.matches.iter().enumerate().map(|(index, one)| (field(rule, index), http(one))));
                if one.matches.is_empty() {
                    all.push((format!("spec.rules[{rule}]"), http(&Match::default())));
                }
            }
        }
        Kind::GrpcRoute => {
            for (rule, one) in routes.grpc_routes.get(&name).into_iter().flat_map(|r| r.spec.rules.iter().enumerate()) {
                all.extend(one.matches.iter().enumerate().map(|(index, one)| (field(rule, index), grpc(one))));
                if one.matches.is_empty() {
                    all.push((format!("spec.rules[{rule}]"), grpc(&GrpcMatch::default())));
                }
            }
        }
        // Each name is of one route. What names none is for all.
        Kind::TlsRoute => {
            let names = routes.tls_routes.get(&name).map(|route| route.spec.hostnames.as_slice()).unwrap_or_default();
            let each = names.iter().enumerate();
            all.extend(each.map(|(index, name)| (format!("spec.hostnames[{index}]"), name.to_ascii_lowercase())));
            if names.is_empty() {
                all.push(("spec.rules[0]".to_owned(), String::new()));
            }
        }
        // Nothing tells connections apart.
        Kind::TcpRoute | Kind::UdpRoute => all.push(("spec.rules[0]".to_owned(), String::new())),
        _ => {}
    }
    all
}

fn http(one: &Match) -> String {
    let path = one.path.clone().unwrap_or_default();
    let kind = path.kind.unwrap_or(PathKind::PathPrefix);
    let value = path.value.unwrap_or_else(|| "/".to_owned());
    let value = match kind {
        PathKind::PathPrefix if value.len() > 1 => value.trim_end_matches('/').to_owned(),
        _ => value,
    };
    let named = |matches: &[NamedMatch], is_header: bool| {
        let mut named: Vec<_> = matches
            .iter()
            .map(|one| {
                let name = if is_header { one.name.to_ascii_lowercase() } else { one.name.clone() };
                (name, format!("{:?}", one.kind.unwrap_or(ValueKind::Exact)), one.value.clone())
            })
            .collect();
        named.sort();
        named
    };
    let (headers, query) = (named(&one.headers, true), named(&one.query_params, false));
    format!("{kind:?} {value:?} {:?} {headers:?} {query:?}", one.method)
}

fn grpc(one: &GrpcMatch) -> String {
    let method = one.method.clone().unwrap_or_default();
    let mut headers: Vec<_> = one
        .headers
        .iter()
        .map(|one| {
            (one.name.to_ascii_lowercase(), format!("{:?}", one.kind.unwrap_or(ValueKind::Exact)), one.value.clone())
        })
        .collect();
    headers.sort();
    let kind = method.kind.unwrap_or(ValueKind::Exact);
    format!("{kind:?} {:?} {:?} {headers:?}", method.service, method.method)
}

/// The age of an object of Istio's kinds.
pub fn age<S>(object: &Routed<S>) -> Age<'_> {
    (object.created, &object.namespace, &object.name)
}
