//! The joining, namespace by namespace: what neither itself nor what it depends on has changed is taken from the last time. The result is always the same
//! as if everything had been joined anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::intern::Interner;
use mesh_core::listener::Certificates;
use mesh_core::policy::{Policy, THROUGH};
use mesh_core::workload::Health;
use mesh_core::{ArcStr, NamespacedName, Workload};

use super::l7::backend_tls;
use super::l7::listeners::frontend;
use super::l7::listeners::told::with_secrets;
use super::policy::{self, Policies};
use super::service::{self, Services};
use super::settings::Settings;
use super::view::{Placements, View};
use super::waypoint::{Guard, Guarded, PodLabels, PodTopologies, Served, Waypoints};
use super::workload;
use super::{certificates, datagram, l4, l7, outbound, routing, security, service_entry, telemetry};
use crate::diagnosis::Problem;
use crate::resource::mesh_defaults::Filling;
use crate::resource::pod::State;
use crate::resource::routing::inaction;
use crate::resource::{Key, Kind, Objects, Pod};

type Problems = Vec<(Key, Problem)>;

/// What comes of these depends on pods, and is told with them.
fn is_later(kind: Kind) -> bool {
    matches!(kind, Kind::Sidecar | Kind::WorkloadEntry)
}

/// Joins objects; remembers what came of it.
#[derive(Debug, Default)]
pub struct Join {
    last: Last,
    interner: Interner,
    filling: Filling,
}

/// What one join is made of.
struct Round<'a> {
    objects: &'a Objects,
    settings: &'a Settings,
    waypoints: &'a Waypoints,
    served: &'a Served,
    /// Routes and settings are those of the last time.
    is_same: bool,
}

/// What was joined last, and to what.
#[derive(Debug, Default)]
struct Last {
    objects: Objects,
    settings: Option<Settings>,
    contested: BTreeSet<ArcStr>,
    waypoints: Waypoints,
    served: Arc<Served>,
    parts: BTreeMap<ArcStr, Arc<Part>>,
    routing: Arc<routing::Indexed>,
    l7: Arc<l7::Made>,
    l4: Arc<l4::Made>,
    security: Arc<security::Made>,
    certificates: BTreeMap<NamespacedName, Arc<Certificates>>,
    pod_labels: PodLabels,
    datagrams: datagram::Targets,
    pod_topologies: PodTopologies,
    refusing: BTreeSet<NamespacedName>,
    telemetry: Arc<telemetry::Made>,
}

/// What routes are made of besides routes: what else counts for gateways at the edge.
#[derive(PartialEq)]
struct Edges<'a> {
    labels: &'a PodLabels,
    topologies: &'a PodTopologies,
    datagrams: &'a datagram::Targets,
    /// Around whose waypoints nothing may go.
    refusing: &'a BTreeSet<NamespacedName>,
}

/// What came of one namespace.
#[derive(Debug, Default)]
struct Part {
    /// Pods that are alive, in order, with their workloads.
    pods: Vec<(Arc<Pod>, Option<Arc<Workload>>)>,
    /// Nodes and service accounts.
    placements: Arc<BTreeSet<(ArcStr, ArcStr)>>,
    /// Who may reach its pods around waypoints.
    guards: BTreeSet<Guard>,
    /// Some of its pods are reached through their waypoints by who has no identity.
    leads_strangers: bool,
    problems: Problems,
}

/// Whom each address belongs to.
struct Owners<'a> {
    pods: HashMap<IpAddr, &'a Arc<Pod>>,
    /// Namespaces with pods of which several claim an address.
    contested: BTreeSet<ArcStr>,
}

/// What a namespace's part is made of, besides its pods.
struct Around<'a> {
    objects: &'a Objects,
    settings: &'a Settings,
    services: &'a Services,
    policies: &'a Policies,
    waypoints: &'a Waypoints,
    owners: &'a Owners<'a>,
}

impl Join {
    /// Joins everything with `settings`, and what the objects say over them. The result depends on nothing else: a restart brings the same.
    pub fn build(&mut self, mut objects: Objects, settings: &Settings) -> View {
        let mut problems = Vec::new();
        let settings = settings.with(&objects, &mut problems);
        self.filling.fill(&settings.defaults.exports, &mut objects.routes);
        let policies = policy::index(&objects, &settings, &mut problems);
        let waypoints = Waypoints::index(&objects, &settings, &mut problems);
        let pod_labels = waypoints.labels(&objects);
        let datagrams = datagram::targets(&objects);
        let pod_topologies = waypoints.topologies(&objects);
        let refusing = waypoints.refusing(&objects, &settings);
        let pods =
            Edges { labels: &pod_labels, topologies: &pod_topologies, datagrams: &datagrams, refusing: &refusing };
        // Neither routes nor whom a waypoint serves have to do with pods, which are what changes all the time.
        let is_same =
            self.last.settings.as_ref() == Some(&settings) && routing::reads_the_same(&self.last.objects, &objects);
        let served = match is_same {
            true => self.last.served.clone(),
            false => Arc::new(waypoints.served(&objects, &settings)),
        };
        let round = Round { objects: &objects, settings: &settings, waypoints: &waypoints, served: &served, is_same };
        let (routing, l7, l4) = self.routing(&round, pods);
        let (security, telemetry) = (self.security(&round, &pod_labels), self.telemetry(&round, &pod_labels));
        // What is said of all routes is not true of those that a waypoint or gateway acts on.
        let is_idle = |(key, problem): &&(Key, Problem)| {
            let is_said = inaction(key.kind).is_some_and(|why| problem.message == why);
            let is_in_force =
                || [&l7.in_force, &l4.in_force, &telemetry.in_force].into_iter().any(|all| all.contains(key));
            let acts = || routing.resolved.acts(key, &l7.served, &l7.listening) || telemetry.explained.contains(key);
            // What comes of some is known when it is known which pods there are.
            !(is_said && (is_in_force() || acts() || is_later(key.kind)))
        };
        let others = [&l7.problems, &l4.problems, &security.problems, &telemetry.problems].into_iter().flatten();
        problems.extend(routing.problems.iter().filter(is_idle).chain(others).cloned());
        let certified = certificates::index(&l7.references, &objects.secrets, &self.last.certificates);
        // Most meshes have no listener to which that matters.
        let (told, policies_told, gateways_told) =
            match certified.unresolved.is_empty() && certified.undecided.is_empty() {
                true => (l7.told.clone(), l7.policies.clone(), l7.gateways.clone()),
                false => (
                    Arc::new(with_secrets(&l7.told, &certified)),
                    Arc::new(backend_tls::with_secrets(&l7.policies, &certified)),
                    Arc::new(frontend::with_secrets(&l7.gateways, &certified)),
                ),
            };
        let undecided = certified.undecided;
        problems.extend(certified.problems);
        let certificates = certified.certificates;
        let mut services =
            service::index(&objects, &settings, |s| waypoints.of_service(s, &objects, &settings), &mut problems);
        let entries = service_entry::services(
            &objects,
            &settings,
            |entry| waypoints.entry(entry, &objects, &settings),
            &mut services,
            &mut problems,
        );
        let owners = owners(&objects, &mut problems);
        for (address, service) in &services.addresses {
            if let Some(pod) = owners.pods.get(address) {
                let message = format!("{address} is the address of pod {}/{}, which gets it", pod.namespace, pod.name);
                problems.push((service.clone(), Problem::error("spec.clusterIPs", message)));
            }
        }
        let around = Around {
            objects: &objects,
            settings: &settings,
            services: &services,
            policies: &policies,
            waypoints: &waypoints,
            owners: &owners,
        };
        let parts = self.parts(&around);
        let mut workloads = Vec::with_capacity(objects.pods.len());
        let mut placements = Placements::default();
        let mut guards = Vec::new();
        for (namespace, part) in &parts {
            guards.extend(part.leads_strangers.then(|| Policy::through(namespace.clone())));
            guards.extend(part.guards.iter().map(|guard| guard.policy(namespace, &settings.trust_domain)));
            workloads.extend(part.pods.iter().filter_map(|(_, workload)| workload.clone()));
            problems.extend(part.problems.iter().cloned());
            placements.add(namespace.clone(), part.placements.clone());
        }
        let is_owner = |address: &IpAddr| owners.pods.get(address).copied();
        let of_pods = workloads.len();
        let (entered, through) =
            workload::slices(&objects, &settings, &services, &waypoints, is_owner, &mut workloads, &mut problems);
        let endpoints = service_entry::endpoints(
            (&objects, &settings),
            &services,
            &waypoints,
            is_owner,
            of_pods,
            &mut workloads,
            &mut problems,
        );
        guards.extend(through.into_iter().map(Policy::through));
        let entered = entered.iter().chain(&endpoints.guards);
        guards.extend(entered.map(|(namespace, guard)| guard.policy(namespace, &settings.trust_domain)));
        let guards = guards.into_iter().map(|policy| (policy.name.clone(), policy));
        // The first ones are those of the pods, in their order.
        let pods = parts.values().flat_map(|part| &part.pods).filter(|(_, workload)| workload.is_some());
        // No Gateway is called so.
        let agents = NamespacedName::new("", "");
        // Of what is no HTTP waypoints ask the same routes as agents.
        let mut at_waypoints = l7.wanted.clone();
        if l4.wanted.asks_of_clients() {
            let served = at_waypoints.iter_mut().filter(|(gateway, _)| l7.tables.contains_key(*gateway));
            served.for_each(|(_, wanted)| Arc::make_mut(wanted).add_clients_of(&l4.wanted));
        }
        let wanted: BTreeMap<_, _> = at_waypoints.iter().chain([(&agents, &l4.wanted)]).collect();
        let of_pods = pods.zip(&workloads).map(|((pod, _), workload)| l7::labels::Seen {
            labels: &pod.labels,
            workload,
            serves: waypoints.served_by(pod).map(|(gateway, _)| gateway),
            gateway: waypoints.edge_of(pod),
        });
        let entered = endpoints.labels.iter();
        let entered = entered.map(|(at, labels)| l7::labels::Seen {
            labels,
            workload: &workloads[*at],
            serves: None,
            gateway: None,
        });
        let mut labels = l7::labels::told(&wanted, of_pods.chain(entered));
        let place_labels = labels.remove(&agents).unwrap_or_default();
        let pods = parts.values().flat_map(|part| &part.pods);
        let outbound = outbound::index(
            &objects,
            &routing.routes,
            &settings,
            pods.filter_map(|(pod, workload)| workload.as_ref().map(|workload| (pod, workload))),
        );
        let idle = routing.problems.iter().filter(|(key, problem)| {
            let is_said = inaction(key.kind).is_some_and(|why| problem.message == why);
            let says_more = outbound.in_force.contains(key) || outbound.problems.iter().any(|(told, _)| told == key);
            is_later(key.kind) && is_said && !says_more && !endpoints.in_force.contains(key)
        });
        problems.extend(idle.chain(&outbound.problems).cloned());
        let view = View {
            workloads: workloads.into_iter().map(|w| (w.uid.clone(), w)).collect(),
            policies: policies.all.into_iter().chain(guards).map(|(name, policy)| (name, Arc::new(policy))).collect(),
            routes: routing.routes.clone(),
            resolved: routing.resolved.clone(),
            tables: l7.tables.clone(),
            clusters: l7.clusters.clone(),
            connections: l4.routes.clone(),
            places: l4.places.clone(),
            outbound: outbound.said,
            place_labels,
            served: l7.served.clone(),
            listeners: l7.listeners.clone(),
            certificates: certificates.clone(),
            secrets: l7.secrets.clone(),
            unheard_secrets: !undecided.is_empty(),
            undecided,
            policies_told,
            gateways_told,
            listening: l7.listening.clone(),
            listeners_told: told,
            security: security.security.clone(),
            telemetry: telemetry.scopes.clone(),
            at_waypoints: [
                &security.in_force,
                &l7.in_force,
                &l4.in_force,
                &telemetry.in_force,
                &entries.in_force,
                &outbound.in_force,
                &endpoints.in_force,
            ]
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
            labels,
            waypoints: waypoints.deployed().map(|(name, own)| (name.clone(), own.gateway())).collect(),
            waypoint_pods: waypoints.pods(&objects, &settings),
            bindings: waypoints.bindings(&objects, &settings),
            placements,
            agents: workload::agents(&objects, &settings),
            nodes: objects.nodes.values().map(|n| (n.name.clone(), n.uid.clone())).collect(),
            namespaces: objects.namespaces.keys().filter(|name| settings.discovers(&objects, name)).cloned().collect(),
            services: services.by_key,
            given: entries.given,
            settings: settings.clone(),
            problems,
        };
        let contested = owners.contested;
        let settings = Some(settings);
        self.last = Last {
            objects,
            settings,
            contested,
            waypoints,
            served,
            parts,
            routing,
            l7,
            l4,
            security,
            telemetry,
            certificates,
            pod_labels,
            datagrams,
            pod_topologies,
            refusing,
        };
        view
    }

    /// What was joined last.
    pub fn objects(&self) -> &Objects {
        &self.last.objects
    }

    /// Where requests go: it takes all routes together, and few changes of a cluster have to do with them.
    fn routing(
        &self,
        &Round { objects, settings, served, is_same, .. }: &Round<'_>,
        edges: Edges<'_>,
    ) -> (Arc<routing::Indexed>, Arc<l7::Made>, Arc<l4::Made>) {
        let last = Edges {
            labels: &self.last.pod_labels,
            topologies: &self.last.pod_topologies,
            datagrams: &self.last.datagrams,
            refusing: &self.last.refusing,
        };
        let is_same = is_same && last == edges;
        if is_same {
            return (self.last.routing.clone(), self.last.l7.clone(), self.last.l4.clone());
        }
        let indexed = routing::index(objects, settings);
        let mut around =
            l7::Around::new(objects, settings, &indexed).with_pods(edges.labels.clone(), edges.topologies.clone());
        around.datagrams.clone_from(edges.datagrams);
        around.refusing.clone_from(edges.refusing);
        let mut connections = l4::index(objects, settings, &around);
        connections.keep(&self.last.l4);
        around.connections.clone_from(&connections.routes);
        let mut requests = l7::index(settings, &around, served);
        requests.keep(&self.last.l7);
        let left_out = l4::places::left_out(&connections.in_force, &requests.in_force, &around);
        connections.problems.extend(left_out);
        let said: HashSet<_> = requests.problems.iter().collect();
        connections.problems.retain(|one| !said.contains(one));
        (Arc::new(indexed), Arc::new(requests), Arc::new(connections))
    }

    /// What waypoints hold requests against: of policies and of whom each serves.
    fn security(
        &self,
        &Round { objects, settings, waypoints, served, is_same }: &Round<'_>,
        labels: &PodLabels,
    ) -> Arc<security::Made> {
        let is_same = is_same
            && self.last.pod_labels == *labels
            && self.last.objects.authorization_policies == objects.authorization_policies
            && self.last.objects.unread_authentications == objects.unread_authentications
            && self.last.objects.token_keys == objects.token_keys;
        if is_same {
            return self.last.security.clone();
        }
        let mut made = security::index(objects, settings, waypoints, served, labels);
        made.keep(&self.last.security);
        Arc::new(made)
    }

    /// What waypoints measure, log and trace.
    fn telemetry(
        &self,
        &Round { objects, settings, waypoints, served, is_same }: &Round<'_>,
        labels: &PodLabels,
    ) -> Arc<telemetry::Made> {
        let is_same = is_same && self.last.pod_labels == *labels;
        if is_same && self.last.objects.mesh_configs == objects.mesh_configs {
            return self.last.telemetry.clone();
        }
        let mut made = telemetry::index(objects, settings, waypoints, served, labels);
        made.keep(&self.last.telemetry);
        Arc::new(made)
    }

    fn parts(&mut self, around: &Around<'_>) -> BTreeMap<ArcStr, Arc<Part>> {
        let stale = stale(&self.last, around);
        let moved = namespaces(differing(&self.last.objects.pods, &around.objects.pods, |one, two| {
            Arc::ptr_eq(one, two) || one == two
        }));
        let mut parts = BTreeMap::new();
        let mut pods = around.objects.pods.values().peekable();
        while let Some(first) = pods.next() {
            let namespace = &first.namespace;
            let mut own = vec![first];
            while let Some(next) = pods.next_if(|pod| pod.namespace == *namespace) {
                own.push(next);
            }
            let last =
                self.last.parts.get(namespace).filter(|_| stale.as_ref().is_some_and(|s| !s.contains(namespace)));
            let part = match last {
                Some(last) if !moved.contains(namespace) => last.clone(),
                last => Arc::new(around.part(&own, last.map(|last| &**last), &mut self.interner)),
            };
            parts.insert(namespace.clone(), part);
        }
        parts
    }
}

impl Around<'_> {
    /// What comes of a namespace. `last` is what came of it last if nothing but its pods is different now.
    fn part(&self, pods: &[&Arc<Pod>], last: Option<&Part>, interner: &mut Interner) -> Part {
        let known: HashMap<*const Pod, &Option<Arc<Workload>>> =
            last.into_iter().flat_map(|part| &part.pods).map(|(pod, workload)| (Arc::as_ptr(pod), workload)).collect();
        let mut part = Part::default();
        let mut placements = BTreeSet::new();
        let guarded = pods.first().map(|pod| self.waypoints.guarded(&pod.namespace, self.objects, self.settings));
        let guarded = guarded.unwrap_or_default();
        let is_of_mesh = pods.first().is_some_and(|pod| self.settings.discovers(self.objects, &pod.namespace));
        for pod in pods.iter().filter(|pod| pod.state != State::Ended) {
            if !pod.node.is_empty() && !self.objects.nodes.contains_key(&pod.node) {
                let message = format!("node {} is not known: its agent gets no token", pod.node);
                part.problems.push((pod_key(pod), Problem::warning("spec.nodeName", message)));
            }
            if is_of_mesh && !pod.node.is_empty() && !pod.host_network && !self.waypoints.may_serve(pod) {
                placements.insert((pod.node.clone(), pod.service_account.clone()));
            }
            let told = self.waypoints.pod(pod, self.objects, self.settings).problem;
            let told = told.into_iter().chain(self.waypoints.pod_problem(pod).filter(|_| is_of_mesh));
            part.problems.extend(told.map(|problem| (pod_key(pod), problem)));
            // What becomes of those depends on others.
            let known = known.get(&Arc::as_ptr(pod)).filter(|_| pod.state != State::Unheard);
            let workload = match known {
                Some(known) => (*known).clone(),
                None => self.workload(pod, &guarded, interner),
            };
            let listed = workload.iter().flat_map(|workload| workload.authorization_policies.iter());
            part.leads_strangers |= listed.into_iter().any(|policy| policy.name == THROUGH);
            part.guards.extend(workload.iter().filter_map(|workload| {
                self.waypoints.guard(pod, &workload.services, &guarded, self.objects, self.settings)
            }));
            part.pods.push(((*pod).clone(), workload));
        }
        last_resort(&mut part.pods);
        part.placements = Arc::new(placements);
        if let Some(pod) = pods.first() {
            service::unserved_ports(&pod.namespace, pods, self.services, &mut part.problems);
        }
        part
    }

    fn workload(&self, pod: &Arc<Pod>, guarded: &Guarded, interner: &mut Interner) -> Option<Arc<Workload>> {
        let own = |a: &&IpAddr| pod.host_network || self.owners.pods.get(*a).is_some_and(|o| Arc::ptr_eq(o, pod));
        let addresses: Vec<IpAddr> = pod.addresses.iter().filter(own).copied().collect();
        if addresses.is_empty() {
            return None;
        }
        let Around { objects, settings, services, policies, waypoints, .. } = self;
        let mut workload = workload::workload(pod, addresses, objects, settings, services, policies, waypoints);
        if let Some(guard) = waypoints.guard(pod, &workload.services, guarded, objects, settings) {
            workload::list(&mut workload, guard.name(&pod.namespace));
        }
        let led = waypoints.led(pod, &workload.services, guarded).filter(|_| workload.waypoint.is_none());
        if let Some((address, _)) = led {
            workload.waypoint = Some(address.clone());
        }
        let with_strangers = pod.enrolled && led.is_some_and(|(_, with_strangers)| *with_strangers);
        if with_strangers || waypoints.leads_strangers(pod, objects, settings) {
            workload::list(&mut workload, Policy::through(pod.namespace.clone()).name);
        }
        interner.workload(&mut workload);
        Some(Arc::new(workload))
    }
}

/// Pods of nodes that are not heard of serve where no other pod of any of their services does. When an API server comes back after a time, no node has been heard of for that long, and
/// the cluster takes all pods for not ready until each kubelet has spoken: services would have no endpoints, although nothing is wrong with any of them.
fn last_resort(pods: &mut [(Arc<Pod>, Option<Arc<Workload>>)]) {
    if pods.iter().all(|(pod, _)| pod.state != State::Unheard) {
        return;
    }
    let ready = pods.iter().filter(|(pod, _)| pod.state == State::Ready).filter_map(|(_, workload)| workload.as_ref());
    let served: BTreeSet<NamespacedName> = ready.flat_map(|workload| workload.services.keys().cloned()).collect();
    for (_, workload) in pods.iter_mut().filter(|(pod, _)| pod.state == State::Unheard) {
        // Whoever is in one that is served, too, would take its share there: a node that is lost for good answers nobody.
        if let Some(workload) = workload
            && !workload.services.is_empty()
            && workload.services.keys().all(|service| !served.contains(service))
        {
            Arc::make_mut(workload).health = Health::Healthy;
        }
    }
}

fn pod_key(pod: &Pod) -> Key {
    Key { kind: Kind::Pod, namespace: pod.namespace.clone(), name: pod.name.clone() }
}

/// Which pod an address belongs to. Two may claim it while one is replaced by the other: the one that stays, then the younger one.
fn owners<'a>(objects: &'a Objects, problems: &mut Problems) -> Owners<'a> {
    let mut owners = Owners { pods: HashMap::with_capacity(objects.pods.len()), contested: BTreeSet::new() };
    for pod in objects.pods.values().filter(|p| p.state != State::Ended && !p.host_network) {
        for address in &pod.addresses {
            let Some(other) = owners.pods.insert(*address, pod) else { continue };
            let rank = |p: &Pod| (!p.terminating, p.created.unwrap_or(i64::MIN));
            let (owner, loser) = if rank(pod) > rank(other) { (pod, other) } else { (other, pod) };
            owners.pods.insert(*address, owner);
            owners.contested.extend([owner.namespace.clone(), loser.namespace.clone()]);
            let message =
                format!("{address} belongs to pod {}/{}, this one does not get it", owner.namespace, owner.name);
            problems.push((pod_key(loser), Problem::error("status.podIPs", message)));
        }
    }
    owners
}

/// Namespaces of which something else than pods is different now; `None`: all of them.
fn stale(last: &Last, around: &Around<'_>) -> Option<BTreeSet<ArcStr>> {
    let (old, new) = (&last.objects, around.objects);
    if last.settings.as_ref() != Some(around.settings) {
        return None;
    }
    let equal = |one: &Arc<_>, two: &Arc<_>| one == two;
    let mut stale = namespaces(differing(&old.services, &new.services, equal));
    let policies =
        namespaces(differing(&old.authorization_policies, &new.authorization_policies, |one, two| one == two));
    let peers = namespaces(differing(&old.peer_authentications, &new.peer_authentications, |one, two| one == two));
    if policies.iter().chain(&peers).any(|namespace| around.settings.is_root(namespace)) {
        return None;
    }
    stale.extend(policies.into_iter().chain(peers));
    stale.extend(differing(&old.namespaces, &new.namespaces, |one, two| one == two).cloned());
    stale.extend(old.unread_namespaces.symmetric_difference(&new.unread_namespaces).cloned());
    let nodes: BTreeSet<&ArcStr> = differing(&old.nodes, &new.nodes, |one, two| one == two).collect();
    if !nodes.is_empty() {
        let there = new.pods.values().filter(|pod| nodes.contains(&pod.node));
        stale.extend(there.map(|pod| pod.namespace.clone()));
    }
    stale.extend(last.waypoints.moved(around.waypoints, new)?);
    stale.extend(last.contested.union(&around.owners.contested).cloned());
    Some(stale)
}

fn namespaces<'a>(names: impl Iterator<Item = &'a mesh_core::NamespacedName>) -> BTreeSet<ArcStr> {
    names.map(|name| name.namespace.clone()).collect()
}

/// Keys of what is not the same in both.
fn differing<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
    is_same: impl Fn(&V, &V) -> bool,
) -> impl Iterator<Item = &'a K> {
    let mut keys = Vec::new();
    let mut left = old.iter().peekable();
    for (key, value) in new {
        while let Some((gone, _)) = left.next_if(|(k, _)| *k < key) {
            keys.push(gone);
        }
        if left.next_if(|(k, _)| *k == key).is_none_or(|(_, before)| !is_same(before, value)) {
            keys.push(key);
        }
    }
    keys.extend(left.map(|(gone, _)| gone));
    keys.into_iter()
}
