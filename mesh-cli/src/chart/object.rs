//! A Kubernetes object as JSON, and what is asked of any of them: who it is, in which order kinds are made. Called by `render` and by everything
//! that applies or deletes objects.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Which object: enough to find it in a cluster.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace; empty for what has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Reference {
    /// Of an object. The error says what it lacks.
    pub fn of(object: &Value) -> Result<Reference, String> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let found = Reference {
            api_version: text("/apiVersion"),
            kind: text("/kind"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        };
        for (field, value) in
            [("apiVersion", &found.api_version), ("kind", &found.kind), ("metadata.name", &found.name)]
        {
            if value.is_empty() {
                return Err(format!("an object has no {field}"));
            }
        }
        Ok(found)
    }

    /// The API group; empty for the core.
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// Where it stands in the order of making: what others need comes first, webhooks come last.
    pub fn rank(&self) -> usize {
        const ORDER: [&str; 19] = [
            "Namespace",
            "CustomResourceDefinition",
            "PriorityClass",
            "ResourceQuota",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "Role",
            "RoleBinding",
            "Secret",
            "ConfigMap",
            "Service",
            "Deployment",
            "DaemonSet",
            "APIService",
            "MutatingWebhookConfiguration",
            "ValidatingWebhookConfiguration",
        ];
        // A kind that is not named is somebody's custom resource: it needs definitions, and nothing needs it.
        ORDER.iter().position(|kind| *kind == self.kind).unwrap_or(16)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}
