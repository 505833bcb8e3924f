//! The one table of HTTP routes that a waypoint subscribes to, by its name: held in its last good form, whatever comes after it.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::l7::Table;
use mesh_proto::{
    ROUTE_TABLE_TYPE, convert,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource},
};

use super::held::Version;

/// What has become of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteChange {
    /// It is this now.
    Is(Arc<Table>),
    /// There is none: nothing has routes.
    Gone,
}

/// The subscription to one table.
#[derive(Debug)]
pub(super) struct Routes {
    name: String,
    version: Option<Version>,
    /// It is known what the table is, or that there is none.
    pub(super) answered: bool,
    /// This stream has said something of it.
    pub(super) answered_here: bool,
}

impl Routes {
    pub(super) fn new(name: String) -> Self {
        Self { name, version: None, answered: false, answered_here: false }
    }

    pub(super) fn open(&mut self, node: Node) -> DeltaDiscoveryRequest {
        self.answered_here = false;
        let held = self.version.iter().map(|version| (self.name.clone(), version.to_string()));
        DeltaDiscoveryRequest {
            node: Some(node),
            type_url: ROUTE_TABLE_TYPE.to_owned(),
            resource_names_subscribe: vec![self.name.clone()],
            initial_resource_versions: held.collect::<HashMap<_, _>>(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// How many tables are held.
    pub(super) fn held(&self) -> usize {
        usize::from(self.version.is_some())
    }

    /// Reads one response. A table that cannot be read leaves the last one; without one nothing is known yet, and nobody may go without routes because
    /// of that.
    pub(super) fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
        problems: &mut Vec<String>,
    ) -> Option<RouteChange> {
        self.answered_here = true;
        let (own, others): (Vec<_>, Vec<_>) = response.resources.into_iter().partition(|one| one.name == self.name);
        problems.extend(others.first().map(|one| format!("{:.200?}: this table was not asked for", one.name)));
        if let Some(resource) = own.into_iter().next_back() {
            let version = Version::from(resource.version.clone());
            let read = mesh_runtime::task::contain("table of routes", || read(&self.name, resource, problems));
            return match read {
                Some(Some(table)) => {
                    (self.version, self.answered) = (Some(version), true);
                    Some(RouteChange::Is(Arc::new(table)))
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
            return (self.version.take().is_some() || gone).then_some(RouteChange::Gone);
        }
        None
    }
}

/// A rule that cannot be read is closed and told; all others are in force.
fn read(name: &str, resource: Resource, problems: &mut Vec<String>) -> Option<Table> {
    let body = resource.resource.filter(|body| body.type_url == ROUTE_TABLE_TYPE);
    let Some(body) = body else {
        problems.push(format!("{name:?}: has no table as its content"));
        return None;
    };
    match convert::route_table(&body.value) {
        Ok(read) if read.table.name() == name => {
            problems.extend(read.closed.iter().map(|closed| format!("{name:?}: {closed}")));
            Some(read.table)
        }
        Ok(read) => {
            problems.push(format!("{name:?}: contains {:.200?}", read.table.name().as_str()));
            None
        }
        Err(error) => {
            problems.push(format!("{name:?}: {error}"));
            None
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
        let mut routes = Routes::new(NAME.to_owned());
        let mut ask = |response| {
            let mut problems = Vec::new();
            let change = routes.receive(response, &mut problems);
            (change, problems.len(), routes.answered)
        };
        let is = || Some(RouteChange::Is(Arc::new(Table::new(NAME, Vec::new()))));
        assert_eq!(ask(response(vec![(NAME, vec![0xff])], &[])), (None, 1, false), "nothing is known yet");
        assert_eq!(ask(response(vec![(NAME, good())], &[])), (is(), 0, true));
        assert_eq!(ask(response(vec![(NAME, vec![0xff])], &[])), (None, 1, true));
        assert_eq!(ask(response(vec![("other", good())], &[])), (None, 1, true));
        assert_eq!(ask(response(vec![], &[])), (None, 0, true));
        let named_other = encode_route_table(&Table::new("other", Vec::new()));
        assert_eq!(ask(response(vec![(NAME, named_other)], &[])), (None, 1, true));
        assert_eq!(ask(response(vec![], &[NAME])), (Some(RouteChange::Gone), 0, true));
    }

    #[test]
    fn an_empty_answer_says_that_there_is_no_table() {
        let mut routes = Routes::new(NAME.to_owned());
        assert_eq!(routes.open(Node::default()).resource_names_subscribe, [NAME]);
        assert_eq!(routes.receive(response(vec![], &[]), &mut Vec::new()), None);
        assert!(routes.answered);
    }

    #[test]
    fn a_new_stream_is_told_what_is_held() {
        let mut routes = Routes::new(NAME.to_owned());
        routes.receive(response(vec![(NAME, encode_route_table(&Table::new(NAME, Vec::new())))], &[]), &mut Vec::new());
        let request = routes.open(Node::default());
        assert_eq!(request.initial_resource_versions[NAME], "00000000deadbeef");
        assert!(!routes.answered_here && routes.answered);
    }
}
