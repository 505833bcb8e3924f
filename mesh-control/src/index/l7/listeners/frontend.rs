//! What the Gateway API asks of clients at HTTPS listeners (`spec.tls.frontend`): by which roots they are believed, and whether others come in all the same; and what a
//! Gateway shows to backends (`spec.tls.backend`). Of references to Secrets and ConfigMaps this is what is known without them.

use std::collections::BTreeMap;

use mesh_core::NamespacedName;
use mesh_core::listener::Clients;

use super::standing::{self, Standing, Why};
use crate::index::certificates::{Certified, Part, Reference};
use crate::index::l7::Around;
use crate::index::routing::backends::is_granted;
use crate::resource::routing::gateway::{Gateway, Listener, Validation, ValidationMode};
use crate::resource::routing::reference::ObjectReference;
use crate::resource::routing::{Routed, Routes};
use crate::resource::secret::named;
use crate::resource::{Key, Kind};

/// What is asked of the clients of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Roots, each with its field.
    pub roots: Vec<(String, Key)>,
    /// References that lead nowhere, each with its field.
    pub broken: Vec<(String, Why)>,
    /// Who is not believed comes in all the same.
    pub insecure: bool,
}

/// What a Gateway is told of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayTold {
    /// Some of its listeners let in clients that nobody vouches for.
    pub insecure: bool,
    /// Whether what it names to show to backends leads somewhere, if it names anything.
    pub shown: Option<Result<(), Why>>,
}

/// By Gateway.
pub type GatewaysTold = BTreeMap<NamespacedName, GatewayTold>;

/// What is asked of the clients of a listener that stands in `object`, if anything is: what is said of its port, else of all.
pub fn of(gateway: &Routed<Gateway>, object: &Key, listener: &Listener, routes: &Routes) -> Option<Frontend> {
    if listener.protocol != "HTTPS" {
        return None;
    }
    let (field, validation) = validation(&gateway.spec, object, listener)?;
    let mut made = Frontend { roots: Vec::new(), broken: Vec::new(), insecure: is_insecure(validation) };
    for (index, reference) in validation.ca_certificate_refs.iter().enumerate() {
        let field = format!("{field}.caCertificateRefs[{index}]");
        match holder(reference, gateway, routes) {
            Ok(holder) => made.roots.push((field, holder)),
            Err(why) => made.broken.push((field, why)),
        }
    }
    Some(made)
}

/// What a listener itself says of its clients, as older versions of the API had it.
pub fn own(listener: &Listener) -> Option<&Validation> {
    listener.tls.as_ref().and_then(|tls| tls.frontend_validation.as_ref())
}

fn validation<'a>(gateway: &'a Gateway, object: &Key, listener: &'a Listener) -> Option<(String, &'a Validation)> {
    // Who adds listeners to a Gateway does not say whom it believes.
    if let Some(own) = own(listener).filter(|_| object.kind == Kind::Gateway) {
        return Some((format!("spec.listeners[{}].tls.frontendValidation", listener.name), own));
    }
    let frontend = gateway.tls.as_ref()?.frontend.as_ref()?;
    let of_port = frontend.per_port.iter().enumerate().find(|(_, own)| own.port == listener.port);
    match of_port {
        // What it does not say there is not asked.
        Some((index, own)) => {
            Some((format!("spec.tls.frontend.perPort[{index}].tls.validation"), own.tls.validation.as_ref()?))
        }
        None => {
            let default = frontend.default.as_ref()?.validation.as_ref()?;
            Some(("spec.tls.frontend.default.validation".to_owned(), default))
        }
    }
}

fn is_insecure(validation: &Validation) -> bool {
    validation.mode == Some(ValidationMode::AllowInsecureFallback)
}

/// The ConfigMap or Secret with roots, or why it cannot be one or may not be named.
fn holder(reference: &ObjectReference, gateway: &Routed<Gateway>, routes: &Routes) -> Result<Key, Why> {
    let group = reference.group.as_deref().unwrap_or_default();
    let written = reference.kind.as_deref().unwrap_or("ConfigMap");
    let kind = match (group, written) {
        ("", "ConfigMap") => Kind::CaBundle,
        ("", "Secret") => Kind::Secret,
        _ => return Err(("InvalidCACertificateKind", format!("there are no roots in a {written}"))),
    };
    named_there(kind, written, reference, gateway, routes)
}

fn named_there(
    kind: Kind,
    written: &str,
    reference: &ObjectReference,
    gateway: &Routed<Gateway>,
    routes: &Routes,
) -> Result<Key, Why> {
    let namespace = reference.namespace.as_deref().unwrap_or(&gateway.namespace);
    let target = ("", written, namespace, reference.name.as_str());
    if namespace != &*gateway.namespace && !is_granted(routes, &key(gateway), target) {
        let why = format!("no ReferenceGrant of {namespace} lets it name {written} {}", reference.name);
        return Err(("RefNotPermitted", why));
    }
    Ok(Key { kind, namespace: namespace.into(), name: reference.name.as_str().into() })
}

/// What a Gateway shows to backends, if it names anything; or why that cannot be.
pub fn shown(gateway: &Routed<Gateway>, routes: &Routes) -> Option<Result<Key, Why>> {
    let reference = gateway.spec.tls.as_ref()?.backend.as_ref()?.client_certificate_ref.as_ref()?;
    let group = reference.group.as_deref().unwrap_or_default();
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    if (group, kind) != ("", "Secret") {
        let dot = if group.is_empty() { "" } else { "." };
        return Some(Err(("InvalidClientCertificateRef", format!("a {kind}{dot}{group} is no certificate"))));
    }
    Some(named_there(Kind::Secret, kind, reference, gateway, routes))
}

/// Where that stands.
pub const SHOWN: &str = "spec.tls.backend.clientCertificateRef";

fn key(gateway: &Routed<Gateway>) -> Key {
    Key { kind: Kind::Gateway, namespace: gateway.namespace.clone(), name: gateway.name.clone() }
}

impl Frontend {
    /// What the listener asks for.
    pub fn clients(&self) -> Clients {
        let roots = self.roots.iter().map(|(_, holder)| named(holder)).collect();
        Clients { required: !self.insecure, unverified: self.insecure, roots, ..Clients::default() }
    }

    /// What it names, for the listener of that name of `gateway` that stands in `object`.
    pub fn references(self, gateway: &NamespacedName, object: &Key, listener: &str) -> impl Iterator<Item = Reference> {
        self.roots.into_iter().map(move |(field, holder)| Reference {
            gateway: gateway.clone(),
            object: object.clone(),
            listener: listener.into(),
            field,
            holder,
            or: None,
            part: Part::Believed,
        })
    }
}

impl GatewayTold {
    /// What there is to tell it.
    pub fn of(name: &NamespacedName, gateway: &Routed<Gateway>, around: &Around<'_>) -> Self {
        let routes = around.routes;
        let all = standing::of(name, &gateway.spec, around).into_iter();
        let served = all.filter(|(_, standing)| matches!(standing, Standing::Serves));
        let mut asked = served.filter_map(|(entry, _)| of(gateway, &entry.object, entry.listener, routes));
        let insecure = asked.any(|frontend| frontend.insecure);
        Self { insecure, shown: shown(gateway, routes).map(|shown| shown.map(drop)) }
    }
}

/// Lays over it what is known of Secrets.
pub fn with_secrets(told: &GatewaysTold, certified: &Certified) -> GatewaysTold {
    let mut told = told.clone();
    for bad in certified.unresolved.iter().filter(|bad| bad.object.kind == Kind::Gateway && bad.listener.is_empty()) {
        let name = NamespacedName::new(bad.object.namespace.clone(), bad.object.name.clone());
        if let Some(own) = told.get_mut(&name) {
            own.shown = Some(Err(("InvalidClientCertificateRef", bad.why.clone())));
        }
    }
    told
}
