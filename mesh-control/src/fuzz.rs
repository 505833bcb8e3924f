//! Fuzz targets of this crate: bytes in, no panic, and what came out holds together.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_core::{ArcStr, Change};
use mesh_proto::discovery::{DeltaDiscoveryResponse, Resource};
use prost::Message;

use crate::index::{self, Settings};
use crate::manifest::file;
use crate::resource::catalog::{Catalog, Scan};
use crate::world::{Audience, Kind, Table, World};

/// A file of manifests, from bytes to what is sent. Whatever is read must be readable by a client, and every policy that a workload lists must
/// be there.
pub fn manifests(data: &[u8]) {
    let read = file::read("fuzz.yaml", data);
    for diagnosis in &read.diagnoses {
        assert!(!diagnosis.to_string().is_empty());
    }
    let scan = Scan { found: read.found.into_iter().map(|(f, _)| f).collect(), ..Scan::default() };
    let (objects, _) = Catalog::default().apply(&scan);
    let view = index::build(&objects, &Settings::default());
    for workload in view.workloads.values() {
        for policy in workload.authorization_policies.iter() {
            assert!(view.policies.contains_key(policy), "{} lists {policy}, which is not there", workload.uid);
        }
    }
    let gateways: BTreeSet<ArcStr> =
        view.tables.keys().chain(view.listeners.keys()).map(|name| name.to_string().into()).collect();
    let world = World::default().next(&Arc::new(view));
    let mut changes = Vec::new();
    for (name, message) in messages(&world, Kind::Address) {
        match mesh_proto::convert::address(&message) {
            Ok(mesh_proto::convert::AddressResource::Workload(w)) => changes.push(Change::Workload(w)),
            Ok(mesh_proto::convert::AddressResource::Service(s)) => changes.push(Change::Service(s)),
            Err(error) => panic!("{name} cannot be read by a client: {error}"),
        }
    }
    for (name, message) in messages(&world, Kind::Authorization) {
        match mesh_proto::convert::policy(&message) {
            Ok(policy) => changes.push(Change::Policy(policy)),
            Err(error) => panic!("{name} cannot be read by a client: {}", error.source),
        }
    }
    for (name, message) in messages(&world, Kind::Connections) {
        match mesh_proto::convert::connection_routes(&message) {
            Ok(read) if read.closed.is_empty() => changes.push(Change::Connections(read.routes)),
            Ok(read) => panic!("{name} cannot be read by a client: {:?}", read.closed),
            Err(error) => panic!("{name} cannot be read by a client: {error}"),
        }
    }
    for (name, message) in messages(&world, Kind::Outbound) {
        let scope = mesh_core::outbound::Scope::parse(&name);
        match (scope, mesh_proto::convert::outbound(&message)) {
            (Some(scope), Ok(said)) => changes.push(Change::Outbound(scope, said)),
            (_, read) => panic!("{name} cannot be read by a client: {read:?}"),
        }
    }
    mesh_core::Store::new().apply(changes);
    places(&world, &Audience::Agent);
    for gateway in gateways {
        own(&world, gateway);
    }
}

/// What a waypoint or gateway is sent of its own: all of it can be read there. Rules that are closed are written as such.
fn own(world: &World, gateway: ArcStr) {
    let audience = Audience::Waypoint(gateway);
    for (name, message) in messages_for(world, Kind::RouteTable, &audience) {
        match mesh_proto::convert::route_table(&message) {
            Ok(read) if read.closed.is_empty() => {}
            read => panic!("routes of {name} cannot be read by a client: {read:?}"),
        }
    }
    places(world, &audience);
    for (name, message) in messages_for(world, Kind::Listeners, &audience) {
        if let Err(error) = mesh_proto::convert::listeners(&message) {
            panic!("listeners of {name} cannot be read by a client: {error}");
        }
    }
}

/// How places are reached, and the labels that this takes.
fn places(world: &World, audience: &Audience) {
    for (name, message) in messages_for(world, Kind::Clusters, audience) {
        match mesh_proto::convert::clusters(&message) {
            Ok(read) if read.closed.is_empty() => {}
            read => panic!("places of {name} cannot be read by a client: {read:?}"),
        }
    }
    for (name, message) in messages_for(world, Kind::Labels, audience) {
        if let Err(error) = mesh_proto::convert::workload_labels(&message) {
            panic!("labels of {name} cannot be read by a client: {error}");
        }
    }
}

/// What a client finds in a response with everything of a kind, by name.
fn messages(world: &World, kind: Kind) -> Vec<(String, bytes::Bytes)> {
    messages_for(world, kind, &Audience::Agent)
}

fn messages_for(world: &World, kind: Kind, audience: &Audience) -> Vec<(String, bytes::Bytes)> {
    let step = world.since(kind, audience, &Table::default(), usize::MAX, true);
    let bytes: Vec<u8> = step.parts.iter().flatten().copied().collect();
    let Ok(response) = DeltaDiscoveryResponse::decode(&*bytes) else { panic!("a client cannot read the response") };
    let message = |r: Resource| (r.name, r.resource.unwrap_or_default().value);
    response.resources.into_iter().map(message).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_manifests_holds() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/manifests");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus is part of the repository") {
            super::manifests(&std::fs::read(entry.expect("an entry").path()).expect("a file"));
            count += 1;
        }
        assert!(count >= 10, "{count} files");
    }
}
