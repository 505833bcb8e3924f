//! What is in force of an object that restricts traffic, and why not what it says: the part of the result that is told to whoever wrote the object.
//! The joining makes verdicts; a replica that is the leader writes them as conditions (`cluster::conditions`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value as Json;

use crate::diagnosis::{Diagnosis, Problem, Severity};
use crate::resource::routing::reference::ParentReference;
use crate::resource::{Key, Kind, Objects, Secured};
use mesh_core::{ArcStr, NamespacedName};

/// The condition that tells a service of its waypoint. It has Istio's name, so that what waits for that sees it.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";

/// An object as it stands where it came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mark {
    /// It was read as one of this version.
    pub api_version: String,
    /// Another object of the same name has another one.
    pub uid: String,
    /// Changes with what it asks for.
    pub generation: i64,
    /// The conditions of its status; of a route of the Gateway API, what it says of each parent.
    pub conditions: Vec<Json>,
    /// The addresses of its status, which only ServiceEntries have.
    pub addresses: Vec<Json>,
    /// It could be read.
    pub is_read: bool,
    /// What is wrong with it.
    pub diagnoses: Vec<Diagnosis>,
}

/// How far an object has its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As it is written.
    InForce,
    /// It is in force, and does not do all that it says, or does more.
    InPart,
    /// It cannot be read; what it said before is in force.
    LastGood,
    /// It cannot be read and never could; what it would select is closed.
    Closed,
    /// It changes nothing.
    NoEffect,
    /// It is for a waypoint, and there is none.
    Elsewhere,
}

/// What is to be said of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// How far it has its way.
    pub standing: Standing,
    /// Why.
    pub reasons: Vec<String>,
    /// What there is to say of a route of the Gateway API that has a parent of ours, or of a policy about what gateways of ours reach.
    pub route: Option<Belonging>,
    /// It is in force, or would be, at waypoints, and not at agents.
    pub at_waypoint: bool,
    /// What there is to say of the waypoint of a service or a ServiceEntry.
    pub binding: Option<Binding>,
    /// The addresses that were given to the hosts of a ServiceEntry, if it counts.
    pub given: Option<Vec<(ArcStr, IpAddr)>>,
    /// The object that was judged.
    pub mark: Mark,
}

/// What a route of the Gateway API belongs to that is ours, or a policy comes to, and what of it leads nowhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Belonging {
    /// Its parents that are ours; why they do not take it, in a word and for people.
    pub parents: Vec<(ParentReference, Option<(&'static str, String)>)>,
    /// Those of them at which it is in force.
    pub served: BTreeSet<ParentReference>,
    /// References that lead nowhere: where they stand, why in a word, and why for people. `None` if the references could never be read.
    pub broken: Option<Vec<(String, &'static str, String)>>,
}

/// What a service or a ServiceEntry is told of the waypoint that it or its namespace names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Its clients go through it.
    Accepted(NamespacedName, Attached),
    /// They do not, or are refused: why, in Istio's word and for people.
    Refused(&'static str, String),
    /// It is not known yet, or another controller's to tell.
    Untold,
}

/// Whether clients of a service may go without its waypoint while nobody answers there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optional {
    /// Nobody has said so, or there is no waypoint of ours.
    #[default]
    Unsaid,
    /// They may.
    InForce,
    /// They may not although somebody has said so, and why.
    Closed(&'static str),
}

/// What a service is told beside the waypoint that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Whether its clients may go without the waypoint while nobody answers there.
    pub optional: Optional,
    /// Why its canary is left out, in Istio's word and for people.
    pub no_canary: Option<(&'static str, String)>,
}

/// By object.
pub type Verdicts = BTreeMap<Key, Verdict>;

/// Judges every marked object by what is in force and what the joining had to say. Of those that are `unknown` there is no verdict, and they stay as they
/// are: what they refer to has never been heard of, which is no reason to tell them that it is missing.
pub fn judge(
    marks: BTreeMap<Key, Mark>,
    objects: &Objects,
    problems: &[(Key, Problem)],
    unknown: &BTreeSet<Key>,
    at_waypoints: &BTreeSet<Key>,
    route: impl Fn(&Key) -> Option<Belonging>,
    bindings: &BTreeMap<Key, Binding>,
) -> Verdicts {
    let mut joined: BTreeMap<&Key, Vec<&Problem>> = BTreeMap::new();
    for (key, problem) in problems {
        joined.entry(key).or_default().push(problem);
    }
    // That it cannot be read is known of itself; but not whose a route is.
    let known = marks
        .into_iter()
        .filter(|(key, mark)| !unknown.contains(key) || !mark.is_read && !key.kind.is_told_by_parent());
    let judged = known.filter_map(|(key, mark)| {
        let binding = bindings.get(&key).cloned();
        let verdict = if key.kind == Kind::Service {
            of_service(mark, binding)
        } else {
            let known = verdict(&key, mark, objects, joined.get(&key).map_or(&[], Vec::as_slice), at_waypoints);
            Some(Verdict { route: route(&key), binding, ..known })
        };
        verdict.map(|verdict| (key, verdict))
    });
    judged.collect()
}

/// Adds what was given to the hosts of ServiceEntries.
pub fn give(verdicts: &mut Verdicts, given: &BTreeMap<Key, Vec<(ArcStr, IpAddr)>>) {
    for (key, addresses) in given {
        if let Some(verdict) = verdicts.get_mut(key) {
            verdict.given = Some(addresses.clone());
        }
    }
}

/// That of a service; none if there is nothing to say, and it does not say anything either.
fn of_service(mark: Mark, binding: Option<Binding>) -> Option<Verdict> {
    let says = mark.conditions.iter().any(|condition| condition["type"] == WAYPOINT_BOUND);
    let is_told = match &binding {
        None => says,
        Some(binding) => *binding != Binding::Untold,
    };
    let reasons = Vec::new();
    let verdict =
        Verdict { standing: Standing::InForce, reasons, route: None, at_waypoint: false, binding, given: None, mark };
    is_told.then_some(verdict)
}

/// What the objects have under a key.
#[derive(Clone, Copy, PartialEq)]
enum Held {
    Form,
    /// A form that asks agents for nothing.
    Nothing,
    Unreadable {
        elsewhere: bool,
    },
}

fn held(key: &Key, objects: &Objects) -> Held {
    let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
    match key.kind {
        Kind::AuthorizationPolicy => match objects.authorization_policies.get(&name) {
            Some(Secured::Readable(policy)) if policy.enforced.is_none() => Held::Nothing,
            Some(Secured::Unreadable(known)) => Held::Unreadable { elsewhere: known.bound_elsewhere },
            _ => Held::Form,
        },
        Kind::PeerAuthentication => match objects.peer_authentications.get(&name) {
            Some(Secured::Unreadable(known)) => Held::Unreadable { elsewhere: known.bound_elsewhere },
            _ => Held::Form,
        },
        Kind::RequestAuthentication => match objects.unread_authentications.get(&name) {
            Some(_) => Held::Unreadable { elsewhere: true },
            None => Held::Form,
        },
        Kind::Sidecar if objects.unread_sidecars.contains_key(&name) => Held::Unreadable { elsewhere: false },
        _ => match objects.mesh_configs.get(&name) {
            Some(Secured::Unreadable(_)) => Held::Unreadable { elsewhere: true },
            _ => Held::Form,
        },
    }
}

fn verdict(key: &Key, mark: Mark, objects: &Objects, joined: &[&Problem], at_waypoints: &BTreeSet<Key>) -> Verdict {
    let at_waypoint = at_waypoints.contains(key);
    let held = held(key, objects);
    let is_bound = objects
        .authorization_policies
        .get(&NamespacedName::new(key.namespace.clone(), key.name.clone()))
        .is_some_and(|p| matches!(p, Secured::Readable(policy) if policy.bound.is_some()));
    let refused = joined.iter().any(|problem| problem.severity == Severity::Error);
    let said = mark.diagnoses.iter().map(|d| d.severity).chain(joined.iter().map(|p| p.severity));
    let warned = said.max() >= Some(Severity::Warning);
    let standing = match (mark.is_read, held) {
        // Nothing is closed, or kept, by what is not in force in any form.
        (false, _) if refused => Standing::NoEffect,
        (false, Held::Unreadable { .. }) if at_waypoint => Standing::Closed,
        (false, _) if at_waypoint => Standing::LastGood,
        (false, _) if key.kind.is_routing() => Standing::NoEffect,
        (true, _) if at_waypoint && !refused => {
            if warned {
                Standing::InPart
            } else {
                Standing::InForce
            }
        }
        (true, _) if key.kind.is_routing() => Standing::Elsewhere,
        (false, Held::Unreadable { elsewhere: true }) => Standing::NoEffect,
        (false, Held::Unreadable { elsewhere: false }) => Standing::Closed,
        (false, _) => Standing::LastGood,
        (true, Held::Nothing) if is_bound && key.kind == Kind::AuthorizationPolicy => Standing::Elsewhere,
        (true, Held::Nothing) => Standing::NoEffect,
        (true, _) if refused => Standing::NoEffect,
        (true, _) if warned => Standing::InPart,
        (true, _) => Standing::InForce,
    };
    let sentence = |field: &str, message: &str, help: Option<&String>| {
        let field = field.trim_end_matches('!');
        let place = if field.is_empty() { String::new() } else { format!("{field}: ") };
        let help = help.map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{place}{message}{help}")
    };
    let own = mark.diagnoses.iter().map(|d| (d.severity, sentence(&d.field, &d.message, d.help.as_ref())));
    let joint = joined.iter().map(|p| (p.severity, sentence(&p.field, &p.message, p.help.as_ref())));
    // What refuses it is why it has no effect, whether or not it can be read.
    let all: Vec<(Severity, String)> = if refused { joint.chain(own).collect() } else { own.chain(joint).collect() };
    let mut reasons: Vec<_> = all.into_iter().filter(|(severity, _)| *severity >= Severity::Warning).collect();
    // What refuses it first; the order of the fields otherwise.
    reasons.sort_by_key(|(severity, _)| std::cmp::Reverse(*severity));
    Verdict {
        standing,
        reasons: reasons.into_iter().map(|(_, reason)| reason).collect(),
        route: None,
        at_waypoint,
        binding: None,
        given: None,
        mark,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::decode::decode;
    use crate::index::{self, Settings};
    use crate::resource::catalog::{Catalog, Found, Scan};
    use serde_json::json;

    /// The verdicts of what comes last, each object by name, after what was there before.
    fn verdicts(states: &[Vec<(Kind, Json)>]) -> Vec<(String, Standing, Vec<String>)> {
        let mut catalog = Catalog::default();
        let mut last = Vec::new();
        for state in states {
            let (mut marks, mut scan) = (BTreeMap::new(), Scan::default());
            for (kind, object) in state {
                let item = decode(*kind, kind.api_versions()[0], object.clone()).unwrap();
                marks.extend(item.mark().map(|mark| (item.key.clone(), mark)));
                scan.found.push(Found { key: item.key, origin: String::new(), outcome: item.outcome });
            }
            let (objects, _) = catalog.apply(&scan);
            let view = index::build(&objects, &Settings::default());
            let (unknown, at_waypoints) = (&view.resolved.unknown, &view.at_waypoints);
            let verdicts = judge(marks, &objects, &view.problems, unknown, at_waypoints, |_| None, &view.bindings);
            last = verdicts.into_iter().map(|(key, v)| (key.name.to_string(), v.standing, v.reasons)).collect();
        }
        last
    }

    fn policy(name: &str, spec: Json) -> (Kind, Json) {
        let metadata = json!({ "name": name, "namespace": "shop", "uid": name, "generation": 3 });
        (Kind::AuthorizationPolicy, json!({ "metadata": metadata, "spec": spec }))
    }

    fn peer(name: &str, created: &str, spec: Json) -> (Kind, Json) {
        let metadata = json!({ "name": name, "namespace": "shop", "uid": name, "creationTimestamp": created });
        (Kind::PeerAuthentication, json!({ "metadata": metadata, "spec": spec }))
    }

    #[test]
    fn objects_are_told_what_is_in_force_of_them() {
        let good = json!({ "action": "DENY", "rules": [{}] });
        let bad = json!({ "action": "DENY", "rulez": [{}] });
        let methods = json!({ "rules": [{ "to": [{ "operation": { "methods": ["GET"] } }] }] });
        let to = json!([{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "w" }]);
        let target = json!({ "targetRefs": to, "rules": [{}] });
        let unbound = json!({ "targetRefs": to, "rulez": [{}] });
        let strange = json!({ "key": "experimental.envoy.filters.x", "values": ["a"] });
        let in_part = json!({ "targetRefs": to, "rules": [{ "when": [strange] }] });
        let listener = json!({ "name": "mesh", "port": 15008, "protocol": "HBONE" });
        let waypoint = || {
            let metadata = json!({ "name": "w", "namespace": "shop", "uid": "w" });
            let spec = json!({ "gatewayClassName": "undermesh-waypoint", "listeners": [listener] });
            (Kind::Gateway, json!({ "metadata": metadata, "spec": spec }))
        };
        let (old, young) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let strict = json!({ "mtls": { "mode": "STRICT" } });
        for (what, states, standing, reasons) in [
            ("as written", vec![vec![policy("p", good.clone())]], Standing::InForce, 0),
            ("never good", vec![vec![policy("p", bad.clone())]], Standing::Closed, 1),
            ("good once", vec![vec![policy("p", good.clone())], vec![policy("p", bad.clone())]], Standing::LastGood, 1),
            ("needs a waypoint", vec![vec![policy("p", methods)]], Standing::InPart, 1),
            ("for a waypoint", vec![vec![policy("p", target.clone())]], Standing::Elsewhere, 1),
            ("at a waypoint", vec![vec![policy("p", target.clone()), waypoint()]], Standing::InForce, 0),
            ("at a waypoint, in part", vec![vec![policy("p", in_part), waypoint()]], Standing::InPart, 1),
            ("closed there", vec![vec![policy("p", unbound.clone()), waypoint()]], Standing::Closed, 1),
            ("for no waypoint, and unreadable", vec![vec![policy("p", unbound.clone())]], Standing::NoEffect, 2),
            (
                "good there once",
                vec![vec![policy("p", target), waypoint()], vec![policy("p", unbound), waypoint()]],
                Standing::LastGood,
                1,
            ),
            ("audit", vec![vec![policy("p", json!({ "action": "AUDIT", "rules": [{}] }))]], Standing::NoEffect, 1),
            ("a mode", vec![vec![peer("p", old, strict.clone())]], Standing::InForce, 0),
            (
                "the same as another",
                vec![vec![peer("a", old, strict.clone()), peer("p", young, strict)]],
                Standing::NoEffect,
                1,
            ),
            (
                "a mode of sidecars",
                vec![vec![peer("p", old, json!({ "mtls": { "mode": "DISABLE" } }))]],
                Standing::InPart,
                1,
            ),
        ] {
            let verdicts = verdicts(&states);
            let (_, found, said) = verdicts.iter().find(|(name, ..)| name == "p").unwrap();
            assert_eq!((*found, said.len()), (standing, reasons), "{what}: {said:?}");
        }
        let route = |spec: Json| {
            let metadata = json!({ "name": "p", "namespace": "shop", "uid": "p", "generation": 1 });
            vec![(Kind::VirtualService, json!({ "metadata": metadata, "spec": spec }))]
        };
        let http = json!([{ "redirect": { "uri": "/" } }]);
        let (good, worse) =
            (route(json!({ "hosts": ["a"], "http": http })), route(json!({ "host": ["a"], "http": http })));
        for (what, states, standing, reason) in [
            (
                "nothing acts on it",
                vec![good.clone()],
                Standing::Elsewhere,
                "known, not in force: there is no waypoint",
            ),
            ("it cannot be read", vec![good, worse], Standing::NoEffect, "spec.host: unknown field"),
        ] {
            let (_, found, said) = verdicts(&states).remove(0);
            assert!(found == standing && said[0].starts_with(reason), "{what}: {found:?} {said:?}");
        }
        let said = verdicts(&[vec![policy("p", bad)]]).remove(0).2;
        assert_eq!(said, ["spec.rulez: unknown field \"rulez\" (did you mean `rules`?)"]);
    }

    #[test]
    fn services_are_told_of_the_waypoint_that_they_name() {
        let gateway = |class: &str, labels: Json, from: &str| {
            let listener = json!({ "name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": { "namespaces": { "from": from } } });
            let spec = json!({ "gatewayClassName": class, "listeners": [listener] });
            let metadata = json!({ "name": "wp", "namespace": "infra", "uid": "g", "labels": labels });
            (Kind::Gateway, json!({ "metadata": metadata, "spec": spec }))
        };
        let service = |namespace: &str, name: &str, labels: Json, status: Json| {
            let metadata = json!({ "name": name, "namespace": namespace, "uid": name, "labels": labels });
            let spec = json!({ "selector": { "a": "b" }, "ports": [{ "port": 15008 }] });
            (Kind::Service, json!({ "metadata": metadata, "spec": spec, "status": status }))
        };
        let own = || service("infra", "wp", json!({}), json!({}));
        let asks = json!({ "istio.io/use-waypoint": "wp", "istio.io/use-waypoint-namespace": "infra" });
        let web = || service("shop", "p", asks.clone(), json!({}));
        let bound = json!({ "conditions": [{ "type": WAYPOINT_BOUND, "status": "True" }] });
        let shop = (Kind::Namespace, json!({ "metadata": { "name": "shop", "labels": asks } }));
        let ours = |labels: Json, from: &str| gateway("undermesh-waypoint", labels, from);
        let workloads = json!({ "istio.io/waypoint-for": "workload" });
        for (what, objects, expected) in [
            ("bound", vec![own(), ours(json!({}), "All"), web()], Some("accepted")),
            (
                "by its namespace",
                vec![own(), ours(json!({}), "All"), shop.clone(), service("shop", "p", json!({}), json!({}))],
                Some("accepted"),
            ),
            ("there is none", vec![web()], Some("WaypointIsNotReady")),
            ("not there yet", vec![ours(json!({}), "All"), web()], Some("WaypointIsNotReady")),
            (
                "it takes nothing of the namespace",
                vec![own(), ours(json!({}), "Same"), web()],
                Some("AttachmentDenied"),
            ),
            ("not for services", vec![own(), ours(workloads.clone(), "All"), web()], Some("UnsupportedTrafficType")),
            (
                "nor for its namespace's",
                vec![own(), ours(workloads, "All"), shop, service("shop", "p", json!({}), json!({}))],
                None,
            ),
            (
                "another controller's",
                vec![
                    own(),
                    gateway("theirs", json!({}), "All"),
                    (
                        Kind::GatewayClass,
                        json!({ "metadata": { "name": "theirs" }, "spec": { "controllerName": "example.com/x" } }),
                    ),
                    web(),
                ],
                None,
            ),
            ("nothing to do with any", vec![service("shop", "p", json!({}), json!({}))], None),
            ("it was bound", vec![service("shop", "p", json!({}), bound)], Some("removed")),
        ] {
            let (mut marks, mut scan) = (BTreeMap::new(), Scan::default());
            for (kind, object) in &objects {
                let item = decode(*kind, kind.api_versions()[0], object.clone()).unwrap();
                marks.extend(item.mark().map(|mark| (item.key.clone(), mark)));
                scan.found.push(Found { key: item.key, origin: String::new(), outcome: item.outcome });
            }
            let (objects, _) = Catalog::default().apply(&scan);
            let view = index::build(&objects, &Settings::default());
            let (unknown, at_waypoints) = (&view.resolved.unknown, &view.at_waypoints);
            let verdicts = judge(marks, &objects, &view.problems, unknown, at_waypoints, |_| None, &view.bindings);
            let told = verdicts.iter().find(|(key, _)| key.name == "p").map(|(_, verdict)| match &verdict.binding {
                Some(Binding::Accepted(name, _)) => {
                    assert_eq!(name.to_string(), "infra/wp");
                    "accepted"
                }
                Some(Binding::Refused(reason, _)) => reason,
                Some(Binding::Untold) => "untold",
                None => "removed",
            });
            assert_eq!(told, expected, "{what}");
            assert!(!verdicts.keys().any(|key| key.name == "wp"), "{what}");
        }
    }

    #[test]
    fn what_is_not_of_the_mesh_closes_nothing_however_broken_it_is() {
        let shop = (Kind::Namespace, json!({ "metadata": { "name": "shop", "labels": { "mesh": "out" } } }));
        let mesh = json!({ "data": { "mesh": "discoverySelectors: [{matchLabels: {mesh: in}}]" },
            "metadata": { "name": "undermesh", "namespace": "undermesh-system" } });
        let around = || vec![shop.clone(), (Kind::ConfigMap, mesh.clone())];
        let with = |object: (Kind, Json)| [around(), vec![object]].concat();
        let good = json!({ "action": "DENY", "rules": [{}] });
        let bad = json!({ "action": "DENY", "rulez": [{}] });
        for (what, states) in [
            ("never good", vec![with(policy("p", bad.clone()))]),
            ("good once", vec![with(policy("p", good.clone())), with(policy("p", bad))]),
            ("good", vec![with(policy("p", good))]),
            ("a mode that is none", vec![with(peer("p", "2026-01-01T00:00:00Z", json!({ "mtls": { "mode": "X" } })))]),
        ] {
            let (_, standing, reasons) = verdicts(&states).into_iter().find(|(name, ..)| name == "p").unwrap();
            assert_eq!(standing, Standing::NoEffect, "{what}: {reasons:?}");
            assert!(reasons[0].starts_with("metadata.namespace: no discoverySelectors select"), "{what}: {reasons:?}");
        }
    }
}
