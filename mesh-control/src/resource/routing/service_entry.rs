//! ServiceEntry: hosts beside those of Kubernetes' services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::ArcStr;
use serde::{Deserialize, Deserializer};

use super::values::{PROTOCOLS, block, host, host_pattern, protocol, visibility};
use super::{Check, Spec};
use crate::resource::{Labels, meta};
use crate::yaml::node::{Node as Tree, Value};

const MOST: usize = 256;
const MOST_ENDPOINTS: usize = 4096;
/// Names of certificates, as many as waypoints read.
const MOST_NAMES: usize = 1000;

/// What a ServiceEntry asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// What clients ask for, in lower case: names of hosts have no case, and by these rules find what they are about.
    #[serde(deserialize_with = "lower")]
    pub hosts: Vec<String>,
    /// Virtual addresses; without any, some are given, unless `resolution` is none.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Ports.
    #[serde(default)]
    pub ports: Vec<EntryPort>,
    /// Outside of the mesh if it is not said.
    #[serde(default)]
    pub location: Location,
    /// How endpoints are found.
    #[serde(default)]
    pub resolution: Resolution,
    /// Endpoints.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// Or pods and WorkloadEntries of the namespace.
    pub workload_selector: Option<Selector>,
    /// Namespaces that see it; none means all. Where only its own does, `undermesh.io/waypoint-bypass: refuse` keeps nobody from addressing an endpoint itself:
    /// that would lead clients of other namespaces to a waypoint that is not for them.
    #[serde(default)]
    pub export_to: Vec<String>,
    /// Who the endpoints may be: identities of the mesh, and names of certificates, where TLS is begun by a DestinationRule that has none itself.
    #[serde(default)]
    pub subject_alt_names: Vec<String>,
    /// What its status says was given to hosts without addresses, by whichever control plane.
    #[serde(skip)]
    pub given: Shown,
}

/// What a status says was given. No two of them differ: it changes nothing of what the object asks for, and whoever makes something of that need not make it again
/// whenever a status is written. Addresses are found again in each joining, so what is new here is heeded by the next, and that a status has become another one is
/// seen by what follows the objects.
#[derive(Clone, Debug, Default)]
pub struct Shown(pub Vec<Given>);

impl PartialEq for Shown {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Shown {}

/// An address that was given to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Which host.
    pub host: String,
    /// The address.
    pub address: IpAddr,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// That clients connect to.
    pub number: u16,
    /// What is spoken; TCP if it is not said.
    pub protocol: Option<String>,
    /// What endpoints call it.
    pub name: String,
    /// That endpoints listen on; the same if it is not said.
    pub target_port: Option<u16>,
}

/// Where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Nobody expects mutual TLS.
    #[default]
    MeshExternal,
    /// As a service of the mesh.
    MeshInternal,
}

/// How endpoints are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The client has found one already.
    #[default]
    None,
    /// They are written here.
    Static,
    /// Their names are looked up, all answers are used.
    Dns,
    /// Likewise, one answer at a time.
    DnsRoundRobin,
    /// The name of the request is looked up.
    DynamicDns,
}

/// An endpoint: a WorkloadEntry, or one written into a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// An address, a name, or a socket in the file system.
    pub address: String,
    /// Of the service's ports, by their names.
    pub ports: BTreeMap<String, u16>,
    /// Its labels.
    pub labels: Labels,
    /// The network that the address is of.
    pub network: String,
    /// Region, zone and sub-zone, with `/`.
    pub locality: String,
    /// Its share.
    pub weight: Option<u32>,
    /// Its identity, in the object's namespace.
    pub service_account: String,
}

/// Which workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Selector {
    /// All of these they have.
    pub labels: Labels,
}

fn lower<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let written = Vec::<String>::deserialize(from)?;
    let mut spelled = BTreeMap::<String, String>::new();
    let mut hosts = Vec::with_capacity(written.len());
    for host in written {
        let name = host.to_ascii_lowercase();
        // One that is written in two ways is one; written twice in the same way it is a mistake.
        if *spelled.entry(name.clone()).or_insert_with(|| host.clone()) == host {
            hosts.push(name);
        }
    }
    Ok(hosts)
}

impl Spec for ServiceEntry {
    fn take_status(&mut self, status: &Tree) {
        let Some(Value::List(items)) = status.get("addresses").map(|list| &list.value) else { return };
        // Whoever writes more than two of a host has not read this definition.
        let items = items.iter().take(2 * MOST);
        let text = |item: &Tree, field: &str| item.get(field).and_then(Tree::as_str).map(str::to_ascii_lowercase);
        let given = items
            .filter_map(|item| {
                let host = text(item, "host").filter(|host| !host.is_empty());
                // Of an entry with one host it need not be said.
                let host = host.or_else(|| self.hosts.first().filter(|_| self.hosts.len() == 1).cloned())?;
                Some(Given { host, address: text(item, "value")?.parse().ok()? })
            })
            .collect();
        self.given = Shown(given);
    }

    fn check(&self, check: &mut Check<'_>) {
        if self.hosts.is_empty() {
            check.error("spec.hosts", "no host", "name at least one");
        }
        for (name, count, most) in [
            ("hosts", self.hosts.len(), MOST),
            ("addresses", self.addresses.len(), MOST),
            ("ports", self.ports.len(), MOST),
            ("endpoints", self.endpoints.len(), MOST_ENDPOINTS),
        ] {
            if count > most {
                check.error(format!("spec.{name}"), format!("more than {most}"), "make several objects of it");
            }
        }
        check.each("spec.hosts", &self.hosts, |host| match host {
            "*" => Err("\"*\" cannot mean every host".to_owned()),
            _ => host_pattern(host),
        });
        check.once(self.hosts.iter().enumerate().map(|(i, host)| (format!("spec.hosts[{i}]"), host)));
        check.each("spec.exportTo", &self.export_to, visibility);
        check.few("spec.subjectAltNames", self.subject_alt_names.len(), MOST_NAMES);
        check.each("spec.subjectAltNames", &self.subject_alt_names, meta::told);
        self.check_ports(check);
        self.check_addresses(check);
        let ways = [("endpoints", !self.endpoints.is_empty()), ("workloadSelector", self.workload_selector.is_some())];
        check.one_of("spec", &ways);
        self.check_resolution(check);
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let field = format!("spec.endpoints[{index}]");
            endpoint.check_at(&field, check);
            endpoint.told(&field, check);
            for name in endpoint.ports.keys().filter(|name| !self.ports.iter().any(|port| port.name == **name)) {
                let known: Vec<&str> = self.ports.iter().map(|port| port.name.as_str()).collect();
                let help = format!("the ports are {}", known.join(", "));
                check.error(
                    crate::yaml::node::join(&format!("{field}.ports"), name),
                    format!("no port is called {name:?}"),
                    &help,
                );
            }
        }
    }
}

/// Addresses by the names that they are of.
pub type Addresses = BTreeMap<ArcStr, Vec<IpAddr>>;

impl ServiceEntry {
    /// Names that have to be looked up: of endpoints, or without any the hosts themselves.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        // With DYNAMIC_DNS a host that is no pattern is the name of all its requests.
        let is_dns = matches!(self.resolution, Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns);
        let hosts = self.hosts.iter().filter(|_| self.endpoints.is_empty()).filter(|host| !host.starts_with('*'));
        let names = self.endpoints.iter().map(|endpoint| &endpoint.address).chain(hosts);
        let is_own = is_dns && self.workload_selector.is_none();
        names.filter(move |_| is_own).map(String::as_str).filter(|name| is_name(name))
    }

    /// Whether names of WorkloadEntries that it selects are looked up.
    pub fn looks_up_selected(&self) -> bool {
        matches!(self.resolution, Resolution::Dns | Resolution::DnsRoundRobin) && self.workload_selector.is_some()
    }

    fn check_ports(&self, check: &mut Check<'_>) {
        let ports = self.ports.iter().enumerate();
        check.once(ports.clone().map(|(i, port)| (format!("spec.ports[{i}].number"), port.number)));
        check.once(ports.clone().map(|(i, port)| (format!("spec.ports[{i}].name"), &port.name)));
        for (index, port) in ports {
            let field = format!("spec.ports[{index}]");
            check.port(format!("{field}.number"), port.number);
            if let Some(target) = port.target_port {
                check.port(format!("{field}.targetPort"), target);
            }
            port_protocol(&field, port.protocol.as_deref(), check);
            if port.name.is_empty() {
                check.error(format!("{field}.name"), "an empty name", "");
            }
        }
    }

    fn check_addresses(&self, check: &mut Check<'_>) {
        check.each("spec.addresses", &self.addresses, block);
        let fixed = matches!(self.resolution, Resolution::None | Resolution::Static);
        for (index, address) in self.addresses.iter().enumerate() {
            let many = address.parse::<IpNet>().is_ok_and(|net| net.prefix_len() < net.max_prefix_len());
            if many && !fixed {
                check.error(
                    format!("spec.addresses[{index}]"),
                    "a block of addresses goes with resolution NONE and STATIC only",
                    "",
                );
            }
        }
    }

    fn check_resolution(&self, check: &mut Check<'_>) {
        let wildcard = self.hosts.iter().position(|host| host.starts_with('*'));
        let has_endpoints = !self.endpoints.is_empty() || self.workload_selector.is_some();
        let addressed = |endpoint: &Endpoint| endpoint.address.parse::<IpAddr>().is_ok();
        match self.resolution {
            Resolution::None if !self.endpoints.is_empty() => {
                check.error(
                    "spec.endpoints",
                    "with resolution NONE the client's own choice counts",
                    "write `resolution: STATIC`, or DNS for names",
                );
            }
            Resolution::Static if !has_endpoints => {
                check.error(
                    "spec.resolution",
                    "STATIC, and there are no endpoints",
                    "add `endpoints` or `workloadSelector`",
                );
            }
            Resolution::Static => {
                let odd = self
                    .endpoints
                    .iter()
                    .enumerate()
                    .filter(|(_, e)| !addressed(e) && !e.is_socket() && !e.address.is_empty());
                for (index, endpoint) in odd {
                    check.error(
                        format!("spec.endpoints[{index}].address"),
                        format!("{:?} is no address, and resolution is STATIC", endpoint.address),
                        "write `resolution: DNS`",
                    );
                }
            }
            Resolution::Dns | Resolution::DnsRoundRobin => {
                if let Some(index) = wildcard.filter(|_| !has_endpoints) {
                    check.error(
                        format!("spec.hosts[{index}]"),
                        format!("{:?} cannot be looked up", self.hosts[index]),
                        "name endpoints, or write `resolution: NONE` or DYNAMIC_DNS",
                    );
                }
                if self.resolution == Resolution::DnsRoundRobin && self.endpoints.len() > 1 {
                    check.error("spec.endpoints", "DNS_ROUND_ROBIN looks up one name", "write `resolution: DNS`");
                }
                for (index, _) in self.endpoints.iter().enumerate().filter(|(_, e)| e.is_socket()) {
                    check.error(
                        format!("spec.endpoints[{index}].address"),
                        "a socket cannot be looked up",
                        "write `resolution: STATIC`",
                    );
                }
            }
            Resolution::DynamicDns if has_endpoints => {
                check.error(
                    "spec.resolution",
                    "with DYNAMIC_DNS the request says the name",
                    "delete the endpoints, or write `resolution: DNS`",
                );
            }
            Resolution::None | Resolution::DynamicDns => {}
        }
    }
}

/// Whether an endpoint is written as a name, rather than as an address or a socket.
pub fn is_name(address: &str) -> bool {
    !address.is_empty() && address.parse::<IpAddr>().is_err() && !address.contains('/')
}

/// What is spoken on a port.
pub(super) fn port_protocol(field: &str, written: Option<&str>, check: &mut Check<'_>) {
    let Some(written) = written.filter(|written| !written.is_empty() && protocol(written).is_none()) else { return };
    let help = crate::diagnosis::closest(written, &PROTOCOLS).map(|meant| format!("did you mean `{meant}`?"));
    let help = help.unwrap_or_else(|| format!("write one of {}", PROTOCOLS.join(", ")));
    check.error(format!("{field}.protocol"), format!("{written:?} is no protocol that is known"), &help);
}

impl Endpoint {
    fn is_socket(&self) -> bool {
        self.address.starts_with("unix://")
    }

    /// What must hold of each, wherever it is written.
    pub(super) fn check_at(&self, field: &str, check: &mut Check<'_>) {
        let address = &self.address;
        if address.is_empty() {
            if self.network.is_empty() {
                check.error(
                    format!("{field}.address"),
                    "the address is missing",
                    "only an endpoint with `network` needs none",
                );
            }
        } else if let Some(path) = address.strip_prefix("unix://") {
            if !path.starts_with('/') && !path.starts_with('@') {
                check.error(format!("{field}.address"), "the path of a socket begins with `/`", "");
            }
            if !self.ports.is_empty() {
                check.error(format!("{field}.ports"), "a socket has no ports", "");
            }
        } else if address.parse::<IpAddr>().is_err() {
            check.must(format!("{field}.address"), host(address));
        }
        for (name, port) in &self.ports {
            check.port(crate::yaml::node::join(&format!("{field}.ports"), name), *port);
        }
        if !self.service_account.is_empty() {
            check.must(
                format!("{field}.serviceAccount"),
                meta::subdomain(&self.service_account).map_err(|why| format!("{:?}: {why}", self.service_account)),
            );
        }
        if self.locality.split('/').count() > 3 {
            check.error(format!("{field}.locality"), "more than region, zone and sub-zone", "");
        }
    }

    /// What nobody heeds of one that is there, not of what a group has in common.
    pub(super) fn told(&self, field: &str, check: &mut Check<'_>) {
        // Without an address it is told that it has none.
        if !self.network.is_empty() && !self.address.is_empty() {
            let why =
                "a mesh is one network here: it is reached as all others are, through no gateway of another network";
            check.warning(format!("{field}.network"), why, "delete it, or the endpoint if nobody can reach it so");
        }
    }
}
