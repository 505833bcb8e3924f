//! Who names a waypoint that is to be deleted: looked for in all namespaces, and told, because the clients of whoever is left with its name are refused; who has it as a canary has his other waypoint alone. What counts
//! as naming it is [`super::object::names`].

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

/// Takes the namespace out first: what names a waypoint that there is not is closed. Who else names it is told.
pub async fn leave(api: &Api, namespace: &str, name: &str) -> Result<(), Failure> {
    let home = format!("/api/v1/namespaces/{namespace}");
    let left = match api.find(&home).await? {
        Some(owner) if object::uses(&owner) == Some(name) => {
            api.merge(&home, &object::leaving()).await?;
            note(&format!("namespace {namespace} uses the waypoint {name} no more"));
            true
        }
        _ => false,
    };
    for (kind, group, plural) in KINDS {
        for user in all(api, group, plural, namespace).await? {
            let (of, own) = object::key(&user);
            let who = if of.is_empty() { own.clone() } else { format!("{of}/{own}") };
            let is_out = left && of.is_empty() && own == namespace;
            let labels = object::names(&user, namespace, name).into_iter().map(|label| (String::new(), label));
            let inline = object::endpoints_name(&user, namespace, name).into_iter();
            let inline = inline.map(|label| ("an endpoint of ".to_owned(), label));
            // It says it still in what was read before, at another label perhaps truly.
            let has_canary = |part: &str| part.is_empty() && !["pod", "WorkloadEntry"].contains(&kind);
            for (part, label) in labels.chain(inline).filter(|(_, label)| !is_out || *label != object::USE) {
                let then = match label {
                    object::CANARY if !has_canary(&part) => continue,
                    object::CANARY => "all goes through its other waypoint then",
                    _ => "its clients are refused until the label is gone or there is such a waypoint",
                };
                note(&format!("{part}{kind} {who} is labelled {label}={name}: {then}"));
            }
        }
    }
    Ok(())
}

/// All objects of a kind; those of the namespace alone where others may not be looked at, which is told. A cluster need not have the kind.
async fn all(api: &Api, group: &str, plural: &str, namespace: &str) -> Result<Vec<Value>, Failure> {
    let there = |listed: Result<Vec<Value>, Failure>| match listed {
        Err(failure) if failure.code == 404 => Ok(Vec::new()),
        other => other,
    };
    match there(api.list(&format!("{group}/{plural}")).await) {
        Err(failure) if failure.code == 403 => {
            note(&format!("you may not list {plural} of all namespaces: who uses the waypoint there is not known"));
            match plural {
                "namespaces" => Ok(Vec::new()),
                _ => there(api.list(&format!("{group}/namespaces/{namespace}/{plural}")).await),
            }
        }
        listed => listed,
    }
}
