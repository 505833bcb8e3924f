//! How endpoints are chosen and reached: what is said of a port of a service, or of a subset of it, for some clients or for all. Made by the control plane of
//! DestinationRules; whoever forwards requests asks [`Clusters::find`] with the place that a decision names.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arcstr::ArcStr;
use hashbrown::HashMap;

use super::{Client, ClusterKey, Labels, Share};
use crate::spoken::Spoken;

/// One place, as some clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Which.
    pub key: ClusterKey,
    /// Namespaces of clients; `None` means all that no other one of the place names, also those that are not known.
    pub clients: Option<Vec<ArcStr>>,
    /// Labels that a client must have.
    pub client_labels: Labels,
    /// Labels that its endpoints have.
    pub labels: Labels,
    /// How they are reached, or why none is: the answer is 500 then.
    pub policy: Result<Policy, ArcStr>,
}

impl Cluster {
    /// A place of which no client reaches any endpoint.
    #[must_use]
    pub fn closed(key: ClusterKey, why: &str) -> Self {
        Self { key, clients: None, client_labels: Labels::new(), labels: Labels::new(), policy: Err(why.into()) }
    }
}

/// How endpoints are chosen and reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Which of them.
    pub balancer: Balancer,
    /// One that is new gets little at first.
    pub warmup: Option<Warmup>,
    /// Near ones first.
    pub locality: Locality,
    /// How many connections and requests.
    pub pool: Pool,
    /// Which are left out for a while; `None` is none.
    pub outliers: Option<Outliers>,
    /// With which TLS.
    pub tls: Tls,
    /// The client's address is told ahead, in this version of the PROXY protocol.
    pub proxy_protocol: Option<u8>,
    /// How many requests may be second attempts; `None` is as the pool says.
    pub retry_budget: Option<RetryBudget>,
}

/// Which endpoint a request goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balancer {
    /// Of two the one with fewer requests.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one that the client named.
    Passthrough,
    /// The same for what says the same.
    Hash(HashKey, HashTable),
}

/// What of a request is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// A header, in lower case.
    Header(ArcStr),
    /// A cookie; made if it lasts, with this path, for so long, and these attributes.
    Cookie {
        /// Its name.
        name: ArcStr,
        /// Its path.
        path: Option<ArcStr>,
        /// How long it lasts; zero is as long as the browser runs, `None`: it is never made.
        lasts: Option<Duration>,
        /// As `SameSite` with `Strict`.
        attributes: Vec<(ArcStr, Option<ArcStr>)>,
    },
    /// The client's address.
    Source,
    /// A parameter of the query.
    Parameter(ArcStr),
}

/// By what something that is the same is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashTable {
    /// A ring of at least so many points.
    Ring(u64),
    /// Maglev's table of that size, a prime.
    Maglev(u64),
}

/// One that is new gets little at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmup {
    /// So long.
    pub time: Duration,
    /// At least so much of what it will get.
    pub least: Share,
    /// The exponent of its growth, in thousandths; 1000 is a straight line.
    pub aggression: u32,
}

/// Near ones first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Whether at all; `None` is as the mesh says.
    pub enabled: Option<bool>,
    /// Shares of a hundred of what comes from a place (`region/zone/subzone`, the last of which may be `*`), by the place that gets them.
    pub distribute: Vec<(ArcStr, BTreeMap<ArcStr, u32>)>,
    /// After this region that one.
    pub failover: Vec<(ArcStr, ArcStr)>,
    /// Labels that endpoints share with the client, as `key` or `key=value`, the weightiest first.
    pub priority: Vec<ArcStr>,
}

/// How many connections and requests. [`u32::MAX`] is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Connections at once.
    pub connections: u32,
    /// For one to be made.
    pub connect_timeout: Duration,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests at once.
    pub requests: u32,
    /// Requests of one connection.
    pub requests_per_connection: u32,
    /// Second attempts at once.
    pub retries: u32,
    /// Requests of one connection at once.
    pub streams: u32,
    /// How long a connection without requests is kept; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// How long a connection that is no HTTP may be without a byte; `None` is for ever.
    pub silence: Option<Duration>,
    /// How long any connection is kept.
    pub lifetime: Option<Duration>,
    /// Signs of life of connections.
    pub keepalive: Option<Keepalive>,
    /// Which HTTP endpoints are spoken to in.
    pub speaks: Speaks,
}

impl Default for Pool {
    /// Istio's.
    fn default() -> Self {
        Self {
            connections: u32::MAX,
            connect_timeout: Duration::from_secs(10),
            pending: u32::MAX,
            requests: u32::MAX,
            requests_per_connection: u32::MAX,
            retries: u32::MAX,
            streams: u32::MAX,
            idle_timeout: Some(Duration::from_secs(3600)),
            silence: None,
            lifetime: None,
            keepalive: None,
            speaks: Speaks::AsDeclared,
        }
    }
}

/// Signs of life of connections. What is not said is the system's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// How many may fail.
    pub probes: Option<u32>,
    /// After which silence.
    pub after: Option<Duration>,
    /// Between them.
    pub interval: Option<Duration>,
}

/// Which HTTP endpoints are spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speaks {
    /// What the service's port says.
    #[default]
    AsDeclared,
    /// HTTP/2.
    Http2,
    /// As the client.
    AsClient,
}

/// Which endpoints are left out for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// After so many 5xx in a row; 0 is never.
    pub errors: u32,
    /// After so many 502, 503 and 504 in a row; 0 is never.
    pub gateway_errors: u32,
    /// What never came to an endpoint is counted by itself, and it is left out after so many; `None`: it counts as 5xx.
    pub local_failures: Option<u32>,
    /// Statuses that count as errors instead of 5xx; none is 5xx.
    pub statuses: Vec<u16>,
    /// Between looks.
    pub interval: Duration,
    /// So long, times how often it was.
    pub base: Duration,
    /// At most so many of a hundred at once.
    pub most_percent: u32,
    /// With fewer of a hundred that are well, all are used.
    pub least_healthy_percent: u32,
}

impl Default for Outliers {
    /// Istio's, once there are any.
    fn default() -> Self {
        Self {
            errors: 5,
            gateway_errors: 0,
            local_failures: None,
            statuses: Vec::new(),
            interval: Duration::from_secs(10),
            base: Duration::from_secs(30),
            most_percent: 10,
            least_healthy_percent: 0,
        }
    }
}

/// With which TLS endpoints are reached. Pods of the mesh are reached in the mesh's own way, whatever is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// With the mesh's, where the other side can.
    #[default]
    Mesh,
    /// With none.
    Plain,
    /// With that of the world.
    Simple(ServerName),
    /// With that of the world, and a certificate that has to be there to be shown.
    Mutual(ServerName),
}

impl Tls {
    /// Whom TLS of the world begins with, if it does.
    #[must_use]
    pub fn server(&self) -> Option<&ServerName> {
        match self {
            Self::Mesh | Self::Plain => None,
            Self::Simple(server) | Self::Mutual(server) => Some(server),
        }
    }
}

/// Who the other side may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerName {
    /// Names of credentials, as [`Certificates`](crate::listener::Certificates) has them, whose roots are believed; those that are not known are left out, and without
    /// one that is nobody is. None at all: what the system trusts.
    pub roots: Vec<ArcStr>,
    /// The credential that is shown to servers that ask for one.
    pub shown: Option<ArcStr>,
    /// The name that is asked for; `None` is the host.
    pub sni: Option<ArcStr>,
    /// Names that its certificate may have; none is the name that is asked for.
    pub names: Vec<ArcStr>,
    /// Anybody is believed.
    pub unverified: bool,
    /// Applications end it themselves, those of the mesh, too: it begins inside of tunnels as well.
    pub end_to_end: bool,
    /// What is spoken.
    pub spoken: Spoken,
}

/// How many requests may be second attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of those under way.
    pub share: Share,
    /// At least.
    pub least: u32,
    /// Over which time; zero is now.
    pub interval: Duration,
}

/// All places that somebody forwards to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clusters {
    by_key: HashMap<ClusterKey, Vec<Arc<Cluster>>>,
}

impl Clusters {
    /// These places. Of one place those for some clients come before those for all, then they stay in their order.
    #[must_use]
    pub fn new(clusters: impl IntoIterator<Item = Cluster>) -> Self {
        let mut by_key: HashMap<ClusterKey, Vec<Arc<Cluster>>> = HashMap::new();
        for cluster in clusters {
            by_key.entry(cluster.key.clone()).or_default().push(Arc::new(cluster));
        }
        for of_key in by_key.values_mut() {
            of_key.sort_by_key(|cluster| (cluster.clients.is_none(), cluster.client_labels.is_empty()));
        }
        Self { by_key }
    }

    /// The place as a client sees it; `None` if nothing is said of it.
    #[must_use]
    pub fn find(&self, key: &ClusterKey, client: &Client<'_>) -> Option<&Arc<Cluster>> {
        let has = |(name, value): (&ArcStr, &ArcStr)| client.labels.is_some_and(|own| own.get(name) == Some(value));
        self.by_key.get(key)?.iter().find(|cluster| {
            let names = |names: &Vec<ArcStr>| client.namespace.is_some_and(|own| names.iter().any(|name| name == own));
            cluster.clients.as_ref().is_none_or(names) && cluster.client_labels.iter().all(has)
        })
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.by_key.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NamespacedName;

    #[test]
    fn features_DR_1_and_DR_3_the_nearest_says_how() {
        let key = ClusterKey { service: NamespacedName::new("shop", "cart"), port: 80, subset: "v1".into() };
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<Labels>();
        let one = |clients: Option<&str>, client_labels: &[(&str, &str)], name: &str| Cluster {
            key: key.clone(),
            clients: clients.map(|name| vec![name.into()]),
            client_labels: labels(client_labels),
            labels: labels(&[("name", name)]),
            policy: Ok(Policy::default()),
        };
        let clusters = Clusters::new([
            one(None, &[], "all"),
            one(Some("blog"), &[], "blog"),
            one(Some("blog"), &[("app", "a")], "blog's a"),
        ]);
        let (a, b) = (labels(&[("app", "a"), ("x", "y")]), labels(&[("app", "b")]));
        for (namespace, labels, expected) in [
            (None, None, "all"),
            (Some("shop"), Some(&a), "all"),
            (Some("blog"), None, "blog"),
            (Some("blog"), Some(&b), "blog"),
            (Some("blog"), Some(&a), "blog's a"),
        ] {
            let found = clusters.find(&key, &Client { identity: None, namespace, labels }).unwrap();
            assert_eq!(found.labels["name"], expected, "{namespace:?} {labels:?}");
        }
        let other = ClusterKey { port: 81, ..key };
        assert_eq!((clusters.find(&other, &Client::default()), clusters.iter().count()), (None, 3));
    }
}
