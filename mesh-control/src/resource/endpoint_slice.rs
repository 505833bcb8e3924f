//! Endpoint slices: the endpoints of services that have no selector.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as k8s;
use mesh_core::ArcStr;

use super::{Key, meta, pod};
use crate::diagnosis::Problem;

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it serves.
    pub ready: bool,
    /// The pod behind it, in the slice's namespace.
    pub pod: Option<String>,
    /// Its node.
    pub node: ArcStr,
    /// Its zone.
    pub zone: ArcStr,
}

/// Some endpoints of a service, all with the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace, which is the service's.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// The service's name; empty if it belongs to none.
    pub service: ArcStr,
    /// TCP ports: name and number.
    pub ports: Vec<(String, u16)>,
    /// UDP ports: name and number.
    pub datagram_ports: Vec<(String, u16)>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Reduces an endpoint slice.
pub fn read(key: &Key, object: k8s::EndpointSlice) -> (EndpointSlice, Vec<Problem>) {
    let mut problems = Vec::new();
    let service = object.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
    if service.is_none() {
        let problem = Problem::warning("metadata.labels", "the slice belongs to no service");
        problems.push(problem.help("add the label `kubernetes.io/service-name`"));
    }
    let mut endpoints = Vec::new();
    for (index, endpoint) in object.endpoints.iter().flatten().enumerate() {
        let mut addresses = Vec::new();
        for (at, text) in endpoint.addresses.iter().enumerate() {
            match text.parse::<IpAddr>() {
                Ok(address) if pod::usable(address) => addresses.push(address),
                _ if object.address_type == "FQDN" => {}
                _ => {
                    let field = format!("endpoints[{index}].addresses[{at}]");
                    problems
                        .push(Problem::error(field, format!("{text:?} is not a usable IP address, it is not used")));
                }
            }
        }
        let conditions = endpoint.conditions.as_ref();
        let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
        let foreign = target.and_then(|t| t.namespace.as_deref()).is_some_and(|ns| ns != key.namespace.as_str());
        if foreign {
            let field = format!("endpoints[{index}].targetRef.namespace");
            problems.push(Problem::error(field, "the pod is in another namespace, the endpoint is not used"));
            continue;
        }
        endpoints.push(Endpoint {
            addresses,
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            pod: target.and_then(|t| t.name.clone()),
            node: meta::node(endpoint.node_name.clone(), &format!("endpoints[{index}].nodeName"), &mut problems),
            zone: meta::shown(endpoint.zone.as_deref().unwrap_or_default()),
        });
    }
    let ports = |transport: &str| {
        let own = object.ports.iter().flatten().filter(|p| p.protocol.as_deref().unwrap_or("TCP") == transport);
        own.filter_map(|p| Some((p.name.clone().unwrap_or_default(), u16::try_from(p.port?).ok()?))).collect()
    };
    let slice = EndpointSlice {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        service: service.cloned().unwrap_or_default().into(),
        ports: ports("TCP"),
        datagram_ports: ports("UDP"),
        endpoints,
    };
    (slice, problems)
}
