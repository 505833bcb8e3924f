//! ListenerSet of the Gateway API: listeners that are added to a Gateway, perhaps of another namespace. Whether that Gateway takes them the joining says
//! (`index::routing::listener_sets`).

use serde::Deserialize;

use super::gateway::{Listener, check_listeners};
use super::reference::{name, namespace};
use super::{Check, Spec};

/// What a ListenerSet asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerSet {
    /// The Gateway.
    pub parent_ref: ParentGateway,
    /// What is listened for there.
    pub listeners: Vec<Listener>,
}

/// The Gateway that listeners are added to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ParentGateway {
    /// None is the Gateway API's.
    pub group: Option<String>,
    /// None is Gateway.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// None is the object's.
    pub namespace: Option<String>,
}

impl ParentGateway {
    /// Whether it is a Gateway of the Gateway API.
    pub fn is_gateway(&self) -> bool {
        let group = self.group.as_deref().unwrap_or("gateway.networking.k8s.io");
        (group, self.kind.as_deref().unwrap_or("Gateway")) == ("gateway.networking.k8s.io", "Gateway")
    }
}

impl Spec for ListenerSet {
    fn check(&self, check: &mut Check<'_>) {
        name("spec.parentRef", &self.parent_ref.name, check);
        namespace("spec.parentRef", self.parent_ref.namespace.as_deref(), check);
        if self.listeners.is_empty() {
            check.error(
                "spec.listeners",
                "it listens for nothing",
                "add a listener with `name`, `port` and `protocol`",
            );
        }
        check_listeners(&self.listeners, "make several ListenerSets of it", check);
    }
}
