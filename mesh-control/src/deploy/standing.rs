//! What a Gateway says of itself in its status: whether it can be served (`Accepted`), whether it is (`Programmed`), and where it is found. Pure; [`super::run`]
//! writes it by a server-side apply, so what others say in the same status stays. What comes of its listeners the joining says (`index::l7::listeners::told`).

use std::net::IpAddr;

use jiff::Timestamp;
use mesh_core::NamespacedName;
use serde_json::{Value as Json, json};

use super::plan::{Plan, Refusal, whole};
use crate::index::Settings;
use crate::index::l7::listeners::frontend::GatewayTold;
use crate::index::l7::listeners::told::{ListenerTold, Why};

/// Conditions that are only there while there is something to say.
const OTHERS: [&str; 2] = ["ResolvedRefs", "InsecureFrontendValidationMode"];
/// Listeners in one message.
const MOST_TOLD: usize = 5;

/// What is known of a Gateway's objects.
#[derive(Clone, Debug, Default)]
pub struct Seen<'a> {
    /// Why it is not found at a host where it says that it is.
    pub host: Option<String>,
    /// Its Deployment, as it is.
    pub deployment: Option<&'a Json>,
    /// Its Service, as it is.
    pub service: Option<&'a Json>,
    /// Why one of them could not be made that it needs to serve.
    pub failure: Option<&'a str>,
    /// Why its autoscaler or budget could not be.
    pub unscaled: Option<&'a str>,
}

/// One condition, before it is known since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// In one word of the Gateway API's.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What a Gateway is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `Accepted` and `Programmed`.
    pub conditions: [Condition; 2],
    /// Those that not every Gateway has: [`OTHERS`].
    pub others: Vec<Condition>,
    /// Where it is found: type and value.
    pub addresses: Vec<(&'static str, String)>,
}

/// One condition.
pub fn condition(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Condition {
    Condition { kind, holds, reason, message: message.into() }
}

/// What there is to say of a Gateway of ours.
pub fn told(plan: &Plan, seen: Seen<'_>, namespace: &str, settings: &Settings) -> Told {
    let accepted = condition("Accepted", true, "Accepted", "it is served by this mesh");
    match plan {
        Plan::Refuse(Refusal { reason, message }) => Told {
            conditions: [
                condition("Accepted", false, reason, message),
                condition("Programmed", false, "Invalid", "what was made of it before stays as it was"),
            ],
            others: Vec::new(),
            addresses: Vec::new(),
        },
        Plan::Manual(_, hosts) => {
            let addresses = hosts.iter().map(|host| ("Hostname", whole(host, namespace, settings))).collect();
            let programmed = match seen.host {
                None => {
                    let message = "its pods are somebody else's, as `spec.addresses` says";
                    condition("Programmed", true, "Programmed", message)
                }
                Some(why) => condition("Programmed", false, "AddressNotUsable", format!("spec.addresses: {why}")),
            };
            let conditions = [accepted, programmed];
            Told { conditions, others: Vec::new(), addresses }
        }
        Plan::Deploy(asked, service) => {
            let addresses = addresses(seen.service);
            let programmed = programmed(seen, &addresses, &service.addresses, &asked.name, &asked.deployed);
            Told { conditions: [accepted, programmed], others: Vec::new(), addresses }
        }
    }
}

fn programmed(
    seen: Seen<'_>,
    addresses: &[(&'static str, String)],
    wanted: &[String],
    name: &NamespacedName,
    deployed: &str,
) -> Condition {
    let not = |reason, message: String| condition("Programmed", false, reason, message);
    if let Some(why) = seen.failure {
        return not("Pending", why.to_owned());
    }
    let (Some(deployment), Some(_)) = (seen.deployment, seen.service) else {
        return not("Pending", format!("Deployment and Service {}/{deployed} are being made", name.namespace));
    };
    let number = |path: &str| deployment.pointer(path).and_then(Json::as_u64);
    let (ready, all) = (number("/status/readyReplicas").unwrap_or(0), number("/spec/replicas").unwrap_or(1));
    let missing = |wanted: &&String| !addresses.iter().any(|(_, address)| address == *wanted);
    let missing: Vec<&str> = wanted.iter().filter(missing).map(String::as_str).collect();
    if !missing.is_empty() {
        let (missing, help) = (missing.join(", "), "it can ask for the first one only: delete the others");
        let help = if wanted.len() > 1 { format!(" ({help})") } else { String::new() };
        let message = format!("spec.addresses: the cluster has not given {missing} to the Service {deployed}{help}");
        return not("AddressNotUsable", message);
    }
    if addresses.is_empty() {
        return not("AddressNotAssigned", format!("the Service {deployed} has no address yet"));
    }
    if ready == 0 {
        let why = trouble(deployment).map(|why| format!(": {why}")).unwrap_or_default();
        return not("Pending", format!("no pod of {all} of the Deployment {deployed} is ready{why}"));
    }
    let unscaled = seen.unscaled.map(|why| format!("; {why}")).unwrap_or_default();
    condition("Programmed", true, "Programmed", format!("{ready} of {all} pods are ready{unscaled}"))
}

/// What the Deployment itself says is wrong.
fn trouble(deployment: &Json) -> Option<String> {
    let conditions = deployment.pointer("/status/conditions")?.as_array()?;
    let failing = |c: &&Json| {
        c["type"] == "ReplicaFailure" && c["status"] == "True" || c["type"] == "Progressing" && c["status"] == "False"
    };
    let mut text = conditions.iter().find(failing)?["message"].as_str()?.to_owned();
    text.truncate(text.floor_char_boundary(1000));
    Some(text)
}

/// Where clients find it: what a load balancer gave, or inside of the cluster.
fn addresses(service: Option<&Json>) -> Vec<(&'static str, String)> {
    let Some(service) = service else { return Vec::new() };
    let list = |path: &str| service.pointer(path).and_then(Json::as_array).into_iter().flatten();
    let typed = |text: &str| {
        let kind = if text.parse::<IpAddr>().is_ok() { "IPAddress" } else { "Hostname" };
        (kind, text.to_owned())
    };
    if service["spec"]["type"] == "LoadBalancer" {
        let given = list("/status/loadBalancer/ingress");
        return given.filter_map(|one| one["ip"].as_str().or(one["hostname"].as_str())).map(typed).collect();
    }
    list("/spec/clusterIPs").filter_map(Json::as_str).filter(|ip| *ip != "None").map(typed).collect()
}

impl Told {
    /// With what is wrong with its listeners. A Gateway of which none can be served is not accepted, unless some of its ListenerSets are.
    #[must_use]
    pub fn with(mut self, listeners: &[ListenerTold], others_serve: bool) -> Self {
        let bad = most_told(listeners);
        let [accepted, programmed] = &mut self.conditions;
        if bad.is_empty() || !accepted.holds {
            return self;
        }
        accepted.reason = "ListenersNotValid";
        accepted.message = format!("some listeners cannot be served: {bad}");
        if !others_serve && listeners.iter().all(|one| one.why_not().is_some()) {
            accepted.holds = false;
            accepted.message = format!("no listener can be served: {bad}");
            (programmed.holds, programmed.reason) = (false, "Invalid");
            programmed.message.clone_from(&accepted.message);
        }
        self
    }

    /// With what is about none of its listeners.
    #[must_use]
    pub fn of(mut self, own: &GatewayTold) -> Self {
        let resolved = |shown: &Result<(), Why>| match shown {
            Ok(()) => condition("ResolvedRefs", true, "ResolvedRefs", "all references lead somewhere"),
            Err((reason, why)) => condition("ResolvedRefs", false, reason, why.clone()),
        };
        self.others.extend(own.shown.as_ref().map(resolved));
        let insecure = "clients come in whose certificates nobody vouches for, and those without one";
        let insecure = condition("InsecureFrontendValidationMode", true, "ConfigurationChanged", insecure);
        self.others.extend(own.insecure.then_some(insecure));
        self
    }
}

/// What is wrong with listeners, the first of them; nothing if all can be served.
pub fn most_told(listeners: &[ListenerTold]) -> String {
    let bad = listeners.iter().filter_map(|one| Some(format!("{}: {}", one.name, one.why_not()?.1)));
    bad.take(MOST_TOLD).collect::<Vec<_>>().join("; ")
}

/// What is applied to the Gateway's status; `None` if all of it stands there. `object` is the Gateway, `sets` how many ListenerSets are attached to it, where
/// there is that kind: an older definition of Gateways has no field for it.
pub fn status(
    object: &Json,
    told: &Told,
    listeners: &[ListenerTold],
    sets: Option<usize>,
    now: Timestamp,
) -> Option<Json> {
    let generation = object.pointer("/metadata/generation").and_then(Json::as_i64).unwrap_or_default();
    let empty = json!([]);
    let before = |path: &str| object.pointer(path).unwrap_or(&empty);
    let all_told = told.conditions.iter().chain(&told.others);
    let conditions = all_told.map(|c| since(before("/status/conditions"), c, generation, now));
    let conditions: Vec<Json> = conditions.collect();
    let is_old = |one: &Json| {
        OTHERS.iter().any(|kind| one["type"] == *kind) && !told.others.iter().any(|own| one["type"] == own.kind)
    };
    let has_old = before("/status/conditions").as_array().is_some_and(|all| all.iter().any(is_old));
    let addresses: Vec<Json> =
        told.addresses.iter().map(|(kind, value)| json!({ "type": kind, "value": value })).collect();
    let listeners: Vec<Json> =
        listeners.iter().map(|one| listener(before("/status/listeners"), one, told, generation, now)).collect();
    let all = |list: &[Json], before: &Json| {
        before.as_array().is_some_and(|before| list.iter().all(|one| before.contains(one)))
    };
    let is_there = !has_old
        && all(&conditions, before("/status/conditions"))
        && before("/status/addresses").as_array() == Some(&addresses)
        && (listeners.is_empty() || before("/status/listeners").as_array().map(Vec::len) == Some(listeners.len()))
        && all(&listeners, before("/status/listeners"))
        && sets.is_none_or(|sets| before("/status/attachedListenerSets").as_u64() == u64::try_from(sets).ok());
    if is_there {
        return None;
    }
    let mut status = json!({ "conditions": conditions, "addresses": addresses });
    if let Some(sets) = sets {
        status["attachedListenerSets"] = sets.into();
    }
    if !listeners.is_empty() {
        status["listeners"] = listeners.into();
    }
    Some(status)
}

/// A condition as it is written; the time is that since when it holds, or does not.
pub fn since(before: &Json, condition: &Condition, generation: i64, now: Timestamp) -> Json {
    let status = if condition.holds { "True" } else { "False" };
    let old = before.as_array().into_iter().flatten();
    let mut old = old.filter(|one| one["type"] == condition.kind && one["status"] == status);
    let since = old.find_map(|one| one["lastTransitionTime"].as_str()).map(str::to_owned);
    json!({
        "type": condition.kind,
        "status": status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": since.unwrap_or_else(|| format!("{now:.0}")),
        "observedGeneration": generation,
    })
}

/// What one listener of a Gateway or ListenerSet is told, of which this was told `before`. `told` is what its Gateway is told.
pub fn listener(before: &Json, one: &ListenerTold, told: &Told, generation: i64, now: Timestamp) -> Json {
    let empty = json!([]);
    let old = before.as_array().into_iter().flatten().find(|old| old["name"] == one.name.as_str());
    let old = old.map_or(&empty, |one| &one["conditions"]);
    let [accepted, programmed] = &told.conditions;
    let refused = one.refused.as_ref().or(one.conflict.as_ref());
    let is_refused = |why: &Why| condition("Accepted", false, why.0, &*why.1);
    let conflict = |why: &Why| condition("Conflicted", true, why.0, &*why.1);
    let unresolved = |why: &Why| condition("ResolvedRefs", false, why.0, &*why.1);
    let programmed = match one.why_not() {
        Some(why) if one.conflict.as_ref() == Some(why) => condition("Programmed", false, why.0, &*why.1),
        Some(why) => condition("Programmed", false, "Invalid", &*why.1),
        None if programmed.holds => condition("Programmed", true, "Programmed", "it is listened for"),
        None => condition("Programmed", false, "Pending", &*programmed.message),
    };
    let accepted = match accepted.holds || accepted.reason == "ListenersNotValid" {
        true => condition("Accepted", true, "Accepted", "it is of the mesh"),
        false => condition("Accepted", false, "Invalid", &*accepted.message),
    };
    let conditions = [
        refused.map_or(accepted, is_refused),
        one.conflict
            .as_ref()
            .map_or_else(|| condition("Conflicted", false, "NoConflicts", "no other listener has its place"), conflict),
        programmed,
        one.unresolved.as_ref().map_or_else(
            || condition("ResolvedRefs", true, "ResolvedRefs", "all references lead somewhere"),
            unresolved,
        ),
    ];
    let conditions: Vec<Json> = conditions.iter().map(|c| since(old, c, generation, now)).collect();
    let kind = |kind: &&str| json!({ "group": "gateway.networking.k8s.io", "kind": kind });
    json!({
        "name": one.name.as_str(),
        "attachedRoutes": one.attached,
        "supportedKinds": one.kinds.iter().map(kind).collect::<Vec<_>>(),
        "conditions": conditions,
    })
}
