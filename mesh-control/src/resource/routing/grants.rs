//! GatewayClass: who makes the gateways of a class. BackendTLSPolicy: how backends are known. ReferenceGrant: who may name objects of this namespace.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::reference::{LocalReference, ObjectReference, hostname, name};
use super::{Check, Spec};
use crate::resource::meta;
use crate::yaml::node::{Node as Tree, Value};

/// The definition lets no more stand there.
const MOST_TARGETS: usize = 16;
/// Likewise of references to roots.
const MOST_ROOTS: usize = 8;
/// Likewise of names.
const MOST_NAMES: usize = 5;

/// What a GatewayClass asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayClass {
    /// Who makes its gateways.
    pub controller_name: String,
    /// Settings for it.
    pub parameters_ref: Option<ObjectReference>,
    /// For people.
    pub description: Option<String>,
}

impl Spec for GatewayClass {
    fn check(&self, check: &mut Check<'_>) {
        let is_good = self
            .controller_name
            .split_once('/')
            .is_some_and(|(domain, path)| meta::subdomain(domain).is_ok() && !path.is_empty());
        if !is_good {
            let message = format!("{:?} is not the name of a controller", self.controller_name);
            check.error(
                "spec.controllerName",
                message,
                "write a domain and a path, as undermesh.io/gateway-controller",
            );
        }
    }
}

/// What a BackendTLSPolicy asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendTlsPolicy {
    /// Services, or ports of them.
    pub target_refs: Vec<PolicyTarget>,
    /// How they are known.
    pub validation: BackendValidation,
    /// What an implementation makes of it.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// A service, or a port of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTarget {
    /// Empty is the core.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The port's name; all if it is not said.
    pub section_name: Option<String>,
}

/// How a backend is known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendValidation {
    /// ConfigMaps with certificates.
    #[serde(default)]
    pub ca_certificate_refs: Vec<LocalReference>,
    /// Or those that the system believes.
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<WellKnown>,
    /// The name that is asked for, and must be shown.
    pub hostname: String,
    /// Names one of which must be shown instead.
    #[serde(default)]
    pub subject_alt_names: Vec<SubjectAltName>,
}

/// What is believed without a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum WellKnown {
    /// What the system believes.
    System,
}

/// A name in a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SubjectAltName {
    /// Which of the two.
    #[serde(rename = "type")]
    pub kind: NameKind,
    /// A host.
    pub hostname: Option<String>,
    /// A URI, as of SPIFFE.
    pub uri: Option<String>,
}

/// What a name in a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum NameKind {
    Hostname,
    #[serde(rename = "URI")]
    Uri,
}

/// What a policy that cannot be read is about, of its `spec`: each target that can be read by itself.
pub(super) fn readable_targets(spec: &Tree) -> Vec<PolicyTarget> {
    let items = match spec.get("targetRefs").map(|node| &node.value) {
        Some(Value::List(items)) => items.as_slice(),
        _ => &[],
    };
    items.iter().take(MOST_TARGETS).filter_map(|item| PolicyTarget::deserialize(item).ok()).collect()
}

impl Spec for BackendTlsPolicy {
    fn check(&self, check: &mut Check<'_>) {
        if self.target_refs.is_empty() {
            check.error("spec.targetRefs", "it is for nothing", "name a Service");
        }
        check.few("spec.targetRefs", self.target_refs.len(), MOST_TARGETS);
        for (index, target) in self.target_refs.iter().enumerate() {
            name(&format!("spec.targetRefs[{index}]"), &target.name, check);
        }
        check.once(self.target_refs.iter().enumerate().map(|(i, target)| (format!("spec.targetRefs[{i}]"), target)));
        let validation = &self.validation;
        let ways = [
            ("caCertificateRefs", !validation.ca_certificate_refs.is_empty()),
            ("wellKnownCACertificates", validation.well_known_ca_certificates.is_some()),
        ];
        if check.one_of("spec.validation", &ways) == 0 {
            check.error(
                "spec.validation",
                "nobody is believed",
                "add caCertificateRefs, or wellKnownCACertificates: System",
            );
        }
        check.few("spec.validation.caCertificateRefs", validation.ca_certificate_refs.len(), MOST_ROOTS);
        check.must("spec.validation.hostname", hostname(&validation.hostname));
        check.few("spec.validation.subjectAltNames", validation.subject_alt_names.len(), MOST_NAMES);
        for (index, one) in validation.subject_alt_names.iter().enumerate() {
            let field = format!("spec.validation.subjectAltNames[{index}]");
            let (wanted, other) = match one.kind {
                NameKind::Hostname => (("hostname", one.hostname.is_some()), one.uri.is_some()),
                NameKind::Uri => (("uri", one.uri.is_some()), one.hostname.is_some()),
            };
            if !wanted.1 || other {
                check.error(
                    &field,
                    format!("it must have `{}`, and nothing else", wanted.0),
                    "it is what the type says",
                );
            }
            if let Some(host) = &one.hostname {
                check.must(format!("{field}.hostname"), hostname(host));
            }
            if let Some(uri) = &one.uri {
                check.must(&field, meta::told(uri));
            }
        }
    }
}

/// What a ReferenceGrant allows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ReferenceGrant {
    /// Who names.
    pub from: Vec<Grantee>,
    /// What is named.
    pub to: Vec<Granted>,
}

/// Who names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Grantee {
    /// Their group.
    pub group: String,
    /// Their kind.
    pub kind: String,
    /// Their namespace.
    pub namespace: String,
}

/// What is named.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Granted {
    /// Its group; empty is the core.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Any if it is not said.
    pub name: Option<String>,
}

impl Spec for ReferenceGrant {
    fn check(&self, check: &mut Check<'_>) {
        for (field, is_empty) in [("spec.from", self.from.is_empty()), ("spec.to", self.to.is_empty())] {
            if is_empty {
                check.error(field, "it allows nothing", "add an item, or delete the object");
            }
        }
        for (index, from) in self.from.iter().enumerate() {
            super::reference::namespace(&format!("spec.from[{index}]"), Some(&from.namespace), check);
            if from.kind.is_empty() {
                check.error(format!("spec.from[{index}].kind"), "the kind is empty", "");
            }
        }
        for (index, to) in self.to.iter().enumerate().filter(|(_, to)| to.kind.is_empty()) {
            check.error(format!("spec.to[{index}].kind"), format!("the kind of {:?} is empty", to.name), "");
        }
    }
}
