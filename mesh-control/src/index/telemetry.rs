//! What Telemetry objects and mesh settings say together of one waypoint: root namespace, then the waypoint's, then what names the Gateway or, of a gateway at the
//! edge, selects its pods, then what names a service. Pure; whatever cannot be done is told to the object that asks for it.

mod made;
mod metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::l7::Share;
use mesh_core::telemetry::expression::Expression;
use mesh_core::telemetry::format::Template;
use mesh_core::telemetry::{
    AccessLog, MOST_LOGS, MOST_TAGS, Scopes, SpanTag, Telemetry as Core, Tracing as CoreTracing,
};
use mesh_core::{ArcStr, NamespacedName};

pub use made::{Made, index};

use super::{Settings, service_entry};
use crate::diagnosis::Problem;
use crate::resource::mesh_telemetry::{MeshTelemetry, Provider, STDOUT, millionths};
use crate::resource::routing::Routed;
use crate::resource::routing::telemetry::{
    AccessLogging, CustomTag, Metrics, Provider as Named, Side, Telemetry, Tracing,
};
use crate::resource::{Key, Kind, Labels, Objects};

/// Requests that are traced where nobody says how many: one of a hundred.
const SHARE: u32 = 10_000;

type Object = Arc<Routed<Telemetry>>;
type Problems = Vec<(Key, Problem)>;

/// What comes of the objects beside what waypoints do.
#[derive(Debug, Default)]
pub struct Told {
    /// Objects that hold somewhere.
    pub in_force: BTreeSet<Key>,
    /// Objects that would, but for an older one.
    pub late: BTreeSet<Key>,
    /// What is to be said.
    pub problems: Problems,
}

/// All objects that there are, and what is said of them.
pub struct Around<'a> {
    /// By `namespace/name`.
    pub objects: &'a BTreeMap<NamespacedName, Object>,
    /// What the mesh settings say.
    pub mesh: &'a MeshTelemetry,
    /// Which namespaces count for all.
    pub settings: &'a Settings,
    /// Of which ServiceEntry a service is that none of Kubernetes is.
    pub entries: BTreeMap<NamespacedName, ArcStr>,
}

/// The ServiceEntries whose hosts are services, by these.
pub fn entries(objects: &Objects, settings: &Settings) -> BTreeMap<NamespacedName, ArcStr> {
    let mut entries = BTreeMap::new();
    for entry in service_entry::entries(objects, settings) {
        for (_, host) in service_entry::hosts(entry, objects, settings) {
            entries.entry(service_entry::key(entry, host)).or_insert_with(|| entry.name.clone());
        }
    }
    entries
}

/// Where something stands, by which `mode` means it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// In front of servers, as a waypoint does, also one that is a gateway besides.
    BeforeServers,
    /// At the edge: to servers it is a client, as in Istio.
    AtEdge,
}

impl Stands {
    fn is_meant(self, mode: Option<Side>) -> bool {
        let other = match self {
            Self::BeforeServers => Side::Client,
            Self::AtEdge => Side::Server,
        };
        mode != Some(other)
    }
}

/// What one object is bound to.
#[derive(Clone, Copy)]
enum Scope<'a> {
    Namespace,
    /// By its name, or by labels of its pods.
    Gateway(&'a str, &'a dyn Fn(&Labels) -> bool),
    Class(&'a str),
    Service(&'a str),
    Entry(&'a str),
}

impl Around<'_> {
    /// What holds for a waypoint, or a gateway at the edge, of that class and the services that are bound to it (`namespace/hostname`). `selects` says whether labels select
    /// its pods.
    pub fn scopes(
        &self,
        gateway: &NamespacedName,
        (class, stands): (&str, Stands),
        services: &BTreeSet<NamespacedName>,
        selects: impl Fn(&Labels) -> bool,
        told: &mut Told,
    ) -> Scopes {
        let mut levels = Vec::new();
        let mut of_roots =
            |scope: Scope<'_>| self.settings.root_namespaces.iter().find_map(|root| self.one(root, scope, told));
        levels.extend(of_roots(Scope::Namespace));
        levels.extend(of_roots(Scope::Class(class)));
        if !self.settings.is_root(&gateway.namespace) {
            levels.extend(self.one(&gateway.namespace, Scope::Namespace, told));
        }
        levels.extend(self.one(&gateway.namespace, Scope::Gateway(&gateway.name, &selects), told));
        let waypoint = Arc::new(self.merge(&levels, stands, &mut told.problems));
        let mut scopes = Scopes { waypoint, services: BTreeMap::new() };
        for service in services {
            let scope = match self.entries.get(service) {
                Some(entry) => Scope::Entry(entry),
                None => Scope::Service(service.name.split('.').next().unwrap_or_default()),
            };
            if let Some(own) = self.one(&service.namespace, scope, told) {
                let levels: Vec<_> = levels.iter().copied().chain([own]).collect();
                scopes.services.insert(service.clone(), Arc::new(self.merge(&levels, stands, &mut told.problems)));
            }
        }
        scopes
    }

    /// Of several objects for one thing the oldest counts.
    fn one(&self, namespace: &str, scope: Scope<'_>, told: &mut Told) -> Option<&Object> {
        let from = NamespacedName::new(namespace, "");
        let here = self.objects.range(from..).map(|(_, object)| object).take_while(|one| one.namespace == *namespace);
        let mut all: Vec<&Object> = here.filter(|object| means(object, scope)).collect();
        all.sort_by_key(|object| (object.created.unwrap_or(i64::MAX), object.name.clone()));
        for late in all.iter().skip(1) {
            let message = format!("Telemetry {} is older and for the same: this one does not count there", all[0].name);
            told.problems.push((key(late), Problem::warning("spec", message)));
            told.late.insert(key(late));
        }
        told.in_force.extend(all.first().map(|object| key(object)));
        all.first().copied()
    }

    fn merge(&self, levels: &[&Object], stands: Stands, problems: &mut Problems) -> Core {
        let mut core = Core { logs: self.logs(levels, stands, problems), ..Core::default() };
        core.tracing = self.tracing(levels, stands, problems);
        for object in levels {
            for (index, asked) in object.spec.metrics.iter().enumerate() {
                let field = format!("spec.metrics[{index}]");
                if self.is_scraped(object, asked, &field, problems) {
                    metrics::overrides(&mut core, object, (asked, stands), &field, problems);
                }
            }
        }
        core
    }

    /// Whether it is about what is scraped, which is all that there is.
    fn is_scraped(&self, object: &Object, metrics: &Metrics, field: &str, problems: &mut Problems) -> bool {
        if metrics.reporting_interval.is_some() {
            let message = "numbers are as new as the scrape: it has no effect";
            problems.push((key(object), Problem::warning(format!("{field}.reportingInterval"), message)));
        }
        let is_prometheus = |named: &Named| {
            named.name == "prometheus"
                || matches!(self.mesh.providers.get(named.name.as_str()), Some(Provider::Metrics))
        };
        for (index, named) in metrics.providers.iter().enumerate().filter(|(_, named)| !is_prometheus(named)) {
            let message = format!("numbers are not sent to {}: they are scraped", named.name);
            problems.push((key(object), Problem::warning(format!("{field}.providers[{index}]"), message)));
        }
        metrics.providers.is_empty() || metrics.providers.iter().any(is_prometheus)
    }

    fn logs(&self, levels: &[&Object], stands: Stands, problems: &mut Problems) -> Vec<AccessLog> {
        let entries: Vec<(&Object, String, &AccessLogging)> = levels
            .iter()
            .flat_map(|object| {
                let all = object.spec.access_logging.iter().enumerate();
                all.map(move |(index, entry)| (*object, format!("spec.accessLogging[{index}]"), entry))
            })
            .filter(|(.., entry)| stands.is_meant(entry.matches.as_ref().and_then(|side| side.mode)))
            .collect();
        if entries.is_empty() && self.mesh.default_logs.is_empty() {
            return self.mesh.file.iter().cloned().collect();
        }
        // The most specific object that names providers says which; those that name none are about these.
        let mut scope: Vec<ArcStr> = self.mesh.default_logs.clone();
        for object in levels {
            let of_level = entries.iter().filter(|(of, ..)| Arc::ptr_eq(of, object));
            let named: Vec<ArcStr> = of_level.flat_map(|(.., entry)| names(&entry.providers)).collect();
            if !named.is_empty() {
                scope = named;
            }
        }
        if scope.is_empty() && self.mesh.file.is_some() {
            scope = vec![STDOUT.into()];
        }
        if scope.is_empty() {
            for (object, field, _) in entries.iter().filter(|(.., entry)| !entry.disabled.unwrap_or(false)) {
                let message = "no provider is named, and the mesh settings have no default: nothing is logged";
                let problem = Problem::warning(field.clone(), message);
                problems.push((key(object), problem.help(format!("write `providers: [{{name: {STDOUT}}}]`"))));
            }
        }
        let mut chosen: Vec<(ArcStr, bool, Option<ArcStr>)> = Vec::new();
        for name in scope {
            if chosen.iter().all(|(known, ..)| *known != name) {
                chosen.push((name, true, None));
            }
        }
        for (object, field, entry) in &entries {
            let filter = entry.filter.as_ref().map(|filter| {
                if let Err(error) = Expression::compile(&filter.expression) {
                    let problem = Problem::error(format!("{field}.filter.expression"), error.to_string());
                    let help = "until it is, all requests are logged";
                    problems.push((key(object), problem.help(help)));
                }
                ArcStr::from(filter.expression.as_str())
            });
            let about = names(&entry.providers);
            for (name, enabled, condition) in &mut chosen {
                if about.is_empty() || about.contains(name) {
                    *enabled = !entry.disabled.unwrap_or(false);
                    if filter.is_some() {
                        condition.clone_from(&filter);
                    }
                }
            }
        }
        let mut logs = Vec::new();
        for (name, _, filter) in chosen.into_iter().filter(|(_, enabled, _)| *enabled) {
            match self.log(&name) {
                Ok(log) if logs.len() < MOST_LOGS => logs.push(AccessLog { filter, ..log }),
                Ok(_) => {
                    self.tell(&entries, &name, &format!("it is more than the {MOST_LOGS} logs that are kept"), problems)
                }
                Err(why) => self.tell(&entries, &name, &why, problems),
            }
        }
        logs
    }

    /// Says to whoever names a provider why nothing is sent there.
    fn tell(&self, entries: &[(&Object, String, &AccessLogging)], name: &ArcStr, why: &str, problems: &mut Problems) {
        let naming = entries.iter().filter(|(.., entry)| names(&entry.providers).contains(name));
        for (object, field, _) in naming {
            problems.push((key(object), no_provider(&format!("{field}.providers"), name, why)));
        }
    }

    fn log(&self, name: &str) -> Result<AccessLog, String> {
        match self.mesh.providers.get(name) {
            Some(Provider::Log(log)) => Ok(log.clone()),
            None if name == STDOUT => Ok(self.mesh.file.clone().unwrap_or_default()),
            None => Err("the mesh settings have no provider of that name".to_owned()),
            Some(Provider::NotBuilt(why)) => Err((*why).to_owned()),
            Some(Provider::Spans(..) | Provider::Metrics) => Err("it takes no lines".to_owned()),
        }
    }

    fn tracing(&self, levels: &[&Object], stands: Stands, problems: &mut Problems) -> Option<CoreTracing> {
        let mut entries: Vec<(&Object, String, &Tracing)> = Vec::new();
        for object in levels {
            for (index, entry) in object.spec.tracing.iter().enumerate() {
                if stands.is_meant(entry.matches.as_ref().and_then(|side| side.mode)) {
                    entries.push((*object, format!("spec.tracing[{index}]"), entry));
                }
            }
        }
        if entries.is_empty() && !self.mesh.enable_tracing {
            return None;
        }
        let named = entries.iter().rev().find_map(|(object, field, entry)| {
            Some((entry.providers.first()?.name.as_str(), Some((*object, field.as_str()))))
        });
        let named = named.or_else(|| Some((self.mesh.default_tracing.as_deref()?, None)));
        let mut tracing = CoreTracing {
            share: share(self.mesh.tracing.share.unwrap_or(SHARE)),
            tag_length: self.mesh.tracing.tag_length.unwrap_or(CoreTracing::default().tag_length),
            ..CoreTracing::default()
        };
        let mut report = true;
        for (object, field, entry) in &entries {
            if let Some(percent) = entry.random_sampling_percentage {
                tracing.share = share(millionths(percent).unwrap_or_default());
            }
            report = !entry.disable_span_reporting.unwrap_or(!report);
            tracing.propagate = !entry.disable_context_propagation.unwrap_or(!tracing.propagate);
            tracing.by_request_id = entry.use_request_id_for_trace_sampling.unwrap_or(tracing.by_request_id);
            tracing.istio_tags = entry.enable_istio_tags.unwrap_or(tracing.istio_tags);
            if !entry.custom_tags.is_empty() {
                tracing.tags = tags(object, field, &entry.custom_tags, problems);
            }
        }
        match named.map(|(name, by)| (name, by, self.mesh.providers.get(name))) {
            Some((_, _, Some(Provider::Spans(collector, length)))) => {
                tracing.collector = Some(collector.clone());
                tracing.tag_length = length.unwrap_or(tracing.tag_length);
            }
            Some((name, Some((object, field)), found)) => {
                let why = match found {
                    None => "the mesh settings have no provider of that name",
                    Some(Provider::NotBuilt(why)) => *why,
                    Some(_) => "it takes no spans",
                };
                problems.push((key(object), no_provider(&format!("{field}.providers[0]"), name, why)));
            }
            _ => tracing.collector.clone_from(&self.mesh.tracing.zipkin),
        }
        if !report {
            tracing.collector = None;
        }
        Some(tracing)
    }
}

/// Whether an object is for that. A selector that says nothing is none, as in Istio.
fn means(object: &Object, scope: Scope<'_>) -> bool {
    let spec = &object.spec;
    let selector = selector(object);
    let mut targets = spec.target_refs.iter().chain(&spec.target_ref);
    let mut names = |kind: &str, name: &str| targets.any(|target| target.kind == kind && target.name == name);
    match scope {
        Scope::Namespace => selector.is_none() && targets.next().is_none(),
        Scope::Gateway(name, selects) => names("Gateway", name) || selector.is_some_and(selects),
        Scope::Class(name) => names("GatewayClass", name),
        Scope::Service(name) => names("Service", name),
        Scope::Entry(name) => names("ServiceEntry", name),
    }
}

/// The labels that an object asks of pods, if it asks for any.
fn selector(object: &Object) -> Option<&Labels> {
    object.spec.selector.as_ref().map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
}

fn key(object: &Object) -> Key {
    Key { kind: Kind::Telemetry, namespace: object.namespace.clone(), name: object.name.clone() }
}

fn names(providers: &[Named]) -> Vec<ArcStr> {
    providers.iter().map(|provider| provider.name.as_str().into()).collect()
}

fn no_provider(field: &str, name: &str, why: &str) -> Problem {
    Problem::error(field, format!("{name:?}: {why}")).help("add it to extensionProviders of the mesh settings")
}

fn share(millionths: u32) -> Share {
    Share::millionths(millionths).unwrap_or(Share::ALWAYS)
}

fn tags(
    object: &Object,
    field: &str,
    custom: &BTreeMap<String, CustomTag>,
    problems: &mut Problems,
) -> BTreeMap<ArcStr, SpanTag> {
    let mut tags = BTreeMap::new();
    for (name, tag) in custom.iter().take(MOST_TAGS) {
        let field = crate::yaml::node::join(&format!("{field}.customTags"), name);
        let text = |text: &str| ArcStr::from(text);
        let value = if let Some(literal) = &tag.literal {
            SpanTag::Literal(text(&literal.value))
        } else if let Some(header) = &tag.header {
            if Template::compile(&format!("%REQ({})%", header.name)).is_err() {
                let message = format!("{:?} is not the name of a header", header.name);
                problems.push((key(object), Problem::error(format!("{field}.header.name"), message)));
                continue;
            }
            SpanTag::Header(text(&header.name), header.default_value.as_deref().map(text))
        } else if let Some(variable) = &tag.environment {
            SpanTag::Environment(text(&variable.name), variable.default_value.as_deref().map(text))
        } else if let Some(formatter) = &tag.formatter {
            if let Err(error) = Template::compile(&formatter.value) {
                problems.push((key(object), Problem::error(format!("{field}.formatter.value"), error.to_string())));
                continue;
            }
            SpanTag::Formatter(text(&formatter.value))
        } else {
            continue;
        };
        tags.insert(name.as_str().into(), value);
    }
    tags
}

#[cfg(test)]
mod tests;
