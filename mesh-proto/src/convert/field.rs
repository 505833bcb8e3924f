//! Fields that several resources share: names, numbers, addresses, enumerations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use mesh_core::{
    ArcStr, GatewayAddress, NamespacedName,
    identity::check_segment,
    ports,
    workload::{GatewayDestination, NetworkAddress},
};

use super::ConvertError;
use crate::wire::workload as wds;

/// Kubernetes names have at most 253 bytes; the rest is for names that are made of several.
const MAX_NAME: usize = 512;
const MAX_UID: usize = 2048;

pub(super) fn text(field: &'static str, value: String) -> Result<ArcStr, ConvertError> {
    bounded(field, value, MAX_NAME)
}

pub(super) fn uid(value: String) -> Result<ArcStr, ConvertError> {
    required("uid", bounded("uid", value, MAX_UID)?)
}

/// Not empty, and without the `/` that separates the parts of resource names.
pub(super) fn name(field: &'static str, value: String) -> Result<ArcStr, ConvertError> {
    if value.contains('/') {
        return Err(ConvertError::invalid(field, "contains a slash"));
    }
    required(field, text(field, value)?)
}

/// Something that becomes a segment of a SPIFFE id.
pub(super) fn segment(field: &'static str, value: String) -> Result<ArcStr, ConvertError> {
    let value = name(field, value)?;
    check_segment(&value).map_err(|e| ConvertError::invalid(field, e.to_string()))?;
    Ok(value)
}

pub(super) fn key(field: &'static str, value: &str) -> Result<NamespacedName, ConvertError> {
    bounded(field, value.to_owned(), MAX_NAME)?;
    value.parse().map_err(|_| ConvertError::invalid(field, format!("{value:?} is not namespace/name")))
}

pub(super) fn bounded(field: &'static str, value: String, limit: usize) -> Result<ArcStr, ConvertError> {
    if value.len() > limit {
        return Err(ConvertError::invalid(field, format!("{} bytes long, the limit is {limit}", value.len())));
    }
    let control = if value.is_ascii() {
        value.bytes().any(|byte| byte.is_ascii_control())
    } else {
        value.chars().any(char::is_control)
    };
    if control {
        return Err(ConvertError::invalid(field, "contains a control character"));
    }
    Ok(value.into())
}

fn required(field: &'static str, value: ArcStr) -> Result<ArcStr, ConvertError> {
    if value.is_empty() { Err(ConvertError::Missing { field }) } else { Ok(value) }
}

/// 0 to 65535; the caller says what 0 means.
pub(super) fn port_or_zero(field: &'static str, value: u32) -> Result<u16, ConvertError> {
    u16::try_from(value).map_err(|_| ConvertError::invalid(field, format!("{value} is not a port")))
}

pub(super) fn port(field: &'static str, value: u32) -> Result<u16, ConvertError> {
    match port_or_zero(field, value)? {
        0 => Err(ConvertError::invalid(field, "0 is not a port")),
        port => Ok(port),
    }
}

pub(super) fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, ConvertError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes);
    let v6 = v6.map_err(|_| ConvertError::invalid(field, format!("{} bytes are not an address", bytes.len())))?;
    Ok(Ipv6Addr::from(v6).into())
}

/// An address that a workload or service may have: it must name one place on the network.
pub(super) fn host_ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, ConvertError> {
    let ip = ip(field, bytes)?.to_canonical();
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast {
        return Err(ConvertError::invalid(field, format!("{ip} cannot belong to a workload or service")));
    }
    Ok(ip)
}

/// A range; an IPv6-mapped IPv4 range becomes an IPv4 one, because connections are compared in that form.
pub(super) fn net(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, ConvertError> {
    let ip = ip(field, bytes)?;
    let bad = || ConvertError::invalid(field, format!("{ip}/{length} is not a range"));
    let length = u8::try_from(length).map_err(|_| bad())?;
    let net = match ip.to_canonical() {
        IpAddr::V4(v4) if ip.is_ipv6() && length >= 96 => IpNet::new(v4.into(), length - 96),
        _ => IpNet::new(ip, length),
    };
    Ok(net.map_err(|_| bad())?.trunc())
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A value of a generated enumeration, refused if this version does not know it.
pub(super) fn known<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, ConvertError> {
    E::try_from(value).map_err(|_| ConvertError::invalid(field, format!("unknown value {value}")))
}

pub(super) fn gateway(field: &'static str, value: wds::GatewayAddress) -> Result<GatewayAddress, ConvertError> {
    use wds::gateway_address::Destination;
    let destination = match value.destination {
        Some(Destination::Hostname(host)) => GatewayDestination::Service(NamespacedName {
            namespace: name(field, host.namespace)?,
            name: name(field, host.hostname)?,
        }),
        Some(Destination::Address(at)) => GatewayDestination::Address(NetworkAddress {
            network: text(field, at.network)?,
            address: host_ip(field, &at.address)?,
        }),
        None => return Err(ConvertError::invalid(field, "has no destination")),
    };
    let hbone_port = match port_or_zero(field, value.hbone_mtls_port)? {
        0 => ports::HBONE,
        port => port,
    };
    Ok(GatewayAddress { destination, hbone_port })
}

pub(super) fn write_gateway(gateway: &GatewayAddress) -> wds::GatewayAddress {
    use wds::gateway_address::Destination;
    let destination = match &gateway.destination {
        GatewayDestination::Service(key) => Destination::Hostname(wds::NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.name.to_string(),
        }),
        GatewayDestination::Address(at) => Destination::Address(wds::NetworkAddress {
            network: at.network.to_string(),
            address: octets(at.address),
            length: None,
        }),
    };
    wds::GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.hbone_port.into() }
}
