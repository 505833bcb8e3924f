//! Places of routes as the data plane knows them. Called for rules of requests and of connections alike.

use mesh_core::NamespacedName;
use mesh_core::l7::{ClusterKey, Target};

use super::routing::backends::{Broken, Place};
use super::routing::hosts::Hosts;

/// Where a reference of a route of `namespace` leads; `None` if that is not known yet. What is wrong with it is told where references are resolved.
pub fn of_reference(place: Option<&Result<Place, Broken>>, namespace: &str, hosts: &Hosts<'_>) -> Target {
    let broken = |why: String| Target::Broken(why.into());
    let cluster = |service: NamespacedName, port| ClusterKey { service, port, subset: Default::default() };
    match place {
        None => broken("it is not known yet what there is of its kind".to_owned()),
        Some(Err(wrong)) => broken(wrong.why.clone()),
        Some(Ok(Place::Service(service, Some(port)))) => Target::Cluster(cluster(service.clone(), *port)),
        Some(Ok(Place::Service(service, None))) => broken(format!("no port of {service} is named")),
        Some(Ok(Place::Host(name, port))) => {
            let full = hosts.full(name, namespace);
            let Some(found) = hosts.find(&full, namespace) else { return broken(format!("there is no host {name}")) };
            match port.or_else(|| found.only_port()) {
                Some(port) => Target::Cluster(cluster(hosts.name(found, &full), port)),
                None => broken(format!("no port of {name} is named, and it has {}", found.ports().join(", "))),
            }
        }
    }
}
