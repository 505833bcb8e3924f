//! What gateways listen for: for each Gateway of the Gateway API of a class of ours its listeners and those of its ListenerSets, each with the routes that are
//! attached to it and no others; and after them the servers of Istio's Gateways that select its pods ([`classic`]). Called with the rules that `l7` has read; what comes of it is `mesh_core::listener::Listeners`.
//!
//! ```text
//! Gateway ── standing: which listeners count ──┐
//! routes attached to a listener ── names that both have ── l7::order ── Table, or passages ──> Listener ──> Listeners of a gateway
//! ```

mod bytes;
mod classic;
mod connections;
mod datagrams;
pub mod frontend;
mod names;
mod server_tls;
pub mod standing;
pub mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::l7::order::{Candidate, assemble};
use mesh_core::l7::{HostPattern, Table};
use mesh_core::listener::{self, Clients, Encryption, Listeners, Serves, Tls, Transport};
use mesh_core::{ArcStr, NamespacedName};

use super::{Around, Problems, Read};
use crate::diagnosis::Problem;
use crate::index::Settings;
use crate::index::certificates::{Part, Reference};
use crate::index::routing::hosts::Host;
use crate::index::routing::order::created;
use crate::index::routing::parents::{Attached, Owner, hostnames};
use crate::resource::gateway_ports::GatewayPorts;
use crate::resource::gateway_topology::GatewayTopology;
use crate::resource::routing::gateway::{Gateway, Listener};
use crate::resource::routing::reference::ObjectReference;
use crate::resource::routing::{Routed, Routing};
use crate::resource::secret::named;
use crate::resource::waypoint::{self, GATEWAY_NAME, gateway_label};
use crate::resource::{Key, Kind, Labels};
use standing::Standing;

/// What comes of all Gateways.
#[derive(Debug, Default)]
pub struct Indexed {
    /// What each gateway of ours listens for.
    pub listeners: BTreeMap<NamespacedName, Arc<Listeners>>,
    /// The Secrets that they name.
    pub references: Vec<Reference>,
    /// Of Istio's objects those that are acted on.
    pub in_force: BTreeSet<Key>,
}

/// What each gateway of ours listens for. Istio's own kinds are Istio's where it runs.
pub fn index(around: &Around<'_>, read: &Read, settings: &Settings, problems: &mut Problems) -> Indexed {
    let with_istio_s = !settings.istio_runs;
    let ours =
        around.routes.gateways.iter().filter(|(_, gateway)| matches!(around.hosts.owner(gateway), Owner::Ours(_)));
    let mut made = Indexed::default();
    let mut selected = BTreeSet::new();
    let listens = |name: &NamespacedName, gateway: &Routed<Gateway>| {
        gateway.spec.edges().next().is_some() || around.resolved.sets.contains_key(name)
    };
    for (name, gateway) in ours.filter(|(name, gateway)| listens(name, gateway)) {
        let mut wrong = Vec::new();
        let ports = GatewayPorts::of(&gateway.marks, &mut wrong);
        problems.extend(wrong.into_iter().map(|problem| (gateway_key(name), problem)));
        let mut all = listeners(name, gateway, &ports, around, read, &mut made.references, problems);
        let classic = match with_istio_s {
            true => classic::of(name, &labels(name, gateway, around), &ports, around, read, problems),
            false => Default::default(),
        };
        let own: Vec<Arc<listener::Listener>> = classic.listeners.iter().map(|(one, ..)| Arc::clone(one)).collect();
        all.extend(own);
        let all = Listeners::new(name.to_string(), all).behind(topology(name, gateway, around, settings).topology());
        for one in all.shadowed() {
            let Some((_, key, field)) = classic.listeners.iter().find(|(own, ..)| Arc::ptr_eq(own, one)) else {
                continue;
            };
            let message = format!("port {} is another listener's at gateway {name}, under all of its hosts", one.port);
            problems.push((
                key.clone(),
                Problem::error(field.clone(), message).help("the first counts: change one of them"),
            ));
        }
        for (one, key, field) in classic.listeners.iter().filter(|(one, ..)| all.is_unclear(one)) {
            let message = format!(
                "port {} of gateway {name} has several servers of bytes that are ISTIO_MUTUAL: tunnels do not say which is meant",
                one.port
            );
            let help = "write a port for each; until then only clients that begin TLS of their own reach them";
            problems.push((key.clone(), Problem::error(field.clone(), message).help(help)));
        }
        selected.extend(classic.in_force.iter().cloned());
        made.references.extend(classic.references);
        made.listeners.insert(name.clone(), Arc::new(all));
    }
    made.in_force = selected;
    made
}

/// Whether gateways go through the waypoint of a service, if it has one: it says so, or its namespace does, or nothing may go around that waypoint, whatever they say.
pub fn goes_through(service: &NamespacedName, around: &Around<'_>) -> bool {
    if around.refusing.contains(service) {
        return true;
    }
    let of_namespace = |namespace: &str| waypoint::ingress(Some(&around.hosts.labels(namespace)));
    match around.hosts.keyed(service) {
        Some(Host::Service(object)) => object.ingress.or_else(|| of_namespace(&object.namespace)) == Some(true),
        // Its own label alone: what its waypoint leads to an egress gateway would come back.
        Some(Host::Entry(entry)) => waypoint::ingress(Some(&entry.marks)) == Some(true),
        None => false,
    }
}

/// The labels of a gateway's pods: those that it asks for, and those of pods that there are.
fn labels(name: &NamespacedName, gateway: &Routed<Gateway>, around: &Around<'_>) -> BTreeSet<Labels> {
    let mut own = gateway.spec.labels().clone();
    own.insert(GATEWAY_NAME.to_owned(), gateway_label(&gateway.name).to_string());
    let mut all = around.pods.get(name).cloned().unwrap_or_default();
    all.insert(own);
    all
}

/// What stands before a gateway: as it says itself, else as its pods do, else as the mesh settings do. What it says itself has been read before.
fn topology(
    name: &NamespacedName,
    gateway: &Routed<Gateway>,
    around: &Around<'_>,
    settings: &Settings,
) -> GatewayTopology {
    let own = gateway.spec.topology(&mut Vec::new());
    let of_pods = around.topologies.get(name).cloned().unwrap_or_default();
    own.or(&of_pods).or(&settings.topology)
}

fn listeners(
    name: &NamespacedName,
    gateway: &Routed<Gateway>,
    ports: &GatewayPorts,
    around: &Around<'_>,
    read: &Read,
    references: &mut Vec<Reference>,
    problems: &mut Problems,
) -> Vec<Arc<listener::Listener>> {
    let mut all = Vec::new();
    for (entry, standing) in standing::of(name, &gateway.spec, around) {
        match standing {
            Standing::Tunnels => {}
            Standing::Serves => {
                let written = entry.listener;
                let frontend = frontend::of(gateway, &entry.object, written, around.routes);
                if entry.object.kind != Kind::Gateway && frontend::own(written).is_some() {
                    let field = format!("spec.listeners[{}].tls.frontendValidation", entry.index);
                    let problem = Problem::warning(field, "whom clients must be known to is for the Gateway to say");
                    let help = "delete the field; the Gateway says it in `spec.tls.frontend`";
                    problems.push((entry.object.clone(), problem.help(help)));
                }
                let clients = frontend.as_ref().map(frontend::Frontend::clients);
                let one = One { name, object: &entry.object, written, clients, ports, around, read };
                references.extend(one.references(entry.index));
                all.push(Arc::new(one.listener()));
                for (field, (reason, why)) in frontend.iter().flat_map(|frontend| &frontend.broken) {
                    let problem = Problem::error(field.clone(), why.clone());
                    problems
                        .push((gateway_key(name), problem.help(format!("clients are not believed by it ({reason})"))));
                }
                references
                    .extend(frontend.into_iter().flat_map(|own| own.references(name, &entry.object, &written.name)));
            }
            Standing::Refused(reason, why) => {
                let problem = Problem::error(format!("spec.listeners[{}]", entry.index), why);
                let help = format!("until then nothing is listened for there ({})", reason.name());
                problems.push((entry.object, problem.help(help)));
            }
        }
    }
    all
}

fn gateway_key(name: &NamespacedName) -> Key {
    Key { kind: Kind::Gateway, namespace: name.namespace.clone(), name: name.name.clone() }
}

/// One listener that counts.
struct One<'a> {
    /// Its Gateway.
    name: &'a NamespacedName,
    /// What it stands in: that, or a ListenerSet.
    object: &'a Key,
    written: &'a Listener,
    /// What is asked of its clients.
    clients: Option<Clients>,
    /// Where its port leads.
    ports: &'a GatewayPorts,
    around: &'a Around<'a>,
    read: &'a Read,
}

impl One<'_> {
    fn listener(&self) -> listener::Listener {
        let written = self.written;
        let encryption = match (written.protocol.as_str(), standing::passes(written)) {
            ("HTTPS", _) | ("TLS", false) => Encryption::Ends(self.tls()),
            ("TLS", true) => Encryption::Passes,
            _ => Encryption::None,
        };
        let serves = match written.protocol.as_str() {
            "HTTP" | "HTTPS" => self.table(),
            "UDP" => Serves::Datagrams(self.attached().find_map(|(key, _)| datagrams::route(key, self.around))),
            _ => Serves::Bytes(self.passages()),
        };
        let (transport, bind) = match written.protocol.as_str() {
            "UDP" => (Transport::Udp, written.port),
            _ => (Transport::Tcp, self.ports.target(written.port)),
        };
        listener::Listener {
            name: self.title(),
            gateway: self.name.to_string().into(),
            port: written.port,
            bind,
            transport,
            hosts: names::shared(written.hostname.as_deref(), &[]),
            encryption,
            serves,
        }
    }

    fn title(&self) -> ArcStr {
        format!("{} {}", self.object, self.written.name).into()
    }

    /// The Secrets that it may show, for whoever looks for them.
    fn references(&self, index: usize) -> impl Iterator<Item = Reference> {
        let own = self.written.tls.iter().filter(|_| !standing::passes(self.written));
        let own = own.flat_map(|tls| tls.certificate_refs.iter().enumerate());
        let own = own.filter(|(_, reference)| standing::may_show(reference, self.object, self.around.routes));
        own.map(move |(at, reference)| Reference {
            gateway: self.name.clone(),
            object: self.object.clone(),
            listener: self.written.name.as_str().into(),
            field: format!("spec.listeners[{index}].tls.certificateRefs[{at}]"),
            holder: self.secret(reference),
            or: None,
            part: Part::Shown,
        })
    }

    fn secret(&self, reference: &ObjectReference) -> Key {
        let namespace = reference.namespace.as_deref().unwrap_or(&self.object.namespace);
        Key { kind: Kind::Secret, namespace: namespace.into(), name: reference.name.as_str().into() }
    }

    /// Names of Secrets. Those that may not be named, or are no Secrets, are told of where references are looked at, and nobody has them.
    fn tls(&self) -> Tls {
        let references = self.written.tls.iter().flat_map(|tls| &tls.certificate_refs);
        let may_be = references.filter(|reference| standing::may_show(reference, self.object, self.around.routes));
        let shown = may_be.map(|reference| named(&self.secret(reference))).collect();
        Tls { clients: self.clients.clone(), spoken: self.around.defaults.tls.spoken(), ..Tls::with(shown) }
    }

    fn table(&self) -> Serves {
        let mut candidates: Vec<(Vec<HostPattern>, Candidate)> = Vec::new();
        for (key, hosts) in self.attached() {
            let rules = self.read.routes.get(key).into_iter().flatten();
            candidates.extend(rules.map(|candidate| (hosts.clone(), candidate.clone())));
        }
        let hosts = assemble(&candidates).into_iter().map(Arc::new).collect();
        Serves::Http(Arc::new(Table::new(self.title(), hosts)))
    }

    fn passages(&self) -> Vec<listener::Passage> {
        bytes::passages(self.attached().filter_map(|(key, hosts)| {
            let route = self.around.resolved.routes.get(key)?;
            Some((key, hosts, bytes::forward(key, route, self.around)))
        }))
    }

    /// Routes that are attached here, the oldest first, with the names that both have.
    fn attached(&self) -> impl Iterator<Item = (&Key, Vec<HostPattern>)> {
        let is_here = |to: &Attached| match to {
            Attached::Listeners(object, names) => object == self.object && names.contains(&self.written.name),
            _ => false,
        };
        let all = self.around.resolved.routes.iter().filter_map(move |(key, route)| {
            route.parents.iter().find(|(_, outcome)| outcome.as_ref().is_ok_and(is_here))?;
            let object = object(key, self.around)?;
            Some((key, names::shared(self.written.hostname.as_deref(), hostnames(&object))))
        });
        let mut all: Vec<_> = all.collect();
        // Stable: those of one age stay in the order of their names.
        all.sort_by_cached_key(|(key, _)| created(self.around.routes, key));
        all.into_iter()
    }
}

fn object(key: &Key, around: &Around<'_>) -> Option<Routing> {
    let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
    let routes = around.routes;
    match key.kind {
        Kind::HttpRoute => routes.http_routes.get(&name).cloned().map(Routing::HttpRoute),
        Kind::GrpcRoute => routes.grpc_routes.get(&name).cloned().map(Routing::GrpcRoute),
        Kind::TlsRoute => routes.tls_routes.get(&name).cloned().map(Routing::TlsRoute),
        Kind::TcpRoute => routes.tcp_routes.get(&name).cloned().map(Routing::TcpRoute),
        Kind::UdpRoute => routes.udp_routes.get(&name).cloned().map(Routing::UdpRoute),
        _ => None,
    }
}
