//! What goes around a waypoint is refused where `undermesh.io/waypoint-bypass: refuse` says so, and by itself where a policy is bound to the waypoint or to what it
//! serves by `targetRefs` (`held`): by a policy that the agents of pods enforce as any other, so nothing of it is new on the
//! wire and a ztunnel enforces it, too. It denies whoever is not the waypoint, and plaintext with it; probes pass in the kernel. Pure; the joining asks for
//! the guard of each pod.
//!
//! It is written by port of the pod: behind one may be several services with several waypoints, and a port of none of them is nobody's business. Who addresses the
//! pod itself is refused at every port, if a waypoint is for that.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::policy::{Action, Clause, GUARD, Match, Policy, Rule, Scope, StringMatch};
use mesh_core::workload::Memberships;
use mesh_core::{ArcStr, GatewayAddress, Identity, NamespacedName, TrustDomain};

use super::canary::{Wishes, of_entry};
use super::{Traffic, Waypoints, asked};
use crate::diagnosis::Problem;
use crate::index::Settings;
use crate::index::service::key;
use crate::resource::routing::{Routed, ServiceEntry};
use crate::resource::waypoint::{Asked, BYPASS, Bypass, WAYPOINT_FOR, field};
use crate::resource::{Objects, Pod, Service};

/// Namespace and service account of a waypoint's pods.
pub type Account = (ArcStr, ArcStr);

/// Services of a namespace around whose waypoints nothing may go, with who may reach their pods: nobody, if the waypoint is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    services: BTreeMap<NamespacedName, BTreeSet<Account>>,
    /// Of these the headless ones whose waypoint takes connections to workloads: who asks for one of their pods is led there, and who has no identity as well, unless
    /// he is to be refused.
    led: BTreeMap<NamespacedName, (GatewayAddress, bool)>,
    /// Waypoints of the others: where they share a port with one of these, they may reach it as well.
    others: BTreeMap<NamespacedName, BTreeSet<Account>>,
    /// What the namespace says of pods that are addressed as workloads.
    workloads: Bypass,
}

/// Who may reach a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard {
    /// At these ports.
    ports: BTreeMap<u16, BTreeSet<Account>>,
    /// At all others; whoever, if nothing is said.
    others: Option<BTreeSet<Account>>,
}

impl Waypoints {
    /// What is guarded of a namespace.
    pub fn guarded(&self, namespace: &ArcStr, objects: &Objects, settings: &Settings) -> Guarded {
        let of_namespace = said(namespace, objects);
        let mut guarded = Guarded { workloads: of_namespace, ..Guarded::default() };
        let first = NamespacedName::new(namespace.clone(), "");
        let services = objects.services.range(first..).map(|(_, service)| service);
        for service in services.take_while(|service| service.namespace == *namespace) {
            if let Some(accounts) = self.guards(service, objects, settings) {
                let name = key(namespace, &service.name, settings);
                if let Some(led) = self.leads_to(service, objects, settings) {
                    guarded.led.insert(name.clone(), led);
                }
                guarded.services.insert(name, accounts);
                continue;
            }
            let accounts = self.service(service, objects, settings).accounts();
            if !accounts.is_empty() {
                guarded.others.insert(key(namespace, &service.name, settings), accounts);
            }
        }
        guarded
    }

    /// Where who asks for a pod of a headless service is led, if nothing may go around its waypoint and that takes him: without that nobody could ask for the service.
    /// And whether who has no identity is led there as well.
    pub fn leads_to(
        &self,
        service: &Service,
        objects: &Objects,
        settings: &Settings,
    ) -> Option<(GatewayAddress, bool)> {
        if !service.is_headless || !self.refuses(service, objects) {
            return None;
        }
        let bound = self.bind(Traffic::Workload, &service.waypoint, &service.namespace, objects, settings);
        let with_strangers = service.bypass.or(said(&service.namespace, objects)) == Bypass::Unsaid;
        bound.address.filter(|_| bound.gateway.is_some()).map(|address| (address, with_strangers))
    }

    /// Whether a pod may be led for one of its services: it says nothing of waypoints itself, and serves no gateway.
    pub fn may_be_led(&self, pod: &Pod) -> bool {
        Asked::of(Some(&pod.labels), &pod.namespace) == Asked::Unsaid && self.gateway_of(pod).is_none()
    }

    /// The same for a pod that has these services.
    pub fn led<'a>(
        &self,
        pod: &Pod,
        services: &Memberships,
        guarded: &'a Guarded,
    ) -> Option<&'a (GatewayAddress, bool)> {
        if guarded.led.is_empty() || !self.may_be_led(pod) {
            return None;
        }
        services.keys().find_map(|service| guarded.led.get(service))
    }

    /// What a headless service is to be told whose waypoint no client comes to: it is asked for by the addresses of its pods, and the waypoint is not for these.
    pub(super) fn unreachable(&self, service: &Service, name: &NamespacedName, objects: &Objects) -> Option<Problem> {
        let waypoint = self.waypoint(name)?;
        if !service.is_headless || !waypoint.is_for(Traffic::Service) || waypoint.is_for(Traffic::Workload) {
            return None;
        }
        let what = match self.refuses(service, objects) {
            true => "its pods let nothing go around it: nobody reaches them at the ports of the service",
            false => "connections go around it",
        };
        let message = format!(
            "the service has no address, waypoint {name} takes no connections to addresses of pods, and {what}"
        );
        let help = format!("label the Gateway `{WAYPOINT_FOR}: all`, or the service `{BYPASS}: allow`");
        Some(Problem::warning(field(), message).help(help))
    }

    /// Who alone may reach the pods of a service; `None` if anybody may.
    pub fn guards(&self, service: &Service, objects: &Objects, settings: &Settings) -> Option<BTreeSet<Account>> {
        if service.is_alias || !self.refuses(service, objects) {
            return None;
        }
        let bound = self.service(service, objects, settings);
        bound.address.is_some().then(|| bound.accounts())
    }

    /// Whether nothing may go around the waypoint of a service, if it has one.
    pub(super) fn refuses(&self, service: &Service, objects: &Objects) -> bool {
        let is_held = || {
            let name = NamespacedName::new(service.namespace.clone(), service.name.clone());
            self.held.services.contains(&name)
                || self.is_held(&service.namespace, Wishes::of_service(service).gateways(objects))
        };
        decided(service.bypass, &service.namespace, objects, is_held)
    }

    /// Who alone may reach the pods that a ServiceEntry selects or names; `None` if anybody may.
    pub fn guards_entry(
        &self,
        entry: &Routed<ServiceEntry>,
        objects: &Objects,
        settings: &Settings,
    ) -> Option<BTreeSet<Account>> {
        if !self.refuses_entry(entry, objects) {
            return None;
        }
        let bound = self.entry(entry, objects, settings);
        bound.address.is_some().then(|| bound.accounts())
    }

    /// Whether nothing may go around the waypoint of the hosts of a ServiceEntry, if they have one.
    fn refuses_entry(&self, entry: &Routed<ServiceEntry>, objects: &Objects) -> bool {
        let is_held = || {
            let name = NamespacedName::new(entry.namespace.clone(), entry.name.clone());
            let (own, canary) = (Asked::of(Some(&entry.marks), &entry.namespace), of_entry(entry));
            let wishes = Wishes { waypoint: &own, canary: canary.as_ref(), namespace: &entry.namespace };
            self.held.entries.contains(&name) || self.is_held(&entry.namespace, wishes.gateways(objects))
        };
        decided(Bypass::of_labels(&entry.marks), &entry.namespace, objects, is_held)
    }

    /// Whether a policy is bound to one of the waypoints of an object in `namespace`, or may be.
    pub(super) fn is_held<'a>(
        &self,
        namespace: &ArcStr,
        mut waypoints: impl Iterator<Item = &'a NamespacedName>,
    ) -> bool {
        let held = &self.held;
        let is_bound = |gateway: &NamespacedName| {
            let is_absent = || held.absent && !self.gateways.contains_key(gateway);
            held.gateways.contains(gateway) || held.holds_namespace(&gateway.namespace) || is_absent()
        };
        waypoints.any(|gateway| held.holds_namespace(namespace) || is_bound(gateway))
    }

    /// Services around whose waypoints nothing may go: gateways go through those, too. Whether they have one is not asked. Not hosts of ServiceEntries: what comes to
    /// an egress gateway for them may have come from their waypoint, and would go there again.
    pub fn refusing(&self, objects: &Objects, settings: &Settings) -> BTreeSet<NamespacedName> {
        let services = objects.services.values().filter(|service| self.refuses(service, objects));
        services.map(|service| key(&service.namespace, &service.name, settings)).collect()
    }

    /// The guard of a pod that has these services. A waypoint's own has none: no agent is before it.
    pub fn guard(
        &self,
        pod: &Pod,
        services: &Memberships,
        guarded: &Guarded,
        objects: &Objects,
        settings: &Settings,
    ) -> Option<Guard> {
        let of_workload = match guarded.workloads {
            // In most meshes nothing is, and this is asked for each pod.
            Bypass::Unsaid if self.held.is_empty() => false,
            Bypass::Unsaid => {
                let own = Asked::of(Some(&pod.labels), &pod.namespace);
                let waypoint = asked(&own, &pod.namespace, objects).map(|(name, _)| name);
                self.is_held(&pod.namespace, waypoint.into_iter())
            }
            said => said == Bypass::Refuse,
        };
        let is_free = guarded.services.is_empty() && !of_workload;
        if is_free || self.gateway_of(pod).is_some() {
            return None;
        }
        let mut guard = Guard { ports: BTreeMap::new(), others: None };
        if of_workload {
            let bound = self.pod(pod, objects, settings);
            guard.others = bound.address.is_some().then(|| bound.account.into_iter().collect());
        }
        for (service, ports) in services.iter() {
            let Some(accounts) = guarded.services.get(service) else { continue };
            for port in ports {
                let of_port = guard.ports.entry(port.target_port).or_default();
                of_port.extend(accounts.iter().chain(guard.others.iter().flatten()).cloned());
            }
        }
        for (service, ports) in services.iter() {
            let Some(more) = guarded.others.get(service) else { continue };
            let own: BTreeSet<u16> = ports.iter().map(|port| port.target_port).collect();
            let shared = guard.ports.iter_mut().filter(|(port, _)| own.contains(port));
            shared.for_each(|(_, accounts)| accounts.extend(more.iter().cloned()));
        }
        (!guard.ports.is_empty() || guard.others.is_some()).then_some(guard)
    }

    /// Whether who comes to a pod without an identity is led through its waypoint by the pod's agent: one that is for workloads, unless somebody says that he is to be
    /// let in or refused.
    pub fn leads_strangers(&self, pod: &Pod, objects: &Objects, settings: &Settings) -> bool {
        pod.enrolled
            && said(&pod.namespace, objects) == Bypass::Unsaid
            && self.pod(pod, objects, settings).gateway.is_some()
    }

    /// What a service is to be told that asks for a guard and has no waypoint.
    pub(super) fn idle(&self, service: &Service, objects: &Objects, settings: &Settings) -> Option<Problem> {
        if service.bypass != Bypass::Refuse || self.service(service, objects, settings).address.is_some() {
            return None;
        }
        let message = "there is no waypoint that anything could go around: it has no effect";
        let problem = Problem::warning(format!("metadata.labels[\"{BYPASS}\"]"), message);
        Some(problem.help("bind the service by `istio.io/use-waypoint`"))
    }
}

/// What a namespace says for its objects.
pub(super) fn said(namespace: &ArcStr, objects: &Objects) -> Bypass {
    objects.namespaces.get(namespace).map(|known| known.bypass).unwrap_or_default()
}

/// Whether what goes around is refused: as the object says, else its namespace, else as it is where nobody says anything.
fn decided(own: Bypass, namespace: &ArcStr, objects: &Objects, unsaid: impl FnOnce() -> bool) -> bool {
    match own.or(said(namespace, objects)) {
        Bypass::Unsaid => unsaid(),
        said => said == Bypass::Refuse,
    }
}

impl Guard {
    /// That of a service alone, at these ports of a pod.
    pub fn of(accounts: &BTreeSet<Account>, ports: impl Iterator<Item = u16>) -> Self {
        Self { ports: ports.map(|port| (port, accounts.clone())).collect(), others: None }
    }

    /// What the policy is called: one guard has one name, and another one another.
    pub fn name(&self, namespace: &ArcStr) -> NamespacedName {
        let hash = xxhash_rust::xxh64::xxh64(format!("{self:?}").as_bytes(), 0);
        NamespacedName::new(namespace.clone(), format!("{GUARD}{hash:016x}"))
    }

    /// The policy.
    pub fn policy(&self, namespace: &ArcStr, trust_domain: &TrustDomain) -> Policy {
        let deny = |accounts: &BTreeSet<Account>, at: Match| {
            let principal = |(namespace, account): &Account| {
                let (namespace, service_account) = (namespace.clone(), account.clone());
                let identity = Identity { trust_domain: trust_domain.clone(), namespace, service_account };
                StringMatch::Exact(identity.principal().into())
            };
            let one = Match { not_principals: accounts.iter().map(principal).collect(), ..at };
            // A match without a condition never matches, a rule without one always does.
            let clauses = if one.is_empty() { Vec::new() } else { vec![Clause { matches: vec![one] }] };
            Rule { clauses }
        };
        let at = |port: u16| Match { destination_ports: vec![port], ..Match::default() };
        let elsewhere = || Match { not_destination_ports: self.ports.keys().copied().collect(), ..Match::default() };
        let mut rules: Vec<Rule> = self.ports.iter().map(|(port, accounts)| deny(accounts, at(*port))).collect();
        rules.extend(self.others.iter().map(|accounts| deny(accounts, elsewhere())));
        let (name, scope) = (self.name(namespace), Scope::WorkloadSelector);
        Policy { name, scope, action: Action::Deny, rules, dry_run: false }
    }
}
