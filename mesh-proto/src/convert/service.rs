//! Services, both ways.

use std::collections::HashSet;

use mesh_core::{
    ArcStr, GatewayAddress, Service,
    service::{
        AppProtocol, Canary, HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, ServiceAddress, ServicePort,
        Visibility,
    },
};

use super::{ConvertError, field};
use crate::wire::workload as wds;

/// An extension without a configuration: clients may go without the waypoint where it does not answer. Whoever does not know it does not.
const OPTIONAL: &str = "undermesh.io/waypoint-optional";

pub(super) fn read(message: wds::Service) -> Result<Service, ConvertError> {
    let weighted = weighted(message.weighted_waypoints)?;
    // Weighted waypoints are waypoints: who is said to have nothing else must still not go around them.
    let waypoint = match message.waypoint {
        Some(waypoint) => Some(field::gateway("waypoint", waypoint)?),
        None => weighted.first().map(|(waypoint, _)| waypoint.clone()),
    };
    let canary = waypoint.as_ref().and_then(|own| canary(own, &weighted));
    let waypoint_optional = waypoint.is_some() && message.extensions.iter().any(|one| one.name == OPTIONAL);
    Ok(Service {
        namespace: field::name("namespace", message.namespace)?,
        name: field::text("name", message.name)?,
        hostname: field::name("hostname", message.hostname)?,
        addresses: addresses(message.addresses)?,
        ports: ports(&message.ports)?,
        // What is not a SPIFFE id cannot be proved by a mesh certificate; leaving it out only narrows who may answer.
        subject_alt_names: message.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect(),
        load_balancing: message.load_balancing.map(balancing).transpose()?.unwrap_or_default(),
        ip_families: match field::known("ip_families", message.ip_families)? {
            wds::IpFamilies::Automatic => IpFamilies::Automatic,
            wds::IpFamilies::Ipv4Only => IpFamilies::Ipv4Only,
            wds::IpFamilies::Ipv6Only => IpFamilies::Ipv6Only,
            wds::IpFamilies::Dual => IpFamilies::Dual,
        },
        waypoint,
        canary,
        waypoint_optional,
        canonical: message.canonical,
        visibility: match field::known("visibility", message.visibility)? {
            wds::service::Visibility::Public => Visibility::Public,
            wds::service::Visibility::Namespace => Visibility::Namespace,
        },
    })
}

/// Those that say where they are.
fn weighted(list: Vec<wds::WeightedWaypoint>) -> Result<Vec<(GatewayAddress, u32)>, ConvertError> {
    let one = |one: wds::WeightedWaypoint| {
        let destination = one.destination?;
        Some(field::gateway("weighted_waypoints.destination", destination).map(|at| (at, one.weight)))
    };
    list.into_iter().filter_map(one).collect()
}

/// The first that is not the service's own waypoint, with its share of all of 100. Without any share nothing goes to it.
fn canary(own: &GatewayAddress, weighted: &[(GatewayAddress, u32)]) -> Option<Canary> {
    let (waypoint, weight) = weighted.iter().find(|(waypoint, _)| waypoint != own)?;
    let all: u64 = weighted.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let share = u64::from(*weight).saturating_mul(100).checked_div(all).unwrap_or(0);
    Some(Canary { waypoint: waypoint.clone(), weight: u32::try_from(share).unwrap_or(0) })
}

/// The waypoint and its canary, as Istio says it to its ztunnels: a ztunnel or an agent that cannot weigh takes the waypoint for all.
fn write_weighted(service: &Service) -> Vec<wds::WeightedWaypoint> {
    let (Some(own), Some(canary)) = (&service.waypoint, &service.canary) else { return Vec::new() };
    let one = |gateway, weight| wds::WeightedWaypoint { destination: Some(field::write_gateway(gateway)), weight };
    vec![one(own, 100_u32.saturating_sub(canary.weight)), one(&canary.waypoint, canary.weight)]
}

fn addresses(list: Vec<wds::NetworkAddress>) -> Result<Vec<ServiceAddress>, ConvertError> {
    let mut addresses = Vec::with_capacity(list.len());
    let mut seen = HashSet::with_capacity(list.len());
    for address in list {
        let network = field::text("addresses.network", address.network)?;
        let cidr = match address.length {
            Some(length) => field::net("addresses", &address.address, length)?,
            None => field::host_ip("addresses", &address.address)?.into(),
        };
        if seen.insert((network.clone(), cidr)) {
            addresses.push(ServiceAddress { network, cidr });
        }
    }
    Ok(addresses)
}

/// One number may be declared for TCP and for UDP: the first is kept.
fn ports(list: &[wds::Port]) -> Result<Vec<ServicePort>, ConvertError> {
    let mut ports = Vec::new();
    let mut seen = HashSet::new();
    for port in list {
        let service_port = field::port("ports.service_port", port.service_port)?;
        let target_port = field::port_or_zero("ports.target_port", port.target_port)?;
        let app_protocol = match field::known("ports.app_protocol", port.app_protocol)? {
            wds::AppProtocol::Unknown => AppProtocol::Unknown,
            wds::AppProtocol::Http11 => AppProtocol::Http11,
            wds::AppProtocol::Http2 => AppProtocol::Http2,
            wds::AppProtocol::Grpc => AppProtocol::Grpc,
            wds::AppProtocol::Tcp => AppProtocol::Tcp,
            wds::AppProtocol::Tls => AppProtocol::Tls,
        };
        if seen.insert(service_port) {
            ports.push(ServicePort { service_port, target_port, app_protocol });
        }
    }
    Ok(ports)
}

fn balancing(message: wds::LoadBalancing) -> Result<LoadBalancing, ConvertError> {
    use wds::load_balancing as lb;
    let scope = |value: &i32| {
        Ok(match field::known("load_balancing.routing_preference", *value)? {
            lb::Scope::Region => Scope::Region,
            lb::Scope::Zone => Scope::Zone,
            lb::Scope::Subzone => Scope::Subzone,
            lb::Scope::Node => Scope::Node,
            lb::Scope::Cluster => Scope::Cluster,
            lb::Scope::Network => Scope::Network,
            lb::Scope::UnspecifiedScope => {
                return Err(ConvertError::invalid("load_balancing.routing_preference", "unspecified scope"));
            }
        })
    };
    Ok(LoadBalancing {
        preferences: message.routing_preference.iter().map(scope).collect::<Result<_, _>>()?,
        mode: match field::known("load_balancing.mode", message.mode)? {
            lb::Mode::UnspecifiedMode => Mode::Unspecified,
            lb::Mode::Strict => Mode::Strict,
            lb::Mode::Failover => Mode::Failover,
            lb::Mode::Passthrough => Mode::Passthrough,
        },
        health: match field::known("load_balancing.health_policy", message.health_policy)? {
            lb::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            lb::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
        },
    })
}

pub(super) fn write(service: &Service) -> wds::Service {
    let text = ArcStr::to_string;
    wds::Service {
        name: text(&service.name),
        namespace: text(&service.namespace),
        hostname: text(&service.hostname),
        addresses: service.addresses.iter().map(write_address).collect(),
        ports: service.ports.iter().map(write_port).collect(),
        subject_alt_names: service.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: service.waypoint.as_ref().map(field::write_gateway),
        load_balancing: write_balancing(&service.load_balancing),
        ip_families: match service.ip_families {
            IpFamilies::Automatic => wds::IpFamilies::Automatic,
            IpFamilies::Ipv4Only => wds::IpFamilies::Ipv4Only,
            IpFamilies::Ipv6Only => wds::IpFamilies::Ipv6Only,
            IpFamilies::Dual => wds::IpFamilies::Dual,
        } as i32,
        extensions: match service.waypoint_optional && service.waypoint.is_some() {
            true => vec![wds::Extension { name: OPTIONAL.to_owned(), config: None }],
            false => Vec::new(),
        },
        canonical: service.canonical,
        ingress_use_waypoint: false,
        weighted_waypoints: write_weighted(service),
        visibility: match service.visibility {
            Visibility::Public => wds::service::Visibility::Public,
            Visibility::Namespace => wds::service::Visibility::Namespace,
        } as i32,
    }
}

fn write_address(address: &ServiceAddress) -> wds::NetworkAddress {
    let length = address.single().is_none().then(|| u32::from(address.cidr.prefix_len()));
    wds::NetworkAddress { network: address.network.to_string(), address: field::octets(address.cidr.addr()), length }
}

fn write_port(port: &ServicePort) -> wds::Port {
    let app_protocol = match port.app_protocol {
        AppProtocol::Unknown => wds::AppProtocol::Unknown,
        AppProtocol::Http11 => wds::AppProtocol::Http11,
        AppProtocol::Http2 => wds::AppProtocol::Http2,
        AppProtocol::Grpc => wds::AppProtocol::Grpc,
        AppProtocol::Tcp => wds::AppProtocol::Tcp,
        AppProtocol::Tls => wds::AppProtocol::Tls,
    };
    wds::Port {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
        app_protocol: app_protocol as i32,
    }
}

fn write_balancing(balancing: &LoadBalancing) -> Option<wds::LoadBalancing> {
    use wds::load_balancing as lb;
    let scope = |scope: &Scope| match scope {
        Scope::Region => lb::Scope::Region as i32,
        Scope::Zone => lb::Scope::Zone as i32,
        Scope::Subzone => lb::Scope::Subzone as i32,
        Scope::Node => lb::Scope::Node as i32,
        Scope::Cluster => lb::Scope::Cluster as i32,
        Scope::Network => lb::Scope::Network as i32,
    };
    (*balancing != LoadBalancing::default()).then(|| wds::LoadBalancing {
        routing_preference: balancing.preferences.iter().map(scope).collect(),
        mode: match balancing.mode {
            Mode::Unspecified => lb::Mode::UnspecifiedMode,
            Mode::Strict => lb::Mode::Strict,
            Mode::Failover => lb::Mode::Failover,
            Mode::Passthrough => lb::Mode::Passthrough,
        } as i32,
        health_policy: match balancing.health {
            HealthPolicy::OnlyHealthy => lb::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => lb::HealthPolicy::AllowAll,
        } as i32,
    })
}
