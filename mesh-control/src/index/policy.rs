//! Policies: AuthorizationPolicies in scope, and what PeerAuthentications become. Names and shapes of converted policies are istiod's, so
//! that an agent of Istio enforces them too.
//!
//! A security object that cannot be read and never could closes what it would have selected: an AuthorizationPolicy denies everything
//! there, a PeerAuthentication denies plaintext there, which is the most that one can ask for.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::policy::{Action, Clause, Match, Policy, Rule, Scope, StringMatch};
use mesh_core::{ArcStr, NamespacedName};

use super::Settings;
use super::trust::Domains;
use crate::diagnosis::Problem;
use crate::resource::peer_authentication::{Mode, PeerAuthentication};
use crate::resource::pod::State;
use crate::resource::{Key, Kind, Labels, Objects, Secured, meta};

/// Denies plaintext; workloads in STRICT mode list it.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";
/// Prefix of the policy made from a PeerAuthentication with ports.
pub const CONVERTED: &str = "converted_peer_authentication_";

/// All policies, and how they find their workloads.
#[derive(Debug, Default)]
pub struct Policies {
    /// By `namespace/name`.
    pub all: BTreeMap<NamespacedName, Policy>,
    /// Policies with a selector: those of root namespaces select everywhere.
    selecting: Vec<Selecting>,
    peers: Peers,
    static_strict: Option<NamespacedName>,
}

#[derive(Debug)]
struct Selecting {
    everywhere: bool,
    namespace: ArcStr,
    selector: Labels,
    name: NamespacedName,
}

#[derive(Debug, Default)]
struct Peers {
    mesh: Mode,
    namespaces: BTreeMap<ArcStr, Mode>,
    /// With a selector, the one that decides first.
    workloads: BTreeMap<ArcStr, Vec<Selected>>,
}

#[derive(Debug)]
struct Selected {
    selector: Labels,
    effect: Effect,
    /// Of the PeerAuthentication.
    name: ArcStr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Effect {
    Permissive,
    Strict,
    /// The name is that of the converted policy.
    Converted(NamespacedName),
}

/// Translates all policies.
pub fn index(objects: &Objects, settings: &Settings, problems: &mut Vec<(Key, Problem)>) -> Policies {
    let mut policies = Policies::default();
    let domains = Domains::of(settings);
    for (name, secured) in &objects.authorization_policies {
        if !settings.heeds(objects, &name.namespace) {
            problems.push((key(Kind::AuthorizationPolicy, &name.namespace, &name.name), undiscovered()));
            continue;
        }
        if let Secured::Readable(policy) = secured {
            let too_long = policy.bound.as_ref().and_then(|bound| domains.too_long(&bound.rules));
            let own = || key(Kind::AuthorizationPolicy, &name.namespace, &name.name);
            problems.extend(too_long.map(|too_long| (own(), too_long.problem())));
        }
        authorization(&mut policies, name, secured, settings);
    }
    let root = settings.root_namespaces.first().cloned().unwrap_or_default();
    let strict = NamespacedName::new(root, STATIC_STRICT);
    // Always served: a workload that comes to list it then never waits for it.
    policies.all.insert(strict.clone(), Policy::deny_plaintext(strict.clone(), Scope::WorkloadSelector));
    policies.static_strict = Some(strict);
    policies.peers = peers(objects, settings, &mut policies.all, problems);
    overruled(objects, &policies.peers, problems);
    policies
}

fn authorization(
    policies: &mut Policies,
    name: &NamespacedName,
    secured: &Secured<crate::resource::AuthorizationPolicy>,
    settings: &Settings,
) {
    let (selector, action, rules, dry_run) = match secured {
        Secured::Readable(policy) => match &policy.enforced {
            Some(enforced) => {
                let mut rules = enforced.rules.clone();
                Domains::of(settings).fill(&mut rules);
                (policy.selector.clone(), enforced.action, rules, enforced.dry_run)
            }
            None => return,
        },
        Secured::Unreadable(known) if known.bound_elsewhere => return,
        // One rule without conditions denies everybody.
        Secured::Unreadable(known) => {
            (known.selector.clone().unwrap_or_default(), Action::Deny, vec![Rule::default()], false)
        }
    };
    let everywhere = settings.is_root(&name.namespace);
    let scope = match (selector.is_empty(), everywhere) {
        (false, _) => Scope::WorkloadSelector,
        (true, true) => Scope::Global,
        (true, false) => Scope::Namespace,
    };
    if scope == Scope::WorkloadSelector {
        let namespace = name.namespace.clone();
        policies.selecting.push(Selecting { everywhere, namespace, selector, name: name.clone() });
    }
    policies.all.insert(name.clone(), Policy { name: name.clone(), scope, action, rules, dry_run });
}

/// The objects of each level, the oldest first. Objects in files need no age: where one has none, the strictest comes first, so that neither a name nor
/// a timestamp that came along with an exported copy turns another one off.
fn peers(
    objects: &Objects,
    settings: &Settings,
    all: &mut BTreeMap<NamespacedName, Policy>,
    problems: &mut Vec<(Key, Problem)>,
) -> Peers {
    let (all_peers, undiscovered_peers): (Vec<_>, Vec<_>) =
        objects.peer_authentications.iter().partition(|(name, _)| settings.heeds(objects, &name.namespace));
    for (name, _) in undiscovered_peers {
        problems.push((peer_key(&name.namespace, &name.name), undiscovered()));
    }
    let mut readable: Vec<PeerAuthentication> = all_peers
        .into_iter()
        .map(|(name, secured)| match secured {
            Secured::Readable(object) => (**object).clone(),
            Secured::Unreadable(known) => PeerAuthentication {
                namespace: name.namespace.clone(),
                name: name.name.clone(),
                selector: known.selector.clone().unwrap_or_default(),
                mode: Mode::Strict,
                ports: BTreeMap::new(),
                // It must not lose against another one that happens to be older.
                created: Some(i64::MIN),
            },
        })
        .collect();
    let rank = |namespace: &str| settings.root_namespaces.iter().position(|r| r == namespace);
    let ageless: BTreeSet<ArcStr> =
        readable.iter().filter(|p| p.created.is_none()).map(|p| p.namespace.clone()).collect();
    readable.sort_by_key(|p| {
        let unreadable = p.created == Some(i64::MIN);
        let lax = ageless.contains(&p.namespace).then(|| laxity(p));
        let age = p.created.filter(|_| lax.is_none());
        (!unreadable, age, lax, rank(&p.namespace), p.namespace.clone(), p.name.clone())
    });

    // The mesh is the level without a namespace.
    let mut deciding: BTreeMap<Option<&ArcStr>, &PeerAuthentication> = BTreeMap::new();
    for object in readable.iter().filter(|p| p.selector.is_empty()) {
        let level = (!settings.is_root(&object.namespace)).then_some(&object.namespace);
        let decides = *deciding.entry(level).or_insert(object);
        if !std::ptr::eq(decides, object) {
            let message = format!(
                "another PeerAuthentication decides here, this one has no effect: {}/{}",
                decides.namespace, decides.name
            );
            problems.push((peer_key(&object.namespace, &object.name), Problem::error("metadata.name", message)));
        }
    }
    let mut peers = Peers::default();
    for (level, object) in deciding {
        match level {
            Some(namespace) => drop(peers.namespaces.insert(namespace.clone(), object.mode)),
            None => peers.mesh = object.mode,
        }
    }
    for object in readable.iter().filter(|p| !p.selector.is_empty()) {
        // A selector in a root namespace selects workloads of that namespace only, as in Istio.
        let inherited = peers.inherited(&object.namespace);
        let effect = effect(object, inherited);
        if let (Effect::Converted(name), strict) = (&effect, object.mode.or(inherited) == Mode::Strict) {
            all.insert(name.clone(), converted(name, object, strict));
        }
        let selected = Selected { selector: object.selector.clone(), effect, name: object.name.clone() };
        peers.workloads.entry(object.namespace.clone()).or_default().push(selected);
    }
    peers
}

fn peer_key(namespace: &ArcStr, name: &ArcStr) -> Key {
    key(Kind::PeerAuthentication, namespace, name)
}

fn key(kind: Kind, namespace: &ArcStr, name: &ArcStr) -> Key {
    Key { kind, namespace: namespace.clone(), name: name.clone() }
}

fn undiscovered() -> Problem {
    Problem::error("metadata.namespace", "no discoverySelectors select the namespace, it is not in force")
        .help("the mesh settings say which namespaces are of the mesh")
}

/// The larger, the more plaintext it lets in. What says nothing may inherit STRICT.
fn laxity(object: &PeerAuthentication) -> (u8, bool, bool) {
    let mode = match object.mode {
        Mode::Strict => 0,
        Mode::Unset => 1,
        Mode::Permissive => 2,
    };
    let has = |mode: Mode| object.ports.values().any(|m| *m == mode);
    (mode, has(Mode::Permissive), !has(Mode::Strict))
}

/// Says of each object with a selector that another one decides for pods that it selects, too. What is said changes with the objects, and not with the
/// names that pods have today.
fn overruled(objects: &Objects, peers: &Peers, problems: &mut Vec<(Key, Problem)>) {
    for (namespace, selected) in peers.workloads.iter().filter(|(_, s)| s.len() > 1) {
        let range = NamespacedName::new(namespace.clone(), "")..;
        let pods = objects.pods.range(range).map(|(_, p)| p).take_while(|p| p.namespace == *namespace);
        let mut first: Vec<Option<usize>> = vec![None; selected.len()];
        for pod in pods.filter(|p| p.state != State::Ended) {
            let mut own = selected.iter().enumerate().filter(|(_, s)| meta::selects(&s.selector, &pod.labels));
            let Some((decides, _)) = own.next() else { continue };
            for (at, _) in own {
                first[at] = Some(first[at].map_or(decides, |other| other.min(decides)));
            }
        }
        for (object, decides) in selected.iter().zip(first) {
            let Some(decides) = decides.and_then(|at| selected.get(at)) else { continue };
            let message = format!(
                "another PeerAuthentication decides for pods that both select, this one has no effect there: {namespace}/{}",
                decides.name
            );
            problems.push((peer_key(namespace, &object.name), Problem::warning("metadata.name", message)));
        }
    }
}

impl Mode {
    /// This mode, or the wider one if it says nothing.
    fn or(self, wider: Mode) -> Mode {
        if self == Mode::Unset { wider } else { self }
    }
}

impl Peers {
    fn inherited(&self, namespace: &str) -> Mode {
        self.namespaces.get(namespace).copied().unwrap_or_default().or(self.mesh)
    }
}

/// What an object with a selector does to its workloads.
fn effect(object: &PeerAuthentication, inherited: Mode) -> Effect {
    let strict = object.mode.or(inherited) == Mode::Strict;
    let exception = if strict { Mode::Permissive } else { Mode::Strict };
    if object.ports.values().any(|m| *m == exception) {
        Effect::Converted(NamespacedName::new(object.namespace.clone(), format!("{CONVERTED}{}", object.name)))
    } else if strict {
        Effect::Strict
    } else {
        Effect::Permissive
    }
}

/// STRICT with permissive ports: deny whoever has no identity, except at those ports. PERMISSIVE with strict ports: one rule for each.
fn converted(name: &NamespacedName, object: &PeerAuthentication, strict: bool) -> Policy {
    let no_peer =
        || Clause { matches: vec![Match { not_principals: vec![StringMatch::Presence], ..Match::default() }] };
    let clause = |m: Match| Clause { matches: vec![m] };
    let ports = |wanted: Mode| object.ports.iter().filter(move |(_, m)| **m == wanted).map(|(p, _)| *p);
    let rules = if strict {
        let except =
            ports(Mode::Permissive).map(|p| clause(Match { not_destination_ports: vec![p], ..Match::default() }));
        vec![Rule { clauses: std::iter::once(no_peer()).chain(except).collect() }]
    } else {
        ports(Mode::Strict)
            .map(|p| Rule {
                clauses: vec![no_peer(), clause(Match { destination_ports: vec![p], ..Match::default() })],
            })
            .collect()
    };
    Policy { name: name.clone(), scope: Scope::WorkloadSelector, action: Action::Deny, rules, dry_run: false }
}

impl Policies {
    /// The policies that a workload lists: those whose selector matches, and what its PeerAuthentications come to.
    pub fn of(&self, namespace: &str, labels: &Labels) -> Vec<NamespacedName> {
        let mut names: Vec<_> = self
            .selecting
            .iter()
            .filter(|s| (s.everywhere || s.namespace == namespace) && meta::selects(&s.selector, labels))
            .map(|s| s.name.clone())
            .collect();
        let own = self.peers.workloads.get(namespace).into_iter().flatten();
        let effect = match own.into_iter().find(|s| meta::selects(&s.selector, labels)) {
            Some(selected) => selected.effect.clone(),
            None if self.peers.inherited(namespace) == Mode::Strict => Effect::Strict,
            None => Effect::Permissive,
        };
        match effect {
            Effect::Permissive => {}
            Effect::Strict => names.extend(self.static_strict.clone()),
            Effect::Converted(name) => names.push(name),
        }
        names.sort();
        names
    }
}
