//! What an installation does with each object, decided before anything is sent. Pure; called by `install`.

use serde_json::{Value, json};

/// Definitions with this label are ours: changed by an installation, taken away by `uninstall --purge-crds`.
pub const OWNED: &str = "undermesh.io/owned";

/// What to do with a definition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Definition {
    /// There is none.
    Make,
    /// It is ours, perhaps of an older version.
    Update,
    /// It is somebody's, with the version that is needed.
    Keep,
    /// It is somebody's, and does not serve a version that is needed.
    Unusable,
}

/// Decides over a definition, with the one in the cluster.
pub fn definition(wanted: &Value, live: Option<&Value>) -> Definition {
    let Some(live) = live else { return Definition::Make };
    if live.pointer("/metadata/labels").and_then(|l| l.get(OWNED)) == Some(&json!("true")) {
        return Definition::Update;
    }
    let served = |object: &Value| -> Vec<String> {
        let versions = object.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten();
        versions.filter(|v| v["served"] == true).filter_map(|v| Some(v["name"].as_str()?.to_owned())).collect()
    };
    let live = served(live);
    if served(wanted).iter().any(|version| live.contains(version)) { Definition::Keep } else { Definition::Unusable }
}

/// Whether what is there was installed by a later version of this program. What is no version is not.
pub fn is_newer(there: &str, ours: &str) -> bool {
    let numbers = |version: &str| -> Option<Vec<u64>> {
        let plain = version.split(['-', '+']).next().unwrap_or_default();
        plain.trim_start_matches('v').split('.').map(|part| part.parse().ok()).collect()
    };
    matches!((numbers(there), numbers(ours)), (Some(there), Some(ours)) if there > ours)
}

/// The definition with the label that says that it is ours.
pub fn owned(definition: &Value) -> Value {
    let mut definition = definition.clone();
    if !definition["metadata"]["labels"].is_object() {
        definition["metadata"]["labels"] = json!({});
    }
    definition["metadata"]["labels"][OWNED] = json!("true");
    definition
}

/// A webhook that exists belongs in part to the control plane, which enters its certificate and decides when a failure refuses. What is its is not
/// named; what it has not decided yet is repeated, for a field that nobody owns would get its default, and a failure would refuse.
pub fn with_what_is_the_control_planes(object: &Value, live: &Value) -> Value {
    let mut object = object.clone();
    let managers = live["metadata"]["managedFields"].as_array();
    let others = managers.into_iter().flatten().filter(|entry| entry["manager"] != crate::api::MANAGER);
    let is_decided = others.into_iter().any(|entry| entry["fieldsV1"].to_string().contains("\"f:failurePolicy\""));
    for webhook in object["webhooks"].as_array_mut().into_iter().flatten() {
        let mut there = live["webhooks"].as_array().into_iter().flatten();
        let Some(there) = there.find(|other| other["name"] == webhook["name"]) else { continue };
        match (webhook.as_object_mut(), is_decided) {
            (Some(webhook), true) => drop(webhook.remove("failurePolicy")),
            (Some(webhook), false) => drop(webhook.insert("failurePolicy".into(), there["failurePolicy"].clone())),
            (None, _) => {}
        }
        if let Some(client) = webhook["clientConfig"].as_object_mut() {
            client.remove("caBundle");
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_made_where_none_are_and_changed_where_they_are_ours() {
        let crd = |labels: Value, version: &str, served: bool| json!({"metadata": {"labels": labels}, "spec": {"versions": [{"name": version, "served": served}]}});
        let wanted = crd(json!({OWNED: "true"}), "v1", true);
        let table = [
            (None, Definition::Make),
            (Some(crd(json!({OWNED: "true"}), "v1beta1", true)), Definition::Update),
            (Some(crd(json!({"app": "istio"}), "v1", true)), Definition::Keep),
            (Some(crd(Value::Null, "v1", true)), Definition::Keep),
            (Some(crd(json!({}), "v1", false)), Definition::Unusable),
            (Some(crd(json!({}), "v1alpha1", true)), Definition::Unusable),
        ];
        for (live, expected) in table {
            assert_eq!(definition(&wanted, live.as_ref()), expected, "{live:?}");
        }
        assert_eq!(
            owned(&json!({"metadata": {"name": "x"}})),
            json!({"metadata": {"name": "x", "labels": {OWNED: "true"}}})
        );
    }

    #[test]
    fn an_older_program_is_told() {
        for (there, ours, expected) in [
            ("0.1.0", "0.1.0", false),
            ("0.2.0", "0.1.9", true),
            ("0.10.0", "0.9.0", true),
            ("0.9.0", "0.10.0", false),
            ("1.0.0-rc.1", "0.9.0", true),
            ("", "0.1.0", false),
        ] {
            assert_eq!(is_newer(there, ours), expected, "{there} {ours}");
        }
    }

    #[test]
    fn the_control_planes_part_of_a_webhook_stays_its() {
        let webhook = |name: &str, policy: &str, bundle: Option<&str>| {
            let mut webhook =
                json!({"name": name, "failurePolicy": policy, "clientConfig": {"service": {"name": "s"}}});
            if let Some(bundle) = bundle {
                webhook["clientConfig"]["caBundle"] = json!(bundle);
            }
            webhook
        };
        let wanted = json!({"webhooks": [webhook("w", "Ignore", Some("")), webhook("new", "Ignore", Some("x"))]});
        let live = |manager: &str| {
            let fields = json!({"f:webhooks": {"k:{\"name\":\"w\"}": {"f:failurePolicy": {}}}});
            let managed = json!([{"manager": "meshctl", "fieldsV1": fields}, {"manager": manager, "fieldsV1": fields}]);
            json!({"metadata": {"managedFields": managed}, "webhooks": [webhook("w", "Fail", Some("CA"))]})
        };
        let mut expected = json!({"webhooks": [webhook("w", "Fail", None), webhook("new", "Ignore", Some("x"))]});
        assert_eq!(with_what_is_the_control_planes(&wanted, &live("meshctl")), expected);
        expected["webhooks"][0].as_object_mut().unwrap().remove("failurePolicy");
        assert_eq!(with_what_is_the_control_planes(&wanted, &live("mesh-control")), expected);
    }
}
