//! What the names of hosts in routes are: services of Kubernetes, and hosts of ServiceEntries.
//!
//! What says where requests go counts only in namespaces that discoverySelectors select, as in Istio, which does not follow the others at all: a Gateway, a
//! ReferenceGrant or a ServiceEntry there is none. But it is followed here, so whoever names it is told why, and not that it is missing. Services
//! count everywhere: their addresses are known of all namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::NamespacedName;

use super::parents::{self, Owner};
use crate::diagnosis::closest;
use crate::index::service_entry::{self, may_decorate};
use crate::index::{Settings, service};
use crate::resource::routing::gateway::Gateway;
use crate::resource::routing::{Routed, Routes, ServiceEntry};
use crate::resource::service::Service;
use crate::resource::{Kind, Labels, Objects, namespace};

/// Everything that a name of a host can be.
#[derive(Debug)]
pub struct Hosts<'a> {
    objects: &'a Objects,
    settings: &'a Settings,
    entries: Entries<'a>,
    /// Those of namespaces that do not count.
    ignored: Entries<'a>,
}

/// By host; of several the oldest first, as they become services.
type Entries<'a> = BTreeMap<&'a str, Vec<&'a Arc<Routed<ServiceEntry>>>>;

/// Why something that is there is none here.
pub const UNSELECTED: &str = "does not count: no discoverySelectors select its namespace";

/// What a name is.
#[derive(Clone, Copy, Debug)]
pub enum Host<'a> {
    /// A service of Kubernetes.
    Service(&'a Arc<Service>),
    /// A host of a ServiceEntry.
    Entry(&'a Arc<Routed<ServiceEntry>>),
}

impl<'a> Hosts<'a> {
    /// Those that there are. `routes` are those of the objects that count.
    pub fn new(routes: &Routes, objects: &'a Objects, settings: &'a Settings) -> Self {
        let (mut entries, mut ignored) = (Entries::new(), Entries::new());
        let mut add = |name: &NamespacedName, entry: &'a Arc<Routed<ServiceEntry>>| {
            let counts = routes.service_entries.contains_key(name);
            let of_it = if counts { &mut entries } else { &mut ignored };
            entry.spec.hosts.iter().for_each(|host| of_it.entry(host).or_default().push(entry));
        };
        objects.routes.service_entries.iter().for_each(|(name, entry)| add(name, entry));
        // Stable: those of one age stay in the order of their names.
        let by_age = |all: &mut Vec<&'a Arc<Routed<ServiceEntry>>>| all.sort_by_key(|e| e.created.unwrap_or(i64::MIN));
        entries.values_mut().chain(ignored.values_mut()).for_each(by_age);
        Self { objects, settings, entries, ignored }
    }

    /// A name in full: one without a dot is a service of the object's namespace.
    pub fn full(&self, host: &str, namespace: &str) -> String {
        if host.contains('.') || host == "*" {
            host.to_ascii_lowercase()
        } else {
            service::key(namespace, host, self.settings).name.to_string()
        }
    }

    /// What a full name is to somebody in `namespace`: of several entries that of this namespace, else the oldest, so nobody takes a host from others by
    /// writing it once more.
    pub fn find(&self, full: &str, namespace: &str) -> Option<Host<'a>> {
        if let Some(service) = self.split(full).and_then(|(name, namespace)| self.service(namespace, name)) {
            return Some(Host::Service(service));
        }
        entry(&self.entries, full, namespace).map(Host::Entry)
    }

    /// What has this key in tables of services ([`Hosts::name`]), whoever sees it.
    pub fn keyed(&self, key: &NamespacedName) -> Option<Host<'a>> {
        let own = self.split(&key.name).filter(|(_, namespace)| *namespace == &*key.namespace);
        if let Some(service) = own.and_then(|(name, namespace)| self.service(namespace, name)) {
            return Some(Host::Service(service));
        }
        nearest(&self.entries, &key.name, |all| all.iter().find(|entry| entry.namespace == key.namespace).copied())
            .map(Host::Entry)
    }

    /// The services that a ServiceEntry is, as they are called: its hosts, as far as no Service and no older entry of its namespace has them.
    pub fn services_of(&self, entry: &Arc<Routed<ServiceEntry>>) -> Vec<NamespacedName> {
        if self.settings.istio_runs {
            return Vec::new();
        }
        let keys =
            service_entry::hosts(entry, self.objects, self.settings).map(|(_, host)| service_entry::key(entry, host));
        let is_own = |key: &NamespacedName| match self.keyed(key) {
            Some(Host::Entry(found)) => found.name == entry.name,
            _ => false,
        };
        keys.filter(is_own).collect()
    }

    /// Everything that says where requests go, also what does not count.
    pub fn all(&self) -> &'a Routes {
        &self.objects.routes
    }

    /// Whose a gateway is.
    pub fn owner(&self, gateway: &Routed<Gateway>) -> Owner<'a> {
        parents::owner(&gateway.spec.gateway_class_name, self.objects, self.settings)
    }

    /// Why there is no such object among those that count. `is_there`: it is among [`Hosts::all`].
    pub fn missing(&self, kind: &str, name: &NamespacedName, is_there: bool) -> String {
        if is_there { format!("{kind} {name} {UNSELECTED}") } else { format!("there is no {kind} {name}") }
    }

    /// Why what a full name is does not count, if that is why it is nothing to somebody in `namespace`.
    pub fn ignored(&self, full: &str, namespace: &str) -> Option<String> {
        let entry = entry(&self.ignored, full, namespace)?;
        Some(format!("ServiceEntry {}/{} of {full} {UNSELECTED}", entry.namespace, entry.name))
    }

    /// A service of Kubernetes.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&'a Arc<Service>> {
        self.objects.services.get(&NamespacedName::new(namespace, name))
    }

    /// As [`service::has_order`], of these objects.
    pub fn has_order(&self, service: &Service) -> bool {
        service::has_order(service, self.objects)
    }

    /// How a service is called in tables of services.
    pub fn key(&self, service: &Service) -> NamespacedName {
        service::key(&service.namespace, &service.name, self.settings)
    }

    /// How what a full name is is called in tables of services.
    pub fn name(&self, host: Host<'_>, full: &str) -> NamespacedName {
        match host {
            Host::Service(service) => self.key(service),
            Host::Entry(entry) => NamespacedName::new(entry.namespace.clone(), full),
        }
    }

    /// Whether anything fits a name that may begin with `*`.
    pub fn has_any(&self, pattern: &str, namespace: &str) -> bool {
        let Some(suffix) = pattern.strip_prefix('*') else { return self.find(pattern, namespace).is_some() };
        let fits = |service: &Arc<Service>| self.key(service).name.ends_with(suffix);
        self.entries.keys().any(|host| host.ends_with(suffix)) || self.objects.services.values().any(fits)
    }

    /// That a full name is nothing.
    pub fn nothing(&self, full: &str) -> String {
        format!("there is no service and no ServiceEntry with the host {full}")
    }

    /// What was probably meant by a name that is nothing.
    pub fn meant(&self, full: &str, namespace: &str) -> Option<String> {
        let short = |name: &str, namespace: &str| self.service(namespace, name).map(|service| self.key(service).name);
        // As resolvers of pods complete it.
        let parts: Vec<&str> = full.splitn(3, '.').collect();
        let completed = match parts.as_slice() {
            [name, namespace] | [name, namespace, "svc"] => short(name, namespace),
            _ => None,
        };
        let near = || {
            let (name, of) = self.split(full).unwrap_or((full, namespace));
            let first = NamespacedName::new(of, "");
            let services = self.objects.services.range(first..).take_while(|(key, _)| key.namespace == of);
            let names: Vec<&str> = services.map(|(key, _)| &*key.name).collect();
            closest(name, &names).and_then(|name| short(name, of))
        };
        completed.or_else(near).map(|name| format!("did you mean `{name}`?"))
    }

    /// Labels of a namespace, as far as they are known.
    pub fn labels(&self, name: &str) -> Labels {
        let known = self.objects.namespaces.get(name).map(|known| known.labels.clone());
        known.unwrap_or_else(|| [(namespace::NAME_LABEL.to_owned(), name.to_owned())].into())
    }

    /// Whether what says where requests go does not count in a namespace.
    pub fn is_ignored(&self, namespace: &str) -> bool {
        !self.settings.heeds(self.objects, namespace)
    }

    /// Whether nobody knows what there is of a kind.
    pub fn is_unheard(&self, kind: Kind) -> bool {
        self.objects.unheard.contains(&kind)
    }

    /// Whether the mesh settings have only what the registry knows reached.
    pub fn is_registry_only(&self) -> bool {
        self.settings.registry_only
    }

    /// Namespaces whose objects count everywhere.
    pub fn is_root(&self, namespace: &str) -> bool {
        self.settings.is_root(namespace)
    }

    /// Names of certificates that ServiceEntries add to a service of Kubernetes.
    pub fn added_names(&self, full: &str, of: &Service) -> Vec<&'a String> {
        let may = |entry: &&&Arc<Routed<ServiceEntry>>| may_decorate(&entry.namespace, &of.namespace, self.settings);
        let all = self.entries.get(full).into_iter().flatten().filter(may);
        all.flat_map(|entry| &entry.spec.subject_alt_names).collect()
    }

    /// Name and namespace of a service, of its full name.
    pub fn split<'b>(&self, full: &'b str) -> Option<(&'b str, &'b str)> {
        service::split(full, self.settings)
    }
}

impl Host<'_> {
    /// Whether clients can ask for a port. What is only an alias says nothing of ports.
    pub fn has_port(&self, port: u16) -> bool {
        match self {
            Host::Service(service) => service.is_alias || service.ports.iter().any(|known| known.port == port),
            Host::Entry(entry) => {
                entry.spec.ports.is_empty() || entry.spec.ports.iter().any(|known| known.number == port)
            }
        }
    }

    /// Whether clients can send datagrams to a port. To what is outside of the cluster none are sent.
    pub fn has_datagram_port(&self, port: u16) -> bool {
        match self {
            Host::Service(service) => service.datagram_ports.iter().any(|known| known.port == port),
            Host::Entry(_) => false,
        }
    }

    /// The ports that clients can ask for, as far as that is said.
    pub fn numbers(&self) -> BTreeSet<u16> {
        match self {
            Host::Service(service) => service.ports.iter().map(|port| port.port).collect(),
            Host::Entry(entry) => entry.spec.ports.iter().map(|port| port.number).collect(),
        }
    }

    /// The ports that there are.
    pub fn ports(&self) -> Vec<String> {
        match self {
            Host::Service(service) => service.ports.iter().map(|port| port.port.to_string()).collect(),
            Host::Entry(entry) => entry.spec.ports.iter().map(|port| port.number.to_string()).collect(),
        }
    }

    /// The port, if there is just one.
    pub fn only_port(&self) -> Option<u16> {
        match self {
            Host::Service(service) if service.ports.len() == 1 => service.ports.first().map(|port| port.port),
            Host::Entry(entry) if entry.spec.ports.len() == 1 => entry.spec.ports.first().map(|port| port.number),
            _ => None,
        }
    }

    /// Where it lives.
    pub fn namespace(&self) -> &str {
        match self {
            Host::Service(service) => &service.namespace,
            Host::Entry(entry) => &entry.namespace,
        }
    }
}

/// The entry of a full name, as somebody in `namespace` sees it.
fn entry<'a>(entries: &Entries<'a>, full: &str, namespace: &str) -> Option<&'a Arc<Routed<ServiceEntry>>> {
    nearest(entries, full, |all| {
        let mut seen = all.iter().filter(|entry| sees(&entry.spec.export_to, &entry.namespace, namespace));
        let oldest = seen.clone().next();
        seen.find(|entry| *entry.namespace == *namespace).or(oldest).copied()
    })
}

/// What is chosen of those with this very name, else of those with a wildcard that covers it. The longest wildcard is the nearest.
fn nearest<'a>(
    entries: &Entries<'a>,
    full: &str,
    choose: impl Fn(&[&'a Arc<Routed<ServiceEntry>>]) -> Option<&'a Arc<Routed<ServiceEntry>>>,
) -> Option<&'a Arc<Routed<ServiceEntry>>> {
    let of = |host: &str| entries.get(host).and_then(|all| choose(all));
    let mut above = full.match_indices('.').filter_map(|(at, _)| of(&format!("*{}", &full[at..])));
    of(full).or_else(|| above.next())
}

/// Whether an object of the namespace `own` with such an `exportTo` is seen in `namespace`.
pub fn sees(export_to: &[String], own: &str, namespace: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|to| match to.as_str() {
            "*" => true,
            "." => own == namespace,
            name => name == namespace,
        })
}

/// Whether there is a namespace that sees both of two objects.
pub fn see_both(one: (&[String], &str), two: (&[String], &str)) -> bool {
    let names = |(export_to, own): (&[String], &str)| -> Option<Vec<String>> {
        let is_all = export_to.is_empty() || export_to.iter().any(|to| to == "*");
        let name = |to: &String| if to == "." { own.to_owned() } else { to.clone() };
        (!is_all).then(|| export_to.iter().filter(|to| *to != "~").map(name).collect())
    };
    match (names(one), names(two)) {
        (None, None) => true,
        (Some(some), None) | (None, Some(some)) => !some.is_empty(),
        (Some(some), Some(others)) => some.iter().any(|name| others.contains(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::file;
    use crate::resource::catalog::{Catalog, Scan};

    #[test]
    fn of_entries_of_one_host_nobody_takes_it_from_others() {
        let entry = |namespace: &str, name: &str, day: u8, spec: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{namespace: {namespace}, name: {name}, \
                 creationTimestamp: '2024-01-0{day}T00:00:00Z'}}\nspec: {{{spec}, ports: [{{number: 80, name: http, protocol: HTTP}}], \
                 resolution: NONE}}\n"
            )
        };
        let text = [
            entry("aaa", "late", 5, "hosts: [api.bank.com]"),
            entry("shop", "z", 3, "hosts: [api.bank.com]"),
            entry("shop", "a", 4, "hosts: [api.bank.com]"),
            entry("zzz", "first", 2, "hosts: [api.bank.com]"),
            entry("hidden", "own", 1, "hosts: [api.bank.com], exportTo: [.]"),
            entry("away", "elsewhere", 1, "hosts: [out.bank.com], exportTo: [shop]"),
            entry("aaa", "wide", 1, "hosts: ['*.bank.com']"),
            "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: cart}\nspec: {ports: [{port: 80}]}\n".to_owned(),
            entry("aaa", "cart", 1, "hosts: [cart.shop.svc.cluster.local]"),
        ];
        let read = file::read("a.yaml", text.concat().as_bytes());
        assert!(read.diagnoses.is_empty(), "{:?}", read.diagnoses);
        let scan = Scan { found: read.found.into_iter().map(|(found, _)| found).collect(), ..Scan::default() };
        let (objects, settings) = (Catalog::default().apply(&scan).0, Settings::default());
        let hosts = Hosts::new(&objects.routes, &objects, &settings);
        let name = |host: Option<Host<'_>>| match host {
            Some(Host::Service(service)) => format!("service {}/{}", service.namespace, service.name),
            Some(Host::Entry(entry)) => format!("{}/{}", entry.namespace, entry.name),
            None => "-".to_owned(),
        };
        let cart = "cart.shop.svc.cluster.local";
        for (host, namespace, found, keyed) in [
            ("api.bank.com", "shop", "shop/z", "shop/z"),
            ("api.bank.com", "aaa", "aaa/late", "aaa/late"),
            ("api.bank.com", "hidden", "hidden/own", "hidden/own"),
            // Whose namespace has none: the oldest that they see.
            ("api.bank.com", "other", "zzz/first", "-"),
            ("out.bank.com", "away", "aaa/wide", "away/elsewhere"),
            ("out.bank.com", "shop", "away/elsewhere", "-"),
            ("a.bank.com", "shop", "aaa/wide", "-"),
            ("a.bank.com", "aaa", "aaa/wide", "aaa/wide"),
            (cart, "aaa", "service shop/cart", "aaa/cart"),
            (cart, "shop", "service shop/cart", "service shop/cart"),
        ] {
            assert_eq!(name(hosts.find(host, namespace)), found, "{host} in {namespace}");
            assert_eq!(name(hosts.keyed(&NamespacedName::new(namespace, host))), keyed, "{host} of {namespace}");
        }
    }
}
