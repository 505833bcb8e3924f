//! Labels of workloads that a waypoint's routes and places ask for: many small resources, all of which are the waypoint's, subscribed to as a whole. Each is held
//! in its last good form.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arcstr::ArcStr;
use mesh_core::l7::LabelChange;
use mesh_proto::{
    WORKLOAD_LABELS_TYPE, convert,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource},
};

use super::held::Version;

/// The subscription to labels.
#[derive(Debug, Default)]
pub(super) struct Labels {
    held: HashMap<ArcStr, Version>,
    /// All that there is was said once.
    pub(super) answered: bool,
    /// This stream has said something.
    pub(super) answered_here: bool,
    /// What is held did not fit the request: the answer is all there is.
    from_nothing: bool,
}

impl Labels {
    pub(super) fn open(&mut self, node: Node, most_bytes: usize) -> DeltaDiscoveryRequest {
        self.answered_here = false;
        let size: usize = self.held.keys().map(|uid| uid.len() + 28).sum();
        self.from_nothing = size > most_bytes;
        let held = self.held.iter().filter(|_| !self.from_nothing);
        DeltaDiscoveryRequest {
            node: Some(node),
            type_url: WORKLOAD_LABELS_TYPE.to_owned(),
            initial_resource_versions: held.map(|(uid, version)| (uid.to_string(), version.to_string())).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// How many are held.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Reads one response.
    pub(super) fn receive(&mut self, response: DeltaDiscoveryResponse, problems: &mut Vec<String>) -> Vec<LabelChange> {
        let mut gone: HashSet<ArcStr> = match std::mem::take(&mut self.from_nothing) && !self.answered_here {
            true => self.held.keys().cloned().collect(),
            false => HashSet::new(),
        };
        (self.answered, self.answered_here) = (true, true);
        gone.extend(response.removed_resources.into_iter().map(ArcStr::from));
        let mut changes = Vec::with_capacity(response.resources.len());
        for resource in response.resources {
            gone.remove(resource.name.as_str());
            let version = Version::from(resource.version.clone());
            match read(resource) {
                Ok((uid, labels)) => {
                    self.held.insert(uid.clone(), version);
                    changes.push((uid, Some(Arc::new(labels))));
                }
                Err(problem) => problems.push(problem),
            }
        }
        changes.extend(gone.into_iter().filter(|uid| self.held.remove(uid).is_some()).map(|uid| (uid, None)));
        changes
    }
}

fn read(resource: Resource) -> Result<(ArcStr, mesh_core::l7::Labels), String> {
    let name = resource.name;
    let body = resource.resource.filter(|body| body.type_url == WORKLOAD_LABELS_TYPE);
    let body = body.ok_or_else(|| format!("{name:.200?}: its content is not what was asked for"))?;
    match convert::workload_labels(&body.value) {
        Ok((uid, labels)) if uid == name => Ok((uid, labels)),
        Ok((uid, _)) => Err(format!("{name:.200?}: contains {:.200?}", uid.as_str())),
        Err(error) => Err(format!("{name:.200?}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::discovery::Any;

    use super::*;

    fn response(resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
        let resource = |(uid, version): &(&str, &str)| {
            let labels = [("version".into(), (*version).into())].into();
            let value = match *version {
                "bad" => vec![0xff].into(),
                _ => convert::encode_workload_labels(uid, &labels).into(),
            };
            Resource {
                name: (*uid).to_owned(),
                version: "00000000deadbeef".to_owned(),
                resource: Some(Any { type_url: WORKLOAD_LABELS_TYPE.to_owned(), value }),
                ..Resource::default()
            }
        };
        DeltaDiscoveryResponse {
            type_url: WORKLOAD_LABELS_TYPE.to_owned(),
            resources: resources.iter().map(resource).collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    fn told(labels: &mut Labels, response: DeltaDiscoveryResponse) -> (Vec<String>, usize) {
        let mut problems = Vec::new();
        let changes = labels.receive(response, &mut problems).into_iter().map(|(uid, labels)| match labels {
            Some(labels) => format!("{uid}={}", labels["version"]),
            None => format!("-{uid}"),
        });
        let mut changes: Vec<_> = changes.collect();
        changes.sort();
        (changes, problems.len())
    }

    #[test]
    fn each_workload_is_told_by_itself() {
        let mut labels = Labels::default();
        let list = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(&mut labels, response(&[("a", "v1"), ("b", "v2")], &[])), (list(&["a=v1", "b=v2"]), 0));
        assert_eq!(told(&mut labels, response(&[("a", "bad"), ("c", "v3")], &["b", "x"])), (list(&["-b", "c=v3"]), 1));
        let request = labels.open(Node::default(), 1000);
        assert_eq!((request.initial_resource_versions.len(), labels.answered_here, labels.held()), (2, false, 2));
        assert_eq!(told(&mut labels, response(&[], &["a"])), (list(&["-a"]), 0));
    }

    #[test]
    fn what_does_not_fit_the_request_is_told_anew() {
        let mut labels = Labels::default();
        told(&mut labels, response(&[("a", "v1"), ("b", "v2")], &[]));
        assert!(labels.open(Node::default(), 10).initial_resource_versions.is_empty());
        assert_eq!(told(&mut labels, response(&[("b", "v2")], &[])).0, ["-a", "b=v2"]);
        assert_eq!(told(&mut labels, response(&[("c", "v2")], &[])).0, ["c=v2"]);
    }
}
