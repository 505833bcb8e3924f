//! Whose address a client asked for, and whether this waypoint is the one that stands before it. Pure; asked once for each connection and view.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::service::AppProtocol;
use mesh_core::workload::{GatewayAddress, GatewayDestination, PortMapping};
use mesh_core::{NamespacedName, Service, Snapshot, Workload};
use mesh_transport::hbone::Authority;

use crate::refused::Reason;
use crate::shared::Own;

/// What a connection leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A port of a service.
    Service {
        /// The service.
        service: Arc<Service>,
        /// `namespace/hostname`
        key: NamespacedName,
        /// The service's port.
        port: u16,
        /// The address that was asked for, where the service was not asked for by its name.
        address: Option<IpAddr>,
    },
    /// A workload itself.
    Workload {
        /// The workload.
        workload: Arc<Workload>,
        /// Its address and port.
        address: SocketAddr,
        /// Ports of its services that lead to this port.
        also: Arc<[u16]>,
    },
    /// A port of a gateway: what a request leads to follows from its host.
    Edge {
        /// The port of this pod.
        bind: u16,
    },
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NotOurs {
    /// Configuration has never been complete.
    #[error("configuration has not arrived yet")]
    NotSynced,
    /// No service or workload has the address.
    #[error("nobody is known by that address")]
    Unknown,
    /// It has another waypoint, or none.
    #[error("not bound to this waypoint")]
    NotBound,
    /// The service has no such port.
    #[error("the service has no such port")]
    UnknownPort,
}

impl From<NotOurs> for Reason {
    fn from(why: NotOurs) -> Self {
        match why {
            NotOurs::NotSynced => Self::NotSynced,
            NotOurs::Unknown => Self::UnknownAddress,
            NotOurs::NotBound => Self::NotBound,
            NotOurs::UnknownPort => Self::UnknownPort,
        }
    }
}

impl Target {
    /// The port that the client asked for.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Service { port, .. } => *port,
            Self::Workload { address, .. } => address.port(),
            Self::Edge { bind } => *bind,
        }
    }

    /// Ports of services by which a workload's own is asked for as well.
    #[must_use]
    pub fn also(&self) -> &[u16] {
        match self {
            Self::Workload { also, .. } => also,
            Self::Service { .. } | Self::Edge { .. } => &[],
        }
    }

    /// What is spoken there, as far as somebody has said it.
    #[must_use]
    pub fn protocol(&self) -> AppProtocol {
        match self {
            Self::Service { service, port, .. } => service.port(*port).map(|port| port.app_protocol),
            Self::Workload { .. } | Self::Edge { .. } => None,
        }
        .unwrap_or_default()
    }

    /// The address of the service that was asked for.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Service { address, .. } => *address,
            Self::Workload { .. } | Self::Edge { .. } => None,
        }
    }

    /// The service, if it is one.
    #[must_use]
    pub fn service(&self) -> Option<&NamespacedName> {
        match self {
            Self::Service { key, .. } => Some(key),
            Self::Workload { .. } | Self::Edge { .. } => None,
        }
    }
}

/// Finds who is asked for.
pub fn find(snapshot: &Snapshot, own: &Own, authority: &Authority) -> Result<Target, NotOurs> {
    if !snapshot.is_synced() {
        return Err(NotOurs::NotSynced);
    }
    match authority {
        Authority::Address(address) => {
            let network = &*own.place.network;
            if let Some(workload) = snapshot.workload_by_address(network, &address.ip()) {
                return match is_bound(workload.waypoint.as_ref(), snapshot, own) {
                    true => Ok(Target::Workload {
                        workload: Arc::clone(workload),
                        address: *address,
                        also: also(snapshot, workload, address.port()),
                    }),
                    false => Err(NotOurs::NotBound),
                };
            }
            let service = snapshot.service_by_address(network, &address.ip()).ok_or(NotOurs::Unknown)?;
            of_service(snapshot, own, service, (Some(address.ip()), address.port()))
        }
        Authority::Host(host, port) => {
            let services = snapshot.service_by_host(host);
            let bound = services.iter().find(|service| serves(service, snapshot, own));
            let service = bound.ok_or(if services.is_empty() { NotOurs::Unknown } else { NotOurs::NotBound })?;
            of_service(snapshot, own, service, (None, *port))
        }
    }
}

/// Ports of a workload's services by which its own port is asked for.
fn also(snapshot: &Snapshot, workload: &Workload, own: u16) -> Arc<[u16]> {
    let leads = |key: &NamespacedName, mapping: &PortMapping| {
        let told = || snapshot.service(key)?.port(mapping.service_port).map(|port| port.target_port);
        let target = Some(mapping.target_port).filter(|port| *port != 0).or_else(told).filter(|port| *port != 0);
        target.unwrap_or(mapping.service_port) == own
    };
    let of = |(key, ports): (&NamespacedName, &Vec<PortMapping>)| {
        ports.iter().filter(|mapping| leads(key, mapping)).map(|mapping| mapping.service_port).collect::<Vec<_>>()
    };
    workload.services.iter().flat_map(of).filter(|port| *port != own).collect()
}

fn of_service(
    snapshot: &Snapshot,
    own: &Own,
    service: &Arc<Service>,
    (address, port): (Option<IpAddr>, u16),
) -> Result<Target, NotOurs> {
    if !serves(service, snapshot, own) {
        return Err(NotOurs::NotBound);
    }
    if service.port(port).is_none() {
        return Err(NotOurs::UnknownPort);
    }
    Ok(Target::Service { service: Arc::clone(service), key: service.key(), port, address })
}

/// Whether this is the waypoint of a service, or its canary.
fn serves(service: &Service, snapshot: &Snapshot, own: &Own) -> bool {
    service.waypoints().any(|gateway| is_bound(Some(gateway), snapshot, own))
}

/// Whether the waypoint that is meant is this one: named by its service, or by an address of its service or of a workload of it.
fn is_bound(waypoint: Option<&GatewayAddress>, snapshot: &Snapshot, own: &Own) -> bool {
    match waypoint.map(|gateway| &gateway.destination) {
        None => false,
        Some(GatewayDestination::Service(key)) => *key == own.service,
        Some(GatewayDestination::Address(at)) => {
            if let Some(workload) = snapshot.workload_by_address(&at.network, &at.address) {
                return workload.services.contains_key(&own.service);
            }
            snapshot.service_by_address(&at.network, &at.address).is_some_and(|service| service.key() == own.service)
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::service::{Canary, ServiceAddress, ServicePort};
    use mesh_core::workload::NetworkAddress;
    use mesh_core::{Change, Store};

    use super::*;

    fn own() -> Own {
        Own::new(
            "shop/waypoint.shop.svc.cluster.local".parse().unwrap(),
            "spiffe://cluster.local/ns/shop/sa/waypoint".parse().unwrap(),
        )
    }

    fn service(name: &str, ip: &str, waypoint: Option<GatewayDestination>) -> Change {
        let mut service = Service::new("shop", name, format!("{name}.shop.svc.cluster.local"));
        service.addresses = vec![ServiceAddress { network: "".into(), cidr: format!("{ip}/32").parse().unwrap() }];
        service.ports = vec![ServicePort { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Http11 }];
        service.waypoint = waypoint.map(|destination| GatewayAddress { destination, hbone_port: 15008 });
        Change::Service(service)
    }

    #[test]
    fn of_a_workloads_port_it_is_known_which_ports_of_services_lead_there() {
        let named = |name: &str| GatewayDestination::Service(name.parse().unwrap());
        let mut pod = Workload::new("c//Pod/shop/p", "shop", "p");
        pod.addresses = vec!["10.0.0.7".parse().unwrap()];
        pod.waypoint = Some(GatewayAddress { destination: named(&own().service.to_string()), hbone_port: 15008 });
        let to = |service_port, target_port| PortMapping { service_port, target_port };
        let key = |name: &str| NamespacedName::new("shop", format!("{name}.shop.svc.cluster.local"));
        // The service's own word where the endpoint has none, and where nobody has one its own port.
        let services = [
            (key("a"), vec![to(80, 8080), to(81, 8081), to(8080, 8080)]),
            (key("b"), vec![to(80, 0), to(9000, 0)]),
            (key("gone"), vec![to(8088, 0)]),
        ];
        pod.services = Arc::new(services.into());
        let mut store = Store::new();
        let changes = vec![
            service("a", "10.96.0.2", None),
            service("b", "10.96.0.3", None),
            Change::Workload(pod),
            Change::Synced,
        ];
        let snapshot = store.apply(changes).snapshot;
        let also = |port: u16| {
            let authority = Authority::parse(&format!("10.0.0.7:{port}")).unwrap();
            find(&snapshot, &own(), &authority).unwrap().also().to_vec()
        };
        assert_eq!(also(8080), [80, 80]);
        assert_eq!(also(8081), [81]);
        assert!(also(80).is_empty() && also(9000).is_empty());
    }

    #[test]
    fn only_what_is_bound_to_this_waypoint_is_ours() {
        let at =
            |ip: &str| GatewayDestination::Address(NetworkAddress { network: "".into(), address: ip.parse().unwrap() });
        let named = |name: &str| GatewayDestination::Service(name.parse().unwrap());
        let mut pod = Workload::new("c//Pod/shop/p", "shop", "p");
        pod.addresses = vec!["10.0.0.7".parse().unwrap()];
        pod.waypoint = Some(GatewayAddress { destination: named(&own().service.to_string()), hbone_port: 15008 });
        let mut other = Workload::new("c//Pod/shop/q", "shop", "q");
        other.addresses = vec!["10.0.0.8".parse().unwrap()];
        let canaried = |ip: &str, waypoint: &str, canary: &str| {
            let Change::Service(mut made) = service(&ip.replace('.', "-"), ip, Some(named(waypoint))) else { panic!() };
            let waypoint = GatewayAddress { destination: named(canary), hbone_port: 15008 };
            made.canary = Some(Canary { waypoint, weight: 1 });
            Change::Service(made)
        };
        let mut store = Store::new();
        let changes = vec![
            service("waypoint", "10.96.0.1", None),
            service("a", "10.96.0.2", Some(named(&own().service.to_string()))),
            service("b", "10.96.0.3", Some(at("10.96.0.1"))),
            service("c", "10.96.0.4", Some(named("shop/other.shop.svc.cluster.local"))),
            service("d", "10.96.0.5", Some(at("10.0.0.8"))),
            canaried("198.19.0.6", "shop/other.shop.svc.cluster.local", &own().service.to_string()),
            canaried("198.19.0.7", &own().service.to_string(), "shop/other.shop.svc.cluster.local"),
            canaried("198.19.0.8", "shop/other.shop.svc.cluster.local", "shop/third.shop.svc.cluster.local"),
            Change::Workload(pod),
            Change::Workload(other),
        ];
        let unsynced = store.apply(changes).snapshot;
        let ask = |snapshot: &Snapshot, text: &str| {
            find(snapshot, &own(), &Authority::parse(text).unwrap()).map(|target| target.port())
        };
        assert_eq!(ask(&unsynced, "10.96.0.2:80"), Err(NotOurs::NotSynced));
        let snapshot = store.apply(vec![Change::Synced]).snapshot;
        for (text, expected) in [
            ("10.96.0.2:80", Ok(80)),
            ("10.96.0.2:81", Err(NotOurs::UnknownPort)),
            ("10.96.0.3:80", Ok(80)),
            ("a.shop.svc.cluster.local:80", Ok(80)),
            ("c.shop.svc.cluster.local:80", Err(NotOurs::NotBound)),
            ("nobody.shop.svc.cluster.local:80", Err(NotOurs::Unknown)),
            ("10.96.0.4:80", Err(NotOurs::NotBound)),
            ("10.96.0.5:80", Err(NotOurs::NotBound)),
            ("10.96.0.1:80", Err(NotOurs::NotBound)),
            ("198.19.0.6:80", Ok(80)),
            ("198.19.0.7:80", Ok(80)),
            ("198.19.0.8:80", Err(NotOurs::NotBound)),
            ("10.0.0.7:9999", Ok(9999)),
            ("10.0.0.8:80", Err(NotOurs::NotBound)),
            ("192.0.2.1:80", Err(NotOurs::Unknown)),
        ] {
            assert_eq!(ask(&snapshot, text), expected, "{text}");
        }
    }
}
