//! How the places are reached that routes name, both ways. A place whose reach cannot be read is closed: its requests are answered with an error, and no
//! endpoint is asked in a weaker way than was written. Of which place and whose clients it speaks must be readable, or nothing of the resource is taken.

use std::fmt;

use mesh_core::ArcStr;
use mesh_core::l7::{Cluster, ClusterKey, Clusters, Labels};
use prost::Message;

use super::{action, few, reach};
use crate::convert::{ConvertError, field};
use crate::wire::l7 as wire;

/// Places of a resource, and labels or namespaces of one.
const MOST_PLACES: usize = 100_000;
const MOST_LABELS: usize = 1000;
const MOST_NAMESPACES: usize = 100_000;
/// Namespaces and labels of all places.
const MOST_OF_ALL: usize = 1_000_000;
/// Closed places that are told of one by one.
const MOST_TOLD: usize = 100;

/// What was read of an `undermesh.l7.v1.Clusters`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClustersRead {
    /// Whose they are.
    pub name: ArcStr,
    /// The places.
    pub clusters: Clusters,
    /// Places that are closed because they could not be read, the first 100 of them. To be reported.
    pub closed: Vec<ClosedPlace>,
    /// How many more there are.
    pub more_closed: usize,
}

/// A place that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedPlace {
    /// Which.
    pub key: ClusterKey,
    /// What is wrong with it.
    pub problem: ConvertError,
}

impl fmt::Display for ClosedPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ClusterKey { service, port, subset } = &self.key;
        write!(f, "{service}, port {port}, subset {subset:?}: {}; none of its endpoints is asked", self.problem)
    }
}

/// Reads one `undermesh.l7.v1.Clusters`. Fields of it and of its places that this version does not know refuse it, those of a reach close the place.
pub fn clusters(bytes: &[u8]) -> Result<ClustersRead, ConvertError> {
    let message = wire::Clusters::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    few("places", message.places.len(), MOST_PLACES)?;
    let parts = |place: &wire::Place| {
        place.client_labels.len() + place.clients.as_ref().map_or(0, |clients| clients.namespaces.len())
    };
    few("namespaces and labels of all places", message.places.iter().map(parts).sum(), MOST_OF_ALL)?;
    let mut read = ClustersRead {
        name: field::text("name", message.name)?,
        clusters: Clusters::default(),
        closed: Vec::new(),
        more_closed: 0,
    };
    let places = message.places.into_iter().map(|message| place(message, &mut read)).collect::<Result<Vec<_>, _>>()?;
    read.clusters = Clusters::new(places);
    Ok(read)
}

/// The bytes of an `undermesh.l7.v1.Clusters`. The same clusters always give the same bytes.
#[must_use]
pub fn encode_clusters(name: &str, clusters: &Clusters) -> Vec<u8> {
    let mut all: Vec<_> = clusters.iter().collect();
    // Those of one place stay in their order.
    all.sort_by(|one, two| one.key.cmp(&two.key));
    let place = |cluster: &Cluster| wire::Place {
        cluster: Some(action::write_key(&cluster.key)),
        clients: cluster
            .clients
            .as_ref()
            .map(|names| wire::Clients { namespaces: names.iter().map(ToString::to_string).collect() }),
        client_labels: write_labels(&cluster.client_labels),
        reach: reach::write(&cluster.labels, &cluster.policy).encode_to_vec(),
    };
    wire::Clusters { name: name.to_owned(), places: all.into_iter().map(|one| place(one)).collect() }.encode_to_vec()
}

fn place(message: wire::Place, read: &mut ClustersRead) -> Result<Cluster, ConvertError> {
    let key = action::cluster_key(message.cluster.ok_or(ConvertError::Missing { field: "places.cluster" })?)?;
    let namespace = |name: String| field::name("places.clients", name);
    let clients = message.clients.map(|clients| {
        few("places.clients", clients.namespaces.len(), MOST_NAMESPACES)?;
        clients.namespaces.into_iter().map(namespace).collect::<Result<Vec<_>, _>>()
    });
    let (clients, client_labels) = (clients.transpose()?, read_labels("places.client_labels", message.client_labels)?);
    let (labels, policy) = match reach::read(&message.reach) {
        Ok(read) => read,
        Err(problem) => {
            let why = action::reason("closed", format!("it cannot be read: {problem}"));
            match read.closed.len() < MOST_TOLD {
                true => read.closed.push(ClosedPlace { key: key.clone(), problem }),
                false => read.more_closed += 1,
            }
            (Labels::new(), Err(why.unwrap_or_default()))
        }
    };
    Ok(Cluster { key, clients, client_labels, labels, policy })
}

pub(super) fn read_labels(
    field: &'static str,
    labels: impl IntoIterator<Item = (String, String), IntoIter: ExactSizeIterator>,
) -> Result<Labels, ConvertError> {
    let labels = labels.into_iter();
    few(field, labels.len(), MOST_LABELS)?;
    labels.map(|(key, value)| Ok((field::text(field, key)?, field::text(field, value)?))).collect()
}

pub(super) fn write_labels(labels: &Labels) -> std::collections::BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}
