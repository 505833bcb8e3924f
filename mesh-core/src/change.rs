//! One step of configuration, as it comes from the wire or from the control plane's index. `Store::apply` takes batches of them in order.

use arcstr::ArcStr;
use ipnet::IpNet;

use crate::l4::ConnectionRoutes;
use crate::l7::{Clusters, LabelChange};
use crate::outbound::{self, Outbound};
use crate::{NamespacedName, Policy, Service, Workload, policy};

/// What could still be read of a policy that could not be read as a whole.
pub type PolicyScopeHint = Option<policy::Scope>;

/// One change; later ones win.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Added or replaced, by uid.
    Workload(Workload),
    /// Added or replaced, by `namespace/hostname`.
    Service(Service),
    /// A workload's uid or a service's `namespace/hostname` is gone.
    RemoveAddress(ArcStr),
    /// Added or replaced, by name.
    Policy(Policy),
    /// The policy is gone.
    RemovePolicy(NamespacedName),
    /// The policy was sent but cannot be read. Its last good form stays; without one, what it could select denies: the scope if that
    /// could be read, else its whole namespace.
    PolicyUnreadable {
        /// Which policy.
        name: NamespacedName,
        /// Its scope, if that could be read.
        scope: PolicyScopeHint,
    },
    /// What is said of connections to a service is this now.
    Connections(ConnectionRoutes),
    /// Nothing is said any more of connections to the service.
    RemoveConnections(NamespacedName),
    /// What DestinationRules say of the places of a service is this now.
    Clusters(NamespacedName, Clusters),
    /// Nothing is said any more of places of the service.
    RemoveClusters(NamespacedName),
    /// What happens to connections to what nobody is known to have is this now.
    Outbound(outbound::Scope, Outbound),
    /// Nothing is said of that any more.
    RemoveOutbound(outbound::Scope),
    /// All that is said of that has been heard once: what is absent now is not said. Never taken back.
    OutboundKnown,
    /// Labels of these workloads are others now.
    Labels(Vec<LabelChange>),
    /// The address ranges of pods and services: an unknown address inside them is not "outside the mesh". Replaces the former ranges.
    Ranges(Vec<IpNet>),
    /// Every subscribed type has had its first answer: what is absent now does not exist. Never taken back.
    Synced,
}
