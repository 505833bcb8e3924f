//! What the objects that serve a Gateway are labelled and annotated with: what it says in `spec.infrastructure`, and else, of each of the two, its own, as with
//! Istio. The deployer writes them (`deploy::objects`), and the joining knows by them what selects the pods before there are any. Pure.

use serde::Deserialize;

use super::{Address, Gateway};
use crate::diagnosis::Problem;
use crate::resource::Labels;
use crate::resource::gateway_topology::GatewayTopology;
use crate::resource::routing::reference::LocalReference;
use crate::yaml::node::{Node as Tree, Value};

/// Beginnings of keys that are about the Gateway itself. On what serves it they would mean something else: that a waypoint is reached through a waypoint, that
/// its pods are captured or get a sidecar, whose object it is, or who has written it.
const ITS_OWN: [&str; 15] = [
    "istio.io/use-waypoint",
    "istio.io/ingress-use-waypoint",
    "istio.io/dataplane-mode",
    "undermesh.io/",
    "ambient.istio.io/",
    "sidecar.istio.io/",
    "gateway.istio.io/",
    "gateway.networking.k8s.io/",
    "app.kubernetes.io/managed-by",
    "kubectl.kubernetes.io/",
    "helm.sh/",
    "meta.helm.sh/",
    "argocd.argoproj.io/",
    "kustomize.toolkit.fluxcd.io/",
    "kapp.k14s.io/",
];

/// What the pods that serve it should have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    /// Labels; the Gateway's own if it is not said.
    pub labels: Option<Labels>,
    /// Annotations; the Gateway's own if it is not said.
    pub annotations: Option<Labels>,
    /// Settings of the implementation.
    pub parameters_ref: Option<LocalReference>,
}

/// Of a Gateway's own labels and annotations those that what serves it has, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    labels: Labels,
    annotations: Labels,
}

impl Copied {
    /// Those of this one.
    pub(super) fn of(gateway: &Gateway, metadata: &Tree) -> Self {
        let is_host = |address: &Address| address.kind.as_deref() == Some("Hostname");
        // Somebody else has made what serves it.
        if gateway.addresses.iter().any(is_host) {
            return Self::default();
        }
        let said = gateway.infrastructure.as_ref();
        let copied = |field: &str, is_said: bool| match metadata.get(field).map(|node| &node.value) {
            Some(Value::Map(entries)) if !is_said => {
                let kept = entries.iter().filter(|entry| !is_its_own(&entry.key));
                kept.filter_map(|entry| Some((entry.key.clone(), entry.node.as_str()?.to_owned()))).collect()
            }
            _ => Labels::new(),
        };
        Self {
            labels: copied("labels", said.is_some_and(|said| said.labels.is_some())),
            annotations: copied("annotations", said.is_some_and(|said| said.annotations.is_some())),
        }
    }
}

fn is_its_own(key: &str) -> bool {
    ITS_OWN.iter().any(|own| key.starts_with(own))
}

impl Gateway {
    /// Labels of what serves it, beside those that we know it by.
    pub fn labels(&self) -> &Labels {
        let said = self.infrastructure.as_ref().and_then(|said| said.labels.as_ref());
        said.unwrap_or(&self.copied.labels)
    }

    /// Annotations of what serves it.
    pub fn annotations(&self) -> &Labels {
        let said = self.infrastructure.as_ref().and_then(|said| said.annotations.as_ref());
        said.unwrap_or(&self.copied.annotations)
    }

    /// What stands before the gateway, as it says itself.
    pub fn topology(&self, problems: &mut Vec<Problem>) -> GatewayTopology {
        let is_said = self.infrastructure.as_ref().is_some_and(|said| said.annotations.is_some());
        let at = if is_said { "spec.infrastructure.annotations" } else { "metadata.annotations" };
        GatewayTopology::annotated(self.annotations(), at, problems)
    }
}
