//! The objects that the control plane understands, reduced to what it uses, one file per kind. Sources make them (from files, or from an
//! API server); the index joins them. An object is either wholly understood or reported with [`Problem`]s.

pub mod authorization_policy;
pub mod catalog;
pub mod endpoint_slice;
pub mod fields;
pub mod gateway_ports;
pub mod gateway_topology;
pub mod kind;
pub mod label_selector;
pub mod mesh_authorizers;
pub mod mesh_config;
pub mod mesh_defaults;
pub mod mesh_providers;
pub mod mesh_telemetry;
pub mod mesh_tls;
pub mod mesh_unheeded;
pub mod meta;
pub mod namespace;
pub mod node;
pub mod peer_authentication;
pub mod pod;
pub mod routing;
pub mod secret;
pub mod service;
pub mod strict;
pub mod tls_names;
pub mod token_keys;
pub mod waypoint;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use mesh_core::{ArcStr, NamespacedName};

pub use authorization_policy::AuthorizationPolicy;
pub use endpoint_slice::EndpointSlice;
pub use kind::Kind;
pub use mesh_config::MeshConfig;
pub use namespace::{Namespace, ServiceAccount};
pub use node::Node;
pub use peer_authentication::PeerAuthentication;
pub use pod::Pod;
use routing::grants::PolicyTarget;
use routing::reference::ParentReference;
use routing::telemetry::TargetReference;
pub use routing::{Routes, Routing};
pub use secret::{Secret, Secrets};
pub use service::Service;

use crate::diagnosis::Problem;
use crate::yaml::node::Node as Tree;

/// Labels, as written on objects and in selectors.
pub type Labels = BTreeMap<String, String>;

/// What an object is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds without.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.title(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.title(), self.namespace, self.name)
        }
    }
}

/// One understood object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The mesh settings.
    MeshConfig(Arc<MeshConfig>),
    /// Certificates.
    Secret(Arc<Secret>),
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// A node.
    Node(Arc<Node>),
    /// A service account.
    ServiceAccount(Arc<ServiceAccount>),
    /// A pod.
    Pod(Arc<Pod>),
    /// A service.
    Service(Arc<Service>),
    /// A part of a service's endpoints.
    EndpointSlice(Arc<EndpointSlice>),
    /// An authorization policy.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// A peer authentication.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// One of those that say where requests go.
    Routing(Routing),
}

/// An object that is there but cannot be used, and what is known of the workloads that it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreadable {
    /// The selector, if at least that could be read; empty selects everything in scope.
    pub selector: Option<Labels>,
    /// It is bound to something other than workloads, so that workloads need not be closed.
    pub bound_elsewhere: bool,
    /// What a policy is bound to, if all of that could be read.
    pub targets: Option<Vec<TargetReference>>,
    /// What a route of the Gateway API belongs to, as far as that can be read: there it is told that it cannot be.
    pub parents: Vec<ParentReference>,
    /// What a BackendTLSPolicy is about, as far as that can be read: it is closed.
    pub policy_targets: Vec<PolicyTarget>,
    /// It looks like an object of the kind, but which one it is cannot be told: the name is made up.
    pub nameless: bool,
}

/// What came of reading one object.
#[derive(Debug)]
pub struct Read {
    /// The object, or how much of it is known.
    pub outcome: Result<Object, Unreadable>,
    /// What is wrong with it. An unreadable object has at least one error.
    pub problems: Vec<Problem>,
}

/// An object without which nothing can be decided: understood, or there and not understood. A policy of the latter kind is closed.
#[derive(Clone, Debug, PartialEq)]
pub enum Secured<T> {
    /// Understood.
    Readable(Arc<T>),
    /// There, not understood, and never was.
    Unreadable(Unreadable),
}

/// Everything known at one moment: what a source delivers and the index joins.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Mesh settings; those of the root namespace count.
    pub mesh_configs: BTreeMap<NamespacedName, Secured<MeshConfig>>,
    /// By name.
    pub namespaces: BTreeMap<ArcStr, Arc<Namespace>>,
    /// Those that are there and cannot be read, and never could.
    pub unread_namespaces: BTreeSet<ArcStr>,
    /// By name.
    pub nodes: BTreeMap<ArcStr, Arc<Node>>,
    /// By namespace and name.
    pub service_accounts: BTreeMap<NamespacedName, Arc<ServiceAccount>>,
    /// By namespace and name.
    pub pods: BTreeMap<NamespacedName, Arc<Pod>>,
    /// By namespace and name.
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    /// By namespace and name.
    pub endpoint_slices: BTreeMap<NamespacedName, Arc<EndpointSlice>>,
    /// By namespace and name.
    pub authorization_policies: BTreeMap<NamespacedName, Secured<AuthorizationPolicy>>,
    /// By namespace and name.
    pub peer_authentications: BTreeMap<NamespacedName, Secured<PeerAuthentication>>,
    /// Those that say where requests go.
    pub routes: Routes,
    /// Routes of the Gateway API that are there and cannot be read, and never could, with what they belong to as far as that can be read. They count nowhere.
    pub unread_routes: BTreeMap<Key, Vec<ParentReference>>,
    /// BackendTLSPolicies that are there and cannot be read, and never could, with what they are about as far as that can be read.
    pub unread_policies: BTreeMap<Key, Vec<PolicyTarget>>,
    /// RequestAuthentications that are there and cannot be read, and never could: what they are about is closed.
    pub unread_authentications: BTreeMap<NamespacedName, Unreadable>,
    /// Sidecars that are there and cannot be read, and never could, with the labels of their pods as far as those can be read: their pods reach only what is known.
    pub unread_sidecars: BTreeMap<NamespacedName, Labels>,
    /// Certificates of gateways and of what they reach.
    pub secrets: Secrets,
    /// Keys of tokens that are elsewhere, as far as they could be fetched.
    pub token_keys: Arc<token_keys::Keys>,
    /// Addresses of names that ServiceEntries leave to DNS, as far as they could be looked up.
    pub looked_up: Arc<routing::service_entry::Addresses>,
    /// Kinds that have never been heard of: nobody knows whether there are objects of them. Only what says where requests go is not waited for.
    pub unheard: BTreeSet<Kind>,
}

impl Objects {
    /// There is this object under the key.
    pub fn set(&mut self, key: &Key, object: &Object) {
        let name = || NamespacedName::new(key.namespace.clone(), key.name.clone());
        match object {
            Object::MeshConfig(o) => drop(self.mesh_configs.insert(name(), Secured::Readable(o.clone()))),
            Object::Secret(o) => self.secrets.insert(key.clone(), o.clone()),
            Object::Namespace(o) => {
                self.unread_namespaces.remove(&key.name);
                self.namespaces.insert(key.name.clone(), o.clone());
            }
            Object::Node(o) => drop(self.nodes.insert(key.name.clone(), o.clone())),
            Object::ServiceAccount(o) => drop(self.service_accounts.insert(name(), o.clone())),
            Object::Pod(o) => drop(self.pods.insert(name(), o.clone())),
            Object::Service(o) => drop(self.services.insert(name(), o.clone())),
            Object::EndpointSlice(o) => drop(self.endpoint_slices.insert(name(), o.clone())),
            Object::AuthorizationPolicy(o) => {
                self.authorization_policies.insert(name(), Secured::Readable(o.clone()));
            }
            Object::PeerAuthentication(o) => {
                self.peer_authentications.insert(name(), Secured::Readable(o.clone()));
            }
            Object::Routing(o) => {
                self.unread_routes.remove(key);
                self.unread_policies.remove(key);
                if key.kind == Kind::Sidecar {
                    self.unread_sidecars.remove(&name());
                }
                if key.kind == Kind::RequestAuthentication {
                    self.unread_authentications.remove(&name());
                }
                self.routes.insert(name(), o);
            }
        }
    }

    /// There is an object that cannot be read, and never could.
    pub fn close(&mut self, key: &Key, unreadable: &Unreadable) {
        self.remove(key);
        let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
        let unreadable = unreadable.clone();
        match key.kind {
            Kind::ConfigMap => drop(self.mesh_configs.insert(name, Secured::Unreadable(unreadable))),
            Kind::AuthorizationPolicy => {
                self.authorization_policies.insert(name, Secured::Unreadable(unreadable));
            }
            Kind::PeerAuthentication => {
                self.peer_authentications.insert(name, Secured::Unreadable(unreadable));
            }
            Kind::Namespace => drop(self.unread_namespaces.insert(name.name)),
            Kind::BackendTlsPolicy => drop(self.unread_policies.insert(key.clone(), unreadable.policy_targets)),
            Kind::RequestAuthentication => drop(self.unread_authentications.insert(name, unreadable)),
            Kind::Sidecar => drop(self.unread_sidecars.insert(name, unreadable.selector.unwrap_or_default())),
            kind if kind.is_route() => drop(self.unread_routes.insert(key.clone(), unreadable.parents)),
            _ => {}
        }
    }

    /// There is nothing under the key.
    pub fn remove(&mut self, key: &Key) {
        let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::ConfigMap => drop(self.mesh_configs.remove(&name)),
            Kind::Secret | Kind::CaBundle => self.secrets.remove(key),
            Kind::Namespace => {
                self.unread_namespaces.remove(&key.name);
                self.namespaces.remove(&key.name);
            }
            Kind::Node => drop(self.nodes.remove(&key.name)),
            Kind::ServiceAccount => drop(self.service_accounts.remove(&name)),
            Kind::Pod => drop(self.pods.remove(&name)),
            Kind::Service => drop(self.services.remove(&name)),
            Kind::EndpointSlice => drop(self.endpoint_slices.remove(&name)),
            Kind::AuthorizationPolicy => drop(self.authorization_policies.remove(&name)),
            Kind::PeerAuthentication => drop(self.peer_authentications.remove(&name)),
            kind => {
                self.unread_routes.remove(key);
                self.unread_policies.remove(key);
                if kind == Kind::Sidecar {
                    self.unread_sidecars.remove(&name);
                }
                if kind == Kind::RequestAuthentication {
                    self.unread_authentications.remove(&name);
                }
                self.routes.remove(kind, &name);
            }
        }
    }
}

/// Reads the object called `key` from its tree.
pub fn read(key: &Key, tree: &Tree) -> Read {
    match key.kind {
        Kind::ConfigMap => mesh_config::read(key, tree),
        Kind::Secret => secret::read(tree),
        Kind::CaBundle => secret::read_bundle(tree),
        Kind::Namespace => core(tree, |o| namespace::read(key, o), Object::Namespace),
        Kind::Node => core(tree, |o| node::read(key, o), Object::Node),
        Kind::ServiceAccount => core(tree, |o| namespace::read_service_account(key, o), Object::ServiceAccount),
        Kind::Pod => core(tree, |o| pod::read(key, o), Object::Pod),
        Kind::Service => core(tree, |o| service::read(key, o), Object::Service),
        Kind::EndpointSlice => core(tree, |o| endpoint_slice::read(key, o), Object::EndpointSlice),
        Kind::AuthorizationPolicy => authorization_policy::read(key, tree),
        Kind::PeerAuthentication => peer_authentication::read(key, tree),
        _ => routing::read(key, tree),
    }
}

/// Reads a core kind through its Kubernetes type, which ignores fields that it does not know, as the API server's clients do.
fn core<K, T>(tree: &Tree, reduce: impl FnOnce(K) -> (T, Vec<Problem>), wrap: impl FnOnce(Arc<T>) -> Object) -> Read
where
    K: for<'de> serde::Deserialize<'de>,
{
    match K::deserialize(tree) {
        Ok(object) => {
            let (object, problems) = reduce(object);
            Read { outcome: Ok(wrap(Arc::new(object))), problems }
        }
        Err(error) => {
            let problem = Problem::error(error.field.clone(), error.message.clone());
            let problem = match type_help(&error.message) {
                Some(help) => problem.help(help),
                None => problem,
            };
            Read { outcome: Err(Unreadable::default()), problems: vec![problem] }
        }
    }
}

/// The usual reason why a value has the wrong type.
fn type_help(message: &str) -> Option<&'static str> {
    let found_plain =
        ["integer", "floating", "boolean"].iter().any(|t| message.contains(&format!("invalid type: {t}")));
    if found_plain && message.contains("expected a string") {
        Some(fields::IN_QUOTES)
    } else if message.contains("invalid type: string") && message.contains("expected i32") {
        Some("write a number without quotes")
    } else if message.contains("invalid type: map, expected a sequence") {
        Some("begin each item with `- `")
    } else {
        None
    }
}
