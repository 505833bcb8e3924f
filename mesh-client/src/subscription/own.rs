//! What a waypoint has of its own, one resource of each kind, subscribed to by the waypoint's name: held in its last good form, whatever comes after it.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::l7::{Clusters, LabelChange, Security, Table};
use mesh_core::listener::{Certificates, Listeners};
use mesh_core::telemetry::Scopes;
use mesh_proto::{
    CERTIFICATES_TYPE, CLUSTERS_TYPE, LISTENERS_TYPE, ROUTE_TABLE_TYPE, SECURITY_TYPE, TELEMETRY_TYPE, convert,
    convert::ConvertError,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource},
};

use super::held::Version;

/// What waypoints have of their own, one resource of each kind. A new kind is a variant here and in [`Own`], and an arm of each function below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnKind {
    /// What requests are held against.
    Security,
    /// What is measured, logged and traced.
    Telemetry,
    /// How the places are reached that its routes name.
    Clusters,
    /// What is done with requests.
    Routes,
    /// What a gateway shows and believes.
    Certificates,
    /// What a gateway listens for.
    Listeners,
}

/// What is in force of something that waypoints have of their own; `None`: there is none of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// Labels of these workloads are others now.
    Labels(Vec<LabelChange>),
    /// What requests are held against.
    Security(Option<Arc<Security>>),
    /// What is measured, logged and traced.
    Telemetry(Option<Arc<Scopes>>),
    /// How the places are reached that its routes name.
    Clusters(Option<Arc<Clusters>>),
    /// What is done with requests.
    Routes(Option<Arc<Table>>),
    /// What a gateway shows and believes.
    Certificates(Option<Arc<Certificates>>),
    /// What a gateway listens for.
    Listeners(Option<Arc<Listeners>>),
}

impl OwnKind {
    /// All of them, in the order in which they are asked for.
    pub const ALL: [OwnKind; 6] = [
        OwnKind::Security,
        OwnKind::Telemetry,
        OwnKind::Clusters,
        OwnKind::Routes,
        OwnKind::Certificates,
        OwnKind::Listeners,
    ];

    /// Its type URL.
    #[must_use]
    pub fn url(self) -> &'static str {
        match self {
            Self::Security => SECURITY_TYPE,
            Self::Telemetry => TELEMETRY_TYPE,
            Self::Clusters => CLUSTERS_TYPE,
            Self::Routes => ROUTE_TABLE_TYPE,
            Self::Certificates => CERTIFICATES_TYPE,
            Self::Listeners => LISTENERS_TYPE,
        }
    }

    fn none(self) -> Own {
        match self {
            Self::Security => Own::Security(None),
            Self::Telemetry => Own::Telemetry(None),
            Self::Clusters => Own::Clusters(None),
            Self::Routes => Own::Routes(None),
            Self::Certificates => Own::Certificates(None),
            Self::Listeners => Own::Listeners(None),
        }
    }

    /// The name that it has and what it says. What is closed in it is told, and all else in force.
    fn read(self, bytes: &[u8], problems: &mut Vec<String>) -> Result<(mesh_core::ArcStr, Own), ConvertError> {
        Ok(match self {
            Self::Security => {
                let read = convert::security(bytes)?;
                problems.extend(read.closed.iter().map(ToString::to_string));
                (read.security.name.clone(), Own::Security(Some(Arc::new(read.security))))
            }
            Self::Telemetry => {
                let (name, scopes) = convert::telemetry(bytes)?;
                (name, Own::Telemetry(Some(Arc::new(scopes))))
            }
            Self::Clusters => {
                let read = convert::clusters(bytes)?;
                problems.extend(read.closed.iter().map(ToString::to_string));
                (read.name, Own::Clusters(Some(Arc::new(read.clusters))))
            }
            Self::Routes => {
                let read = convert::route_table(bytes)?;
                problems.extend(read.closed.iter().map(ToString::to_string));
                (read.table.name().clone(), Own::Routes(Some(Arc::new(read.table))))
            }
            Self::Certificates => {
                let read = convert::certificates(bytes)?;
                (read.name.clone(), Own::Certificates(Some(Arc::new(read))))
            }
            Self::Listeners => {
                let read = convert::listeners(bytes)?;
                let closed =
                    |(name, why): &(mesh_core::ArcStr, ConvertError)| format!("{name} closes connections: {why}");
                problems.extend(read.closed.iter().map(closed));
                problems.extend(read.closed_rules.iter().map(ToString::to_string));
                (read.listeners.name().clone(), Own::Listeners(Some(Arc::new(read.listeners))))
            }
        })
    }
}

/// The subscription to one kind.
#[derive(Debug)]
pub(super) struct OwnTopic {
    pub(super) kind: OwnKind,
    name: String,
    version: Option<Version>,
    /// It is known what there is, or that there is none.
    pub(super) answered: bool,
    /// This stream has said something of it.
    pub(super) answered_here: bool,
}

impl OwnTopic {
    pub(super) fn new(kind: OwnKind, name: &str) -> Self {
        Self { kind, name: name.to_owned(), version: None, answered: false, answered_here: false }
    }

    pub(super) fn open(&mut self, node: Node) -> DeltaDiscoveryRequest {
        self.answered_here = false;
        let held = self.version.iter().map(|version| (self.name.clone(), version.to_string()));
        DeltaDiscoveryRequest {
            node: Some(node),
            type_url: self.kind.url().to_owned(),
            resource_names_subscribe: vec![self.name.clone()],
            initial_resource_versions: held.collect::<HashMap<_, _>>(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// How many resources are held.
    pub(super) fn held(&self) -> usize {
        usize::from(self.version.is_some())
    }

    /// Reads one response. What cannot be read leaves the last one; without one nothing is known yet, and nobody may go without routes because of that.
    pub(super) fn receive(&mut self, response: DeltaDiscoveryResponse, problems: &mut Vec<String>) -> Option<Own> {
        self.answered_here = true;
        let (own, others): (Vec<_>, Vec<_>) = response.resources.into_iter().partition(|one| one.name == self.name);
        problems.extend(others.first().map(|one| format!("{:.200?}: this was not asked for", one.name)));
        if let Some(resource) = own.into_iter().next_back() {
            let version = Version::from(resource.version.clone());
            let read = mesh_runtime::task::contain("resource of a waypoint", || self.read(resource, problems));
            return match read {
                Some(Some(own)) => {
                    (self.version, self.answered) = (Some(version), true);
                    Some(own)
                }
                Some(None) => None,
                None => {
                    problems.push(format!("{:?}: cannot be read: the reader panicked", self.name));
                    None
                }
            };
        }
        let gone = response.removed_resources.contains(&self.name);
        // Nothing at all is the answer to who has what there is.
        if gone || (self.version.is_none() && !self.answered && problems.is_empty()) {
            self.answered = true;
            return (self.version.take().is_some() || gone).then_some(self.kind.none());
        }
        None
    }

    /// A part that cannot be read is closed and told; all else is in force.
    fn read(&self, resource: Resource, problems: &mut Vec<String>) -> Option<Own> {
        let name = &self.name;
        let body = resource.resource.filter(|body| body.type_url == self.kind.url());
        let Some(body) = body else {
            problems.push(format!("{name:?}: its content is not what was asked for"));
            return None;
        };
        let mut closed = Vec::new();
        match self.kind.read(&body.value, &mut closed) {
            Ok((own, read)) if own == *name => {
                problems.extend(closed.iter().map(|closed| format!("{name:?}: {closed}")));
                Some(read)
            }
            Ok((other, _)) => {
                problems.push(format!("{name:?}: contains {:.200?}", other.as_str()));
                None
            }
            Err(error) => {
                problems.push(format!("{name:?}: {error}"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::convert::encode_route_table;
    use mesh_proto::discovery::Any;

    use super::*;

    const NAME: &str = "shop/waypoint";

    fn response(resources: Vec<(&str, Vec<u8>)>, removed: &[&str]) -> DeltaDiscoveryResponse {
        let resource = |(name, value): (&str, Vec<u8>)| Resource {
            name: name.to_owned(),
            version: "00000000deadbeef".to_owned(),
            resource: Some(Any { type_url: ROUTE_TABLE_TYPE.to_owned(), value: value.into() }),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            type_url: ROUTE_TABLE_TYPE.to_owned(),
            resources: resources.into_iter().map(resource).collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    #[test]
    fn a_table_stays_until_another_can_be_read() {
        let good = || encode_route_table(&Table::new(NAME, Vec::new()));
        let mut routes = OwnTopic::new(OwnKind::Routes, NAME);
        let mut ask = |response| {
            let mut problems = Vec::new();
            let change = routes.receive(response, &mut problems);
            (change, problems.len(), routes.answered)
        };
        let is = || Some(Own::Routes(Some(Arc::new(Table::new(NAME, Vec::new())))));
        assert_eq!(ask(response(vec![(NAME, vec![0xff])], &[])), (None, 1, false), "nothing is known yet");
        assert_eq!(ask(response(vec![(NAME, good())], &[])), (is(), 0, true));
        assert_eq!(ask(response(vec![(NAME, vec![0xff])], &[])), (None, 1, true));
        assert_eq!(ask(response(vec![("other", good())], &[])), (None, 1, true));
        assert_eq!(ask(response(vec![], &[])), (None, 0, true));
        let named_other = encode_route_table(&Table::new("other", Vec::new()));
        assert_eq!(ask(response(vec![(NAME, named_other)], &[])), (None, 1, true));
        assert_eq!(ask(response(vec![], &[NAME])), (Some(Own::Routes(None)), 0, true));
    }

    #[test]
    fn an_empty_answer_says_that_there_is_no_table() {
        let mut routes = OwnTopic::new(OwnKind::Routes, NAME);
        assert_eq!(routes.open(Node::default()).resource_names_subscribe, [NAME]);
        assert_eq!(routes.receive(response(vec![], &[]), &mut Vec::new()), None);
        assert!(routes.answered);
    }

    #[test]
    fn a_new_stream_is_told_what_is_held() {
        let mut routes = OwnTopic::new(OwnKind::Routes, NAME);
        routes.receive(response(vec![(NAME, encode_route_table(&Table::new(NAME, Vec::new())))], &[]), &mut Vec::new());
        let request = routes.open(Node::default());
        assert_eq!(request.initial_resource_versions[NAME], "00000000deadbeef");
        assert!(!routes.answered_here && routes.answered);
    }

    #[test]
    fn each_kind_is_read_as_itself() {
        let of = |kind: OwnKind, url: &str, value: Vec<u8>| {
            let mut response = response(vec![(NAME, value)], &[]);
            response.resources[0].resource.as_mut().unwrap().type_url = url.to_owned();
            let mut problems = Vec::new();
            (OwnTopic::new(kind, NAME).receive(response, &mut problems), problems)
        };
        let clusters = convert::encode_clusters(NAME, &Clusters::default());
        let read = of(OwnKind::Clusters, CLUSTERS_TYPE, clusters.clone());
        assert_eq!(read, (Some(Own::Clusters(Some(Arc::default()))), vec![]));
        let listeners = convert::encode_listeners(&Listeners::new(NAME, Vec::new()));
        let read = of(OwnKind::Listeners, LISTENERS_TYPE, listeners);
        assert_eq!(read, (Some(Own::Listeners(Some(Arc::new(Listeners::new(NAME, Vec::new()))))), vec![]));
        let own = Certificates { name: NAME.into(), ..Certificates::default() };
        let read = of(OwnKind::Certificates, CERTIFICATES_TYPE, convert::encode_certificates(&own));
        assert_eq!(read, (Some(Own::Certificates(Some(Arc::new(own)))), vec![]));
        let scopes = convert::encode_telemetry(NAME, &Scopes::default());
        let read = of(OwnKind::Telemetry, TELEMETRY_TYPE, scopes);
        assert_eq!(read, (Some(Own::Telemetry(Some(Arc::default()))), vec![]));
        let (read, problems) = of(OwnKind::Routes, CLUSTERS_TYPE, clusters);
        assert_eq!((read, problems.len()), (None, 1));
        let urls: std::collections::HashSet<_> = OwnKind::ALL.iter().map(|kind| kind.url()).collect();
        assert_eq!(urls.len(), OwnKind::ALL.len());
    }
}
