//! Hosts of ServiceEntries as services of the mesh, and their endpoints. A host without addresses gets one of each family that nobody else has ([`given`]), so that
//! what clients connect to says which host they mean. The host of a service of Kubernetes stays that: who may be its endpoints is all that an entry adds
//! ([`decoration`]). What cannot be done is told to the object.

mod decoration;
mod given;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::service::{AppProtocol, LoadBalancing, Mode, ServiceAddress, ServicePort, Visibility};
use mesh_core::workload::{PortMapping, WorkloadType};
use mesh_core::{ArcStr, GatewayAddress, Locality, NamespacedName, Service, Workload};

pub use self::decoration::may_decorate;
use self::given::Given;
use super::service::Services;
use super::waypoint::{Bound, Guard, Waypoints};
use super::{Settings, workload};
use crate::diagnosis::Problem;
use crate::resource::routing::Routed;
use crate::resource::routing::WorkloadEntry;
use crate::resource::routing::service_entry::{Endpoint, EntryPort, Resolution, Selector, ServiceEntry, is_name};
use crate::resource::{Key, Kind, Labels, Objects, Pod, meta};
use mesh_core::outside::is_public;

type Entry = Arc<Routed<ServiceEntry>>;
type Problems = Vec<(Key, Problem)>;

/// Those that count, the oldest first: it has what several want.
pub fn entries<'a>(objects: &'a Objects, settings: &Settings) -> Vec<&'a Entry> {
    let all = objects.routes.service_entries.iter();
    let counts =
        |(name, _): &(&NamespacedName, &Entry)| !settings.istio_runs && settings.heeds(objects, &name.namespace);
    let mut all: Vec<&Entry> = all.filter(counts).map(|(_, entry)| entry).collect();
    // Stable: those of one age stay in the order of their names.
    all.sort_by_key(|entry| entry.created.unwrap_or(i64::MIN));
    all
}

/// Hosts that become services; of a pattern no address can be found, unless each request says the name that is to be looked up. One that means names of the cluster
/// is none: it would be everybody's, for resolvers of pods try them before all others. Nor is one of a service of Kubernetes.
pub fn hosts<'a>(
    entry: &'a Entry,
    objects: &'a Objects,
    settings: &'a Settings,
) -> impl Iterator<Item = (usize, &'a str)> {
    let is_dynamic = entry.spec.resolution == Resolution::DynamicDns;
    let hosts = entry.spec.hosts.iter().enumerate().map(|(index, host)| (index, host.as_str()));
    hosts.filter(move |(_, host)| {
        !host.starts_with('*') && decoration::of_kubernetes(host, objects, settings).is_none()
            || (is_dynamic && host.starts_with("*.") && !is_of_cluster(host, &settings.cluster_domain))
    })
}

/// Whether a pattern means names of the cluster: it lies in its domain, or covers it.
fn is_of_cluster(pattern: &str, domain: &str) -> bool {
    let (pattern, domain) = (pattern.to_ascii_lowercase(), domain.to_ascii_lowercase());
    let is_in =
        |name: &str, end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    pattern.strip_prefix("*.").is_some_and(|end| is_in(end, &domain) || is_in(&domain, end))
}

/// How a host is called in tables of services.
pub fn key(entry: &Entry, host: &str) -> NamespacedName {
    NamespacedName::new(entry.namespace.clone(), host.to_ascii_lowercase())
}

fn object(entry: &Entry) -> Key {
    Key { kind: Kind::ServiceEntry, namespace: entry.namespace.clone(), name: entry.name.clone() }
}

/// What came of hosts.
#[derive(Debug, Default)]
pub struct Entered {
    /// The objects that are in force.
    pub in_force: BTreeSet<Key>,
    /// The addresses that were given to the hosts of each that counts: none to those that have their own.
    pub given: BTreeMap<Key, Vec<(ArcStr, IpAddr)>>,
}

/// Adds the hosts to the services of Kubernetes, which go before them. `waypoint` says what each is bound to.
pub fn services(
    objects: &Objects,
    settings: &Settings,
    waypoint: impl Fn(&Entry) -> Bound,
    services: &mut Services,
    problems: &mut Problems,
) -> Entered {
    let mut given = Given::new(objects, settings, services);
    let mut entered =
        Entered { in_force: decoration::names(objects, settings, services, problems), ..Entered::default() };
    for entry in entries(objects, settings) {
        let bound = waypoint(entry);
        // Where it is not known yet whether there is such a waypoint, nothing is said of it.
        let has_waypoint = bound.gateway.is_some() || (bound.address.is_some() && bound.problem.is_none());
        told(entry, settings, has_waypoint, problems);
        // One that only tells more of services of Kubernetes has no hosts of its own that would be closed.
        let has_hosts = hosts(entry, objects, settings).next().is_some();
        problems.extend(bound.problem.clone().filter(|_| has_hosts).map(|problem| (object(entry), problem)));
        let own = entered.given.entry(object(entry)).or_default();
        for (index, host) in hosts(entry, objects, settings) {
            let key = key(entry, host);
            let field = format!("spec.hosts[{index}]");
            if let Some(other) = services.by_key.get(&key) {
                let message = format!("{host} is the host of {}/{}, which counts", other.namespace, other.name);
                problems.push((object(entry), Problem::warning(field, message)));
                continue;
            }
            let mut service = Service::new(entry.namespace.clone(), entry.name.clone(), key.name.clone());
            service.addresses = addresses(entry, services, problems);
            if given::wants(entry) {
                let to = given.to(entry, &key, services);
                own.extend(to.iter().map(|address| (key.name.clone(), *address)));
                let address = |ip: IpAddr| ServiceAddress { network: ArcStr::new(), cidr: IpNet::from(ip) };
                service.addresses = to.into_iter().map(address).collect();
            }
            service.ports = entry.spec.ports.iter().map(port).collect();
            if entry.spec.resolution == Resolution::None {
                service.load_balancing = LoadBalancing { mode: Mode::Passthrough, ..LoadBalancing::default() };
            }
            let names = entry.spec.subject_alt_names.iter().filter_map(|name| name.parse().ok());
            service.subject_alt_names = names.collect();
            (service.waypoint, service.canary) = bound.clone().told();
            if is_private(entry) || (host.starts_with('*') && !settings.is_root(&entry.namespace)) {
                service.visibility = Visibility::Namespace;
            }
            services.by_key.insert(key, Arc::new(service));
            entered.in_force.insert(object(entry));
        }
    }
    entered
}

/// Whether only its own namespace sees it.
fn is_private(entry: &Entry) -> bool {
    let to = &entry.spec.export_to;
    // `~` is nobody's; there is no less than this.
    !to.is_empty() && to.iter().all(|to| matches!(to.as_str(), "." | "~") || *to == *entry.namespace)
}

/// What of an object nobody does.
fn told(entry: &Entry, settings: &Settings, is_bound: bool, problems: &mut Problems) {
    let spec = &entry.spec;
    for (index, host) in spec.hosts.iter().enumerate().filter(|(_, host)| host.starts_with('*')) {
        if spec.resolution == Resolution::DynamicDns && host.starts_with("*.") {
            let domain = &settings.cluster_domain;
            if is_of_cluster(host, domain) {
                let message = format!("{host} means names of the cluster, {domain}: it is not used");
                let help = "resolvers of pods try names of the cluster before all others: it would answer for them";
                problems.push((object(entry), Problem::error(format!("spec.hosts[{index}]"), message).help(help)));
                continue;
            }
            if !is_private(entry) && !settings.is_root(&entry.namespace) {
                let message = format!("{host} is a pattern: only its own namespace knows it");
                let help = "for all namespaces write it in the root namespace; for its own, `exportTo: [\".\"]`";
                problems.push((object(entry), Problem::warning(format!("spec.hosts[{index}]"), message).help(help)));
            }
            if !is_bound {
                let message =
                    format!("a waypoint looks up what requests to {host} ask for, and there is none: they are refused");
                let problem = Problem::warning(format!("spec.hosts[{index}]"), message);
                problems.push((object(entry), problem.help("label the object `istio.io/use-waypoint: NAME`")));
            }
            continue;
        }
        let message = format!("known, not in force: nobody can find {host}");
        problems.push((object(entry), Problem::warning(format!("spec.hosts[{index}]"), message)));
    }
    let is_for_all = spec.export_to.is_empty() || spec.export_to.iter().any(|to| to == "*");
    if !is_for_all && !is_private(entry) {
        let message = "agents know it in all namespaces; for rules of waypoints it is as written";
        problems.push((object(entry), Problem::warning("spec.exportTo", message)));
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{index}]");
        let is_name = spec.names().any(|name| name == endpoint.address);
        let why = match endpoint.address.parse::<IpAddr>() {
            Ok(address) if !is_public(address) => Some("is a machine's own, or what clouds tell it"),
            Err(_) if !is_name => Some("is no address"),
            _ => None,
        };
        if let Some(why) = why {
            let message = format!("{:?} {why}: it is not used", endpoint.address);
            problems.push((object(entry), Problem::warning(format!("{field}.address"), message)));
        }
    }
}

/// The written addresses that nobody else has.
fn addresses(entry: &Entry, services: &mut Services, problems: &mut Problems) -> Vec<ServiceAddress> {
    let mut own = Vec::new();
    for (index, written) in entry.spec.addresses.iter().enumerate() {
        // What is none was told when it was read.
        let cidr = written.parse::<IpNet>().ok().or_else(|| written.parse::<IpAddr>().ok().map(IpNet::from));
        let Some(cidr) = cidr else { continue };
        if cidr.prefix_len() == cidr.max_prefix_len() {
            let owner = services.addresses.entry(cidr.addr()).or_insert_with(|| object(entry));
            if *owner != object(entry) {
                let message = format!("{written} belongs to {owner}, this one does not get it");
                problems.push((object(entry), Problem::error(format!("spec.addresses[{index}]"), message)));
                continue;
            }
        }
        own.push(ServiceAddress { network: ArcStr::new(), cidr });
    }
    own
}

fn port(port: &EntryPort) -> ServicePort {
    let target_port = port.target_port.unwrap_or(port.number);
    ServicePort { service_port: port.number, target_port, app_protocol: protocol(port) }
}

/// What is spoken on a port.
pub fn protocol(port: &EntryPort) -> AppProtocol {
    match port.protocol.as_deref().unwrap_or_default().to_ascii_uppercase().as_str() {
        "HTTP" => AppProtocol::Http11,
        "HTTP2" => AppProtocol::Http2,
        "GRPC" | "GRPC-WEB" => AppProtocol::Grpc,
        "HTTPS" | "TLS" => AppProtocol::Tls,
        "TCP" | "MONGO" | "MYSQL" | "REDIS" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

/// What came of endpoints besides workloads.
pub struct Endpoints<'a> {
    /// WorkloadEntries that are some.
    pub in_force: BTreeSet<Key>,
    /// Who alone may reach pods that are some, by namespace.
    pub guards: BTreeSet<(ArcStr, Guard)>,
    /// Labels of workloads that are no pods, by their places among all. Of what is named twice the last ones count.
    pub labels: Vec<(usize, &'a Labels)>,
}

/// Adds the endpoints: pods join the service, other addresses become workloads of their own, one for each address of a namespace. `workloads` are first those of
/// pods, in the order of their namespaces and names; `pods` is how many. `waypoints` say around whose nothing may go, who alone may reach pods then, and what
/// WorkloadEntries are bound to.
pub fn endpoints<'a>(
    (objects, settings): (&'a Objects, &Settings),
    services: &Services,
    waypoints: &Waypoints,
    owner: impl Fn(&IpAddr) -> Option<&'a Arc<Pod>>,
    pods: usize,
    workloads: &mut Vec<Arc<Workload>>,
    problems: &mut Problems,
) -> Endpoints<'a> {
    let (mut in_force, mut guards, mut labels) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut made: BTreeMap<(ArcStr, IpAddr), usize> = BTreeMap::new();
    let mut guarded = BTreeSet::new();
    let mut unusable = BTreeSet::new();
    let is_kubernetes = |host: &String| decoration::of_kubernetes(host, objects, settings).is_some();
    // Endpoints of services are what those select.
    for entry in entries(objects, settings).into_iter().filter(|entry| !entry.spec.hosts.iter().all(is_kubernetes)) {
        let keys: Vec<NamespacedName> = hosts(entry, objects, settings).map(|(_, host)| key(entry, host)).collect();
        let is_own = |key: &&NamespacedName| services.by_key.get(*key).is_some_and(|own| own.name == entry.name);
        let keys: Vec<&NamespacedName> = keys.iter().filter(is_own).collect();
        let accounts = waypoints.guards_entry(entry, objects, settings).filter(|_| !keys.is_empty());
        let mut join = |at: usize, keys: &[&NamespacedName], ports: &[PortMapping], workloads: &mut [Arc<Workload>]| {
            let workload = Arc::make_mut(&mut workloads[at]);
            let memberships = Arc::make_mut(&mut workload.services);
            for key in keys {
                memberships.insert((*key).clone(), ports.to_vec());
            }
            // Beside that of the pod's services, as with endpoints of an EndpointSlice.
            if let Some(accounts) = accounts.as_ref().filter(|_| at < pods) {
                let guard = Guard::of(accounts, ports.iter().map(|port| port.target_port));
                workload::list(workload, guard.name(&workload.namespace));
                guards.insert((workload.namespace.clone(), guard));
            }
        };
        let of_pod = |namespace: &str, name: &str, workloads: &[Arc<Workload>]| {
            let order = |w: &Arc<Workload>| (w.namespace.as_str(), w.name.as_str()).cmp(&(namespace, name));
            workloads.get(..pods).and_then(|pods| pods.binary_search_by(order).ok())
        };
        if let Some(selector) = &entry.spec.workload_selector {
            let ports = mappings(entry, None);
            let from = NamespacedName::new(entry.namespace.clone(), "");
            let here = objects.pods.range(from..).map(|(_, pod)| pod).take_while(|p| p.namespace == entry.namespace);
            for pod in here.filter(|pod| meta::selects(&selector.labels, &pod.labels)) {
                if let Some(at) = of_pod(&pod.namespace, &pod.name, workloads) {
                    join(at, &keys, &ports, workloads);
                }
            }
        }
        let guard = accounts.as_ref().and_then(|_| guard(entry, &keys, services, problems));
        let mut told_of = BTreeSet::new();
        for target in targets(entry, &keys, (objects, settings), &mut unusable, problems) {
            let (address, endpoint) = (target.address, target.endpoint);
            let mut refuse = |why: String| {
                let problem = Problem::error(target.field.clone(), format!("{address} {why}, it is not used"));
                problems.push((target.of.map_or_else(|| object(entry), of_workload), problem));
            };
            // As a workload it would take the address from the service, and with it everybody's connections.
            if let Some(other) = services.addresses.get(&address) {
                refuse(format!("is the address of {other}"));
                continue;
            }
            let ports = mappings(entry, endpoint);
            let at = match owner(&address) {
                Some(pod) if pod.namespace != entry.namespace => {
                    refuse(format!("is pod {}/{} of another namespace", pod.namespace, pod.name));
                    continue;
                }
                Some(pod) => of_pod(&pod.namespace, &pod.name, workloads),
                None => {
                    let at = *made.entry((entry.namespace.clone(), address)).or_insert_with(|| {
                        workloads.push(Arc::new(workload(entry, &target, settings)));
                        workloads.len() - 1
                    });
                    // Whoever named the address first: what must not be gone around is not.
                    if let Some(guard) = guard.as_ref().filter(|_| guarded.insert(at)) {
                        Arc::make_mut(&mut workloads[at]).waypoint = Some(guard.clone());
                    }
                    labels.extend(endpoint.filter(|own| !own.labels.is_empty()).map(|own| (at, &own.labels)));
                    if let (None, Some(endpoint)) = (target.of, endpoint) {
                        let bound = waypoints.inline(&endpoint.labels, &entry.namespace, objects, settings);
                        // Once, however many addresses its name has.
                        if let Some(problem) = bound.problem.filter(|_| told_of.insert(target.field.clone())) {
                            let at = target.field.trim_end_matches(".address");
                            let field = format!("{at}.{}", problem.field.trim_start_matches("metadata."));
                            problems.push((object(entry), Problem { field, ..problem }));
                        }
                        if let (Some(address), None) = (bound.address, &workloads[at].waypoint) {
                            Arc::make_mut(&mut workloads[at]).waypoint = Some(address);
                        }
                    }
                    if let Some(of) = target.of {
                        let bound = waypoints.workload_entry(of, objects, settings);
                        // However many entries select it, it is told once.
                        let is_new = !in_force.contains(&of_workload(of));
                        problems.extend(bound.problem.filter(|_| is_new).map(|problem| (of_workload(of), problem)));
                        if let (Some(address), None) = (bound.address, &workloads[at].waypoint) {
                            Arc::make_mut(&mut workloads[at]).waypoint = Some(address);
                        }
                    }
                    Some(at)
                }
            };
            if let Some(at) = at {
                in_force.extend(target.of.map(of_workload));
                join(at, &target.keys, &ports, workloads);
            }
        }
    }
    Endpoints { in_force, guards, labels }
}

fn of_workload(entry: &Arc<Routed<WorkloadEntry>>) -> Key {
    Key { kind: Kind::WorkloadEntry, namespace: entry.namespace.clone(), name: entry.name.clone() }
}

/// The waypoint of the hosts, which is not to be gone around: who addresses an endpoint itself comes to it as well. There is no agent at the endpoint that
/// could refuse him. Not where only the entry's own namespace sees it: an endpoint is the same one for all clients, and others know nothing of that waypoint.
fn guard(
    entry: &Entry,
    keys: &[&NamespacedName],
    services: &Services,
    problems: &mut Problems,
) -> Option<GatewayAddress> {
    let guard = keys.first().and_then(|key| services.by_key.get(*key)?.waypoint.clone())?;
    if is_private(entry) {
        let message =
            "who addresses an endpoint itself goes around the waypoint: only its own namespace sees the entry";
        let help = "export it to all namespaces, or label it `undermesh.io/waypoint-bypass: allow`";
        problems.push((object(entry), Problem::warning("spec.exportTo", message).help(help)));
        return None;
    }
    Some(guard)
}

/// An address that some hosts have.
struct Target<'a, 'k> {
    address: IpAddr,
    /// As it is written; a host that is looked up itself has none.
    endpoint: Option<&'a Endpoint>,
    keys: Vec<&'k NamespacedName>,
    field: String,
    /// The object that the endpoint is, if it is one of its own.
    of: Option<&'a Arc<Routed<WorkloadEntry>>>,
}

/// What endpoints there are of the services of an entry. A name that nobody answers for is told; `unusable` are WorkloadEntries that were told that they are.
fn targets<'a, 'k>(
    entry: &'a Entry,
    keys: &[&'k NamespacedName],
    (objects, settings): (&'a Objects, &Settings),
    unusable: &mut BTreeSet<Key>,
    problems: &mut Problems,
) -> Vec<Target<'a, 'k>> {
    let spec = &entry.spec;
    let mut targets = Vec::new();
    let mut of_name = |name: &str, field: String, endpoint: Option<&'a Endpoint>, keys: Vec<&'k NamespacedName>| {
        let found = objects.looked_up.get(name).map(Vec::as_slice).unwrap_or_default();
        if found.is_empty() {
            problems.push((object(entry), not_looked_up(name, field.clone())));
        }
        let count = if spec.resolution == Resolution::DnsRoundRobin { 1 } else { found.len() };
        let target = |address: &IpAddr| Target {
            address: *address,
            endpoint,
            keys: keys.clone(),
            field: field.clone(),
            of: None,
        };
        targets.extend(found.iter().take(count).map(target));
    };
    let names: BTreeSet<&str> = spec.names().collect();
    if spec.endpoints.is_empty() {
        for (index, host) in hosts(entry, objects, settings).filter(|(_, host)| names.contains(host)) {
            let own = key(entry, host);
            let own = keys.iter().copied().filter(|key| **key == own).collect();
            of_name(host, format!("spec.hosts[{index}]"), None, own);
        }
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{index}].address");
        if names.contains(endpoint.address.as_str()) {
            of_name(&endpoint.address, field, Some(endpoint), keys.to_vec());
        }
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        if let Ok(address) = endpoint.address.parse::<IpAddr>() {
            let field = format!("spec.endpoints[{index}].address");
            if !is_public(address) {
                continue;
            }
            targets.push(Target { address, endpoint: Some(endpoint), keys: keys.to_vec(), field, of: None });
        }
    }
    if let Some(selector) = &spec.workload_selector {
        targets.extend(selected(entry, selector, objects, unusable, problems).map(|(of, address)| Target {
            address,
            endpoint: Some(&of.spec),
            keys: keys.to_vec(),
            field: "spec.address".to_owned(),
            of: Some(of),
        }));
    }
    targets
}

fn not_looked_up(name: &str, field: String) -> Problem {
    let message = format!("{name} has not been looked up: it has no endpoint until it is");
    Problem::warning(field, message).help("the log of the control plane says why")
}

/// WorkloadEntries that the entry selects, with their addresses: those of a name where the entry has names looked up. What has none is told so once, however many
/// entries select it.
fn selected<'a>(
    entry: &Entry,
    selector: &Selector,
    objects: &'a Objects,
    told: &mut BTreeSet<Key>,
    problems: &mut Problems,
) -> impl Iterator<Item = (&'a Arc<Routed<WorkloadEntry>>, IpAddr)> {
    let from = NamespacedName::new(entry.namespace.clone(), "");
    let here = objects.routes.workload_entries.range(from..).map(|(_, workload)| workload);
    let here = here.take_while(|workload| workload.namespace == entry.namespace);
    let mut all = Vec::new();
    for workload in here.filter(|workload| meta::selects(&selector.labels, &workload.spec.labels)) {
        let written = workload.spec.address.as_str();
        if entry.spec.looks_up_selected() && is_name(written) {
            let found = objects.looked_up.get(written).map(Vec::as_slice).unwrap_or_default();
            let count = if entry.spec.resolution == Resolution::DnsRoundRobin { 1 } else { found.len() };
            all.extend(found.iter().take(count).map(|address| (workload, *address)));
            if found.is_empty() && told.insert(of_workload(workload)) {
                problems.push((of_workload(workload), not_looked_up(written, "spec.address".to_owned())));
            }
            continue;
        }
        match written.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if is_public(address) => all.push((workload, address)),
            unusable if told.insert(of_workload(workload)) => {
                let why = if unusable.is_ok() { "is a machine's own, or what clouds tell it" } else { "is no address" };
                let message = format!("{:?} {why}: it is not used", workload.spec.address);
                problems.push((of_workload(workload), Problem::warning("spec.address", message)));
            }
            _ => {}
        }
    }
    all.into_iter()
}

fn workload(entry: &Entry, target: &Target<'_, '_>, settings: &Settings) -> Workload {
    let (namespace, address, endpoint) = (&entry.namespace, target.address, target.endpoint);
    let (name, what) = match target.of {
        // A name may have several addresses.
        Some(of) if is_name(&of.spec.address) => (&of.name, format!("WorkloadEntry/{namespace}/{}/{address}", of.name)),
        Some(of) => (&of.name, format!("WorkloadEntry/{namespace}/{}", of.name)),
        None => (&entry.name, format!("ServiceEntry/{namespace}/{}/{address}", entry.name)),
    };
    let uid = format!("{}/networking.istio.io/{what}", settings.cluster_id);
    let mut workload = Workload::new(uid, namespace.clone(), name.clone());
    workload.addresses = vec![address];
    workload.trust_domain = settings.trust_domain.clone();
    workload.cluster_id = settings.cluster_id.clone();
    workload.workload_type = WorkloadType::Pod;
    workload.workload_name = name.clone();
    workload.canonical_name = name.clone();
    workload.canonical_revision = "latest".into();
    let Some(endpoint) = endpoint else { return workload };
    if target.of.is_some() {
        let label =
            |keys: [&str; 3]| keys.iter().find_map(|key| endpoint.labels.get(*key)).map(|text| text.as_str().into());
        let names = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
        workload.canonical_name = label(names).unwrap_or_else(|| name.clone());
        let revisions = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        workload.canonical_revision = label(revisions).unwrap_or_else(|| "latest".into());
    }
    if !endpoint.service_account.is_empty() {
        workload.service_account = endpoint.service_account.as_str().into();
    }
    if let Some(weight) = endpoint.weight {
        workload.capacity = weight;
    }
    let mut parts = endpoint.locality.splitn(3, '/').map(ArcStr::from);
    let mut next = || parts.next().unwrap_or_default();
    workload.locality = Locality { region: next(), zone: next(), subzone: next() };
    workload
}

fn mappings(entry: &Entry, endpoint: Option<&Endpoint>) -> Vec<PortMapping> {
    let mapping = |port: &EntryPort| {
        let own = endpoint.and_then(|endpoint| endpoint.ports.get(&port.name)).copied();
        PortMapping { service_port: port.number, target_port: own.or(port.target_port).unwrap_or(port.number) }
    };
    entry.spec.ports.iter().map(mapping).collect()
}
