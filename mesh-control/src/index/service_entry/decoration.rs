//! ServiceEntries for hosts of Kubernetes' services. Such an entry makes no second service, and takes nothing over: that its endpoints may also be those of
//! `subjectAltNames` is all that it says, and only an entry of the service's own namespace or of the root namespace says it, for it widens whom clients believe.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_core::{Identity, NamespacedName};

use super::{Entry, Problems, entries, object};
use crate::diagnosis::Problem;
use crate::index::Settings;
use crate::index::service::{self, Services};
use crate::resource::{Key, Objects};

/// Names of one service, as many as are read of one entry.
const MOST: usize = 1000;

/// The service of Kubernetes that a host is of. One that is only another name of a host is none.
pub fn of_kubernetes(host: &str, objects: &Objects, settings: &Settings) -> Option<NamespacedName> {
    let domain = settings.cluster_domain.as_bytes();
    let end = host.len().checked_sub(domain.len())?;
    // Most hosts are outside of the cluster: nothing is made to find that out.
    if !host.as_bytes().get(end..)?.eq_ignore_ascii_case(domain) {
        return None;
    }
    let host = host.to_ascii_lowercase();
    let (name, namespace) = service::split(&host, settings)?;
    let name = NamespacedName::new(namespace, name);
    objects.services.get(&name).filter(|service| !service.is_alias).map(|_| name)
}

/// Whether an entry of a namespace may say something of a service.
pub fn may_decorate(entry: &str, service: &str, settings: &Settings) -> bool {
    entry == service || settings.is_root(entry)
}

/// Adds names to the services that entries are about. What comes back are the objects that are in force.
pub fn names(
    objects: &Objects,
    settings: &Settings,
    services: &mut Services,
    problems: &mut Problems,
) -> BTreeSet<Key> {
    let mut in_force = BTreeSet::new();
    for entry in entries(objects, settings) {
        for (index, host) in entry.spec.hosts.iter().enumerate() {
            let Some(name) = of_kubernetes(host, objects, settings) else { continue };
            let field = format!("spec.hosts[{index}]");
            let mut warn = |message: String, help: &str| {
                problems.push((object(entry), Problem::warning(field.clone(), message).help(help)));
            };
            if !may_decorate(&entry.namespace, &name.namespace, settings) {
                let message =
                    format!("{host} is the host of Service {name}, which counts; nothing of this entry is used");
                let help = format!("who its endpoints may be only entries of the namespace {} say", name.namespace);
                warn(message, &help);
                continue;
            }
            if let Some(what) = says_more(entry) {
                let message = format!(
                    "{host} is the host of Service {name}, which counts: only subjectAltNames are used, not {what}"
                );
                warn(message, "choose another host for endpoints of your own");
            }
            let key = service::key(&name.namespace, &name.name, settings);
            let Some(service) = services.by_key.get_mut(&key) else { continue };
            in_force.insert(object(entry));
            let names: Vec<Identity> =
                entry.spec.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect();
            if names.is_empty() {
                continue;
            }
            let known = &mut Arc::make_mut(service).subject_alt_names;
            for name in names {
                if known.len() < MOST && !known.contains(&name) {
                    known.push(name);
                }
            }
        }
    }
    in_force
}

/// What an entry asks for that the service says for itself.
fn says_more(entry: &Entry) -> Option<&'static str> {
    let spec = &entry.spec;
    let more = [
        ("endpoints", !spec.endpoints.is_empty()),
        ("workloadSelector", spec.workload_selector.is_some()),
        ("addresses", !spec.addresses.is_empty()),
    ];
    more.into_iter().find(|(_, is)| *is).map(|(what, _)| what)
}
