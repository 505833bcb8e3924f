//! Where connections to a service go: one form for what TCPRoutes, TLSRoutes and the `tcp` and `tls` rules of VirtualServices say. The control plane makes
//! it, agents and waypoints ask it once for each connection, before they look for an endpoint.
//!
//! A rule that is not understood is there as one that refuses. It is never left out: a later one would match instead.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use arcstr::ArcStr;
use ipnet::IpNet;
use rand::Rng;

use crate::NamespacedName;
use crate::l7::{ClusterKey, HostPattern, Labels, Target, has_all};

/// What is said of connections to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionRoutes {
    /// The service whose address clients connect to.
    pub service: NamespacedName,
    /// The first one that is for a client and its port counts, and no other.
    pub groups: Vec<Group>,
}

/// Rules for some clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Namespaces whose clients see it; `None` means all clients.
    pub clients: Option<Vec<ArcStr>>,
    /// Ports of the service; none means all.
    pub ports: Vec<u16>,
    /// A connection that no rule means goes to the service's own endpoints: Istio's way. Without it the connection is refused: the Gateway API's way.
    pub falls_through: bool,
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// Which connections are meant, and where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The object that it is written in, as `TCPRoute shop/cart`, for logs.
    pub origin: ArcStr,
    /// Alternatives; without any it means every connection.
    pub conditions: Vec<Condition>,
    /// Where they go.
    pub split: Split,
}

/// All of it must hold; what is empty always does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// The port that the client connects to.
    pub port: Option<u16>,
    /// Names that the client asks for in its first message of TLS.
    pub server_names: Vec<HostPattern>,
    /// Addresses that the client connects to.
    pub destinations: Vec<IpNet>,
    /// The client's namespace.
    pub source_namespace: Option<ArcStr>,
    /// Labels that the client has, all of them.
    pub source_labels: Labels,
}

/// Places by weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    places: Vec<Place>,
    total: u32,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is.
    pub target: Target,
    /// Its share of all weights.
    pub weight: u32,
}

/// All weights together do not fit 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all weights together are {0}, the limit is 4294967295")]
pub struct WeightOverflow(pub u64);

impl Split {
    /// To these places. Without places, or if all weights are 0, connections are refused.
    pub fn new(places: Vec<Place>) -> Result<Self, WeightOverflow> {
        let sum = places.iter().map(|place| u64::from(place.weight)).sum();
        let total = u32::try_from(sum).map_err(|_| WeightOverflow(sum))?;
        Ok(Self { places, total })
    }

    /// Nowhere, because what is written cannot be done.
    #[must_use]
    pub fn closed(why: impl Into<ArcStr>) -> Self {
        Self { places: vec![Place { target: Target::Broken(why.into()), weight: 1 }], total: 1 }
    }

    /// The places.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// One of them, each as often as its weight says.
    fn choose(&self, rng: &mut impl Rng) -> Option<&Place> {
        let mut point = (self.total > 0).then(|| rng.random_range(0..self.total))?;
        self.places.iter().find(|place| match point.checked_sub(place.weight) {
            Some(rest) => {
                point = rest;
                false
            }
            None => true,
        })
    }
}

/// One connection to the service.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The address that the client connects to.
    pub address: IpAddr,
    /// The service's port.
    pub port: u16,
    /// The client's namespace.
    pub namespace: &'a str,
    /// Its labels, as far as anybody asks for them; `None` if nobody knows any.
    pub labels: Option<&'a Labels>,
    /// What it says first.
    pub server_name: ServerName<'a>,
}

/// What is known of the name in a client's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerName<'a> {
    /// Nobody has looked.
    Unread,
    /// There is none: it is no TLS, or asks for none.
    Absent,
    /// It asks for this, in lower case.
    Is(&'a str),
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<'r> {
    /// To the service's own endpoints.
    Own,
    /// That depends on the name that the client asks for: look, and ask again.
    Look,
    /// There. The same connection goes nowhere else, whatever the lot would say the next time.
    To(&'r ClusterKey),
    /// It is refused: the object that says so, and why.
    Closed(&'r str, &'r str),
}

impl ConnectionRoutes {
    /// Every place that a rule names.
    pub fn places(&self) -> impl Iterator<Item = &ClusterKey> {
        let places = self.groups.iter().flat_map(|group| &group.rules).flat_map(|rule| rule.split.places());
        places.filter_map(|place| match &place.target {
            Target::Cluster(key) => Some(key),
            Target::Broken(_) => None,
        })
    }

    /// Every condition of a rule.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.groups.iter().flat_map(|group| &group.rules).flat_map(|rule| &rule.conditions)
    }

    /// The rules that count for a connection, if there are any.
    #[must_use]
    pub fn group(&self, ask: &Ask<'_>) -> Option<&Group> {
        self.groups.iter().find(|group| group.is_for(ask))
    }

    /// The rule that means a connection, if one does and that does not depend on a name that nobody has looked for.
    #[must_use]
    pub fn rule(&self, ask: &Ask<'_>) -> Option<&Rule> {
        let rules = &self.group(ask)?.rules;
        rules.iter().find(|rule| rule.means(ask) != Some(false)).filter(|rule| rule.means(ask).is_some())
    }

    /// Decides about one connection.
    pub fn choose(&self, ask: &Ask<'_>, rng: &mut impl Rng) -> Choice<'_> {
        let Some(group) = self.group(ask) else { return Choice::Own };
        for rule in &group.rules {
            match rule.means(ask) {
                None => return Choice::Look,
                Some(true) => return rule.outcome(rng),
                Some(false) => {}
            }
        }
        match group.falls_through {
            true => Choice::Own,
            false => Choice::Closed("", "no rule of the routes of this service means it"),
        }
    }
}

impl Group {
    fn is_for(&self, ask: &Ask<'_>) -> bool {
        let sees = |names: &Vec<ArcStr>| names.iter().any(|name| name == ask.namespace);
        self.clients.as_ref().is_none_or(sees) && (self.ports.is_empty() || self.ports.contains(&ask.port))
    }
}

impl Rule {
    /// Whether it means the connection; `None` as long as that depends on a name that nobody has looked for.
    fn means(&self, ask: &Ask<'_>) -> Option<bool> {
        let mut unread = false;
        for condition in &self.conditions {
            match condition.holds(ask) {
                Some(true) => return Some(true),
                Some(false) => {}
                None => unread = true,
            }
        }
        if unread { None } else { Some(self.conditions.is_empty()) }
    }

    fn outcome(&self, rng: &mut impl Rng) -> Choice<'_> {
        match self.split.choose(rng).map(|place| &place.target) {
            Some(Target::Cluster(key)) => Choice::To(key),
            Some(Target::Broken(why)) => Choice::Closed(&self.origin, why),
            None => Choice::Closed(&self.origin, "it has no place with a weight"),
        }
    }
}

impl Condition {
    fn holds(&self, ask: &Ask<'_>) -> Option<bool> {
        let address = ask.address.to_canonical();
        let rest = self.port.is_none_or(|port| port == ask.port)
            && (self.destinations.is_empty() || self.destinations.iter().any(|net| net.contains(&address)))
            && self.source_namespace.as_ref().is_none_or(|own| own == ask.namespace)
            && (self.source_labels.is_empty() || ask.labels.is_some_and(|own| has_all(own, &self.source_labels)));
        match ask.server_name {
            _ if !rest => Some(false),
            _ if self.server_names.is_empty() => Some(true),
            ServerName::Unread => None,
            ServerName::Absent => Some(false),
            ServerName::Is(name) => Some(self.server_names.iter().any(|pattern| pattern.matches(name))),
        }
    }
}
