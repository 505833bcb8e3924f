//! Whom the CUSTOM policies of one waypoint ask: the providers of the mesh settings that they name, and where those are. Of a provider that nobody knows, or that is
//! nowhere, the waypoint is told nothing: it denies what is to be asked of it, and the policy says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::l7::policy::Action;
use mesh_core::l7::{Authorizer, ClusterKey, Security};
use mesh_core::{ArcStr, NamespacedName};

use super::Problems;
use crate::diagnosis::{Problem, closest};
use crate::index::Settings;
use crate::index::service::key;
use crate::resource::mesh_authorizers::Provider;
use crate::resource::routing::{Routed, ServiceEntry};
use crate::resource::{Key, Kind, Objects};

/// Adds them.
pub fn find(objects: &Objects, settings: &Settings, security: &mut Security, problems: &mut Problems) {
    let mut found: BTreeMap<ArcStr, Result<Arc<Authorizer>, Problem>> = BTreeMap::new();
    for policy in &security.policies {
        let Action::Custom(provider) = &policy.action else { continue };
        let known = found.entry(provider.clone()).or_insert_with(|| one(objects, settings, provider).map(Arc::new));
        if let Err(problem) = known {
            let NamespacedName { namespace, name } = policy.name.clone();
            let own = Key { kind: Kind::AuthorizationPolicy, namespace, name };
            // Once, however many waypoints it is bound to.
            if !problems.iter().any(|(key, said)| *key == own && said.field == problem.field) {
                problems.push((own, problem.clone()));
            }
        }
    }
    security.authorizers = found.into_values().filter_map(Result::ok).collect();
}

fn one(objects: &Objects, settings: &Settings, name: &ArcStr) -> Result<Authorizer, Problem> {
    let wrong = |why: String, help: String| {
        let message = format!("{why}: what the rules match is denied");
        Problem::warning("spec.provider.name", message).help(help)
    };
    match settings.authorizers.get(name) {
        None => {
            let known: Vec<&str> = settings.authorizers.keys().map(ArcStr::as_str).collect();
            let help = match closest(name, &known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "add it to `extensionProviders` of the mesh settings".to_owned(),
            };
            Err(wrong(format!("the mesh settings have no provider {name:?}"), help))
        }
        Some(None) => {
            let help = "name one with envoyExtAuthzHttp or envoyExtAuthzGrpc".to_owned();
            Err(wrong(format!("the provider {name:?} is no authorizer"), help))
        }
        Some(Some(provider)) => match at(objects, settings, provider) {
            Ok(service) => {
                let place = ClusterKey { service, port: provider.port, subset: ArcStr::new() };
                Ok(provider.at(name, place))
            }
            Err(why) => {
                let help = "write the whole name of its service in `extensionProviders` of the mesh settings, and a port that it has";
                Err(wrong(format!("the provider {name:?} is nowhere: {why}"), help.to_owned()))
            }
        },
    }
}

fn at(objects: &Objects, settings: &Settings, provider: &Provider) -> Result<NamespacedName, String> {
    place(objects, settings, provider.namespace.as_deref(), &provider.host, provider.port)
}

/// What the service of a host, in lower case, is called in tables of services, if it has that port; `namespace` says which, if it is said.
pub(super) fn place(
    objects: &Objects,
    settings: &Settings,
    namespace: Option<&str>,
    host: &str,
    port: u16,
) -> Result<NamespacedName, String> {
    let is_meant = |own: &ArcStr| namespace.is_none_or(|meant| meant == own.as_str());
    let short = host.strip_suffix(&format!(".svc.{}", settings.cluster_domain)).and_then(|rest| rest.split_once('.'));
    if let Some((name, namespace)) = short
        && let Some(service) = objects.services.get(&NamespacedName::new(namespace, name))
        && is_meant(&service.namespace)
    {
        return match service.ports.iter().any(|one| one.port == port) {
            true => Ok(key(namespace, name, settings)),
            false => Err(format!("Service {namespace}/{name} has no port {port}")),
        };
    }
    if let Some((name, namespace)) = short {
        return Err(format!("there is no Service {namespace}/{name}"));
    }
    let entries = objects.routes.service_entries.values();
    let named: Vec<_> = entries
        .filter(|entry| is_meant(&entry.namespace) && settings.heeds(objects, &entry.namespace))
        .filter(|entry| is_host_of(entry, host))
        .collect();
    // Anybody may write an entry for any host: who is asked about requests is chosen by whoever wrote the settings.
    match (named.iter().find(|entry| settings.is_root(&entry.namespace)), &named[..]) {
        (Some(entry), _) => Ok(NamespacedName::new(entry.namespace.clone(), host)),
        (None, [entry]) if namespace.is_some() => Ok(NamespacedName::new(entry.namespace.clone(), host)),
        (None, []) => Err(format!("there is no service and no ServiceEntry with the host {host}")),
        _ => Err(format!("{host} is a ServiceEntry's: say of which namespace, as `NAMESPACE/{host}`")),
    }
}

fn is_host_of(entry: &Routed<ServiceEntry>, host: &str) -> bool {
    entry.spec.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
}
