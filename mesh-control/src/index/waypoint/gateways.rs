//! What a Gateway is to those who name it as their waypoint. Pure.

use mesh_core::workload::GatewayDestination;
use mesh_core::{ArcStr, NamespacedName};

use super::{PodLabels, Traffic};
use crate::diagnosis::Problem;
use crate::index::routing::parents::{self, Owner};
use crate::index::{Settings, WaypointGateway};
use crate::resource::namespace::NAME_LABEL;
use crate::resource::routing::gateway::{Gateway, Listener};
use crate::resource::routing::{ListenerSet, Routed};
use crate::resource::waypoint::{GATEWAY_NAME, SERVICE_ACCOUNT, WAYPOINT_FOR, deployed_name, gateway_label};
use crate::resource::{Key, Kind, Labels, Objects, meta};

/// What a Gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A waypoint that we serve.
    Ours(Waypoint),
    /// Another controller's.
    Foreign,
    /// Of a class that nobody makes.
    Nobody(String),
    /// Ours, and no waypoint: it listens for no tunnels.
    Edge(Deployed),
    /// Classes have never been heard of.
    Unknown,
}

/// Whether pods of a gateway have all labels of a selector, as `known` shows them, or will have them as the Gateway is written.
pub fn has_labels(
    objects: &Objects,
    known: &PodLabels,
    name: &NamespacedName,
    own: &Deployed,
    selector: &Labels,
) -> bool {
    if known.get(name).into_iter().flatten().any(|labels| meta::selects(selector, labels)) {
        return true;
    }
    let gateway = objects.routes.gateways.get(name);
    let mut labels = gateway.map_or_else(Labels::default, |gateway| gateway.spec.labels().clone());
    labels.insert(GATEWAY_NAME.to_owned(), own.label.to_string());
    meta::selects(selector, &labels)
}

/// What there is of a Gateway of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// The uid of its Gateway, if that has one.
    pub uid: Option<ArcStr>,
    /// The service account of its pods: what its service is called unless the Gateway says otherwise, as with Istio.
    pub account: ArcStr,
    /// What its service is called.
    pub service: ArcStr,
    /// By which its pods name it.
    pub label: ArcStr,
}

impl Deployed {
    fn of(gateway: &Routed<Gateway>, is_waypoint: bool) -> Self {
        let marks = &gateway.marks;
        let service = deployed_name(&gateway.name, &gateway.spec.gateway_class_name, is_waypoint, marks);
        let account = mark(marks, SERVICE_ACCOUNT).map_or_else(|| service.clone(), ArcStr::from);
        Self { uid: gateway.uid.clone(), account, service, label: gateway_label(&gateway.name) }
    }

    /// As its token names it.
    pub fn gateway(&self) -> WaypointGateway {
        WaypointGateway { uid: self.uid.clone(), account: self.account.clone() }
    }
}

/// A waypoint that we serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waypoint {
    /// What there is of it.
    pub deployed: Deployed,
    /// Where it is; `None` if there is neither a service nor a pod of it.
    pub destination: Option<GatewayDestination>,
    /// It takes connections to services.
    services: bool,
    /// It takes connections to workloads.
    workloads: bool,
    /// It has listeners of the edge beside: its own, or those of a ListenerSet.
    edge: bool,
    /// Those that say of which namespaces.
    listeners: Vec<Listener>,
}

impl Waypoint {
    /// Whether it is for this.
    pub fn is_for(&self, traffic: Traffic) -> bool {
        match traffic {
            Traffic::Service => self.services,
            Traffic::Workload => self.workloads,
        }
    }

    /// Whether it listens at the edge beside.
    pub fn is_edge(&self) -> bool {
        self.edge
    }

    /// Whether a listener of this Gateway, which is called `own`, takes what is of `namespace`.
    pub fn takes(&self, own: &NamespacedName, namespace: &str, objects: &Objects) -> bool {
        let labels = || match objects.namespaces.get(namespace) {
            Some(known) => known.labels.clone(),
            None => [(NAME_LABEL.to_owned(), namespace.to_owned())].into(),
        };
        self.listeners.iter().any(|listener| parents::takes_from(listener, &own.namespace, namespace, labels))
    }
}

impl Standing {
    /// What there is of it, if it is ours.
    pub fn deployed(&self) -> Option<&Deployed> {
        match self {
            Standing::Ours(waypoint) => Some(&waypoint.deployed),
            Standing::Edge(deployed) => Some(deployed),
            _ => None,
        }
    }

    /// What this one is; where it is is not known yet.
    pub fn of(
        gateway: &Routed<Gateway>,
        objects: &Objects,
        settings: &Settings,
        problems: &mut Vec<(Key, Problem)>,
    ) -> Self {
        let name = gateway.spec.gateway_class_name.as_str();
        let class = match parents::owner(name, objects, settings) {
            Owner::Ours(class) => class,
            Owner::Foreign => return Standing::Foreign,
            Owner::Unknown => return Standing::Unknown,
            Owner::Nobody => return Standing::Nobody(name.to_owned()),
        };
        let listeners: Vec<Listener> = gateway.spec.tunnels().cloned().collect();
        if listeners.is_empty() {
            return Standing::Edge(Deployed::of(gateway, false));
        }
        let purpose = mark(&gateway.marks, WAYPOINT_FOR).or_else(|| mark(&class?.marks, WAYPOINT_FOR));
        let (services, workloads) = match purpose.as_deref() {
            // Its class may say it, and has not been heard of: until then nothing goes around it.
            None if class.is_none() && objects.unheard.contains(&Kind::GatewayClass) => (true, true),
            None | Some("service") => (true, false),
            Some("workload") => (false, true),
            Some("all") => (true, true),
            Some("none") => (false, false),
            Some(other) => {
                let key = Key { kind: Kind::Gateway, namespace: gateway.namespace.clone(), name: gateway.name.clone() };
                let field = format!("metadata.labels[\"{WAYPOINT_FOR}\"]");
                let message = format!("{other:?} says nothing, the waypoint is for everything");
                let help = "write `service`, `workload`, `all` or `none`";
                problems.push((key, Problem::error(field, message).help(help)));
                (true, true)
            }
        };
        let deployed = Deployed::of(gateway, true);
        // Whether the Gateway takes those listeners is not asked: until it does, what is about them is about nothing.
        let adds = |set: &Routed<ListenerSet>| {
            let to = &set.spec.parent_ref;
            let namespace = to.namespace.as_deref().unwrap_or(&set.namespace);
            to.is_gateway() && *to.name == *gateway.name && *namespace == *gateway.namespace
        };
        let edge = gateway.spec.edges().next().is_some() || objects.routes.listener_sets.values().any(|set| adds(set));
        Standing::Ours(Waypoint { deployed, destination: None, services, workloads, edge, listeners })
    }
}

fn mark(marks: &Labels, key: &str) -> Option<String> {
    marks.get(key).cloned().filter(|value| !value.is_empty())
}
