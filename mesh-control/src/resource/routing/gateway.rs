//! Gateway of the Gateway API: what is listened for, who may attach routes, and with which certificates.

mod infrastructure;

use std::collections::BTreeMap;

use mesh_core::ports;
use serde::Deserialize;

pub use infrastructure::{Copied, Infrastructure};

use super::reference::{ObjectReference, hostname, name, namespace};
use super::{Check, Spec};
use crate::diagnosis::closest;
use crate::resource::{Labels, meta};
use crate::yaml::node::Node as Tree;

const MOST_LISTENERS: usize = 64;

/// What a Gateway asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// Who makes it.
    pub gateway_class_name: String,
    /// What it listens for.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Addresses that it should have.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// What the pods that serve it should have.
    pub infrastructure: Option<Infrastructure>,
    /// Who else may add listeners.
    pub allowed_listeners: Option<AllowedListeners>,
    /// With which certificates it shows itself to backends, and believes clients.
    pub tls: Option<GatewayTls>,
    /// Routes that name no gateway belong to it.
    pub default_scope: Option<String>,
    /// Of its own labels and annotations those that what serves it has, too.
    #[serde(skip)]
    pub copied: Copied,
}

/// What is listened for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// What routes call it.
    pub name: String,
    /// The host; all if it is not said.
    pub hostname: Option<String>,
    /// The port.
    pub port: u16,
    /// HTTP, HTTPS, TLS, TCP, UDP, or one of an implementation.
    pub protocol: String,
    /// With which certificates.
    pub tls: Option<ListenerTls>,
    /// Whose routes; those of its own namespace if it is not said.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// With which certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTls {
    /// Terminate if it is not said.
    pub mode: Option<Mode>,
    /// Secrets.
    pub certificate_refs: Vec<ObjectReference>,
    /// In an older form: who clients are believed by.
    pub frontend_validation: Option<Validation>,
    /// What an implementation makes of it.
    pub options: BTreeMap<String, String>,
}

/// What is done with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Mode {
    /// It ends here.
    Terminate,
    /// It is passed on.
    Passthrough,
}

/// Who clients are believed by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Validation {
    /// ConfigMaps or Secrets with certificates.
    pub ca_certificate_refs: Vec<ObjectReference>,
    /// Whether a client must have one that is believed; it must if it is not said.
    pub mode: Option<ValidationMode>,
}

/// Whether a client must have a certificate that is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ValidationMode {
    /// Others are not let in.
    AllowValidOnly,
    /// Others are let in all the same, and known for what they are.
    AllowInsecureFallback,
}

/// Whose routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AllowedRoutes {
    /// Of which namespaces.
    pub namespaces: Option<RouteNamespaces>,
    /// Of which kinds; those that fit the protocol if it is not said.
    pub kinds: Vec<RouteKind>,
}

/// Of which namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// Same if it is not said.
    pub from: Option<Origin>,
    /// With `from: Selector`.
    pub selector: Option<Selector>,
}

/// Of which namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum Origin {
    All,
    Selector,
    Same,
    None,
}

/// By labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// All of these.
    pub match_labels: Labels,
    /// And these.
    pub match_expressions: Vec<Expression>,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// What it is compared with.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What is asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether `labels` satisfy it.
    pub fn selects(&self, labels: &Labels) -> bool {
        meta::selects(&self.match_labels, labels)
            && self.match_expressions.iter().all(|expression| {
                let value = labels.get(&expression.key);
                match expression.operator {
                    Operator::In => value.is_some_and(|value| expression.values.contains(value)),
                    Operator::NotIn => value.is_none_or(|value| !expression.values.contains(value)),
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

/// A kind of routes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RouteKind {
    /// None is the Gateway API's.
    pub group: Option<String>,
    /// Its name.
    pub kind: String,
}

impl RouteKind {
    /// Whether it is this kind of the Gateway API.
    pub fn is(&self, kind: &str) -> bool {
        self.kind == kind && self.group.as_deref().is_none_or(|group| group == "gateway.networking.k8s.io")
    }
}

/// An address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Address {
    /// IPAddress if it is not said.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Any of the type if it is not said.
    pub value: Option<String>,
}

/// Who else may add listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AllowedListeners {
    /// Of which namespaces; of none if it is not said.
    pub namespaces: Option<RouteNamespaces>,
}

/// With which certificates it shows itself, and believes others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GatewayTls {
    /// To backends.
    pub backend: Option<BackendTls>,
    /// To clients.
    pub frontend: Option<Frontend>,
}

/// To backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTls {
    /// A Secret.
    pub client_certificate_ref: Option<ObjectReference>,
}

/// To clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Frontend {
    /// On all ports.
    pub default: Option<FrontendTls>,
    /// On single ports.
    pub per_port: Vec<FrontendPort>,
}

/// How clients are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FrontendTls {
    /// Nothing is asked of them if it is not said.
    pub validation: Option<Validation>,
}

/// On one port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FrontendPort {
    /// The port.
    pub port: u16,
    /// How clients are believed.
    pub tls: FrontendTls,
}

/// What may be spoken; others have a domain in their name.
const PROTOCOLS: [&str; 6] = ["HTTP", "HTTPS", "TLS", "TCP", "UDP", "HBONE"];

impl Spec for Gateway {
    fn take_metadata(&mut self, metadata: &Tree) {
        self.copied = Copied::of(self, metadata);
    }

    fn check(&self, check: &mut Check<'_>) {
        if self.gateway_class_name.is_empty() {
            check.error("spec.gatewayClassName", "the class is empty", "write as `undermesh`");
        }
        if self.listeners.is_empty() && self.allowed_listeners.is_none() {
            check.error(
                "spec.listeners",
                "it listens for nothing",
                "add a listener with `name`, `port` and `protocol`",
            );
        }
        check_listeners(&self.listeners, "make several gateways of it", check);
        let allowed = self.allowed_listeners.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
        allowed.into_iter().for_each(|namespaces| namespaces.check("spec.allowedListeners", check));
        self.topology(check.problems);
        for (index, address) in self.addresses.iter().enumerate() {
            let is_ip = address.kind.as_deref().is_none_or(|kind| kind == "IPAddress");
            let bad = address.value.as_deref().filter(|value| is_ip && value.parse::<std::net::IpAddr>().is_err());
            if let Some(value) = bad {
                check.error(format!("spec.addresses[{index}].value"), format!("{value:?} is not an address"), "");
            }
        }
    }
}

/// Looks at the listeners of an object, each beside the others.
pub(super) fn check_listeners(all: &[Listener], of_too_many: &str, check: &mut Check<'_>) {
    if all.len() > MOST_LISTENERS {
        check.error("spec.listeners", format!("more than {MOST_LISTENERS}"), of_too_many);
    }
    let listeners = all.iter().enumerate();
    check.once(listeners.clone().map(|(i, listener)| (format!("spec.listeners[{i}].name"), &listener.name)));
    let places = listeners.clone().map(|(i, l)| {
        let place =
            (l.port, if l.protocol == "UDP" { "UDP" } else { "TCP" }, l.protocol.as_str(), l.hostname.as_deref());
        (format!("spec.listeners[{i}]"), place)
    });
    check.once(places);
    for (index, listener) in listeners {
        listener.check(&format!("spec.listeners[{index}]"), check);
    }
}

impl Gateway {
    /// What it listens for outside of the mesh: what has any is a gateway.
    pub fn edges(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(|listener| listener.protocol != "HBONE")
    }

    /// Where it takes tunnels of the mesh: what has any is a waypoint.
    pub fn tunnels(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(|listener| listener.protocol == "HBONE" && listener.port == ports::HBONE)
    }
}

impl Listener {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        name(field, &self.name, check);
        check.port(format!("{field}.port"), self.port);
        if let Some(host) = &self.hostname {
            check.must(format!("{field}.hostname"), hostname(host));
            if ["TCP", "UDP"].contains(&self.protocol.as_str()) {
                check.error(
                    format!("{field}.hostname"),
                    format!("{} has no names of hosts", self.protocol),
                    "delete the field",
                );
            }
        }
        if !PROTOCOLS.contains(&self.protocol.as_str()) && !self.protocol.contains('/') {
            let help = closest(&self.protocol, &PROTOCOLS).map(|meant| format!("did you mean `{meant}`?"));
            let help = help.unwrap_or_else(|| {
                format!("write one of {}, or one of an implementation, as example.com/x", PROTOCOLS.join(", "))
            });
            // The others of the Gateway count: only this one is refused, in its status.
            check.warning(format!("{field}.protocol"), format!("{:?} is no protocol", self.protocol), &help);
        }
        match (self.protocol.as_str(), &self.tls) {
            ("HTTP" | "TCP" | "UDP", Some(_)) => {
                check.error(
                    format!("{field}.tls"),
                    format!("{} is spoken without TLS", self.protocol),
                    "write `protocol: HTTPS` or TLS",
                );
            }
            ("HTTPS" | "TLS", None) => check.error(
                field,
                format!("{} needs `tls`", self.protocol),
                "add `tls: {certificateRefs: [{name: …}]}`",
            ),
            ("HTTPS", Some(tls)) if tls.mode == Some(Mode::Passthrough) => {
                check.error(
                    format!("{field}.tls.mode"),
                    "HTTPS ends at the gateway",
                    "write `protocol: TLS` for passing it on",
                );
            }
            ("HTTPS" | "TLS", Some(tls)) => tls.check(&format!("{field}.tls"), check),
            _ => {}
        }
        let namespaces = self.allowed_routes.as_ref().and_then(|routes| routes.namespaces.as_ref());
        namespaces.into_iter().for_each(|namespaces| namespaces.check(&format!("{field}.allowedRoutes"), check));
    }
}

impl RouteNamespaces {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        let field = format!("{field}.namespaces");
        match (self.from, &self.selector) {
            (Some(Origin::Selector), None) => check.error(&field, "the field `selector` is missing", ""),
            (Some(Origin::All | Origin::Same | Origin::None) | None, Some(_)) => {
                check.warning(
                    format!("{field}.selector"),
                    "it counts with `from: Selector` only: it is ignored",
                    "write `from: Selector`, or delete it",
                );
            }
            _ => {}
        }
    }

    /// Whether what is of `namespace` is meant, which has these labels. `own` is that of whoever says it, `unsaid` what counts where nothing is said.
    pub fn takes(&self, unsaid: Origin, own: &str, namespace: &str, labels: impl FnOnce() -> Labels) -> bool {
        match self.from.unwrap_or(unsaid) {
            Origin::All => true,
            Origin::Same => own == namespace,
            Origin::None => false,
            Origin::Selector => self.selector.as_ref().is_some_and(|selector| selector.selects(&labels())),
        }
    }
}

impl ListenerTls {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        let ends = self.mode != Some(Mode::Passthrough);
        if ends && self.certificate_refs.is_empty() && self.options.is_empty() {
            check.error(
                field,
                "there is no certificate to show",
                "add `certificateRefs: [{name: …}]`, the name of a Secret of type kubernetes.io/tls",
            );
        }
        for (index, reference) in self.certificate_refs.iter().enumerate() {
            let field = format!("{field}.certificateRefs[{index}]");
            name(&field, &reference.name, check);
            namespace(&field, reference.namespace.as_deref(), check);
        }
    }
}
