//! Namespaces and service accounts: names, and what a namespace sets for its services.

use k8s_openapi::api::core::v1 as k8s;
use mesh_core::ArcStr;

use super::service::Distribution;
use super::waypoint::{self, Asked, AskedCanary, Bypass};
use super::{Key, Labels, meta};
use crate::diagnosis::Problem;

/// Every namespace has its name as a label.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: ArcStr,
    /// Its labels; its name is one of them.
    pub labels: Labels,
    /// What its services prefer unless they say otherwise.
    pub distribution: Option<Distribution>,
    /// The waypoint of what says nothing of one itself.
    pub waypoint: Asked,
    /// What has a share of it.
    pub canary: Option<AskedCanary>,
    /// What is done with what goes around it, unless a service says otherwise.
    pub bypass: Bypass,
    /// Whether clients of its services may go without a waypoint that does not answer, unless a service says otherwise.
    pub optional: Option<bool>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
}

/// Reduces a namespace.
pub fn read(key: &Key, object: k8s::Namespace) -> (Namespace, Vec<Problem>) {
    let mut problems = Vec::new();
    let distribution = Distribution::of_annotation(&object.metadata, &mut problems);
    let mut labels = meta::labels(&object.metadata);
    // An API server sets it. A file need not.
    labels.insert(NAME_LABEL.to_owned(), key.name.to_string());
    let waypoint = Asked::of(Some(&labels), &key.name);
    let canary = AskedCanary::of(Some(&labels), object.metadata.annotations.as_ref(), &key.name);
    let bypass = Bypass::of(&object.metadata, &mut problems);
    let optional = waypoint::optional(&object.metadata, &mut problems);
    (Namespace { name: key.name.clone(), labels, distribution, waypoint, canary, bypass, optional }, problems)
}

/// Reduces a service account.
pub fn read_service_account(key: &Key, _: k8s::ServiceAccount) -> (ServiceAccount, Vec<Problem>) {
    (ServiceAccount { namespace: key.namespace.clone(), name: key.name.clone() }, Vec::new())
}
