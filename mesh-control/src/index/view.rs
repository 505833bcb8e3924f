//! The view: everything that is served, from one set of objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::l4::ConnectionRoutes;
use mesh_core::l7::{Clusters, Security, Table};
use mesh_core::listener::{Certificates, Listeners};
use mesh_core::outbound::Outbound;
use mesh_core::telemetry::Scopes;
use mesh_core::{ArcStr, NamespacedName, Policy, Service, Workload};

use super::l7::listeners::frontend::GatewaysTold;
use super::l7::listeners::told::Told;
use super::l7::{backend_tls, labels};
use super::routing::{Listening, Resolved};
use super::settings::Settings;
use crate::diagnosis::Problem;
use crate::resource::{Key, Routes};
use crate::verdict::Binding;

/// Who may ask for which identity: nodes and service accounts of pods that are alive, by namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placements(BTreeMap<ArcStr, Arc<BTreeSet<(ArcStr, ArcStr)>>>);

impl Placements {
    /// The nodes and service accounts of a namespace.
    pub fn add(&mut self, namespace: ArcStr, places: Arc<BTreeSet<(ArcStr, ArcStr)>>) {
        if !places.is_empty() {
            self.0.insert(namespace, places);
        }
    }

    /// Whether a pod of the service account runs on the node.
    pub fn contains(&self, node: &ArcStr, namespace: &str, service_account: &ArcStr) -> bool {
        let place = (node.clone(), service_account.clone());
        self.0.get(namespace).is_some_and(|places| places.contains(&place))
    }

    /// All of them: node, namespace, service account.
    pub fn iter(&self) -> impl Iterator<Item = (&ArcStr, &ArcStr, &ArcStr)> {
        self.0.iter().flat_map(|(ns, places)| places.iter().map(move |(node, account)| (node, ns, account)))
    }
}

/// A pod of an agent, as its token names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Its service account.
    pub account: ArcStr,
    /// The node that it is bound to.
    pub node: ArcStr,
}

/// A waypoint, as its token names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaypointGateway {
    /// The uid of its Gateway, if that has one.
    pub uid: Option<ArcStr>,
    /// The service account of its pods.
    pub account: ArcStr,
}

/// A pod that serves a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaypointPod {
    /// The waypoint's Gateway.
    pub gateway: NamespacedName,
    /// The pod's uid, if it has one.
    pub uid: Option<ArcStr>,
    /// Its service account.
    pub account: ArcStr,
    /// The node that it is on.
    pub node: ArcStr,
}

/// Everything that agents get, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What it was joined with.
    pub settings: Settings,
    /// Namespaces of the mesh.
    pub namespaces: BTreeSet<ArcStr>,
    /// By uid.
    pub workloads: BTreeMap<ArcStr, Arc<Workload>>,
    /// By `namespace/hostname`.
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    /// By `namespace/name`.
    pub policies: BTreeMap<NamespacedName, Arc<Policy>>,
    /// Where requests go, of the namespaces of the mesh, each in its last good form.
    pub routes: Arc<Routes>,
    /// What they mean together.
    pub resolved: Arc<Resolved>,
    /// What waypoints do with requests, by their gateways.
    pub tables: BTreeMap<NamespacedName, Arc<Table>>,
    /// How they reach the places that those name, by their gateways.
    pub clusters: BTreeMap<NamespacedName, Arc<Clusters>>,
    /// Where connections to services go, by service.
    pub connections: BTreeMap<NamespacedName, Arc<ConnectionRoutes>>,
    /// What happens to connections to what nobody is known to have, by whom it is said of.
    pub outbound: BTreeMap<ArcStr, Arc<Outbound>>,
    /// What DestinationRules say of the places of services, by service, for agents.
    pub places: BTreeMap<NamespacedName, Arc<Clusters>>,
    /// Labels of workloads that those ask for.
    pub place_labels: Arc<labels::Told>,
    /// What gateways listen for outside of the mesh.
    pub listeners: BTreeMap<NamespacedName, Arc<Listeners>>,
    /// What gateways show and believe.
    pub certificates: BTreeMap<NamespacedName, Arc<Certificates>>,
    /// Listeners of Gateways that are served.
    pub listening: Arc<Listening>,
    /// What listeners are told; nothing of Gateways and ListenerSets of which it is not known yet.
    pub listeners_told: Arc<Told>,
    /// What Gateways themselves are told.
    pub gateways_told: Arc<GatewaysTold>,
    /// What BackendTLSPolicies are told; nothing of those of which it is not known yet.
    pub policies_told: Arc<backend_tls::Told>,
    /// Objects that name something of which nothing was heard yet.
    pub undecided: BTreeSet<Key>,
    /// Secrets and ConfigMaps that they name.
    pub secrets: Arc<BTreeSet<Key>>,
    /// Nothing was heard yet of some of these.
    pub unheard_secrets: bool,
    /// Labels of workloads that both ask for, by their gateways.
    pub labels: BTreeMap<NamespacedName, Arc<labels::Told>>,
    /// Services that any waypoint serves: what routes say of them is in force.
    pub served: BTreeSet<NamespacedName>,
    /// What they hold requests against, by their gateways.
    pub security: BTreeMap<NamespacedName, Arc<Security>>,
    /// What they measure, log and trace, by their gateways; those that have none do what their command lines say.
    pub telemetry: BTreeMap<NamespacedName, Arc<Scopes>>,
    /// Policies, VirtualServices, DestinationRules and Telemetry objects that are in force at some waypoint, or at agents.
    pub at_waypoints: BTreeSet<Key>,
    /// Waypoints and gateways of ours, by their Gateways.
    pub waypoints: BTreeMap<NamespacedName, WaypointGateway>,
    /// Pods that serve waypoints and have not ended, by namespace and name.
    pub waypoint_pods: BTreeMap<NamespacedName, WaypointPod>,
    /// What services and ServiceEntries are told that have to do with a waypoint.
    pub bindings: BTreeMap<Key, Binding>,
    /// Which node runs which identity. Those of waypoints are not among them: they have their own tokens.
    pub placements: Placements,
    /// Nodes, with their uid if they have one.
    pub nodes: BTreeMap<ArcStr, Option<String>>,
    /// Pods of agents that have not ended, by uid.
    pub agents: BTreeMap<ArcStr, AgentPod>,
    /// Addresses that were given to hosts of ServiceEntries, by those.
    pub given: BTreeMap<Key, Vec<(ArcStr, IpAddr)>>,
    /// What does not fit together.
    pub problems: Vec<(Key, Problem)>,
}

impl View {
    /// Whether a node of that name and uid exists.
    pub fn has_node(&self, name: &str, uid: Option<&str>) -> bool {
        self.nodes.get(name).is_some_and(|known| known.as_deref() == uid)
    }

    /// Whether just that pod of an agent exists.
    pub fn has_agent(&self, uid: &str, pod: &AgentPod) -> bool {
        self.agents.get(uid) == Some(pod)
    }
}
