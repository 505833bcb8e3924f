//! Which rights are asked about: what an installation does, and what the roles of the chart give to the accounts of the mesh, read from the chart itself so
//! that neither can be forgotten. Pure; called by `collect`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::facts::{AGENT, CONTROL};
use crate::chart::embed;
use crate::chart::render::{Release, render};

/// Group and plural of what an installation makes, and whether it stands in the namespace of the mesh.
const MADE: [(&str, &str, bool); 16] = [
    ("", "namespaces", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("networking.k8s.io", "networkpolicies", true),
    ("policy", "poddisruptionbudgets", true),
    ("", "serviceaccounts", true),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("", "configmaps", true),
    ("", "services", true),
    ("apps", "deployments", true),
    ("apps", "daemonsets", true),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", false),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", false),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false),
];

/// Something that somebody has to be allowed.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Right {
    /// Name of an account of the mesh; nothing for who runs this.
    pub account: Option<&'static str>,
    /// Where; empty for everywhere.
    pub namespace: String,
    /// What is done.
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural, with a subresource behind a slash.
    pub resource: String,
    /// Of which object; empty for all.
    pub name: String,
}

impl Right {
    /// As the API server is asked about it.
    pub fn attributes(&self) -> Value {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
        let mut attributes = json!({ "verb": self.verb, "group": self.group, "resource": resource });
        for (key, value) in [("subresource", subresource), ("namespace", &self.namespace), ("name", &self.name)] {
            if !value.is_empty() {
                attributes[key] = json!(value);
            }
        }
        attributes
    }

    /// For people, as `patch configmaps undermesh-root-cert`.
    pub fn text(&self) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        format!("{} {}{group} {}", self.verb, self.resource, self.name).trim_end().to_owned()
    }
}

/// What a person needs who installs. Server-side apply is a patch, and making what is not there a creation.
pub fn of_installer(namespace: &str) -> Vec<Right> {
    let both = MADE.iter().flat_map(|made| ["create", "patch"].map(|verb| (verb, made)));
    both.map(|(verb, (group, resource, is_inside))| Right {
        account: None,
        namespace: if *is_inside { namespace.to_owned() } else { String::new() },
        verb: verb.to_owned(),
        group: (*group).to_owned(),
        resource: (*resource).to_owned(),
        name: String::new(),
    })
    .collect()
}

/// What the accounts of the mesh need: all that the chart's roles say, of those that it binds. Others are for users to bind where they want it.
pub fn of_accounts(namespace: &str) -> Vec<Right> {
    let release = Release { name: "undermesh".into(), namespace: namespace.to_owned() };
    let objects = render(&embed::files(), &release, json!({})).map(|rendered| rendered.objects).unwrap_or_default();
    let is_bound = |role: &Value| {
        objects.iter().any(|object| {
            let to = &object["roleRef"];
            to["kind"] == role["kind"] && to["name"] == role["metadata"]["name"]
        })
    };
    let is_role = |object: &&Value| (object["kind"] == "ClusterRole" || object["kind"] == "Role") && is_bound(object);
    let mut rights = BTreeSet::new();
    for role in objects.iter().filter(is_role) {
        let account = match role["metadata"]["labels"]["app"].as_str() {
            Some(AGENT) => AGENT,
            _ => CONTROL,
        };
        for rule in role["rules"].as_array().into_iter().flatten() {
            let names = texts(&rule["resourceNames"]);
            let names = if names.is_empty() { vec![String::new()] } else { names };
            let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
            for (verb, group) in pairs(&texts(&rule["verbs"]), &texts(&rule["apiGroups"])) {
                for (resource, name) in pairs(&texts(&rule["resources"]), &names) {
                    let (verb, group, namespace) = (verb.clone(), group.clone(), namespace.to_owned());
                    rights.insert(Right { account: Some(account), namespace, verb, group, resource, name });
                }
            }
        }
    }
    rights.into_iter().collect()
}

/// Each of the one with each of the other.
fn pairs(one: &[String], other: &[String]) -> Vec<(String, String)> {
    one.iter().flat_map(|a| other.iter().map(move |b| (a.clone(), b.clone()))).collect()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::object::Reference;

    fn release() -> Release {
        Release { name: "undermesh".into(), namespace: "mesh".into() }
    }

    #[test]
    fn every_kind_that_is_installed_is_asked_about() {
        let rendered = render(&embed::files(), &release(), json!({"namespace": {"create": true}})).unwrap();
        for object in rendered.objects.iter().chain(&rendered.definitions) {
            let reference = Reference::of(object).unwrap();
            let plural = match reference.kind.to_ascii_lowercase() {
                kind if kind.ends_with('y') => format!("{}ies", kind.trim_end_matches('y')),
                kind => format!("{kind}s"),
            };
            let made = (reference.group(), plural.as_str(), !reference.namespace.is_empty());
            assert!(MADE.contains(&made), "{made:?}");
        }
        let asked = of_installer("mesh");
        let right = |verb: &str, resource: &str| asked.iter().find(|r| r.verb == verb && r.resource == resource);
        assert_eq!(right("create", "daemonsets").map(|r| r.namespace.as_str()), Some("mesh"));
        assert_eq!(right("patch", "validatingadmissionpolicies").map(|r| r.namespace.as_str()), Some(""));
    }

    #[test]
    fn accounts_are_asked_about_all_that_their_roles_say() {
        let rights = of_accounts("mesh");
        let found = |account: &str, text: &str| rights.iter().find(|r| r.account == Some(account) && r.text() == text);
        for (account, text, attributes) in [
            (
                AGENT,
                "patch pods/status",
                json!({"verb": "patch", "group": "", "resource": "pods", "subresource": "status"}),
            ),
            (
                CONTROL,
                "patch configmaps undermesh-root-cert",
                json!({"verb": "patch", "group": "", "resource": "configmaps", "name": "undermesh-root-cert"}),
            ),
            (
                CONTROL,
                "get secrets undermesh-ca",
                json!({"verb": "get", "group": "", "resource": "secrets", "namespace": "mesh", "name": "undermesh-ca"}),
            ),
            (
                CONTROL,
                "watch peerauthentications.security.istio.io",
                json!({"verb": "watch", "group": "security.istio.io", "resource": "peerauthentications"}),
            ),
        ] {
            assert_eq!(found(account, text).map(Right::attributes), Some(attributes), "{text}");
        }
        assert!(found(AGENT, "watch services").is_none());
        // A role that users bind where they want it is nobody's need.
        assert!(found(CONTROL, "get configmaps").is_none());
    }
}
