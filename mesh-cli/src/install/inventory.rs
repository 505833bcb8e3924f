//! What `meshctl install` remembers in the cluster: a ConfigMap with the values that were given and the objects that were made, so that the next
//! installation takes away what is no more and `uninstall` finds everything. Written before anything is made: an installation that is cut off
//! half way can still be undone.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{Api, Failure};
use crate::chart::object::Reference;
use crate::stop::Stop;

/// Name of the ConfigMap.
pub const NAME: &str = "meshctl-install";

/// What is remembered.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// Of the program that installed.
    pub version: String,
    /// Values that differ from the chart's.
    pub values: Value,
    /// Everything that was made, but for definitions and the namespace.
    pub objects: Vec<Reference>,
    /// There was no such namespace before.
    pub made_namespace: bool,
}

impl Inventory {
    /// The ConfigMap.
    pub fn object(&self, namespace: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": NAME,
                "namespace": namespace,
                "labels": { "app.kubernetes.io/part-of": "undermesh", "app.kubernetes.io/managed-by": "meshctl" },
            },
            "data": { "inventory": json!(self).to_string() },
        })
    }

    /// Reads a ConfigMap.
    pub fn of(object: &Value) -> Option<Inventory> {
        serde_json::from_str(object.pointer("/data/inventory")?.as_str()?).ok()
    }

    /// Objects that were made before and are not wanted any more, the last first.
    pub fn obsolete(&self, wanted: &[Reference]) -> Vec<Reference> {
        // The version of an API may change while the object stays the same.
        let same = |a: &Reference, b: &Reference| {
            a.group() == b.group() && a.kind == b.kind && a.namespace == b.namespace && a.name == b.name
        };
        let mut gone: Vec<Reference> =
            self.objects.iter().filter(|old| !wanted.iter().any(|new| same(old, new))).cloned().collect();
        gone.sort_by_key(|reference| std::cmp::Reverse((reference.rank(), reference.clone())));
        gone
    }
}

/// Where it is.
pub fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps/{NAME}")
}

/// What an earlier installation left.
pub async fn read(api: &Api, namespace: &str) -> Result<Option<Inventory>, Stop> {
    let Some(object) = api.find(&path(namespace)).await? else { return Ok(None) };
    let unreadable = || {
        let why = format!("ConfigMap {namespace}/{NAME} cannot be read; delete it if nothing of it is to be kept");
        Stop::data(why)
    };
    Inventory::of(&object).map(Some).ok_or_else(unreadable)
}

/// Remembers, and returns the version of the record. With that of an earlier one it is refused if somebody else has written meanwhile.
pub async fn write(api: &Api, namespace: &str, inventory: &Inventory, after: Option<&str>) -> Result<String, Stop> {
    let mut object = inventory.object(namespace);
    if let Some(version) = after {
        object["metadata"]["resourceVersion"] = json!(version);
    }
    let written = api.applied(&path(namespace), &object, true).await;
    let (_, written) = written.map_err(|failure| {
        let hint = match failure.code {
            409 if after.is_some() => {
                "; somebody else has installed or uninstalled meanwhile: see `meshctl status`, and install again"
            }
            _ => "",
        };
        let stop = Stop::from(failure).during(format!("remember the installation in ConfigMap {namespace}/{NAME}"));
        Stop { message: format!("{}{hint}", stop.message), ..stop }
    })?;
    Ok(written["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned())
}

/// What became of an object that was to be deleted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Deletion {
    /// It is.
    Done,
    /// There was none.
    Absent,
    /// It stays: it does not say that it is ours.
    NotOurs,
}

/// Deletes an object that an inventory names, if it has the label that the chart gives to all of its objects: whoever may write the inventory must not be
/// able to have anything else deleted.
pub async fn delete(api: &Api, reference: &Reference) -> Result<Deletion, Failure> {
    let path = match api.path_of(reference).await {
        Ok(path) => path,
        // Nor is its kind.
        Err(failure) if failure.code == 404 => return Ok(Deletion::Absent),
        Err(failure) => return Err(failure),
    };
    let Some(object) = api.find(&path).await? else { return Ok(Deletion::Absent) };
    if !is_ours(&object) {
        return Ok(Deletion::NotOurs);
    }
    Ok(if api.delete(&path).await? { Deletion::Done } else { Deletion::Absent })
}

/// Whether an object has the label of the chart.
pub fn is_ours(object: &Value) -> bool {
    let labels = object.pointer("/metadata/labels");
    labels.and_then(|labels| labels.get("app.kubernetes.io/part-of")).is_some_and(|part| part == "undermesh")
}

/// Other namespaces with an installation. What has no namespace is shared by all of them, so that there may be one only.
pub async fn elsewhere(api: &Api, namespace: &str) -> Result<Vec<String>, Failure> {
    let mut found = std::collections::BTreeSet::new();
    for path in [
        "/apis/apps/v1/daemonsets?labelSelector=app.kubernetes.io%2Fpart-of%3Dundermesh".to_owned(),
        "/apis/apps/v1/deployments?labelSelector=app.kubernetes.io%2Fpart-of%3Dundermesh".to_owned(),
        format!("/api/v1/configmaps?fieldSelector=metadata.name%3D{NAME}"),
    ] {
        let named = api.list(&path).await?;
        found.extend(named.iter().filter_map(|object| Some(object["metadata"]["namespace"].as_str()?.to_owned())));
    }
    found.remove(namespace);
    Ok(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(api_version: &str, kind: &str, name: &str) -> Reference {
        Reference { api_version: api_version.into(), kind: kind.into(), namespace: "u".into(), name: name.into() }
    }

    #[test]
    fn an_inventory_survives_its_config_map() {
        let inventory = Inventory {
            version: "0.1.0".into(),
            values: json!({"a": {"b": 1}}),
            objects: vec![reference("v1", "Service", "mesh-control")],
            made_namespace: true,
        };
        assert_eq!(Inventory::of(&inventory.object("u")), Some(inventory));
        assert_eq!(Inventory::of(&json!({"data": {"inventory": "{"}})), None);
    }

    #[test]
    fn what_is_not_wanted_any_more_goes_last_made_first() {
        let objects = vec![
            reference("v1", "ServiceAccount", "a"),
            reference("policy/v1beta1", "PodDisruptionBudget", "stays"),
            reference("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "w"),
        ];
        let inventory = Inventory { objects, ..Inventory::default() };
        let wanted = [reference("policy/v1", "PodDisruptionBudget", "stays"), reference("v1", "Service", "new")];
        let gone: Vec<_> = inventory.obsolete(&wanted).into_iter().map(|r| r.name).collect();
        assert_eq!(gone, ["w", "a"]);
    }
}
