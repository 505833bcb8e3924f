//! What a ListenerSet of a Gateway of ours is told in its status: whether the Gateway takes it (`Accepted`), whether it is served (`Programmed`), and each of its
//! listeners what those of Gateways are told. Pure; [`super::round`] finds them, the joining has judged them (`index::l7::listeners::told`).

use jiff::Timestamp;
use mesh_core::NamespacedName;
use serde_json::{Value as Json, json};

use super::plan::unread;
use super::standing::{Condition, Told, condition, listener, most_told, since};
use crate::cluster::decode::{Item, decode};
use crate::index::l7::listeners::told::{ListenerTold, SetTold};
use crate::resource::routing::{ListenerSet, Routing};
use crate::resource::{Kind, Object};

/// What the joining has made of one.
#[derive(Clone, Debug)]
pub struct Joined {
    /// What it said then.
    pub spec: ListenerSet,
    /// What it is told.
    pub told: SetTold,
}

/// The Gateway that a ListenerSet names, also one that cannot be read otherwise.
pub fn gateway(own: &NamespacedName, object: &Json) -> Option<NamespacedName> {
    let parent = &object["spec"]["parentRef"];
    let is = |field: &str, expected: &str| parent[field].as_str().is_none_or(|text| text == expected);
    let named =
        || Some(NamespacedName::new(parent["namespace"].as_str().unwrap_or(&own.namespace), parent["name"].as_str()?));
    (is("group", "gateway.networking.k8s.io") && is("kind", "Gateway")).then(named)?
}

/// What is applied to its status; `None` if all of it stands there, or it has not been joined in this form. `gateway` is what its Gateway is told without regard
/// to listeners.
pub fn status(object: &Json, joined: Option<&Joined>, gateway: &Told, now: Timestamp) -> Option<Json> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let item = decode(Kind::ListenerSet, version, object.clone())?;
    let (conditions, listeners) = told(&item, joined, gateway)?;
    let generation = object.pointer("/metadata/generation").and_then(Json::as_i64).unwrap_or_default();
    let empty = json!([]);
    let before = |path: &str| object.pointer(path).unwrap_or(&empty);
    let conditions: Vec<Json> =
        conditions.iter().map(|one| since(before("/status/conditions"), one, generation, now)).collect();
    let of = |one: &ListenerTold| listener(before("/status/listeners"), one, gateway, generation, now);
    let listeners: Vec<Json> = listeners.iter().map(of).collect();
    let all = |list: &[Json], before: &Json| {
        before.as_array().is_some_and(|before| list.iter().all(|one| before.contains(one)))
    };
    let is_there = all(&conditions, before("/status/conditions"))
        && before("/status/listeners").as_array().map(Vec::len) == Some(listeners.len())
        && all(&listeners, before("/status/listeners"));
    (!is_there).then(|| json!({ "conditions": conditions, "listeners": listeners }))
}

/// `Accepted` and `Programmed`, and its listeners.
fn told<'a>(item: &Item, joined: Option<&'a Joined>, gateway: &Told) -> Option<([Condition; 2], &'a [ListenerTold])> {
    let both = |accepted, programmed, why: &str| {
        [condition("Accepted", false, accepted, why), condition("Programmed", false, programmed, why)]
    };
    let Ok(Object::Routing(Routing::ListenerSet(read))) = &item.outcome else {
        return Some((both("Invalid", "Invalid", &unread(item)), &[]));
    };
    let [accepted, programmed] = &gateway.conditions;
    if !accepted.holds {
        let why = format!("its Gateway is not accepted: {}", accepted.message);
        return Some((both("ParentNotAccepted", "ParentNotProgrammed", &why), &[]));
    }
    let joined = joined.filter(|joined| joined.spec == read.spec)?;
    if let Some((reason, why)) = &joined.told.refused {
        return Some((both(reason, reason, why), &[]));
    }
    let listeners = joined.told.listeners.as_slice();
    let bad = most_told(listeners);
    if !joined.told.is_accepted() {
        let why = format!("no listener can be served: {bad}");
        return Some((both("ListenersNotValid", "ListenersNotValid", &why), listeners));
    }
    let accepted = match bad.is_empty() {
        true => condition("Accepted", true, "Accepted", "its Gateway is served by this mesh, and takes it"),
        false => condition("Accepted", true, "ListenersNotValid", format!("some listeners cannot be served: {bad}")),
    };
    let programmed = match programmed.holds {
        true => condition("Programmed", true, "Programmed", "it is listened for"),
        false => condition("Programmed", false, "ParentNotProgrammed", programmed.message.clone()),
    };
    Some(([accepted, programmed], listeners))
}
