//! Istio's Gateways: their servers are listened for by the gateways of ours whose pods they select, beside what the Gateway API says there, which goes first.
//! Of a port without TLS all servers are one listener, as in Istio: each VirtualService counts for the hosts that it shares with a server of a Gateway that it
//! names. With TLS each server is one, because a client's name says which is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::l7::DirectResponse;
use mesh_core::l7::order::{Candidate, assemble};
use mesh_core::l7::redirect::{Redirect, RedirectPort};
use mesh_core::l7::{Action, Condition, Handling, HostPattern, Rule, Table, Text, VirtualHost};
use mesh_core::listener::{Encryption, Listener, Serves, Transport};
use mesh_core::{ArcStr, NamespacedName, ports};

use super::super::{Around, Problems, Read, virtual_service};
use super::connections;
use super::names::narrower;
use super::server_tls::{self, Refused};
use crate::diagnosis::Problem;
use crate::index::certificates::Reference;
use crate::index::routing::hosts::sees;
use crate::index::routing::order::age;
use crate::resource::gateway_ports::GatewayPorts;
use crate::resource::routing::istio_gateway::{IstioGateway, Server, ServerMode};
use crate::resource::routing::values::protocol;
use crate::resource::routing::{Routed, VirtualService};
use crate::resource::waypoint::{GATEWAY_NAME, TUNNEL, TUNNEL_HTTP};
use crate::resource::{Key, Kind, Labels, meta};

/// What pods of egress gateways have as the label `istio`.
const EGRESS: &str = "egressgateway";

/// What comes of Istio's Gateways for one gateway of ours.
#[derive(Debug, Default)]
pub(super) struct Classic {
    /// Listeners, each with the object and the field that it is made of.
    pub listeners: Vec<(Arc<Listener>, Key, String)>,
    /// Certificates that they name.
    pub references: Vec<Reference>,
    /// Gateways and VirtualServices that are acted on.
    pub in_force: BTreeSet<Key>,
}

/// What all servers of one port of the pods without TLS come to.
#[derive(Default)]
struct Plain {
    hosts: Vec<HostPattern>,
    candidates: Vec<(Vec<HostPattern>, Candidate)>,
    /// Of servers that have everything asked for by HTTPS.
    redirected: Vec<HostPattern>,
    /// Of the others.
    open: Vec<HostPattern>,
    /// The first server, with the port that its clients think of.
    first: Option<(Key, String, u16)>,
    /// What comes here wants to leave the mesh, and may only go to what the registry knows.
    bars_others: bool,
}

/// One server of a Gateway that selects the pods of `gateway`.
pub(super) struct One<'a> {
    /// The gateway of ours.
    pub gateway: &'a NamespacedName,
    pub object: &'a Routed<IstioGateway>,
    pub server: &'a Server,
    pub field: String,
    pub around: &'a Around<'a>,
    /// Where its port leads.
    ports: &'a GatewayPorts,
    read: &'a Read,
}

/// What Istio's Gateways ask of the gateway `gateway`, whose pods have any of these labels.
pub(super) fn of(
    gateway: &NamespacedName,
    labels: &BTreeSet<Labels>,
    ports: &GatewayPorts,
    around: &Around<'_>,
    read: &Read,
    problems: &mut Problems,
) -> Classic {
    let mut made = Classic::default();
    // By the port of the pods: ports of the Service that lead to one are one listener, as in Istio.
    let mut plain: BTreeMap<u16, Plain> = BTreeMap::new();
    // Of two that want the same the older one has it.
    let mut objects: Vec<_> = around.routes.istio_gateways.values().collect();
    objects.sort_by_key(|object| (object.created, object.namespace.clone(), object.name.clone()));
    for object in objects {
        let selector = &object.spec.selector;
        // In another namespace it means a gateway by a label that its owner gave it, not by one that all gateways have.
        let may =
            object.namespace == gateway.namespace || !(selector.is_empty() || selector.contains_key(GATEWAY_NAME));
        if !may || !labels.iter().any(|labels| meta::selects(selector, labels)) {
            continue;
        }
        for (index, server) in object.spec.servers.iter().enumerate() {
            let one = One { gateway, object, server, field: format!("spec.servers[{index}]"), around, ports, read };
            one.add(&mut made, &mut plain, problems);
        }
    }
    for (bind, plain) in plain {
        let Some((key, field, port)) = plain.first.clone() else { continue };
        made.listeners.push((Arc::new(plain.listener(gateway, port, bind, &key)), key, field));
    }
    made
}

impl Plain {
    /// Whether hosts of a VirtualService are to be asked for by HTTPS: of the servers that they are for the one with the narrowest host says so.
    fn is_redirected(&self, host: &HostPattern) -> bool {
        let covers = |own: &&HostPattern| narrower(own, host).as_ref() == Some(host);
        let length = |own: &HostPattern| match own {
            HostPattern::Exact(name) => (2, name.len()),
            HostPattern::Below(parent) => (1, parent.len()),
            HostPattern::Any => (0, 0),
        };
        let narrowest = |all: &[HostPattern]| all.iter().filter(covers).map(length).max();
        let redirected = narrowest(&self.redirected);
        redirected.is_some() && redirected >= narrowest(&self.open)
    }

    /// The hosts of `host` that are to be asked for by HTTPS, taken out of it. Its rules are for who has done so at a proxy in front.
    fn split(&self, host: &mut VirtualHost, redirect: &Rule) -> Option<VirtualHost> {
        let (redirected, open): (Vec<_>, Vec<_>) =
            std::mem::take(&mut host.hosts).into_iter().partition(|own| self.is_redirected(own));
        host.hosts = open;
        let rules = std::iter::once(redirect).chain(&host.rules).cloned().collect();
        (!redirected.is_empty()).then(|| VirtualHost { hosts: redirected, rules, ..host.clone() })
    }

    fn listener(self, gateway: &NamespacedName, port: u16, bind: u16, key: &Key) -> Listener {
        let redirect = Handling {
            origin: key.to_string().into(),
            ..Handling::new(Action::Redirect(Redirect {
                scheme: Some(http::uri::Scheme::HTTPS),
                host: None,
                port: RedirectPort::OfScheme,
                path: None,
                status: http::StatusCode::MOVED_PERMANENTLY,
            }))
        };
        // A proxy of one's own in front may have ended TLS: who came to it by HTTPS is not sent there again.
        let plain = Condition { scheme: Some(Text::Exact("http".into())), ..Condition::default() };
        let redirect = Rule { conditions: vec![plain], handling: Arc::new(redirect) };
        let mut hosts = assemble(&self.candidates);
        // What is to be asked for by HTTPS is never served without.
        let redirected: Vec<VirtualHost> = hosts.iter_mut().filter_map(|host| self.split(host, &redirect)).collect();
        hosts.extend(redirected);
        hosts.retain(|host| !host.hosts.is_empty());
        let has_routes = |pattern: &HostPattern| hosts.iter().any(|host| host.hosts.contains(pattern));
        let bare: Vec<HostPattern> = self.redirected.iter().filter(|pattern| !has_routes(pattern)).cloned().collect();
        let mut served = self.hosts;
        if self.bars_others {
            let answer = DirectResponse { status: http::StatusCode::BAD_GATEWAY, body: Default::default() };
            let handling = Handling { origin: key.to_string().into(), ..Handling::new(Action::Respond(answer)) };
            let rules = vec![Rule { conditions: Vec::new(), handling: Arc::new(handling) }];
            if !hosts.iter().any(|host| host.hosts.contains(&HostPattern::Any)) {
                hosts.push(VirtualHost {
                    name: "outside of the registry".into(),
                    hosts: vec![HostPattern::Any],
                    rules,
                    ..VirtualHost::default()
                });
            }
            if !served.contains(&HostPattern::Any) {
                served.push(HostPattern::Any);
            }
        }
        hosts.extend(bare.into_iter().map(|pattern| VirtualHost {
            name: pattern.to_string().into(),
            hosts: vec![pattern],
            rules: vec![redirect.clone()],
            ..VirtualHost::default()
        }));
        let name: ArcStr = format!("{gateway} port {port}").into();
        Listener {
            name: name.clone(),
            gateway: gateway.to_string().into(),
            port,
            bind,
            transport: Transport::Tcp,
            hosts: served,
            encryption: Encryption::None,
            serves: Serves::Http(Arc::new(Table::new(name, hosts.into_iter().map(Arc::new).collect()))),
        }
    }
}

impl One<'_> {
    /// The object.
    pub fn key(&self) -> Key {
        Key { kind: Kind::IstioGateway, namespace: self.object.namespace.clone(), name: self.object.name.clone() }
    }

    /// As VirtualServices name it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.object.namespace, self.object.name)
    }

    /// The number that clients think of.
    pub fn port(&self) -> u16 {
        self.server.port.number
    }

    /// The port of the pods.
    fn bind(&self) -> u16 {
        self.ports.target(self.port())
    }

    fn add(&self, made: &mut Classic, plain: &mut BTreeMap<u16, Plain>, problems: &mut Problems) {
        let mut told = |problem: Problem| problems.push((self.key(), problem));
        if ports::is_mesh_port(self.port()) {
            let message = format!("port {} is one of the mesh's own", self.port());
            return told(Problem::error(format!("{}.port.number", self.field), message).help("write another one"));
        }
        // Any address is what it has anyway.
        let is_any = |bind: &String| bind.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
        if self.server.bind.as_ref().is_some_and(|bind| !is_any(bind)) {
            let message = "a gateway listens on all of its pod's addresses";
            let help = "delete the field; until then nobody listens";
            return told(Problem::error(format!("{}.bind", self.field), message).help(help));
        }
        let mode = self.server.tls.as_ref().and_then(|tls| tls.mode);
        let spoken = protocol(&self.server.port.protocol);
        let is_http = matches!(spoken, Some("HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB"));
        if matches!(spoken, None | Some("UDP" | "HTTP_PROXY")) {
            let message = format!("{} is not served", self.server.port.protocol);
            return told(Problem::error(format!("{}.port.protocol", self.field), message).help("nobody listens there"));
        }
        if is_http {
            made.in_force.insert(self.key());
            return self.add_plain(made, plain.entry(self.bind()).or_default(), problems);
        }
        let secure = matches!(spoken, Some("HTTPS" | "TLS")) || self.server.tls.is_some();
        let passes = secure && matches!(mode, None | Some(ServerMode::Passthrough));
        let (encryption, refused) = match (&self.server.tls, secure) {
            (Some(tls), true) if mode == Some(ServerMode::IstioMutual) => match server_tls::of_mesh(self, tls) {
                Ok(problem) => {
                    let untaken = self.is_out_of_reach().then(|| server_tls::out_of_reach(self));
                    problems.extend(problem.into_iter().chain(untaken).map(|problem| (self.key(), problem)));
                    (Encryption::Mesh, None)
                }
                Err(refused) => (Encryption::Mesh, Some(refused)),
            },
            (Some(tls), true) if !passes => match server_tls::tls(self, tls, &mut made.references) {
                Ok(read) => {
                    problems.extend(read.problems.into_iter().map(|problem| (self.key(), problem)));
                    (Encryption::Ends(read.tls), None)
                }
                Err(refused) => (Encryption::Ends(mesh_core::listener::Tls::with(Vec::new())), Some(refused)),
            },
            (_, true) => (Encryption::Passes, None),
            (_, false) => (Encryption::None, None),
        };
        let serves = match refused {
            Some(Refused(problem)) => {
                let why = problem.message.clone();
                problems.push((self.key(), problem));
                Serves::Closed(why.into())
            }
            None => {
                made.in_force.insert(self.key());
                match (spoken, &encryption) {
                    (Some("HTTPS"), Encryption::Ends(_) | Encryption::Mesh) => self.table(made, problems),
                    _ => {
                        let (passages, used) = connections::passages(self, &encryption, problems);
                        made.in_force.extend(used);
                        Serves::Bytes(passages)
                    }
                }
            }
        };
        let hosts = match encryption {
            Encryption::None => vec![HostPattern::Any],
            _ => self.hosts().into_iter().map(|(_, host)| host).collect(),
        };
        let listener = Listener {
            name: format!("{} {}", self.key(), self.server.port.name).into(),
            gateway: self.name().into(),
            port: self.port(),
            bind: self.bind(),
            transport: Transport::Tcp,
            hosts,
            encryption,
            serves,
        };
        made.listeners.push((Arc::new(listener), self.key(), self.field.clone()));
    }

    /// The gateway has pods, and none of them takes tunnels.
    fn is_out_of_reach(&self) -> bool {
        let takes = |labels: &Labels| labels.get(TUNNEL).is_some_and(|kind| kind == TUNNEL_HTTP);
        self.around.pods.get(self.gateway).is_some_and(|pods| !pods.is_empty() && !pods.iter().any(takes))
    }

    /// The hosts, each with the namespaces whose VirtualServices may have it: a name, `.` or `*`.
    pub fn hosts(&self) -> Vec<(&str, HostPattern)> {
        let all = self.server.hosts.iter().filter_map(|text| {
            let (namespace, host) = text.split_once('/').unwrap_or(("*", text));
            Some((namespace, HostPattern::parse(host)?))
        });
        all.collect()
    }

    /// What a host of a VirtualService has in common with the server, if that takes it.
    pub fn shared(&self, namespace: &str, pattern: &HostPattern) -> Vec<HostPattern> {
        let takes = |from: &str| match from {
            "*" => true,
            "." => namespace == &*self.object.namespace,
            name => name == namespace,
        };
        let mut all: Vec<HostPattern> = Vec::new();
        for (_, own) in self.hosts().into_iter().filter(|(from, _)| takes(from)) {
            all.extend(narrower(&own, pattern).filter(|both| !all.contains(both)));
        }
        all
    }

    /// VirtualServices that name this Gateway and share hosts with the server, the oldest first, with these hosts.
    pub fn virtual_services(&self) -> Vec<(&NamespacedName, &Routed<VirtualService>, Vec<HostPattern>)> {
        let mut all: Vec<(&NamespacedName, &Routed<VirtualService>, Vec<HostPattern>)> = Vec::new();
        let mut places: BTreeMap<&NamespacedName, usize> = BTreeMap::new();
        let first = (self.name(), String::new());
        let of_it = self.around.resolved.by_host.range(&first..).take_while(|((gateway, _), _)| *gateway == first.0);
        for ((_, host), names) in of_it {
            let Some(pattern) = HostPattern::parse(host) else { continue };
            for name in names {
                let Some(object) = self.around.routes.virtual_services.get(name) else { continue };
                // As in Istio it counts where the pods are, and not where the Gateway is written.
                if !sees(&object.spec.export_to, &object.namespace, &self.gateway.namespace) {
                    continue;
                }
                let shared = self.shared(&object.namespace, &pattern);
                if shared.is_empty() {
                    continue;
                }
                let place = *places.entry(name).or_insert(all.len());
                match all.get_mut(place) {
                    Some((_, _, hosts)) => hosts.extend(shared),
                    None => all.push((name, object, shared)),
                }
            }
        }
        all.sort_by_key(|(_, object, _)| age(object));
        all
    }

    /// The rules of VirtualServices, with the hosts that they are for here.
    fn candidates(&self, made: &mut Classic, problems: &mut Problems) -> Vec<(Vec<HostPattern>, Candidate)> {
        let mut all = Vec::new();
        for (name, object, hosts) in self.virtual_services() {
            let Some(known) = self.read.virtual_services.get(name).filter(|_| !object.spec.http.is_empty()) else {
                continue;
            };
            made.in_force.extend(with_delegates(object, self.around));
            let candidates = match known.by_port {
                true => virtual_service::rules(object, Some(self.port()), self.around, problems).candidates,
                false => known.candidates.clone(),
            };
            all.extend(candidates.into_iter().filter_map(|one| Some((hosts.clone(), self.here(one)?))));
        }
        all
    }

    /// A rule as far as it is for this Gateway.
    fn here(&self, mut candidate: Candidate) -> Option<Candidate> {
        if candidate.conditions.is_empty() {
            return Some(candidate);
        }
        let own = self.name();
        candidate.conditions.retain(|one| one.gateways.is_empty() || one.gateways.iter().any(|name| *name == own));
        candidate.conditions.iter_mut().for_each(|one| one.gateways.clear());
        (!candidate.conditions.is_empty()).then_some(candidate)
    }

    fn add_plain(&self, made: &mut Classic, plain: &mut Plain, problems: &mut Problems) {
        plain.first.get_or_insert_with(|| (self.key(), self.field.clone(), self.port()));
        // As in Istio, an egress gateway is known by nothing but its label.
        let is_exit = self.object.spec.selector.get("istio").is_some_and(|value| value == EGRESS);
        plain.bars_others |= is_exit && self.around.hosts.is_registry_only();
        let hosts: Vec<HostPattern> = self.hosts().into_iter().map(|(_, host)| host).collect();
        let fresh =
            |known: &Vec<HostPattern>| hosts.iter().filter(|host| !known.contains(host)).cloned().collect::<Vec<_>>();
        let new = fresh(&plain.hosts);
        plain.hosts.extend(new);
        if self.server.tls.as_ref().is_some_and(|tls| tls.https_redirect == Some(true)) {
            let new = fresh(&plain.redirected);
            plain.redirected.extend(new);
        } else {
            let new = fresh(&plain.open);
            plain.open.extend(new);
        }
        let candidates = self.candidates(made, problems);
        plain.candidates.extend(candidates);
    }

    fn table(&self, made: &mut Classic, problems: &mut Problems) -> Serves {
        let candidates = self.candidates(made, problems);
        let hosts = assemble(&candidates).into_iter().map(Arc::new).collect();
        Serves::Http(Arc::new(Table::new(format!("{} {}", self.key(), self.server.port.name), hosts)))
    }
}

/// A VirtualService, and those that it delegates to.
fn with_delegates(object: &Routed<VirtualService>, around: &Around<'_>) -> Vec<Key> {
    let key = |namespace: &str, name: &str| Key {
        kind: Kind::VirtualService,
        namespace: namespace.into(),
        name: name.into(),
    };
    let mut all = vec![key(&object.namespace, &object.name)];
    for delegate in object.spec.http.iter().filter_map(|rule| rule.delegate.as_ref()) {
        let namespace = delegate.namespace.as_deref().unwrap_or(&object.namespace);
        let other = NamespacedName::new(namespace, delegate.name.as_str());
        if around.routes.virtual_services.contains_key(&other) {
            all.push(key(namespace, &delegate.name));
        }
    }
    all
}
