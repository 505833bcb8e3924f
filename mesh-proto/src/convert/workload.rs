//! Workloads, both ways.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use mesh_core::{
    ArcStr, Locality, NamespacedName, TrustDomain, Workload,
    workload::{ApplicationTunnel, Health, NetworkMode, PortMapping, TunnelProtocol, WorkloadType},
};

use super::{ConvertError, field};
use crate::wire::workload as wds;

/// A pod has a few addresses, one for each family and network.
const MAX_ADDRESSES: usize = 128;

pub(super) fn read(message: wds::Workload) -> Result<Workload, ConvertError> {
    let trust_domain = match message.trust_domain.as_str() {
        "" => TrustDomain::default(),
        other => other.parse().map_err(|e| ConvertError::invalid("trust_domain", format!("{e}")))?,
    };
    let service_account = match message.service_account {
        none if none.is_empty() => arcstr::literal!("default"),
        account => field::segment("service_account", account)?,
    };
    Ok(Workload {
        uid: field::uid(message.uid)?,
        name: field::name("name", message.name)?,
        namespace: field::segment("namespace", message.namespace)?,
        addresses: addresses(&message.addresses)?,
        network: field::text("network", message.network)?,
        protocol: protocol(message.tunnel_protocol)?,
        trust_domain,
        service_account,
        node: field::text("node", message.node)?,
        canonical_name: field::text("canonical_name", message.canonical_name)?,
        canonical_revision: field::text("canonical_revision", message.canonical_revision)?,
        workload_name: field::text("workload_name", message.workload_name)?,
        workload_type: match field::known("workload_type", message.workload_type)? {
            wds::WorkloadType::Deployment => WorkloadType::Deployment,
            wds::WorkloadType::Cronjob => WorkloadType::CronJob,
            wds::WorkloadType::Pod => WorkloadType::Pod,
            wds::WorkloadType::Job => WorkloadType::Job,
        },
        cluster_id: field::text("cluster_id", message.cluster_id)?,
        authorization_policies: policies(&message.authorization_policies)?.into(),
        health: match field::known("status", message.status)? {
            wds::WorkloadStatus::Healthy => Health::Healthy,
            wds::WorkloadStatus::Unhealthy => Health::Unhealthy,
        },
        hostname: field::text("hostname", message.hostname)?,
        services: services(message.services)?.into(),
        locality: locality(message.locality.unwrap_or_default())?,
        network_mode: match field::known("network_mode", message.network_mode)? {
            wds::NetworkMode::Standard => NetworkMode::Standard,
            wds::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        },
        capacity: message.capacity.unwrap_or(1),
        native_tunnel: message.native_tunnel,
        application_tunnel: message.application_tunnel.map(application_tunnel).transpose()?,
        waypoint: message.waypoint.map(|g| field::gateway("waypoint", g)).transpose()?,
        network_gateway: message.network_gateway.map(|g| field::gateway("network_gateway", g)).transpose()?,
    })
}

fn addresses(list: &[Vec<u8>]) -> Result<Vec<IpAddr>, ConvertError> {
    if list.len() > MAX_ADDRESSES {
        return Err(ConvertError::invalid(
            "addresses",
            format!("{} of them, the limit is {MAX_ADDRESSES}", list.len()),
        ));
    }
    let mut addresses = Vec::with_capacity(list.len());
    for bytes in list {
        let address = field::host_ip("addresses", bytes)?;
        if addresses.contains(&address) {
            return Err(ConvertError::invalid("addresses", format!("{address} is repeated")));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn protocol(value: i32) -> Result<TunnelProtocol, ConvertError> {
    match field::known("tunnel_protocol", value)? {
        wds::TunnelProtocol::None => Ok(TunnelProtocol::None),
        wds::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wds::TunnelProtocol::LegacyIstioMtls => {
            Err(ConvertError::invalid("tunnel_protocol", "legacy Istio mutual TLS is not supported"))
        }
    }
}

fn policies(list: &[String]) -> Result<Vec<NamespacedName>, ConvertError> {
    list.iter().map(|name| field::key("authorization_policies", name)).collect()
}

fn services(map: BTreeMap<String, wds::PortList>) -> Result<BTreeMap<NamespacedName, Vec<PortMapping>>, ConvertError> {
    let entry = |(key, list): (String, wds::PortList)| Ok((field::key("services", &key)?, ports(&list.ports)?));
    map.into_iter().map(entry).collect()
}

/// One number may be listed for TCP and for UDP: the first is kept.
fn ports(list: &[wds::Port]) -> Result<Vec<PortMapping>, ConvertError> {
    let mut ports = Vec::new();
    let mut seen = HashSet::new();
    for port in list {
        let service_port = field::port("services.service_port", port.service_port)?;
        let target_port = field::port_or_zero("services.target_port", port.target_port)?;
        if seen.insert(service_port) {
            ports.push(PortMapping { service_port, target_port });
        }
    }
    Ok(ports)
}

fn locality(message: wds::Locality) -> Result<Locality, ConvertError> {
    Ok(Locality {
        region: field::text("locality.region", message.region)?,
        zone: field::text("locality.zone", message.zone)?,
        subzone: field::text("locality.subzone", message.subzone)?,
    })
}

fn application_tunnel(message: wds::ApplicationTunnel) -> Result<ApplicationTunnel, ConvertError> {
    use wds::application_tunnel::Protocol;
    let protocol = field::known("application_tunnel.protocol", message.protocol)?;
    let port = field::port_or_zero("application_tunnel.port", message.port)?;
    Ok(ApplicationTunnel { proxy_protocol: matches!(protocol, Protocol::Proxy), port })
}

pub(super) fn write(workload: &Workload) -> wds::Workload {
    let text = ArcStr::to_string;
    wds::Workload {
        name: text(&workload.name),
        namespace: text(&workload.namespace),
        addresses: workload.addresses.iter().map(|ip| field::octets(*ip)).collect(),
        network: text(&workload.network),
        tunnel_protocol: match workload.protocol {
            TunnelProtocol::None => wds::TunnelProtocol::None,
            TunnelProtocol::Hbone => wds::TunnelProtocol::Hbone,
        } as i32,
        trust_domain: workload.trust_domain.to_string(),
        service_account: text(&workload.service_account),
        waypoint: workload.waypoint.as_ref().map(field::write_gateway),
        node: text(&workload.node),
        canonical_name: text(&workload.canonical_name),
        canonical_revision: text(&workload.canonical_revision),
        workload_type: match workload.workload_type {
            WorkloadType::Deployment => wds::WorkloadType::Deployment,
            WorkloadType::CronJob => wds::WorkloadType::Cronjob,
            WorkloadType::Pod => wds::WorkloadType::Pod,
            WorkloadType::Job => wds::WorkloadType::Job,
        } as i32,
        workload_name: text(&workload.workload_name),
        native_tunnel: workload.native_tunnel,
        authorization_policies: workload.authorization_policies.iter().map(ToString::to_string).collect(),
        status: match workload.health {
            Health::Healthy => wds::WorkloadStatus::Healthy,
            Health::Unhealthy => wds::WorkloadStatus::Unhealthy,
        } as i32,
        cluster_id: text(&workload.cluster_id),
        network_gateway: workload.network_gateway.as_ref().map(field::write_gateway),
        uid: text(&workload.uid),
        hostname: text(&workload.hostname),
        services: workload.services.iter().map(|(key, ports)| (key.to_string(), write_ports(ports))).collect(),
        application_tunnel: workload.application_tunnel.map(write_application_tunnel),
        locality: write_locality(&workload.locality),
        network_mode: match workload.network_mode {
            NetworkMode::Standard => wds::NetworkMode::Standard,
            NetworkMode::HostNetwork => wds::NetworkMode::HostNetwork,
        } as i32,
        extensions: Vec::new(),
        capacity: (workload.capacity != 1).then_some(workload.capacity),
    }
}

fn write_ports(ports: &[PortMapping]) -> wds::PortList {
    let port = |p: &PortMapping| wds::Port {
        service_port: p.service_port.into(),
        target_port: p.target_port.into(),
        app_protocol: 0,
    };
    wds::PortList { ports: ports.iter().map(port).collect() }
}

fn write_locality(locality: &Locality) -> Option<wds::Locality> {
    (*locality != Locality::default()).then(|| wds::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        subzone: locality.subzone.to_string(),
    })
}

fn write_application_tunnel(tunnel: ApplicationTunnel) -> wds::ApplicationTunnel {
    use wds::application_tunnel::Protocol;
    let protocol = if tunnel.proxy_protocol { Protocol::Proxy } else { Protocol::None };
    wds::ApplicationTunnel { protocol: protocol as i32, port: tunnel.port.into() }
}
