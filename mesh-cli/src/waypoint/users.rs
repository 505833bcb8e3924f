//! Who names waypoints that are to be deleted: looked for in all namespaces before anything is changed, and told, because the clients of whoever is left with the name
//! are refused; who has it as a canary has his other waypoint alone. What counts as naming it is [`super::object::names`].

use serde_json::Value;

use super::object;
use crate::api::{Api, Failure};
use crate::output::note;

/// What may name a waypoint: as it is called, its group and its plural.
const KINDS: [(&str, &str, &str); 5] = [
    ("namespace", "/api/v1", "namespaces"),
    ("service", "/api/v1", "services"),
    ("pod", "/api/v1", "pods"),
    ("ServiceEntry", "/apis/networking.istio.io/v1", "serviceentries"),
    ("WorkloadEntry", "/apis/networking.istio.io/v1", "workloadentries"),
];

/// An object, or a part of it, that names a waypoint.
pub struct User {
    waypoint: String,
    /// As it is told.
    who: String,
    label: &'static str,
    /// The namespace of the waypoints itself, which is taken out.
    is_home: bool,
}

/// All that name any of these waypoints of the namespace, as far as they may be looked at.
pub async fn of(api: &Api, namespace: &str, waypoints: &[String]) -> Result<Vec<User>, Failure> {
    let mut users = Vec::new();
    for (kind, group, plural) in KINDS {
        let found = all(api, group, plural, namespace).await?;
        for name in waypoints {
            users.extend(found.iter().flat_map(|object| uses(kind, object, namespace, name)));
        }
    }
    Ok(users)
}

fn uses(kind: &str, object: &Value, namespace: &str, waypoint: &str) -> Vec<User> {
    let (of, own) = object::key(object);
    let is_home = of.is_empty() && own == namespace;
    let who = if of.is_empty() { own } else { format!("{of}/{own}") };
    let user =
        |part: &str, label| User { waypoint: waypoint.to_owned(), who: format!("{part}{kind} {who}"), label, is_home };
    // No canary takes anything from a pod, nor from what stands for one.
    let has_canary = !["pod", "WorkloadEntry"].contains(&kind);
    let labels = object::names(object, namespace, waypoint).into_iter();
    let labels = labels.filter(|label| has_canary || *label != object::CANARY).map(|label| user("", label));
    let inline = object::endpoints_name(object, namespace, waypoint).into_iter();
    let inline = inline.filter(|label| *label != object::CANARY).map(|label| user("an endpoint of ", label));
    labels.chain(inline).collect()
}

/// Takes the namespace out first: what names a waypoint that there is not is closed. Who else names it is told.
pub async fn leave(api: &Api, users: &[User], namespace: &str, name: &str) -> Result<(), Failure> {
    let home = format!("/api/v1/namespaces/{namespace}");
    if api.find(&home).await?.is_some_and(|owner| object::uses(&owner) == Some(name)) {
        api.merge(&home, &object::leaving()).await?;
        note(&format!("namespace {namespace} uses the waypoint {name} no more"));
    }
    // Of its namespace it was read before it was taken out just now.
    let is_left = |user: &&User| user.waypoint == name && !(user.is_home && user.label == object::USE);
    for User { who, label, .. } in users.iter().filter(is_left) {
        let then = match *label {
            object::CANARY => "all goes through its other waypoint then",
            _ => "its clients are refused until the label is gone or there is such a waypoint",
        };
        note(&format!("{who} is labelled {label}={name}: {then}"));
    }
    Ok(())
}

/// All objects of a kind; those of the namespace alone where others may not be looked at, and none where these may not be either, which is told. A cluster need
/// not have the kind.
async fn all(api: &Api, group: &str, plural: &str, namespace: &str) -> Result<Vec<Value>, Failure> {
    let unknown = |of: &str| {
        note(&format!("you may not list {plural} of {of}: who uses the waypoint there is not known"));
    };
    match api.list(&format!("{group}/{plural}")).await {
        Err(failure) if failure.code == 404 => return Ok(Vec::new()),
        Err(failure) if failure.code == 403 => unknown("all namespaces"),
        listed => return listed,
    }
    if plural == "namespaces" {
        return Ok(Vec::new());
    }
    match api.list(&format!("{group}/namespaces/{namespace}/{plural}")).await {
        Err(failure) if failure.code == 404 => Ok(Vec::new()),
        Err(failure) if failure.code == 403 => {
            unknown(&format!("namespace {namespace} either"));
            Ok(Vec::new())
        }
        listed => listed,
    }
}
