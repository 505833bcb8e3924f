//! What routes of the Gateway API belong to: services of the mesh, and listeners of our gateways.

use mesh_core::NamespacedName;

use super::hosts::{Host, Hosts};
use super::listener_sets;
use crate::index::Settings;
use crate::resource::mesh_config::IstioNames;
use crate::resource::routing::gateway::{Listener, Mode, Origin};
use crate::resource::routing::grants::GatewayClass;
use crate::resource::routing::reference::{CONTROLLER, ParentReference, is_our_class};
use crate::resource::routing::{Routed, Routes, Routing};
use crate::resource::{Key, Kind, Labels, Objects};

/// What a route was attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Requests to a service, on one port of it or on all.
    Service(NamespacedName, Option<u16>),
    /// Requests to the hosts of a ServiceEntry that are services, of which there is one.
    Entry(Vec<NamespacedName>, Option<u16>),
    /// Requests to some listeners of a Gateway or a ListenerSet.
    Listeners(Key, Vec<String>),
}

impl Attached {
    /// The services, and on which port; none of a gateway.
    pub fn services(&self) -> (&[NamespacedName], Option<u16>) {
        match self {
            Attached::Service(service, port) => (std::slice::from_ref(service), *port),
            Attached::Entry(services, port) => (services, *port),
            Attached::Listeners(..) => (&[], None),
        }
    }
}

/// Why a route was not attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In one word.
    pub reason: Reason,
    /// For people.
    pub why: String,
}

/// The Gateway API's words for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are called as in conditions")]
pub enum Reason {
    NoMatchingParent,
    NotAllowedByListeners,
    NoMatchingListenerHostname,
    Conflicted,
}

impl Reason {
    /// As in conditions.
    pub fn name(self) -> &'static str {
        match self {
            Reason::NoMatchingParent => "NoMatchingParent",
            Reason::NotAllowedByListeners => "NotAllowedByListeners",
            Reason::NoMatchingListenerHostname => "NoMatchingListenerHostname",
            Reason::Conflicted => "Conflicted",
        }
    }
}

/// What came of looking for a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is no such gateway, or none that counts, so nobody knows whose it would be; why.
    Missing(String),
    /// It may be there: its kind, or that of its class, has never been heard of.
    Unknown,
    /// It is another controller's.
    Foreign,
    /// It is ours.
    Ours(Result<Attached, Refusal>),
}

/// The parents of a route; `None` of what is no route.
pub fn of(object: &Routing) -> Option<&[ParentReference]> {
    Some(match object {
        Routing::HttpRoute(route) => &route.spec.parent_refs,
        Routing::GrpcRoute(route) => &route.spec.parent_refs,
        Routing::TlsRoute(route) => &route.spec.parent_refs,
        Routing::TcpRoute(route) => &route.spec.parent_refs,
        Routing::UdpRoute(route) => &route.spec.0.parent_refs,
        _ => return None,
    })
}

/// The hosts that a route is for; all if there are none.
pub fn hostnames(object: &Routing) -> &[String] {
    match object {
        Routing::HttpRoute(route) => &route.spec.hostnames,
        Routing::GrpcRoute(route) => &route.spec.hostnames,
        Routing::TlsRoute(route) => &route.spec.hostnames,
        _ => &[],
    }
}

/// Looks for a parent of the route `key`, which is for hosts that are called `own`.
pub fn resolve(parent: &ParentReference, key: &Key, own: &[String], routes: &Routes, hosts: &Hosts<'_>) -> Found {
    let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
    let group = parent.group.as_deref().unwrap_or("gateway.networking.k8s.io");
    let name = NamespacedName::new(namespace, parent.name.as_str());
    match (group, parent.kind.as_deref().unwrap_or("Gateway")) {
        ("", "Service") | ("networking.istio.io", "ServiceEntry") if key.kind == Kind::UdpRoute => {
            let why = "datagrams within the mesh go to what they ask for: only a Gateway takes a UDPRoute";
            Found::Ours(refused(Reason::NoMatchingParent, why.to_owned()))
        }
        ("", "Service") => Found::Ours(match hosts.service(namespace, &parent.name) {
            None => refused(Reason::NoMatchingParent, format!("there is no Service {name}")),
            Some(service) if service.is_headless || service.is_alias => {
                let what = if service.is_alias { "is another name of a host" } else { "is headless" };
                let why = format!("Service {name} {what}: nobody asks for it by an address, so no request is for it");
                refused(Reason::NoMatchingParent, why)
            }
            Some(service) => port(parent, Host::Service(service), |section| {
                service.ports.iter().find(|port| port.name == section).map(|port| port.port)
            })
            .map(|port| Attached::Service(hosts.key(service), port)),
        }),
        ("networking.istio.io", "ServiceEntry") => Found::Ours(match routes.service_entries.get(&name) {
            None if hosts.is_unheard(Kind::ServiceEntry) => return Found::Unknown,
            None => {
                let is_there = hosts.all().service_entries.contains_key(&name);
                refused(Reason::NoMatchingParent, hosts.missing("ServiceEntry", &name, is_there))
            }
            Some(entry) => port(parent, Host::Entry(entry), |section| {
                entry.spec.ports.iter().find(|port| port.name == section).map(|port| port.number)
            })
            .and_then(|port| match hosts.services_of(entry) {
                services if services.is_empty() => {
                    let why = format!(
                        "no host of ServiceEntry {name} is known by it: each is a pattern, or another object has it"
                    );
                    refused(Reason::NoMatchingParent, why)
                }
                services => Ok(Attached::Entry(services, port)),
            }),
        }),
        ("gateway.networking.k8s.io", "Gateway") => match routes.gateways.get(&name) {
            None if hosts.is_unheard(Kind::Gateway) => Found::Unknown,
            None => {
                let is_there = hosts.all().gateways.contains_key(&name);
                Found::Missing(hosts.missing("Gateway", &name, is_there))
            }
            Some(_) if hosts.is_unheard(Kind::GatewayClass) => Found::Unknown,
            Some(gateway) => match hosts.owner(gateway) {
                Owner::Ours(_) => {
                    let object = Key { kind: Kind::Gateway, namespace: name.namespace, name: name.name };
                    Found::Ours(listeners(parent, object, &gateway.spec.listeners, key, own, hosts))
                }
                Owner::Unknown => Found::Unknown,
                Owner::Foreign | Owner::Nobody => Found::Foreign,
            },
        },
        ("gateway.networking.k8s.io", "ListenerSet") => match routes.listener_sets.get(&name) {
            None if hosts.is_unheard(Kind::ListenerSet) => Found::Unknown,
            None => {
                let is_there = hosts.all().listener_sets.contains_key(&name);
                Found::Missing(hosts.missing("ListenerSet", &name, is_there))
            }
            Some(set) => match listener_sets::parent(set, routes, hosts) {
                listener_sets::Parent::Missing(why) => Found::Missing(format!("of ListenerSet {name}: {why}")),
                listener_sets::Parent::Unknown => Found::Unknown,
                listener_sets::Parent::Foreign => Found::Foreign,
                listener_sets::Parent::Ours(_, Err(why)) => {
                    let why = format!("ListenerSet {name} is attached to no Gateway: {why}");
                    Found::Ours(refused(Reason::NoMatchingParent, why))
                }
                listener_sets::Parent::Ours(_, Ok(())) => {
                    let object = Key { kind: Kind::ListenerSet, namespace: name.namespace, name: name.name };
                    Found::Ours(listeners(parent, object, &set.spec.listeners, key, own, hosts))
                }
            },
        },
        _ => Found::Foreign,
    }
}

/// Whose gateways of a class are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// Ours: its object says so, or it has a name of ours and no object.
    Ours(Option<&'a Routed<GatewayClass>>),
    /// Another controller's.
    Foreign,
    /// Nobody's: there is no such class.
    Nobody,
    /// Classes have never been heard of, and the name alone does not say it.
    Unknown,
}

/// Whose gateways of the class `name` are. An object says it, and else the name: ours are always ours, and Istio's are, too, unless an Istio runs that
/// claims them or the settings give them away. Before classes have been heard of Istio's names say nothing: somebody may claim them.
pub fn owner<'a>(name: &str, objects: &'a Objects, settings: &Settings) -> Owner<'a> {
    let with_istio = match settings.istio_names {
        IstioNames::Auto => settings.istio_runs,
        IstioNames::Own => false,
        IstioNames::Off => true,
    };
    match objects.routes.gateway_classes.get(&NamespacedName::new("", name)) {
        Some(class) if class.spec.controller_name == CONTROLLER => Owner::Ours(Some(class)),
        Some(_) => Owner::Foreign,
        None if is_our_class(name, true) => Owner::Ours(None),
        None if objects.unheard.contains(&Kind::GatewayClass) => Owner::Unknown,
        None if is_our_class(name, with_istio) => Owner::Ours(None),
        None if is_our_class(name, false) => Owner::Foreign,
        None => Owner::Nobody,
    }
}

fn refused<T>(reason: Reason, why: String) -> Result<T, Refusal> {
    Err(Refusal { reason, why })
}

/// The port of a service that is meant; `None` is all.
fn port(parent: &ParentReference, host: Host<'_>, named: impl Fn(&str) -> Option<u16>) -> Result<Option<u16>, Refusal> {
    let section = match parent.section_name.as_deref().map(|section| (section, named(section))) {
        Some((section, None)) => {
            return refused(Reason::NoMatchingParent, format!("{} has no port called {section:?}", parent.name));
        }
        Some((_, port)) => port,
        None => None,
    };
    match (parent.port, section) {
        (Some(port), _) if !host.has_port(port) => {
            refused(Reason::NoMatchingParent, format!("{} has no port {port}", parent.name))
        }
        (Some(port), Some(other)) if port != other => refused(
            Reason::NoMatchingParent,
            format!("{:?} is port {other} and not {port}", parent.section_name.as_deref().unwrap_or_default()),
        ),
        (port, section) => Ok(port.or(section)),
    }
}

/// The listeners of an object that a route means, and that take it.
fn listeners(
    parent: &ParentReference,
    object: Key,
    all: &[Listener],
    key: &Key,
    own: &[String],
    hosts: &Hosts<'_>,
) -> Result<Attached, Refusal> {
    let meant: Vec<&Listener> = all
        .iter()
        .filter(|listener| parent.section_name.as_ref().is_none_or(|section| *section == listener.name))
        .filter(|listener| parent.port.is_none_or(|port| port == listener.port))
        .collect();
    if meant.is_empty() {
        let section = parent.section_name.as_ref().map(|section| format!(" called {section:?}")).unwrap_or_default();
        let port = parent.port.map(|port| format!(" on port {port}")).unwrap_or_default();
        return refused(Reason::NoMatchingParent, format!("{object} has no listener{section}{port}"));
    }
    let allowed: Vec<&Listener> =
        meant.into_iter().filter(|listener| allows(listener, &object.namespace, key, hosts)).collect();
    if allowed.is_empty() {
        let why = format!(
            "no listener of {object} that is meant takes a {} of {}: see `allowedRoutes` and `protocol`",
            key.kind.name(),
            key.namespace
        );
        return refused(Reason::NotAllowedByListeners, why);
    }
    let fits = |listener: &&Listener| match &listener.hostname {
        Some(host) if !own.is_empty() => own.iter().any(|name| intersect(host, name)),
        _ => true,
    };
    let fitting: Vec<String> = allowed.into_iter().filter(fits).map(|listener| listener.name.clone()).collect();
    if fitting.is_empty() {
        let why = format!("no listener of {object} has any of {}", own.join(", "));
        return refused(Reason::NoMatchingListenerHostname, why);
    }
    Ok(Attached::Listeners(object, fitting))
}

/// The kinds of routes that fit the protocol of a listener.
pub fn routes_of(listener: &Listener) -> &'static [&'static str] {
    let ends = listener.tls.as_ref().is_none_or(|tls| tls.mode != Some(Mode::Passthrough));
    match listener.protocol.as_str() {
        "HTTP" | "HTTPS" => &["HTTPRoute", "GRPCRoute"],
        "TLS" if ends => &["TLSRoute", "TCPRoute"],
        "TLS" => &["TLSRoute"],
        "TCP" => &["TCPRoute"],
        "UDP" => &["UDPRoute"],
        "HBONE" => &["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"],
        _ => &[],
    }
}

/// Whether a listener takes a route: by its kind, and by where it lives.
fn allows(listener: &Listener, own: &str, key: &Key, hosts: &Hosts<'_>) -> bool {
    let kind = key.kind.name();
    let allowed = listener.allowed_routes.as_ref();
    let kinds = allowed.map(|allowed| allowed.kinds.as_slice()).unwrap_or_default();
    let is_listed = kinds.is_empty() || kinds.iter().any(|one| one.is(kind));
    routes_of(listener).contains(&kind)
        && is_listed
        && takes_from(listener, own, &key.namespace, || hosts.labels(&key.namespace))
}

/// Whether a listener takes what is of a namespace, which has these labels; `own` is that of the object that the listener stands in.
pub fn takes_from(listener: &Listener, own: &str, namespace: &str, labels: impl FnOnce() -> Labels) -> bool {
    let namespaces = listener.allowed_routes.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    namespaces.map_or(own == namespace, |namespaces| namespaces.takes(Origin::Same, own, namespace, labels))
}

/// Whether any host fits both names; each may begin with `*.`, which is one or more labels.
pub fn intersect(one: &str, two: &str) -> bool {
    let (one, two) = (one.to_ascii_lowercase(), two.to_ascii_lowercase());
    match (one.strip_prefix('*'), two.strip_prefix('*')) {
        (None, None) => one == two,
        (Some(suffix), None) => two.ends_with(suffix),
        (None, Some(suffix)) => one.ends_with(suffix),
        (Some(one), Some(two)) => one.ends_with(two) || two.ends_with(one),
    }
}
