//! Objects as the API server has them: what of one is as it was applied, and what of it somebody else keeps. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Map, Value as Json};

use super::overlay::CONTAINER;
use super::{FIELD_MANAGER, MANAGED, MANAGER_LABEL};

/// Whether an object is of our making: it has our label, and a Gateway owns it.
pub fn is_ours(object: &Json) -> bool {
    let label = object.pointer("/metadata/labels").and_then(|labels| labels.get(MANAGED));
    label.and_then(Json::as_str) == Some(MANAGER_LABEL) && owner(object).is_some()
}

/// Name and uid of the Gateway that owns it.
pub fn owner(object: &Json) -> Option<(&str, &str)> {
    let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
    let owner = owners.iter().find(|owner| owner["kind"] == "Gateway")?;
    Some((owner["name"].as_str()?, owner["uid"].as_str()?))
}

/// A number for all of an object that anybody may write: it changes when somebody has changed that.
pub fn essence(object: &Json) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in ["/metadata/labels", "/metadata/annotations", "/metadata/ownerReferences", "/spec"] {
        let Some(part) = object.pointer(path) else { continue };
        path.hash(&mut hasher);
        without_marks(part).to_string().hash(&mut hasher);
    }
    hasher.finish()
}

/// What a controller of Kubernetes writes for itself is no change.
fn without_marks(part: &Json) -> Json {
    let mut part = part.clone();
    if let Some(fields) = part.as_object_mut() {
        fields.remove("deployment.kubernetes.io/revision");
    }
    part
}

/// Takes out of a Deployment what somebody else has written since: how many replicas, and what its container may use. An autoscaler or a user has it, and
/// keeps it; what an overlay says counts all the same (`is_said`). With an autoscaler of ours (`is_scaled`) the overlay's number is only what it begins with:
/// what stands stays, and is said until somebody else has written it, for whoever takes a number back has it reset to one.
pub fn yield_to_others(desired: &mut Json, live: &Json, is_scaled: bool, is_said: impl Fn(&str) -> bool) {
    let stands = live.pointer("/spec/replicas").filter(|_| is_scaled && owns_replicas(live));
    if let (Some(stands), Some(spec)) = (stands, desired["spec"].as_object_mut()) {
        spec.insert("replicas".to_owned(), stands.clone());
    }
    let managers = live.pointer("/metadata/managedFields").and_then(Json::as_array);
    for entry in managers.into_iter().flatten().filter(|entry| entry["manager"] != FIELD_MANAGER) {
        let Some(spec) = entry.pointer("/fieldsV1/f:spec") else { continue };
        if spec.get("f:replicas").is_some() && (is_scaled || !is_said("replicas")) {
            desired["spec"].as_object_mut().map(|spec| spec.remove("replicas"));
        }
        let container = format!("k:{{\"name\":\"{CONTAINER}\"}}");
        let containers = spec.pointer("/f:template/f:spec/f:containers").and_then(|all| all.get(&container));
        let Some(theirs) = containers.and_then(|fields| fields.get("f:resources")).and_then(Json::as_object) else {
            continue;
        };
        let ours = desired.pointer_mut("/spec/template/spec/containers/0/resources").and_then(Json::as_object_mut);
        if let (Some(ours), false) = (ours, is_said("resources")) {
            without(ours, theirs);
        }
    }
}

/// Whether the number of replicas is of our writing.
fn owns_replicas(live: &Json) -> bool {
    let managers = live.pointer("/metadata/managedFields").and_then(Json::as_array);
    let ours = managers.into_iter().flatten().filter(|entry| entry["manager"] == FIELD_MANAGER);
    ours.into_iter().any(|entry| entry.pointer("/fieldsV1/f:spec/f:replicas").is_some())
}

/// Takes fields away that somebody else has, as `managedFields` names them.
fn without(ours: &mut Map<String, Json>, theirs: &Map<String, Json>) {
    for (key, below) in theirs {
        let Some(field) = key.strip_prefix("f:") else { continue };
        match (ours.get_mut(field), below.as_object().filter(|below| !below.is_empty())) {
            (Some(Json::Object(inner)), Some(below)) => without(inner, below),
            _ => drop(ours.remove(field)),
        }
    }
}
