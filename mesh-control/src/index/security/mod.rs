//! What each waypoint holds requests against: the policies and RequestAuthentications that are bound to it, to its class, or to services that it serves. Those with a
//! selector, or without anything, are agents' as in Istio: what a pod's agent cannot judge of them it does not judge (`resource::authorization_policy`). Before the pods
//! of a gateway at the edge stands no agent: there they are the gateway's, in full.
//!
//! Whom policies with the action CUSTOM ask is found by `authorizers`, and how many
//! requests there may be by `limits`.
//!
//! What cannot be read and never could denies what it is bound to. What is bound to something that has no waypoint is in force nowhere, and says so.

mod authorizers;
mod limits;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::HeaderName;
use mesh_core::l7::Security;
use mesh_core::l7::headers::is_changeable;
use mesh_core::l7::policy::Policy;
use mesh_core::l7::security::{Authentication, Target};
use mesh_core::l7::token::{JwtRule, Location};
use mesh_core::{ArcStr, NamespacedName};

use super::Settings;
use super::service::key;
use super::service_entry;
use super::trust::Domains;
use super::waypoint::{Deployed, PodLabels, Served, Waypoints, has_labels};
use crate::diagnosis::Problem;
use crate::resource::authorization_policy::AuthorizationPolicy;
use crate::resource::authorization_policy::bound::Bound;
use crate::resource::routing::telemetry::{self, RequestAuthentication, TargetReference};
use crate::resource::routing::{Routed, inaction};
use crate::resource::token_keys::{Keys, Place};
use crate::resource::waypoint::NAMES_CLIENTS;
use crate::resource::{Key, Kind, Labels, Objects, Secured, Unreadable};

type Problems = Vec<(Key, Problem)>;

/// What waypoints are given, and what is to be said of the objects that it is made of.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// By gateway.
    pub security: BTreeMap<NamespacedName, Arc<Security>>,
    /// Objects that are in force at some waypoint.
    pub in_force: BTreeSet<Key>,
    /// What is to be said.
    pub problems: Problems,
}

impl Made {
    /// What says the same as before is the same: whoever serves it need not look.
    pub fn keep(&mut self, before: &Self) {
        for (gateway, own) in &mut self.security {
            if let Some(same) = before.security.get(gateway).filter(|same| *same == own) {
                *own = same.clone();
            }
        }
    }
}

/// Whom something is bound to.
struct Finder<'a> {
    objects: &'a Objects,
    settings: &'a Settings,
    waypoints: &'a Waypoints,
    served: &'a Served,
    /// Of pods that serve gateways.
    labels: &'a PodLabels,
    /// That identities are of.
    domains: Domains,
}

/// By gateway.
type Targets = BTreeMap<NamespacedName, Target>;

/// Finds what each waypoint is to be told.
pub fn index(
    objects: &Objects,
    settings: &Settings,
    waypoints: &Waypoints,
    served: &Served,
    labels: &PodLabels,
) -> Made {
    let finder = Finder { objects, settings, waypoints, served, labels, domains: Domains::of(settings) };
    let mut made = Made::default();
    let mut all: BTreeMap<NamespacedName, Security> = BTreeMap::new();
    for (gateway, _) in waypoints.deployed() {
        let name = gateway.to_string().into();
        let spelling = settings.defaults.spelling;
        let names_clients = finder.names_clients(gateway, &mut made.problems);
        all.insert(gateway.clone(), Security { name, spelling, names_clients, ..Security::default() });
    }
    for (name, secured) in &objects.authorization_policies {
        if !settings.heeds(objects, &name.namespace) {
            continue;
        }
        let own = Key { kind: Kind::AuthorizationPolicy, namespace: name.namespace.clone(), name: name.name.clone() };
        let (targets, bound) = finder.bound(&own, secured, &mut made.problems);
        for (gateway, target) in targets {
            let policy = match bound {
                None => Policy::closed(name.clone(), target),
                Some(bound) => {
                    let (mut rules, action) = (bound.rules.clone(), bound.action.clone());
                    finder.domains.fill_l7(&mut rules);
                    Policy { name: name.clone(), target, action, rules, dry_run: bound.dry_run }
                }
            };
            made.in_force.insert(own.clone());
            all.entry(gateway).or_default().policies.push(Arc::new(policy));
        }
    }
    for (name, object) in &objects.routes.rate_limits {
        if settings.heeds(objects, &name.namespace) {
            limits::add(&finder, name, object, &mut all, &mut made);
        }
    }
    for security in all.values_mut() {
        authorizers::find(objects, settings, security, &mut made.problems);
    }
    for (name, object) in &objects.routes.request_authentications {
        if settings.heeds(objects, &name.namespace) && !settings.istio_runs {
            finder.tokens(name, object, &mut all, &mut made);
        }
    }
    for (name, known) in &objects.unread_authentications {
        if settings.heeds(objects, &name.namespace) && !settings.istio_runs {
            let kind = Kind::RequestAuthentication;
            let own = Key { kind, namespace: name.namespace.clone(), name: name.name.clone() };
            for (gateway, target) in finder.unread(&own, known, &mut made.problems) {
                made.in_force.insert(own.clone());
                // Whose tokens would be believed nobody knows, nor which headers it would keep clients from sending.
                let closed = Policy::closed(name.clone(), target);
                all.entry(gateway).or_default().policies.push(Arc::new(closed));
            }
        }
    }
    made.security = all.into_iter().map(|(gateway, own)| (gateway, Arc::new(own))).collect();
    made
}

impl Finder<'_> {
    /// Whether a waypoint tells endpoints who the client is. A gateway at the edge goes by `gatewayTopology`.
    fn names_clients(&self, gateway: &NamespacedName, problems: &mut Problems) -> bool {
        let object = self.objects.routes.gateways.get(gateway);
        let Some(said) = object.and_then(|object| object.marks.get(NAMES_CLIENTS)) else { return false };
        let why = match said.as_str() {
            _ if self.waypoints.is_edge(gateway) => "it is for waypoints: it has no effect",
            "true" => return true,
            "false" | "" => return false,
            _ => "neither true nor false: it has no effect",
        };
        let own = Key { kind: Kind::Gateway, namespace: gateway.namespace.clone(), name: gateway.name.clone() };
        let field = format!("metadata.annotations[\"{NAMES_CLIENTS}\"]");
        let help = "what gateways write there `gatewayTopology.forwardClientCertDetails` says";
        problems.push((own, Problem::warning(field, why).help(help)));
        false
    }

    /// What a policy is in force at, and as what: `None` denies everything there.
    fn bound<'a>(
        &self,
        own: &Key,
        secured: &'a Secured<AuthorizationPolicy>,
        problems: &mut Problems,
    ) -> (Targets, Option<&'a Bound>) {
        match secured {
            Secured::Readable(policy) => match (&policy.bound, &policy.at_gateways) {
                (Some(bound), _) => (self.targets(own, &bound.targets, problems), Some(bound)),
                (None, Ok(whole)) => {
                    let targets = self.selected(&own.namespace, Some(&policy.selector));
                    let too_long = self.domains.too_long(&whole.rules).filter(|_| !targets.is_empty());
                    problems.extend(too_long.map(|too_long| (own.clone(), too_long.problem())));
                    (targets, Some(whole))
                }
                // What never refused anybody does not now.
                (None, Err(_)) if policy.enforced.as_ref().is_none_or(|enforced| enforced.dry_run) => {
                    (Targets::new(), None)
                }
                (None, Err(why)) => {
                    let targets = self.selected(&own.namespace, Some(&policy.selector));
                    problems.extend(targets.keys().next().map(|gateway| {
                        let message = format!(
                            "Gateway {gateway}, whose pods it selects, cannot read it and refuses everything: {why}"
                        );
                        (own.clone(), Problem::warning("spec", message))
                    }));
                    (targets, None)
                }
            },
            Secured::Unreadable(known) => (self.unread(own, known, problems), None),
        }
    }

    /// What something is closed at that cannot be read and never could.
    fn unread(&self, own: &Key, known: &Unreadable, problems: &mut Problems) -> Targets {
        match &known.targets {
            _ if !known.bound_elsewhere => self.selected(&own.namespace, known.selector.as_ref()),
            Some(targets) => self.targets(own, targets, problems),
            None => self.all_of(&own.namespace),
        }
    }

    /// Gateways at the edge whose pods are selected by something in a namespace: all, if the selector is empty or nobody can tell it. Of one that is a waypoint as well
    /// only what comes in at its edge is meant: of what goes through it agents judge.
    fn selected(&self, namespace: &ArcStr, selector: Option<&Labels>) -> Targets {
        let everywhere = self.settings.is_root(namespace);
        let is_meant = |name: &NamespacedName, own: &Deployed| {
            (everywhere || name.namespace == *namespace)
                && selector.is_none_or(|selector| {
                    selector.is_empty() || has_labels(self.objects, self.labels, name, own, selector)
                })
        };
        let edges = self.waypoints.edges().filter(|(name, own, _)| is_meant(name, own));
        edges.map(|(name, _, whole)| (name.clone(), if whole { Target::All } else { Target::Edge })).collect()
    }

    /// The waypoints of what is named, and what is to be said of what has none.
    fn targets(&self, own: &Key, targets: &[TargetReference], problems: &mut Problems) -> Targets {
        let mut found = Targets::new();
        for (index, target) in targets.iter().enumerate() {
            match self.target(&own.namespace, target) {
                Ok(several) => several.into_iter().for_each(|(gateway, target)| merge(&mut found, gateway, target)),
                Err(why) => {
                    let field = format!("spec.targetRefs[{index}]");
                    problems.push((own.clone(), Problem::warning(field, format!("{why}: it is not in force there"))));
                }
            }
        }
        found
    }

    fn target(&self, namespace: &ArcStr, target: &TargetReference) -> Result<Vec<(NamespacedName, Target)>, String> {
        let name = NamespacedName::new(namespace.clone(), target.name.as_str());
        let found: Vec<(NamespacedName, Target)> = match target.kind.as_str() {
            "Gateway" => {
                let is_it = |(gateway, _): &(&NamespacedName, _)| **gateway == name;
                self.waypoints.deployed().filter(is_it).map(|(gateway, _)| (gateway.clone(), Target::All)).collect()
            }
            "GatewayClass" if !self.settings.is_root(namespace) => {
                return Err("policies of a whole class are read in the root namespace only".to_owned());
            }
            "GatewayClass" => {
                let is_of = |gateway: &NamespacedName| {
                    let object = self.objects.routes.gateways.get(gateway);
                    object.is_some_and(|object| object.spec.gateway_class_name == target.name)
                };
                let own = self.waypoints.deployed().filter(|(gateway, _)| is_of(gateway));
                own.map(|(gateway, _)| (gateway.clone(), Target::All)).collect()
            }
            "ServiceEntry" => {
                let Some(entry) = self.objects.routes.service_entries.get(&name) else {
                    return Err(format!("there is no ServiceEntry {name}"));
                };
                // Also those of services of Kubernetes: what is bound to the entry holds for them where they are of its namespace.
                let hosts = entry.spec.hosts.iter();
                self.served_by(hosts.map(|host| service_entry::key(entry, host)).collect())
            }
            _ if !self.objects.services.contains_key(&name) => return Err(format!("there is no Service {name}")),
            _ => self.served_by(vec![key(namespace, &target.name, self.settings)]),
        };
        match found.is_empty() {
            true => Err(format!("{} {name} has no waypoint and is no gateway of ours", target.kind)),
            false => Ok(found),
        }
    }

    fn served_by(&self, services: Vec<NamespacedName>) -> Vec<(NamespacedName, Target)> {
        let mut found = Vec::new();
        for (gateway, served) in self.served {
            let own: Vec<_> = services.iter().filter(|service| served.contains(service)).cloned().collect();
            if !own.is_empty() {
                found.push((gateway.clone(), Target::Services(own)));
            }
        }
        found
    }

    /// Whatever something in a namespace may be bound to.
    fn all_of(&self, namespace: &ArcStr) -> Targets {
        let mut found = Targets::new();
        // Gateways at the edge serve no services, and are among these.
        for (gateway, _) in self.waypoints.deployed() {
            if self.settings.is_root(namespace) || gateway.namespace == *namespace {
                merge(&mut found, gateway.clone(), Target::All);
            }
        }
        for (gateway, served) in self.served {
            let own: Vec<_> = served.iter().filter(|service| service.namespace == *namespace).cloned().collect();
            if !own.is_empty() {
                merge(&mut found, gateway.clone(), Target::Services(own));
            }
        }
        found
    }

    fn tokens(
        &self,
        name: &NamespacedName,
        object: &Routed<RequestAuthentication>,
        all: &mut BTreeMap<NamespacedName, Security>,
        made: &mut Made,
    ) {
        let kind = Kind::RequestAuthentication;
        let own = Key { kind, namespace: name.namespace.clone(), name: name.name.clone() };
        let targets: Vec<TargetReference> =
            object.spec.target_ref.iter().chain(&object.spec.target_refs).cloned().collect();
        let found = match targets.is_empty() {
            true => {
                self.selected(&name.namespace, object.spec.selector.as_ref().map(|selector| &selector.match_labels))
            }
            false => self.targets(&own, &targets, &mut made.problems),
        };
        if found.is_empty() {
            let why = inaction(kind).unwrap_or_default();
            let help = "bind it to a Gateway or a Service with `targetRefs`";
            made.problems.push((own, Problem::warning("", why).help(help)));
            return;
        }
        let rules: Vec<Arc<JwtRule>> = object
            .spec
            .jwt_rules
            .iter()
            .enumerate()
            .map(|(index, rule)| Arc::new(jwt_rule(&own, index, rule, &self.objects.token_keys, &mut made.problems)))
            .collect();
        made.in_force.insert(own);
        for (gateway, target) in found {
            let authentication = Authentication { name: name.clone(), target, rules: rules.clone() };
            all.entry(gateway).or_default().authentications.push(Arc::new(authentication));
        }
    }
}

/// Of two about the same waypoint, both count.
fn merge(found: &mut Targets, gateway: NamespacedName, target: Target) {
    match (found.get_mut(&gateway), target) {
        (None, target) => drop(found.insert(gateway, target)),
        (Some(Target::All), _) | (Some(Target::Edge), Target::Edge) => {}
        (Some(Target::Services(known)), Target::Services(more)) => {
            known.extend(more);
            known.sort();
            known.dedup();
        }
        // What is about both is about all: it never is about less.
        (Some(known), _) => *known = Target::All,
    }
}

fn jwt_rule(own: &Key, index: usize, rule: &telemetry::JwtRule, known: &Keys, problems: &mut Problems) -> JwtRule {
    let field = |name: &str| format!("spec.jwtRules[{index}].{name}");
    let texts = |values: &[String]| values.iter().map(|value| ArcStr::from(value.as_str())).collect();
    // What they are called has been read before.
    let header = |name: &String| HeaderName::try_from(name.as_str()).ok();
    let mut output = |name: &String, at: &str| {
        let name = header(name)?;
        if is_changeable(&name) {
            return Some(name);
        }
        let message = format!("{name} says what the message or the connection is: nothing is sent on in it");
        problems.push((own.clone(), Problem::warning(field(at), message)));
        None
    };
    let payload_header = rule.output_payload_to_header.as_ref().and_then(|name| output(name, "outputPayloadToHeader"));
    let claims = rule.output_claim_to_headers.iter();
    let claim_headers = claims
        .filter_map(|one| Some((output(&one.header, "outputClaimToHeaders")?, ArcStr::from(one.claim.as_str()))))
        .collect();
    let of_headers = rule
        .from_headers
        .iter()
        .filter_map(|one| Some(Location::Header(header(&one.name)?, one.prefix.as_deref().unwrap_or_default().into())));
    let parameters = rule.from_params.iter().map(|name| Location::Parameter(name.as_str().into()));
    let cookies = rule.from_cookies.iter().map(|name| Location::Cookie(name.as_str().into()));
    let mut locations: Vec<Location> = of_headers.chain(parameters).chain(cookies).collect();
    if locations.is_empty() {
        locations = JwtRule::usual_locations();
    }
    let fetched = Place::of(rule).and_then(|place| known.get(&place).cloned());
    let keys = rule.jwks.as_deref().map(ArcStr::from).or(fetched);
    if keys.is_none() {
        let message = "the keys have not been fetched: tokens of this issuer are refused until they are";
        let help = "the log of the control plane says why; or write the keys in `jwks`";
        problems.push((own.clone(), Problem::warning(field("jwksUri"), message).help(help)));
    }
    JwtRule {
        issuer: rule.issuer.as_str().into(),
        audiences: texts(&rule.audiences),
        keys,
        locations,
        forward: rule.forward_original_token == Some(true),
        payload_header,
        claim_headers,
        spaced: texts(&rule.space_delimited_claims),
    }
}
