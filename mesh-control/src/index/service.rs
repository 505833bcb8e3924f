//! Services: from Kubernetes' form to the mesh's, and which pods stand behind them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::service::{Canary, HealthPolicy, LoadBalancing, Mode, Scope, ServiceAddress, ServicePort};
use mesh_core::workload::PortMapping;
use mesh_core::{ArcStr, GatewayAddress, NamespacedName, Service};

use super::Settings;
use crate::diagnosis::Problem;
use crate::resource::service::{Distribution, Port, Target};
use crate::resource::{Key, Kind, Objects, Pod, meta, service as resource};

/// All services, and those of each namespace that select pods.
#[derive(Debug, Default)]
pub struct Services {
    /// By `namespace/hostname`.
    pub by_key: BTreeMap<NamespacedName, Arc<Service>>,
    /// Which service has a virtual address.
    pub addresses: BTreeMap<IpAddr, Key>,
    /// Services with a selector, by namespace.
    pub selecting: BTreeMap<ArcStr, Vec<(NamespacedName, Arc<resource::Service>)>>,
}

/// The name under which a service is known.
pub fn key(namespace: &str, name: &str, settings: &Settings) -> NamespacedName {
    NamespacedName::new(namespace, format!("{name}.{namespace}.svc.{}", settings.cluster_domain))
}

/// Name and namespace of a service, of its full name.
pub fn split<'a>(full: &'a str, settings: &Settings) -> Option<(&'a str, &'a str)> {
    let name = full.strip_suffix(&*settings.cluster_domain)?.strip_suffix(".svc.")?;
    name.split_once('.').filter(|(_, namespace)| !namespace.contains('.'))
}

/// Translates all services. `waypoint` says which one each has, and whether it is optional.
pub fn index(
    objects: &Objects,
    settings: &Settings,
    waypoint: impl Fn(&resource::Service) -> (Option<GatewayAddress>, Option<Canary>, bool),
    problems: &mut Vec<(Key, Problem)>,
) -> Services {
    let mut services = Services { addresses: owners(objects), ..Services::default() };
    for object in objects.services.values().filter(|s| !s.is_alias) {
        let key = key(&object.namespace, &object.name, settings);
        let mut service = Service::new(object.namespace.clone(), object.name.clone(), key.name.clone());
        let single = |address: &IpAddr| ServiceAddress { network: ArcStr::new(), cidr: IpNet::from(*address) };
        let own = object.addresses.iter().filter(|address| gets(**address, object, &services.addresses, problems));
        service.addresses = own.map(single).collect();
        service.ports = object.ports.iter().map(port).collect();
        service.load_balancing = load_balancing(object, distribution(object, objects));
        service.ip_families = object.families;
        service.canonical = true;
        (service.waypoint, service.canary, service.waypoint_optional) = waypoint(object);
        services.by_key.insert(key.clone(), Arc::new(service));
        if object.selector.is_some() {
            services.selecting.entry(object.namespace.clone()).or_default().push((key, object.clone()));
        }
    }
    services
}

fn resource_key(service: &resource::Service) -> Key {
    Key { kind: Kind::Service, namespace: service.namespace.clone(), name: service.name.clone() }
}

/// Which service gets an address that several have: one that does not say its age, then the oldest, then the first by name. Those in files mostly do
/// not say it, a copy that was exported from elsewhere does. What was in force before does not count, so that a restart changes nothing: a copy that
/// takes an address does so, and is told of, when it is written.
fn owners(objects: &Objects) -> BTreeMap<IpAddr, Key> {
    let mut services: Vec<_> = objects.services.values().filter(|s| !s.is_alias).collect();
    // Stable: those of one age stay in the order of their names.
    services.sort_by_key(|service| service.created.unwrap_or(i64::MIN));
    let mut owners = BTreeMap::new();
    for service in services {
        for address in &service.addresses {
            owners.entry(*address).or_insert_with(|| resource_key(service));
        }
    }
    owners
}

/// Whether the service gets the address. Two with the same one cannot be told apart by whoever connects to it.
fn gets(
    address: IpAddr,
    service: &resource::Service,
    owners: &BTreeMap<IpAddr, Key>,
    problems: &mut Vec<(Key, Problem)>,
) -> bool {
    let key = resource_key(service);
    let Some(owner) = owners.get(&address).filter(|owner| **owner != key) else { return true };
    let message = format!("{address} belongs to {owner}, this one does not get it");
    problems.push((key, Problem::error("spec.clusterIPs", message)));
    false
}

fn port(port: &Port) -> ServicePort {
    let target_port = match port.target {
        Target::Number(number) => number,
        // Each workload says for itself.
        Target::Name(_) => 0,
    };
    ServicePort { service_port: port.port, target_port, app_protocol: port.protocol }
}

/// What a service says of which endpoints come first, or its namespace for it.
fn distribution(service: &resource::Service, objects: &Objects) -> Option<Distribution> {
    service.distribution.or_else(|| objects.namespaces.get(&service.namespace)?.distribution)
}

/// Whether it is said, of a service itself, which endpoints come first.
pub fn has_order(service: &resource::Service, objects: &Objects) -> bool {
    service.local_only || distribution(service, objects).is_some()
}

fn load_balancing(service: &resource::Service, distribution: Option<Distribution>) -> LoadBalancing {
    let (preferences, mode) = if service.local_only {
        (vec![Scope::Node], Mode::Strict)
    } else {
        match distribution {
            Some(Distribution::SameZone) => (vec![Scope::Network, Scope::Region, Scope::Zone], Mode::Failover),
            Some(Distribution::SameNode) => {
                (vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node], Mode::Failover)
            }
            None => (Vec::new(), Mode::default()),
        }
    };
    let health = if service.publish_not_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    LoadBalancing { preferences, mode, health }
}

/// The services that select the pod, with the pod's ports.
pub fn memberships(pod: &Pod, services: &Services) -> BTreeMap<NamespacedName, Vec<PortMapping>> {
    let candidates = services.selecting.get(&pod.namespace).map(Vec::as_slice).unwrap_or_default();
    let selected =
        candidates.iter().filter(|(_, s)| s.selector.as_ref().is_some_and(|sel| meta::selects(sel, &pod.labels)));
    selected.map(|(key, service)| (key.clone(), mappings(service, pod))).collect()
}

/// Where each port of the service leads in the pod. A named port that the pod does not have is not served by it.
fn mappings(service: &resource::Service, pod: &Pod) -> Vec<PortMapping> {
    let target = |port: &Port| match &port.target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => pod.ports.iter().find(|(n, _)| n == name).map(|(_, number)| *number),
    };
    let mapping = |p: &Port| Some(PortMapping { service_port: p.port, target_port: target(p)? });
    service.ports.iter().filter_map(mapping).collect()
}

/// Named ports that a pod behind a service of the namespace does not have: the service does not reach the pod there.
pub fn unserved_ports(namespace: &ArcStr, pods: &[&Arc<Pod>], services: &Services, problems: &mut Vec<(Key, Problem)>) {
    for (_, service) in services.selecting.get(namespace).into_iter().flatten() {
        let Some(selector) = &service.selector else { continue };
        for (index, port) in service.ports.iter().enumerate() {
            let Target::Name(name) = &port.target else { continue };
            let lacks = |p: &&&Arc<Pod>| meta::selects(selector, &p.labels) && !p.ports.iter().any(|(n, _)| n == name);
            let Some(pod) = pods.iter().find(lacks) else { continue };
            let key = Key { kind: Kind::Service, namespace: namespace.clone(), name: service.name.clone() };
            let message =
                format!("pod {} has no TCP port called {name:?}, port {} does not reach it", pod.name, port.port);
            let problem = Problem::warning(format!("spec.ports[{index}].targetPort"), message);
            problems.push((key, problem.help("name the port in the pod's container, or write its number")));
        }
    }
}
