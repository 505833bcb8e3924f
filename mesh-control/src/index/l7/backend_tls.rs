//! BackendTLSPolicies: which of several counts for a port of a service, with which TLS gateways and waypoints reach it then, and what each policy is told of those that do
//! (`status.ancestors`). One that counts and cannot be honoured closes what it is about: its writer has asked for no plaintext.
//!
//! ```text
//! policies of a namespace ── by service and port, the oldest first ──> one counts, others are in conflict with it
//! a place of a gateway ── the policy of its port, else of its service ──> Tls, and references to roots
//! ```
//!
//! Whether references lead anywhere is not known here: what they lead to changes without anything else, so the joining lays it over what policies are told.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::l7::ClusterKey;
use mesh_core::l7::cluster::{ServerName, Tls};
use mesh_core::{ArcStr, NamespacedName};

use super::listeners::told::Why;
use super::{Around, Problems};
use crate::diagnosis::Problem;
use crate::index::certificates::{Certified, Part, Reference};
use crate::resource::routing::Routed;
use crate::resource::routing::grants::{BackendTlsPolicy, PolicyTarget};
use crate::resource::routing::reference::{LocalReference, ParentReference};
use crate::resource::secret::named;
use crate::resource::{Key, Kind};
use crate::verdict::Belonging;

/// All policies, by what they are about.
#[derive(Debug, Default)]
pub struct Policies<'a> {
    by_service: BTreeMap<NamespacedName, Vec<Target<'a>>>,
}

/// One policy at one of its targets.
#[derive(Debug)]
struct Target<'a> {
    policy: Key,
    /// `None`: it cannot be read, and never could.
    object: Option<&'a Routed<BackendTlsPolicy>>,
    /// `None`: all ports that no other policy names.
    port: Option<u16>,
    /// Why it does not count here.
    refused: Option<Why>,
}

/// What one policy is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyTold {
    /// Gateways and waypoints that reach what it is about, and why it does not count there.
    pub ancestors: BTreeMap<NamespacedName, Option<Why>>,
    /// How many references it has.
    pub references: usize,
    /// Those that lead nowhere, by field.
    pub broken: BTreeMap<String, Why>,
    /// It could never be read.
    pub unread: bool,
}

/// By policy.
pub type Told = BTreeMap<Key, PolicyTold>;

impl<'a> Policies<'a> {
    /// Those that there are. Of several for one service, or one port of it, the oldest counts, then the first by name.
    pub fn new(around: &Around<'a>, problems: &mut Problems) -> Self {
        let readable = around.routes.backend_tls_policies.values().map(|object| {
            let targets = object.spec.target_refs.as_slice();
            (object.created.unwrap_or(i64::MIN), key(&object.namespace, &object.name), Some(&**object), targets)
        });
        // Where one that can be read counts there is no need to close anything.
        let unread = around.resolved.unread_policies.iter();
        let unread = unread.map(|(key, targets)| (i64::MAX, key.clone(), None, targets.as_slice()));
        let mut ordered: Vec<_> = readable.chain(unread).collect();
        ordered.sort_by(|one, two| (one.0, &one.1).cmp(&(two.0, &two.1)));
        let mut policies = Self::default();
        for (_, key, object, targets) in ordered {
            for (index, target) in targets.iter().enumerate() {
                let field = format!("spec.targetRefs[{index}]");
                if let Err(why) = policies.add(&key, object, target, around) {
                    problems.push((key.clone(), Problem::warning(field, why)));
                }
            }
            for option in object.iter().flat_map(|object| object.spec.options.keys()) {
                let problem =
                    Problem::warning(format!("spec.options[{option}]"), "no option is known, and it changes nothing");
                problems.push((key.clone(), problem));
            }
        }
        policies
    }

    /// Adds one at a target; why it does not count there.
    fn add(
        &mut self,
        policy: &Key,
        object: Option<&'a Routed<BackendTlsPolicy>>,
        target: &PolicyTarget,
        around: &Around<'_>,
    ) -> Result<(), String> {
        if (target.group.as_str(), target.kind.as_str()) != ("", "Service") {
            return Err(format!("it is for Services, and a {} is none", target.kind));
        }
        let Some(service) = around.hosts.service(&policy.namespace, &target.name) else {
            return Err(format!("there is no Service {}/{}", policy.namespace, target.name));
        };
        let known = self.by_service.entry(around.hosts.key(service)).or_default();
        let mut port = None;
        if let Some(section) = target.section_name.as_deref().filter(|section| !section.is_empty()) {
            port = service.ports.iter().find(|port| port.name == section).map(|port| port.port);
            if port.is_none() {
                let why = format!("Service {}/{} has no port called {section:?}", policy.namespace, target.name);
                let refused = Some(("TargetNotFound", why.clone()));
                known.push(Target { policy: policy.clone(), object, port: None, refused });
                return Err(why);
            }
        }
        let other = known.iter().find(|one| one.refused.is_none() && one.port == port);
        let why = other.map(|other| format!("{} is for the same and older, or first by name", other.policy));
        let refused = why.clone().map(|why| ("Conflicted", why));
        known.push(Target { policy: policy.clone(), object, port, refused });
        why.map_or(Ok(()), Err)
    }

    /// The one that counts at a place.
    fn of(&self, place: &ClusterKey) -> Option<&Target<'a>> {
        let known = self.by_service.get(&place.service)?;
        let at = |port: Option<u16>| known.iter().find(|one| one.refused.is_none() && one.port == port);
        at(Some(place.port)).or_else(|| at(None))
    }

    /// With which TLS `gateway` reaches a place, or why it does not at all; `None`: no policy is about it. `shown` is what the gateway shows to servers. What the
    /// policy names is added to `references`.
    pub fn tls(
        &self,
        place: &ClusterKey,
        gateway: &NamespacedName,
        shown: Result<Option<ArcStr>, ArcStr>,
        references: &mut Vec<Reference>,
    ) -> Option<(&Key, Result<Tls, ArcStr>)> {
        let target = self.of(place)?;
        let Some(object) = target.object else {
            return Some((&target.policy, Err(format!("{} cannot be read", target.policy).into())));
        };
        let (validation, mut roots) = (&object.spec.validation, Vec::new());
        for (field, holder) in holders(object) {
            let Ok(holder) = holder else { continue };
            roots.push(named(&holder));
            references.push(Reference {
                gateway: gateway.clone(),
                object: target.policy.clone(),
                listener: ArcStr::new(),
                field,
                holder,
                or: None,
                part: Part::Believed,
            });
        }
        // Never what the system trusts instead.
        if roots.is_empty() && !validation.ca_certificate_refs.is_empty() {
            return Some((&target.policy, Err(format!("{} names nobody to believe", target.policy).into())));
        }
        let names =
            validation.subject_alt_names.iter().filter_map(|one| one.hostname.as_deref().or(one.uri.as_deref()));
        let server = |shown| ServerName {
            roots,
            shown,
            sni: Some(validation.hostname.as_str().into()),
            names: names.map(Into::into).collect(),
            unverified: false,
            end_to_end: true,
            ..ServerName::default()
        };
        Some((&target.policy, shown.map(|shown| Tls::Simple(server(shown)))))
    }

    /// Takes note of what a gateway or waypoint reaches, in what the policies about that are told.
    pub fn used(&self, gateway: &NamespacedName, places: &BTreeSet<(&NamespacedName, u16)>, told: &mut Told) {
        let services: BTreeSet<_> = places.iter().map(|(service, _)| *service).collect();
        for service in services {
            for target in self.by_service.get(service).into_iter().flatten() {
                if target.port.is_some_and(|port| !places.contains(&(service, port))) {
                    continue;
                }
                let own = told.entry(target.policy.clone()).or_insert_with(|| PolicyTold::of(target.object));
                let before = own.ancestors.entry(gateway.clone()).or_default();
                if before.is_none() {
                    before.clone_from(&target.refused);
                }
            }
        }
    }
}

/// What a policy names, each with its field; an error is why it can be no roots.
fn holders(object: &Routed<BackendTlsPolicy>) -> impl Iterator<Item = (String, Result<Key, Why>)> {
    object.spec.validation.ca_certificate_refs.iter().enumerate().map(|(index, reference)| {
        let LocalReference { group, kind, name } = reference;
        let of = |kind| Ok(Key { kind, namespace: object.namespace.clone(), name: name.as_str().into() });
        let holder = match (group.as_str(), kind.as_str()) {
            ("", "ConfigMap") => of(Kind::CaBundle),
            ("", "Secret") => of(Kind::Secret),
            _ => Err(("InvalidKind", format!("there are no roots in a {kind}{}", dotted(group)))),
        };
        (format!("spec.validation.caCertificateRefs[{index}]"), holder)
    })
}

fn dotted(group: &str) -> String {
    if group.is_empty() { String::new() } else { format!(".{group}") }
}

fn key(namespace: &ArcStr, name: &ArcStr) -> Key {
    Key { kind: Kind::BackendTlsPolicy, namespace: namespace.clone(), name: name.clone() }
}

/// What is to be said of references that can lead nowhere, whoever uses them.
pub fn check(around: &Around<'_>, problems: &mut Problems) {
    for object in around.routes.backend_tls_policies.values() {
        for (field, holder) in holders(object) {
            let Err((_, why)) = holder else { continue };
            let problem = Problem::error(field, why).help("name a ConfigMap or Secret with `ca.crt`");
            problems.push((key(&object.namespace, &object.name), problem));
        }
    }
}

impl PolicyTold {
    fn of(object: Option<&Routed<BackendTlsPolicy>>) -> Self {
        let Some(object) = object else { return Self { unread: true, ..Self::default() } };
        let broken = holders(object).filter_map(|(field, holder)| Some((field, holder.err()?)));
        let references = object.spec.validation.ca_certificate_refs.len();
        Self { references, broken: broken.collect(), ..Self::default() }
    }

    /// Whether it is in force anywhere.
    pub fn acts(&self) -> bool {
        self.ancestors.values().any(Option::is_none)
    }

    /// In the form in which objects are told of those above them.
    pub fn belonging(&self) -> Belonging {
        let nobody = self.references > 0 && self.broken.len() == self.references;
        let refused = |refused: &Option<Why>| {
            let none = || nobody.then(|| ("NoValidCACertificate", "none of its references leads to roots".to_owned()));
            refused.clone().or_else(none)
        };
        let parents = self.ancestors.iter().map(|(gateway, why)| (reference(gateway), refused(why)));
        let parents: Vec<_> = parents.collect();
        let served = parents.iter().map(|(parent, _)| parent.clone()).collect();
        let broken = self.broken.iter().map(|(field, (reason, why))| (field.clone(), *reason, why.clone()));
        Belonging { parents, served, broken: (!self.unread).then(|| broken.collect()) }
    }
}

fn reference(gateway: &NamespacedName) -> ParentReference {
    ParentReference {
        group: Some("gateway.networking.k8s.io".to_owned()),
        kind: Some("Gateway".to_owned()),
        namespace: Some(gateway.namespace.to_string()),
        name: gateway.name.to_string(),
        section_name: None,
        port: None,
    }
}

/// Lays over it what is known of what references lead to. Of what is not known yet nothing is told.
pub fn with_secrets(told: &Told, certified: &Certified) -> Told {
    let mut told = told.clone();
    for bad in &certified.unresolved {
        if let Some(own) = told.get_mut(&bad.object) {
            own.broken.insert(bad.field.clone(), ("InvalidCACertificateRef", bad.why.clone()));
        }
    }
    told.retain(|key, _| !certified.undecided.contains(key));
    told
}
