//! What proxies are asked for at one end: the terms of their selector. They know a pod by its own name and by that of its workload, which is the owner's of some owners
//! alone ([`mesh_core::owner`]); so pods are found here, and named as the mesh names them. [`terms`] is pure; [`find`] reads its pods. Called by
//! [`super`], and [`super::find`], which asks whose a pod is.

use std::collections::BTreeSet;

use super::target::{Kind, Named};
use crate::api::Api;
use crate::output::note;
use crate::stop::Stop;
use crate::view::Pod;
use crate::waypoint::object;

/// Values of one end of a selector, of which a proxy takes 512.
pub const MOST: usize = 400;

/// As proxies are asked for an end: `known` are the pods of its namespace, if they have been read. Of a workload that has no pod, or none that may be looked at, the name
/// alone is left, which says something of a Deployment and a Job.
pub async fn find(api: &Api, end: &Named, known: Option<&[Pod]>) -> Result<Vec<String>, Stop> {
    if !end.kind.owns_pods() {
        return terms(end, &[]).map_err(Stop::failed);
    }
    let read = match known {
        Some(_) => Ok(Vec::new()),
        None => api.view(&format!("/api/v1/namespaces/{}/pods", end.namespace)).await,
    };
    let found = match &read {
        Ok(read) => terms(end, known.unwrap_or(read)),
        Err(failure) if failure.code == 403 => Err(format!("pods of {end} cannot be looked for: {failure}")),
        Err(failure) => return Err(Stop::from(failure.clone()).during("pods cannot be read")),
    };
    match (found, end.term()) {
        (Ok(found), _) => Ok(found),
        (Err(why), Some(term)) if known.is_none() => {
            note(&format!("{why}; who is of a workload of that name is shown"));
            Ok(vec![term])
        }
        (Err(why), _) => Err(Stop::failed(why)),
    }
}

/// The terms for an end. `pods` are those of its namespace, of which only what owns pods needs any. None is meant of a Gateway, of which all is meant; an error says that
/// there is no pod.
pub fn terms(end: &Named, pods: &[Pod]) -> Result<Vec<String>, String> {
    if !end.kind.owns_pods() {
        return Ok(end.term().into_iter().collect());
    }
    let (meant, others): (Vec<&Pod>, Vec<&Pod>) =
        pods.iter().filter(|pod| !pod.is_finished()).partition(|pod| owns(end, pod));
    let shared: BTreeSet<&str> = others.into_iter().map(workload).collect();
    let term = |pod: &&Pod| {
        let (namespace, own, name) = (&end.namespace, pod.metadata.name.as_str(), workload(pod));
        // By the workload what begins later is seen, too; but only where nobody else is, and where a selector can say it.
        let is_its = name != own && !shared.contains(name) && object::name(name).is_ok();
        if is_its { format!("workload:{namespace}/{name}") } else { format!("pod:{namespace}/{own}") }
    };
    let terms: BTreeSet<String> = meant.iter().map(term).collect();
    if terms.is_empty() { Err(format!("there is no pod of {end}")) } else { Ok(terms.into_iter().collect()) }
}

/// Whether it is a pod of what is named, as Kubernetes or as the mesh calls that.
pub fn owns(end: &Named, pod: &Pod) -> bool {
    let is_controlled_by = |kind: &str| controller(pod) == Some((kind, end.name.as_str()));
    match end.kind {
        Kind::StatefulSet => is_controlled_by("StatefulSet"),
        Kind::DaemonSet => is_controlled_by("DaemonSet"),
        Kind::Workload => workload(pod) == end.name || maker(pod) == Some(end.name.as_str()),
        Kind::Pod => pod.metadata.name == end.name,
        Kind::Service | Kind::Namespace | Kind::Gateway => false,
    }
}

/// As the mesh calls it.
fn workload(pod: &Pod) -> &str {
    mesh_core::owner::workload(&pod.metadata.name, &pod.metadata.labels, controller(pod)).0
}

/// As Kubernetes calls who made it: of a ReplicaSet its Deployment.
fn maker(pod: &Pod) -> Option<&str> {
    let (kind, name) = controller(pod)?;
    let deployment = if kind == "ReplicaSet" { mesh_core::owner::deployment(name, &pod.metadata.labels) } else { None };
    Some(deployment.unwrap_or(name))
}

fn controller(pod: &Pod) -> Option<(&str, &str)> {
    let owner = pod.metadata.owner_references.iter().find(|owner| owner.controller)?;
    Some((&owner.kind, &owner.name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::target::target;
    use super::*;

    fn pod(name: &str, kind: &str, owner: &str, labels: Value) -> Pod {
        let owners = json!([{"kind": "Other", "name": "x"}, {"kind": kind, "name": owner, "controller": true}]);
        let owners = if kind.is_empty() { json!([]) } else { owners };
        let metadata = json!({"namespace": "shop", "name": name, "labels": labels, "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": metadata, "status": {"phase": "Running"}})).unwrap()
    }

    fn pods() -> Vec<Pod> {
        let named = |name: &str| json!({"pod-template-hash": "5d", "service.istio.io/workload-name": name});
        vec![
            pod("web-5d-x", "ReplicaSet", "web-5d", json!({"pod-template-hash": "5d"})),
            pod("web-5d-y", "ReplicaSet", "web-5d", json!({"pod-template-hash": "5d"})),
            pod("own-5d-x", "ReplicaSet", "own-5d", named("mine")),
            pod("a-5d-x", "ReplicaSet", "a-5d", named("both")),
            pod("b-5d-x", "ReplicaSet", "b-5d", named("both")),
            pod("odd-5d-x", "ReplicaSet", "odd-5d", named("a_b")),
            pod("bare-x", "ReplicaSet", "bare", json!({})),
            pod("db-0", "StatefulSet", "db", json!({})),
            pod("db-1", "StatefulSet", "db", json!({})),
            pod("log-x7", "DaemonSet", "log", json!({})),
            pod("nightly-28812345-q", "Job", "nightly-28812345", json!({})),
            pod("nightly-28812346-q", "Job", "nightly-28812346", json!({})),
            pod("once-q", "Job", "once", json!({})),
            pod("alone", "", "", json!({})),
        ]
    }

    #[test]
    fn features_tm_16_pods_are_asked_for_by_the_name_that_proxies_know() {
        for (text, expected) in [
            ("deploy/web", &["workload:shop/web"][..]),
            ("deploy/own", &["workload:shop/mine"]),
            ("workload/mine", &["workload:shop/mine"]),
            // One name of two Deployments.
            ("deploy/a", &["pod:shop/a-5d-x"]),
            ("workload/both", &["workload:shop/both"]),
            // No selector can say it.
            ("deploy/odd", &["pod:shop/odd-5d-x"]),
            // A ReplicaSet of nobody.
            ("workload/bare", &["pod:shop/bare-x"]),
            ("sts/db", &["pod:shop/db-0", "pod:shop/db-1"]),
            ("workload/db", &["pod:shop/db-0", "pod:shop/db-1"]),
            ("ds/log", &["pod:shop/log-x7"]),
            ("cronjob/nightly", &["workload:shop/nightly"]),
            ("job/nightly-28812345", &["pod:shop/nightly-28812345-q"]),
            ("job/once", &["workload:shop/once"]),
            ("workload/alone", &["pod:shop/alone"]),
            ("pod/gone", &["pod:shop/gone"]),
            ("ns/shop", &["namespace:shop"]),
            ("web", &["service:shop/web"]),
            ("waypoint/wp", &[]),
        ] {
            let found = terms(&target(text).unwrap().within("shop"), &pods());
            assert_eq!(found, Ok(expected.iter().map(|term| (*term).to_owned()).collect()), "{text}");
        }
        for (text, why) in [
            ("sts/log", "there is no pod of statefulset shop/log"),
            ("ds/db", "there is no pod of daemonset shop/db"),
            ("deploy/web-5d", "there is no pod of workload shop/web-5d"),
        ] {
            let found = terms(&target(text).unwrap().within("shop"), &pods());
            assert_eq!(found, Err(why.to_owned()), "{text}");
        }
    }
}
